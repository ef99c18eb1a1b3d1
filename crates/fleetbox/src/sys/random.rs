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

/// One of version 4 (RFC 9562, section 5.4), in the order in which it is written as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uuid(pub [u8; 16]);

/// One that nobody else has.
pub(crate) fn uuid() -> Result<Uuid> {
    let mut bytes = bytes::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Uuid(bytes))
}

impl Uuid {
    /// To and from the order of a partition table, in which the first three fields are little-endian
    /// (UEFI specification, appendix A).
    pub(crate) fn mixed(self) -> Self {
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        Self(order.map(|at| self.0[at]))
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex = crate::images::hex(&self.0);
        let (a, rest) = hex.split_at(8);
        write!(f, "{a}-{}-{}-{}-{}", &rest[..4], &rest[4..8], &rest[8..12], &rest[12..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_tells_its_version_and_is_written_in_its_groups() {
        let text = uuid().unwrap().to_string();
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{text}");
        assert_eq!(&text[14..15], "4");
        assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
        assert_ne!(text, uuid().unwrap().to_string());
    }
}
