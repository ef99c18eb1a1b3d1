//! Owns images: where they come from, the cache of raw disks, and what a user can ask about them.
//! It must not know what a VM does with one.

pub(crate) mod qcow2;
pub(crate) mod space;
