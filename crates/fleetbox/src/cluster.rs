//! Owns [`Cluster`]: machines on one network, held together. What a member does is its [`Vm`]'s;
//! `builder` says what is asked for, `start` makes it so; `network` breaks the network between
//! members, `fault_plan` everything by a schedule.

mod admission;
mod builder;
mod egress;
mod fault;
mod fault_plan;
mod link;
mod network;
mod snapshot;
mod start;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

pub use self::builder::ClusterBuilder;
use self::builder::Template;
pub use self::egress::Egress;
pub use self::fault::{FaultInfo, FaultKind, NetworkFault};
pub use self::fault_plan::{
    FaultPlan, FaultPlanBuilder, PlanEvent, PlanKind, PlanOutcome, PlanReport, PlanStep,
    PlannedFault,
};
pub use self::link::{Impairment, Link};
use crate::builder::VmBuilder;
use crate::error::{Error, ErrorKind, Result};
use crate::listing;
use crate::spec::Name;
use crate::store::paths::Paths;
use crate::store::{place, record};
use crate::vm::{STOP_GRACE, Vm};

/// Machines on a network of their own: each reaches the others by address, by name (`node-2`) and by
/// full name (`node-2.fleetbox.internal`), through the cluster's own name server. A member's address
/// goes by its place in the cluster and stays the same at every start. Clusters do not see one
/// another: two may have the same addresses at once.
///
/// A handle is cheap to clone; clones share the members. It has those it was started with, and those
/// added since; [`Cluster::find`] has all there are. A cluster started by a library call is *bound*,
/// as a [`Vm`] is: dropping the last handle to it, and the last clone of each member's, ends the
/// members, and so does the end of the process.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::Cluster;
///
/// let cluster = Cluster::builder("node").size(3).memory_mib(1024).start().await?;
/// for vm in &cluster {
///     println!("{} {}", vm.name(), vm.ssh("getent hosts node-1").await?);
/// }
/// cluster.add("node-4").await?;
/// cluster.vm("node-2")?.power_cut().await?;
/// cluster.destroy().await
/// # }
/// ```
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    name: Name,
    template: Template,
    members: Mutex<Members>,
}

struct Members {
    /// In the order of their indices.
    vms: Vec<Vm>,
    closed: bool,
}

impl Cluster {
    /// Starts describing a cluster. Nothing happens until [`ClusterBuilder::start`].
    pub fn builder(name: impl Into<String>) -> ClusterBuilder {
        ClusterBuilder::new(name.into())
    }

    /// Starts describing the VMs of these names, as `fleetbox up` does: they are members of the
    /// cluster that has one of them already, else of one called like the first without a trailing
    /// `-<digits>`.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if they are in different clusters: the message says which is where.
    /// [`ErrorKind::InvalidName`]; [`ErrorKind::InvalidSpec`] if there is none.
    pub fn of<I: IntoIterator<Item: Into<String>>>(members: I) -> Result<ClusterBuilder> {
        let members: Vec<String> = members.into_iter().map(Into::into).collect();
        let names = members.iter().map(|name| Name::new(name)).collect::<Result<Vec<_>>>()?;
        let paths = Paths::from_env()?;
        let mut placed: Vec<(&Name, Name)> = Vec::new();
        for name in &names {
            if let Some(cluster) = place::cluster_of(&paths, name)? {
                placed.push((name, cluster));
            }
        }
        let cluster = match (placed.first(), names.first()) {
            (Some((_, cluster)), _) => cluster.clone(),
            (None, Some(first)) => first.likely_cluster(),
            (None, None) => return Err(builder::nobody()),
        };
        if placed.iter().any(|(_, other)| *other != cluster) {
            return Err(apart(&placed));
        }
        Ok(ClusterBuilder::new(cluster.to_string()).members(members))
    }

