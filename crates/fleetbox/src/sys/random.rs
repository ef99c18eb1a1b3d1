//! Owns the kernel's random bytes.

use std::fs::File;
use std::io::{self, Read};

use crate::error::{Error, Result};

const SOURCE: &str = "/dev/urandom";

/// Bytes that nobody guesses.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let read = || -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        File::open(SOURCE)?.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|e| Error::io("read", SOURCE.as_ref(), e))
}

/// As many as hexadecimal text.
pub(crate) fn hex<const N: usize>() -> Result<String> {
    bytes::<N>().map(|bytes| crate::images::hex(&bytes))
}
