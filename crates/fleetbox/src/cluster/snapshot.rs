//! Owns saving a whole [`Cluster`]. What a snapshot is, and what can be made of it, is [`Snapshot`]'s.

use super::Cluster;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{self, Snapshot, Source};
use crate::spec::Name;
use crate::store::paths::Paths;
use crate::store::record::SnapshotOf;
use crate::vm::State;

impl Cluster {
    /// Saves all members of the handle as they are at one instant: what one had sent to another by then
    /// has either arrived in the snapshot, or is as if lost on its way. All stand still until the last
    /// one does, a fraction of a second, and run on. [`Snapshot::fork_cluster`] makes another cluster
    /// of it. Otherwise as [`Vm::snapshot`](crate::Vm::snapshot).
    ///
    /// # Errors
    /// As [`Vm::snapshot`](crate::Vm::snapshot); a member that does not run is
    /// [`ErrorKind::NotRunning`], before any work.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let formed = cluster.snapshot("formed").await?;
    /// let other = formed.fork_cluster("other")?.start().await?;
    /// # drop(other);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn snapshot(&self, name: &str) -> Result<Snapshot> {
        let name = Name::new(name)?;
        env::cache_bytes()?;
        let vms = self.open()?.vms.clone();
        for vm in &vms {
            vm.able_to_save()?;
            if vm.state().await? == State::Stopped {
                return Err(Error::not_running(vm.name()));
            }
        }
        let Some(first) = vms.first() else {
            return Err(Error::new(ErrorKind::NotFound, "save a cluster: it has no members"));
        };
        let paths = Paths::from_env()?;
        let target = paths.snapshot(&name);
        let sources = vms.iter().map(Source::of).collect();
        let whole = Some(self.inner.name.clone());
        let cluster = first.cluster_paths();
        let record = snapshot::save(cluster, sources, whole, false, &target).await?;
        for vm in &vms {
            let (snapshot, vm_name) = (name.clone(), Name::new(vm.name())?);
            vm.note_snapshot(SnapshotOf { snapshot, vm: vm_name })?;
        }
        snapshot::keep_within_budget(&paths, target.dir())?;
        Ok(Snapshot::of(name.to_string(), target, record, false))
    }
}
