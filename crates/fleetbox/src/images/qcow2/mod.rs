//! Owns reading qcow2 images: their header, tables and clusters, and turning one, or
//! several that lie on another, into a sparse raw file. It must not trust a byte of them, and must not know where images come from.

mod cluster;
mod convert;
mod header;
mod overlay;
mod table;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

pub(crate) use convert::{convert, write_sparse};
pub(crate) use overlay::{copy, flatten};

/// The first four bytes of every qcow2 file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// A file read at offsets that are not to be trusted.
pub(super) struct Source<'a> {
    file: &'a File,
    path: &'a Path,
    length_bytes: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a File, path: &'a Path) -> Result<Self> {
        let length_bytes = file.metadata().map_err(|e| Error::io("read image", path, e))?.len();
        Ok(Self { file, path, length_bytes })
    }

    /// Fills `buffer` or says that the image is truncated.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.length_bytes) {
            return Err(self.damaged("it refers to data beyond its end (truncated download?)"));
        }
        self.file.read_exact_at(buffer, offset).map_err(|e| Error::io("read image", self.path, e))
    }

    pub(super) fn unsupported(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::ImageUnreadable,
            format!("read the qcow2 image {}: {what}", self.path.display()),
        )
        .hint("flatten it first: `qemu-img convert -O raw IMAGE IMAGE.raw`")
    }

    pub(super) fn damaged(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::ImageUnreadable,
            format!("read the qcow2 image {}: {what}", self.path.display()),
        )
        .hint("fetch the image again; `qemu-img check` tells more")
    }
}

#[cfg(test)]
mod tests;
