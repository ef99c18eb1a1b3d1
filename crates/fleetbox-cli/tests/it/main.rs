//! The built command as its users have it: real processes, real holders, and the traces they leave.
//! Most of it runs over the fake backend, where a machine costs milliseconds; `real` boots.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start processes, wait for other processes, and say why they were skipped"
)]
#![cfg_attr(
    not(feature = "unstable-fake"),
    expect(dead_code, reason = "without the fake backend few tests are left")
)]

#[cfg(feature = "unstable-fake")]
mod cluster;
#[cfg(feature = "unstable-fake")]
mod commands;
#[cfg(feature = "unstable-fake")]
mod copies;
#[cfg(feature = "unstable-fake")]
mod derived;
mod fault;
#[cfg(feature = "unstable-fake")]
mod fixture;
mod home;
mod host;
mod input;
#[cfg(feature = "unstable-fake")]
mod kill;
#[cfg(feature = "unstable-fake")]
mod life;
#[cfg(feature = "unstable-fake")]
mod memory;
#[cfg(feature = "unstable-fake")]
mod net;
#[cfg(feature = "unstable-fake")]
mod openssh;
#[cfg(feature = "unstable-fake")]
mod peers;
#[cfg(feature = "unstable-fake")]
mod plan;
mod process;
mod real;
#[cfg(feature = "unstable-fake")]
mod routable;
mod run;
mod shell;
mod warm;
#[cfg(feature = "unstable-fake")]
mod sudo;
#[cfg(feature = "unstable-fake")]
mod together;
#[cfg(feature = "unstable-fake")]
mod timeline;
