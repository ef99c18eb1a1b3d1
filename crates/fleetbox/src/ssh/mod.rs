//! Owns the one SSH connection of a VM.
pub(crate) mod command;
