//! Owns making a VM's files ready: its disk, its seed, its kernel or firmware, the program that runs it.
//! It must not start anything.

pub(crate) mod disk;
pub(crate) mod firmware;
pub(crate) mod fixture;
pub(crate) mod kernel;
pub(crate) mod program;
pub(crate) mod seed;
