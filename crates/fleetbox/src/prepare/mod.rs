//! Owns making a VM's files ready: its disk, its seed, its kernel.
//! It must not start anything.

pub(crate) mod disk;
pub(crate) mod kernel;
pub(crate) mod seed;