    /// A handle to all members of an existing cluster, running or not, without holding them: they may
    /// end at any time. Members added through it are held, and get default options unless told
    /// otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, with the nearest name.
    pub fn find(name: &str) -> Result<Self> {
        let name = Name::new(name)?;
        let paths = Paths::from_env()?;
        let vms = listing::members(&paths, &name)?;
        if vms.is_empty() {
            return Err(no_cluster(&name, &record::clusters(&paths).unwrap_or_default()));
        }
        Ok(Self::of_vms(name, Template::default(), vms))
    }

    fn of_vms(name: Name, template: Template, vms: Vec<Vm>) -> Self {
        let members = Mutex::new(Members { vms, closed: false });
        Self { inner: Arc::new(Inner { name, template, members }) }
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name.as_str()
    }

    /// The member of that name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the nearest name; [`ErrorKind::NotRunning`] after
    /// [`Cluster::close`].
    pub fn vm(&self, name: &str) -> Result<Vm> {
        let members = self.open()?;
        match members.vms.iter().find(|vm| vm.name() == name) {
            Some(vm) => Ok(vm.clone()),
            None => Err(self.no_member(name, &members.vms)),
        }
    }

    /// The members in the order of their addresses. None after [`Cluster::close`].
    #[must_use]
    pub fn vms(&self) -> Vec<Vm> {
        self.lock().vms.clone()
    }

    /// Goes through the members as [`Cluster::vms`] has them.
    pub fn iter(&self) -> std::vec::IntoIter<Vm> {
        self.vms().into_iter()
    }

    /// How many members the handle has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().vms.len()
    }

    /// Whether the handle has no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts one more member, with the options of the cluster's builder: creates it if it is
    /// missing, boots it if it is stopped, joins it if it runs. The others reach it by its name when
    /// this returns, and it reaches them.
    ///
    /// Dropped before it is done, it leaves nothing running.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] before any work if another cluster has a VM of that name;
    /// [`ErrorKind::NotRunning`] after [`Cluster::close`]; else as
    /// [`VmBuilder::start`]. A member that was created and does not come up is removed again.
    pub async fn add(&self, name: &str) -> Result<Vm> {
        self.add_with(name, |vm| vm).await
    }

    /// [`Cluster::add`] with options of the member's own, on top of the cluster's.
    ///
    /// # Errors
    /// As [`Cluster::add`].
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let db = cluster.add_with("db", |vm| vm.memory_mib(2048).disk_gib(40)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn add_with(
        &self,
        name: &str,
        options: impl FnOnce(VmBuilder) -> VmBuilder,
    ) -> Result<Vm> {
        let name = Name::new(name)?;
        drop(self.open()?);
        let request = options(self.inner.template.builder(&name)).request()?;
        let plan = start::Plan {
            cluster: self.inner.name.clone(),
            requests: vec![request],
            boots_at_once: None,
        };
        let Some(vm) = start::start(plan).await?.pop() else {
            return Err(Error::new(ErrorKind::Internal, "find what was started"));
        };
        let mut members = self.lock();
        if members.closed {
            // The new member goes with its handle, unless it is detached.
            return Err(self.is_closed());
        }
        members.vms.retain(|known| known.name() != vm.name());
        members.vms.push(vm.clone());
        members.vms.sort_by_key(Vm::index);
        Ok(vm)
    }

    /// Ends that member at once and deletes it, disk and all. Its name resolves no more.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the nearest name; [`ErrorKind::NotRunning`] after
    /// [`Cluster::close`]; else as [`Vm::destroy`].
    pub async fn remove(&self, name: &str) -> Result<()> {
        let vm = self.vm(name)?;
        vm.destroy().await?;
        self.lock().vms.retain(|known| known.name() != name);
        Ok(())
    }

    /// Stops the members side by side, as [`Vm::stop`] does. Their disks and addresses stay: the next
    /// start of the cluster, or [`Cluster::add`] of one, boots them again.
    ///
    /// # Errors
    /// The first member's that cannot be stopped; the others are stopped all the same.
    pub async fn stop(&self) -> Result<()> {
        self.stop_within(STOP_GRACE).await
    }

    /// [`Cluster::stop`] with a grace time of the caller's; zero cuts all off at once.
    ///
    /// # Errors
    /// As [`Cluster::stop`].
    pub async fn stop_within(&self, grace: Duration) -> Result<()> {
        side_by_side(self.vms(), move |vm| async move { vm.stop_within(grace).await }).await
    }

    /// Ends the members at once and deletes them, disks and all. Does nothing for those that are gone
    /// already. Members the handle does not have stay.
    ///
    /// # Errors
    /// The first member's whose files cannot be removed; the others are removed all the same.
    pub async fn destroy(&self) -> Result<()> {
        side_by_side(self.vms(), |vm| async move { vm.destroy().await }).await?;
        self.lock().vms.clear();
        Ok(())
    }

    /// Lets go of all members, whoever has further clones of this handle or of theirs: bound ones end
    /// unless another handle holds them, detached ones live on. The handle is of no use afterwards:
    /// it has no members, and none can be added. Does nothing the second time.
    #[expect(clippy::unused_async, reason = "it may come to wait for the holder's word")]
    pub async fn close(&self) {
        let vms = {
            let mut members = self.lock();
            members.closed = true;
            std::mem::take(&mut members.vms)
        };
        for vm in vms {
            vm.let_go();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.inner.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members, unless the handle is closed.
    fn open(&self) -> Result<MutexGuard<'_, Members>> {
        let members = self.lock();
        if members.closed { Err(self.is_closed()) } else { Ok(members) }
    }

    fn is_closed(&self) -> Error {
        let name = self.name();
        Error::new(ErrorKind::NotRunning, format!("use the cluster {name}: the handle was closed"))
            .hint("take a new one by `Cluster::find`, or start the cluster again")
    }

    fn no_member(&self, name: &str, vms: &[Vm]) -> Error {
        let known: Vec<&str> = vms.iter().map(Vm::name).collect();
        let hint = match listing::nearest(name, known.iter().copied()) {
            Some(nearest) => format!("did you mean {nearest}?"),
            None => format!("it has {}", known.join(", ")),
        };
        let cluster = self.name();
        let shown = name.escape_debug();
        Error::new(ErrorKind::NotFound, format!("find \"{shown}\" in the cluster {cluster}"))
            .hint(hint)
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name()).field("members", &self.vms()).finish()
    }
}

