//! Owns the backends: what boots a VM.

pub(crate) mod fake;
