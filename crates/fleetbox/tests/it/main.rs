//! The public API as a user has it: over the fake backend, where only coordination counts, and on
//! real machines where `FLEETBOX_REQUIRE` or the host allows.
#![expect(clippy::print_stderr, reason = "a skipped test says why")]

mod attribute;
mod child;
#[cfg(feature = "unstable-fake")]
mod cluster;
mod conformance;
mod derived;
mod diagnose;
#[cfg(feature = "unstable-fake")]
mod fake;
#[cfg(feature = "unstable-fake")]
mod fault_plan;
mod firmware;
mod guide;
mod health;
mod input;
#[cfg(feature = "unstable-fake")]
mod net_faults;
mod readme;
mod real;
mod require;
#[cfg(feature = "unstable-fake")]
mod testing;
#[cfg(feature = "unstable-fake")]
mod timeline;
mod waits;

/// What machines of tests have that need nothing else: of one kind, one is booted for all.
const MEMORY_MIB: u32 = 1024;

/// A name no other test, process or checkout uses.
fn unique(part: &str) -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{part}-t{:06x}", random & 0xff_ffff)
}
