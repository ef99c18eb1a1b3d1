//! Real Linux machines as test fixtures: boots stock cloud images as VMs, configures each once with
//! cloud-init, and hands it to a test over SSH. Without root, with or without KVM; when the test
//! ends, or dies by `kill -9`, nothing is left.
//!
//! ```no_run
//! use fleetbox::Vm;
//!
//! #[fleetbox::test]
//! async fn nginx_answers(vm: Vm) -> fleetbox::Result<()> {
//!     vm.command("apt-get").args(["install", "-y", "nginx"]).sudo().run().await?;
//!     let mut web = vm.connect(80).await?;
//!     // … speak HTTP over `web` …
//!     # drop(web);
//!     Ok(())
//! }
//! # fn main() {}
//! ```
//!
//! It never prints, but for tests. What it has to tell beside errors and progress goes to the crate `log`, under
//! the target `fleetbox`.
//!
//! Modules in the order of the data's way: what a user holds (`cluster`, `vm`, `spec`, `error`), the pipeline
//! of a start (`launch`, `prepare`, `images`), the conversation with the holder (`control`), the
//! holder and what it holds (`holder`, `net`, `backend`), and SSH. ARCHITECTURE.md has the map.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start what they test against"))]

mod cluster;
mod vm;
mod builder;
mod capture;
mod spec;
mod error;
mod listing;
mod progress;
mod prune;
mod image;
mod snapshot;
mod timeline;
mod timings;
mod launch;
mod prepare;
pub mod images;
mod control;
mod holder;
mod backend;
mod net;
mod store;
mod ssh;
mod http;
mod console;
mod diagnose;
mod health;
mod bundle;
pub mod host;
pub mod blocking;
pub mod testing;
pub mod wait;
mod env;
mod sys;
#[cfg(test)]
mod skip;

pub use backend::nested::nested_virt_supported;
pub use backend::{Backend, Capabilities};
pub use builder::VmBuilder;
pub use capture::{Capture, Captured};
pub use cluster::{
    Cluster, ClusterBuilder, Egress, FaultInfo, FaultKind, FaultPlan, FaultPlanBuilder, Impairment,
    Link, NetworkFault, PlanEvent, PlanKind, PlanOutcome, PlanReport, PlanStep, PlannedFault,
};
pub use console::harmless;
pub use control::PROTOCOL;
pub use diagnose::{BootCause, BootReport, BootStage, BootUnit};
pub use error::{Error, ErrorKind, Fault, Result};
pub use fleetbox_macros::test;
pub use health::{Ailment, Finding, HealthMark};
pub use image::Image;
pub use images::{ImageInfo, ImageState};
pub use listing::{list, resolve};
pub use progress::{Progress, Stage};
pub use prune::prune;
pub use snapshot::{Snapshot, snapshots};
pub use spec::{
    Arch, DEFAULT_CPUS, DEFAULT_DISK_GIB, DEFAULT_IMAGE, DEFAULT_MEMORY_MIB, DEFAULT_USER, Fixture,
};
pub use ssh::{
    Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Signal, Stdio,
    Terminal,
};
pub use timeline::{TimelineEntry, TimelineEvent};
pub use timings::Timings;
pub use vm::{Disk, DiskImpairment, State, Vm, VmInfo, pass_connection};

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
