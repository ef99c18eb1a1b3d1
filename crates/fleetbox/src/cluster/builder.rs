//! Owns [`ClusterBuilder`]: what may be said of a cluster before it is started, and the checks that
//! need neither disk nor holder. It must not start anything; `start` does.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::start::{self, Plan};
use super::{Cluster, listing};
use crate::backend::Backend;
use crate::builder::VmBuilder;
use crate::error::{Error, ErrorKind, Result};
use crate::launch::StartRequest;
use crate::net::plan::MEMBERS_MAX;
use crate::progress::Progress;
use crate::spec::{Arch, Fixture, Name};

type Change = Arc<dyn Fn(VmBuilder) -> VmBuilder + Send + Sync>;
type Told = Arc<dyn Fn(&str, Progress) + Send + Sync>;

/// Describes a cluster to start. Options are defaults for every member; they count when a member is
/// created, an existing one keeps its own, and says so.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::Cluster;
///
/// let shop = Cluster::builder("shop")
///     .members(["db", "web"])
///     .memory_mib(1024)
///     .member("db", |vm| vm.memory_mib(4096).disk_gib(100))
///     .start()
///     .await?;
/// assert_eq!(shop.vm("web")?.ssh("getent hosts db | wc -l").await?, "1");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "nothing happens until `start`"]
pub struct ClusterBuilder {
    name: String,
    size: Option<usize>,
    members: Option<Vec<String>>,
    template: Template,
    boots_at_once: Option<usize>,
}

/// What members are made by, also those that are added later.
#[derive(Clone)]
pub(super) struct Template {
    every: VmBuilder,
    /// By name, in the order in which they were said.
    one: Vec<(String, Change)>,
    told: Option<Told>,
}

impl Default for Template {
    fn default() -> Self {
        Self { every: VmBuilder::new(String::new()), one: Vec::new(), told: None }
    }
}

impl Template {
    /// The member's builder, with what was said of it in particular.
    pub(super) fn builder(&self, member: &Name) -> VmBuilder {
        let mut builder = self.every.named(member);
        if let Some(told) = self.told.clone() {
            let name = member.to_string();
            builder = builder.on_progress(move |event| told(&name, event));
        }
        let changes = self.one.iter().filter(|(name, _)| name == member.as_str());
        changes.fold(builder, |builder, (_, change)| change(builder))
    }
}

impl ClusterBuilder {
    pub(super) fn new(name: String) -> Self {
        let template = Template::default();
        Self { name, size: None, members: None, template, boots_at_once: None }
    }

    /// Members named after the cluster: `NAME-1` to `NAME-size`.
    pub fn size(mut self, size: usize) -> Self {
        self.size = Some(size);
        self
    }

    /// Members by name, in the order of their addresses. Their names are unique among all VMs, not
    /// only in the cluster.
    pub fn members<I: IntoIterator<Item: Into<String>>>(mut self, members: I) -> Self {
        self.members = Some(members.into_iter().map(Into::into).collect());
        self
    }

    /// Options of every member, in the form of a VM's.
    pub fn every(mut self, options: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        self.template.every = options(self.template.every);
        self
    }

    /// Options of one member's own, on top of the cluster's. Also for a member that is added later.
    pub fn member(
        mut self,
        name: impl Into<String>,
        options: impl Fn(VmBuilder) -> VmBuilder + Send + Sync + 'static,
    ) -> Self {
        self.template.one.push((name.into(), Arc::new(options)));
        self
    }

    /// The image, as [`VmBuilder::image`].
    pub fn image(self, image: impl Into<String>) -> Self {
        self.every(|vm| vm.image(image))
    }

    /// The guests' architecture, as [`VmBuilder::arch`].
    pub fn arch(self, arch: Arch) -> Self {
        self.every(|vm| vm.arch(arch))
    }

    /// Virtual CPUs of each member, as [`VmBuilder::cpus`].
    pub fn cpus(self, cpus: u32) -> Self {
        self.every(|vm| vm.cpus(cpus))
    }