/// The members in the order of their addresses, as [`Cluster::vms`].
impl IntoIterator for &Cluster {
    type Item = Vm;
    type IntoIter = std::vec::IntoIter<Vm>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Does the same to all at once, to the end; the error is that of the first in order.
async fn side_by_side<F>(vms: Vec<Vm>, act: impl Fn(Vm) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut acts = JoinSet::new();
    for (place, vm) in vms.into_iter().enumerate() {
        let act = act(vm);
        acts.spawn(async move { (place, act.await) });
    }
    let mut errors = Vec::new();
    while let Some(joined) = acts.join_next().await {
        match joined {
            Ok((_, Ok(()))) => {}
            Ok((place, Err(error))) => errors.push((place, error)),
            Err(e) => {
                errors.push((usize::MAX, Error::new(ErrorKind::Internal, "act on a VM").source(e)));
            }
        }
    }
    errors.sort_by_key(|(place, _)| *place);
    errors.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

fn no_cluster(name: &Name, clusters: &[Name]) -> Error {
    let hint = match listing::nearest(name.as_str(), clusters.iter().map(Name::as_str)) {
        Some(nearest) => format!("did you mean {nearest}? `fleetbox ls` shows all"),
        None => "`fleetbox ls` shows all".to_owned(),
    };
    Error::new(ErrorKind::NotFound, format!("find the cluster {name}: there is none")).hint(hint)
}

/// Names that cannot be started together.
fn apart(placed: &[(&Name, Name)]) -> Error {
    let places: Vec<String> =
        placed.iter().map(|(vm, cluster)| format!("{vm} is in {cluster}")).collect();
    Error::new(
        ErrorKind::Conflict,
        format!("start members of different clusters together: {}", places.join(", ")),
    )
    .hint("each cluster has a network of its own: start the members of each by themselves")
}
