//! Owns what is on disk below the state root: where things are, their records, their locks.
//! It must not know what a backend, an image format or SSH is.

pub(crate) mod lock;
pub(crate) mod memory;
mod owner;
pub(crate) mod paths;
pub(crate) mod place;
pub(crate) mod record;
pub(crate) mod snapshot;
pub(crate) mod timeline;
pub(crate) mod whole;