    /// Memory of each member in MiB, as [`VmBuilder::memory_mib`].
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        self.every(|vm| vm.memory_mib(memory_mib))
    }

    /// Disk size of each member in GiB, as [`VmBuilder::disk_gib`].
    pub fn disk_gib(self, disk_gib: u32) -> Self {
        self.every(|vm| vm.disk_gib(disk_gib))
    }

    /// A directory of the host for each member, as [`VmBuilder::fixture`]. Those that start together get
    /// the same.
    pub fn fixture(self, host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        self.every(|vm| vm.fixture(host, guest))
    }

    /// Several for each member, as [`VmBuilder::fixtures`].
    pub fn fixtures<I: IntoIterator<Item: Into<Fixture>>>(self, fixtures: I) -> Self {
        self.every(|vm| vm.fixtures(fixtures))
    }

    /// Whether members come from a golden machine instead of a boot of their own, as
    /// [`VmBuilder::warm`].
    pub fn warm(self, warm: bool) -> Self {
        self.every(|vm| vm.warm(warm))
    }

    /// Whether KVM is to work inside the members, as [`VmBuilder::nested_virt`].
    pub fn nested_virt(self, nested_virt: bool) -> Self {
        self.every(|vm| vm.nested_virt(nested_virt))
    }

    /// The backend, as [`VmBuilder::backend`].
    pub fn backend(self, backend: Backend) -> Self {
        self.every(|vm| vm.backend(backend))
    }

    /// Whether the members live on when nobody holds them, as [`VmBuilder::detached`].
    pub fn detached(self, detached: bool) -> Self {
        self.every(|vm| vm.detached(detached))
    }

    /// Whether the members' disks keep their word as real ones do, as [`VmBuilder::durable`].
    pub fn durable(self, durable: bool) -> Self {
        self.every(|vm| vm.durable(durable))
    }

    /// Whether the members' disks go with the machines, as [`VmBuilder::ephemeral`].
    pub fn ephemeral(self, ephemeral: bool) -> Self {
        self.every(|vm| vm.ephemeral(ephemeral))
    }

    /// Whether the host is to reach the members by addresses of their own, as
    /// [`VmBuilder::host_routable`].
    pub fn host_routable(self, host_routable: bool) -> Self {
        self.every(|vm| vm.host_routable(host_routable))
    }

    /// How long each guest may take until it answers, as [`VmBuilder::timeout`]. It counts from the
    /// guest's own boot: waiting for room is not in it.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.every(|vm| vm.timeout(timeout))
    }

    /// How many members may boot at once. By default as many as the host has cores, at least two. Who
    /// has to wait says so.
    pub fn boots_at_once(mut self, boots: usize) -> Self {
        self.boots_at_once = Some(boots);
        self
    }

    /// Calls `f` with the member's name and each event of its start. It runs on the runtime's threads,
    /// for several members at once: be quick.
    pub fn on_progress(mut self, f: impl Fn(&str, Progress) + Send + Sync + 'static) -> Self {
        self.template.told = Some(Arc::new(f));
        self
    }

    /// Starts the members side by side, all or none: each is created if it is missing, booted if it is
    /// stopped, joined if it runs. Returns when all answer over SSH.
    ///
    /// If one fails, the others are given up: what this call created is destroyed, what it booted is
    /// stopped, what ran before goes on.
    ///
    /// It waits until the host has the memory of all of them together, as [`VmBuilder::start`] does for
    /// one, so clusters that are started at once never wait for each other half up. Where nothing runs but
    /// the cluster itself, or other clusters that wait for more, they start all the same, and say so.
    ///
    /// Dropped before it is done, it leaves nothing running that did not run before; the disks of
    /// members it created stay, unless they are ephemeral.
    ///
    /// # Errors
    /// The failed member's, with its name, as [`VmBuilder::start`]. Before any work:
    /// [`ErrorKind::InvalidSpec`](ErrorKind) if there are no members, more than 240, one twice, or
    /// both a size and names; [`ErrorKind::Conflict`](ErrorKind) if a member's name is in another
    /// cluster.
    pub async fn start(self) -> Result<Cluster> {
        let template = self.template.clone();
        let plan = self.plan()?;
        let cluster = plan.cluster.clone();
        let vms = start::start(plan).await?;
        Ok(Cluster::of_vms(cluster, template, vms))
    }

    /// Everything that is wrong without looking at the host is refused here.
    fn plan(self) -> Result<Plan> {
        let cluster = Name::new(&self.name)?;
        let names = self.names(&cluster)?;
        for (name, _) in &self.template.one {
            if !names.iter().any(|member| member.as_str() == name) {
                return Err(stranger(name, &names));
            }
        }
        if self.boots_at_once == Some(0) {
            return Err(Error::new(ErrorKind::InvalidSpec, "boot no member at once")
                .hint("give boots_at_once 1 or more, or leave it out"));
        }
        let requests: Vec<StartRequest> = names
            .iter()
            .map(|name| self.template.builder(name).request())
            .collect::<Result<Vec<_>>>()?;
        for request in &requests {
            request.spec.check().map_err(|e| e.vm(request.name.as_str()))?;
        }
        Ok(Plan { cluster, requests, boots_at_once: self.boots_at_once })
    }

    fn names(&self, cluster: &Name) -> Result<Vec<Name>> {
        let count = match (self.size, &self.members) {
            (Some(_), Some(_)) => {
                return Err(Error::new(
                    ErrorKind::InvalidSpec,
                    format!("start the cluster {cluster}: it has both a size and names of members"),
                )
                .hint("give either, not both"));
            }
            (Some(size), None) => size,
            (None, Some(members)) => members.len(),
            (None, None) => 0,
        };
        if count == 0 {
            return Err(nobody());
        }
        if count > MEMBERS_MAX {
            return Err(too_many(cluster, count));
        }
        let names = match &self.members {
            Some(members) => members.iter().map(|name| Name::new(name)).collect::<Result<_>>()?,
            None => (1..=count)
                .map(|number| Name::new(&format!("{cluster}-{number}")))
                .collect::<Result<Vec<_>>>()?,
        };
        for (place, name) in names.iter().enumerate() {
            if names[..place].contains(name) {
                return Err(Error::new(
                    ErrorKind::InvalidSpec,
                    format!("have {name} twice in the cluster {cluster}"),
                )
                .hint("name each member once"));
            }
        }
        Ok(names)
    }
}

