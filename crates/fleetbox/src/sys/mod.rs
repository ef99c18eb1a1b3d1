//! Owns every call that is unsafe or particular to an operating system. It must not know what a
//! VM is.
#![expect(unsafe_code, reason = "the one place for it")]

#[cfg(feature = "unstable-fake")]
pub(crate) mod session;
pub(crate) mod user;
