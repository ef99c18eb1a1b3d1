//! Owns the conversation between a caller and a holder: newline-delimited JSON over a unix socket,
//! one request a connection. It must not know how either side does its work.

pub(crate) mod client;
pub(crate) mod frame;
pub(crate) mod message;

/// The version of the protocol between a caller and a holder. A peer of another one is refused with
/// the fix.
pub const PROTOCOL: u32 = 1;