impl fmt::Debug for ClusterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterBuilder")
            .field("name", &self.name)
            .field("size", &self.size)
            .field("members", &self.members)
            .field("every", &self.template.every)
            .finish_non_exhaustive()
    }
}

pub(super) fn nobody() -> Error {
    Error::new(ErrorKind::InvalidSpec, "start a cluster without members")
        .hint("give a size of 1 or more, or names of members")
}

pub(super) fn too_many(cluster: &Name, count: usize) -> Error {
    Error::new(
        ErrorKind::InvalidSpec,
        format!("have {count} members in the cluster {cluster}: {MEMBERS_MAX} fit"),
    )
    .hint("use several clusters; each has a network of its own")
}

/// Options for a member that is not to be started.
fn stranger(name: &str, members: &[Name]) -> Error {
    let nearest = listing::nearest(name, members.iter().map(Name::as_str));
    let hint = match nearest {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "give options to members of this start".to_owned(),
    };
    let shown = name.escape_debug();
    Error::new(ErrorKind::InvalidSpec, format!("give options to \"{shown}\", which is no member"))
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(builder: ClusterBuilder) -> Vec<String> {
        builder.plan().unwrap().requests.iter().map(|r| r.name.to_string()).collect()
    }

    fn refused(builder: ClusterBuilder, word: &str) {
        let error = builder.plan().err().expect("it is refused");
        assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error:?}");
        assert!(error.hint_text().is_some(), "{error:?}");
        assert!(error.report().contains(word), "no {word} in {}", error.report());
    }

    #[test]
    fn a_size_numbers_the_members_and_names_are_kept() {
        assert_eq!(names(Cluster::builder("node").size(3)), ["node-1", "node-2", "node-3"]);
        assert_eq!(names(Cluster::builder("shop").members(["web", "db-7"])), ["web", "db-7"]);
        assert_eq!(names(Cluster::builder("node").size(MEMBERS_MAX)).len(), MEMBERS_MAX);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let builder = || Cluster::builder("node");
        refused(builder(), "without members");
        refused(builder().size(0), "without members");
        refused(builder().members(Vec::<String>::new()), "without members");
        refused(builder().size(300), "240 fit");
        refused(builder().size(usize::MAX), "240 fit");
        refused(builder().size(2).members(["a"]), "both");
        refused(builder().members(["a", "b", "a"]), "a twice");
        refused(builder().size(2).member("node-3", |vm| vm), "node-2?");
        refused(builder().size(2).boots_at_once(0), "boots_at_once");
        refused(builder().size(2).cpus(0), "node-1: cpus = 0");
        refused(builder().size(2).member("node-2", |vm| vm.memory_mib(1)), "node-2: memory_mib");
        for bad in ["", "UPPER", "a.b", &"x".repeat(62)] {
            let error = Cluster::builder(bad).size(1).plan().err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{bad:?}");
        }
    }

    #[test]
    fn a_members_own_options_come_last() {
        let plan = Cluster::builder("node")
            .size(2)
            .member("node-2", |vm| vm.memory_mib(2048))
            .memory_mib(512)
            .cpus(1)
            .plan()
            .unwrap();
        let specs: Vec<_> =
            plan.requests.iter().map(|r| (r.spec.memory_mib, r.spec.cpus)).collect();
        assert_eq!(specs, [(512, 1), (2048, 1)]);
    }
}
