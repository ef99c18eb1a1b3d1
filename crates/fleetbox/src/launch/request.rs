//! Owns what a start is asked for, and the trail it leaves for whoever has to undo it. It must not act
//! on either.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::admission::Granted;
use super::{Packed, fixtures, ready};
use crate::backend::{Accel, Backend};
use crate::error::Result;
use crate::progress::ProgressSink;
use crate::spec::{Name, VmSpec};
use crate::store::lock::Lock;
use crate::store::paths::Paths;
use crate::store::record::SnapshotOf;

/// What `start` was asked for.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "independent options, each set by name")]
pub(crate) struct StartRequest {
    pub name: Name,
    /// The cluster it must be in; by default the one that has it, else the one its name suggests.
    pub cluster: Option<Name>,
    /// The index it gets if it is made now and nobody has it; by default the lowest free one.
    pub index: Option<usize>,
    /// Further names by which its fellows know it, if it is made now.
    pub aliases: Vec<Name>,
    pub spec: VmSpec,
    /// Whether the caller chose anything of the spec, so that ignoring it is worth a word.
    pub spec_given: bool,
    pub backend: Option<Backend>,
    /// What it comes from if it is made now.
    pub origin: Origin,
    pub detached: bool,
    pub ephemeral: bool,
    pub host_routable: bool,
    pub timeout: Option<Duration>,
    pub progress: ProgressSink,
    pub trail: Trail,
    /// Where several starts of one caller into one cluster queue, so that none takes a sibling for
    /// another process: they share the cluster's lock.
    pub queue: Arc<tokio::sync::Mutex<Weak<Lock>>>,
    /// The fixtures that others of the same start have.
    pub packed: Packed,
    /// The memory it was given already, with others.
    pub memory: Option<Granted>,
}

impl StartRequest {
    /// Refuses what cannot be, before any work.
    pub(crate) fn check(&self, paths: &Paths) -> Result<()> {
        self.spec.check()?;
        if !matches!(self.origin, Origin::Snapshot(_)) {
            fixtures::check(paths, &self.spec.fixtures)?;
        }
        crate::env::memory_limit()?;
        crate::env::cache_bytes()?;
        if self.host_routable {
            crate::net::check_host_routable()?;
        }
        ready::limit(self.timeout, Accel::Tcg)?;
        Ok(())
    }
}

/// What a VM that is made comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A boot of its own.
    #[default]
    Boot,
    /// A machine that was booted for all that want the same.
    Warm,
    /// A machine in a snapshot.
    Snapshot(SnapshotOf),
}

/// What a start did so far, for whoever has to undo it, also when it was dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trail(Arc<TrailMarks>);

#[derive(Debug, Default)]
struct TrailMarks {
    created: AtomicBool,
    booted: AtomicBool,
}

impl Trail {
    pub(super) fn creates(&self) {
        self.0.created.store(true, Ordering::Relaxed);
    }

    pub(super) fn boots(&self) {
        self.0.booted.store(true, Ordering::Relaxed);
    }

    /// It made the VM.
    pub(crate) fn created(&self) -> bool {
        self.0.created.load(Ordering::Relaxed)
    }

    /// It booted the VM, or was about to.
    pub(crate) fn booted(&self) -> bool {
        self.0.booted.load(Ordering::Relaxed)
    }
}
