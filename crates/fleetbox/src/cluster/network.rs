//! Owns what breaks a cluster's network, as methods of [`Cluster`]: it checks what is asked for and
//! hands it to the holder. It must not know how a fault is made.

use super::Cluster;
use std::os::fd::AsFd;
use std::path::Path;

use super::egress::Egress;
use super::fault::{FaultInfo, NetworkFault};
use super::link::Link;
use crate::capture::Capture;
use crate::control::client::Client;
use crate::control::message::{Broken, Fault};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;
use crate::store::paths::Paths;

/// Faults in the network. Each lasts as long as the [`NetworkFault`] that is returned. The host's own
/// way to the guests (SSH, connections, copies) survives all of them; so do names of members.
///
/// Every call's errors come before any work: [`ErrorKind::NotFound`] with the nearest name for an
/// unknown member, [`ErrorKind::NotRunning`] for one that does not run. A cut holds at once, for
/// flows that are there, too; only what is under way on a slow link to its receiver still arrives. A
/// kernel that cannot cut by
/// nftables is no obstacle: a relay in the holder does it then.
impl Cluster {
    /// Lets nothing through between the groups; within each, and with members that are in none,
    /// everything goes on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] if there are fewer than two groups, one is empty, or a member is in
    /// two.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let split = cluster.partition([vec!["node-1", "node-2"], vec!["node-3"]]).await?;
    /// // … the majority goes on …
    /// split.heal().await
    /// # }
    /// ```
    pub async fn partition<G, M>(&self, groups: G) -> Result<NetworkFault>
    where
        G: IntoIterator<Item = M>,
        M: IntoIterator<Item: AsRef<str>>,
    {
        let refused = |what: String| {
            Error::new(ErrorKind::InvalidSpec, format!("partition the network: {what}"))
                .hint("name two groups or more, each with members of its own")
        };
        let mut named: Vec<Vec<Name>> = Vec::new();
        for group in groups {
            let mut members = Vec::new();
            for vm in group {
                let vm = self.member(vm.as_ref())?;
                if named.iter().flatten().chain(&members).any(|known| *known == vm) {
                    return Err(refused(format!("{vm} is named twice")));
                }
                members.push(vm);
            }
            if members.is_empty() {
                return Err(refused("a group is empty".to_owned()));
            }
            named.push(members);
        }
        if named.len() < 2 {
            return Err(refused("there are fewer than two groups".to_owned()));
        }
        self.cause(Fault::Partition { groups: named }).await
    }

    /// Lets nothing through from one member to another; the way back stays. So most protocols fail
    /// both ways, but the other's words still arrive.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] if both are the same.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let deaf = cluster.cut("node-1", "node-2").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cut(&self, from: &str, to: &str) -> Result<NetworkFault> {
        let (from, to) = (self.member(from)?, self.member(to)?);
        if from == to {
            return Err(with_itself(&from));
        }
        self.cause(Fault::Cut { from, to }).await
    }

    /// Cuts a member off from all others, also from those added later, and from the world: its
    /// connections there are reset, and names outside the cluster are refused.
    ///
    /// # Errors
    /// Those of every fault.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let alone = cluster.isolate("node-1").await?;
    /// // The host still reaches it.
    /// cluster.vm("node-1")?.ssh("uptime").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn isolate(&self, vm: &str) -> Result<NetworkFault> {
        let vm = self.member(vm)?;
        self.cause(Fault::Isolate { vm }).await
    }

    /// Begins to describe a bad link of a member: all between it and everybody else, the world
    /// included, but not the host. Two members with such a link each have both between them.
    pub fn link(&self, vm: &str) -> Link {
        Link::new(self.clone(), vm, None)
    }

    /// Begins to describe a bad link between two members; what they exchange with others is not
    /// touched.
    pub fn link_between(&self, one: &str, other: &str) -> Link {
        Link::new(self.clone(), one, Some(other))
    }

    /// Sets what all members may reach outside the cluster. Of several policies for the same members
    /// the newest counts, and one [of a member's own](Cluster::egress_of) before those for all. Open
    /// connections it forbids are reset, names it forbids are refused.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] if a destination is not one.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// use fleetbox::Egress;
    ///
    /// let offline = cluster.egress(Egress::Deny).await?;
    /// let mirror = cluster.egress(Egress::only(["deb.debian.org:80"])).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn egress(&self, policy: Egress) -> Result<NetworkFault> {
        policy.check()?;
        self.cause(Fault::Egress { vm: None, policy: policy.into() }).await
    }

    /// [`Cluster::egress`] for one member.
    ///
    /// # Errors
    /// As [`Cluster::egress`].
    pub async fn egress_of(&self, vm: &str, policy: Egress) -> Result<NetworkFault> {
        policy.check()?;
        let vm = Some(self.member(vm)?);
        self.cause(Fault::Egress { vm, policy: policy.into() }).await
    }

    /// Heals every fault of the network, whoever caused it, kept or not; those of disks are
    /// [`Vm::heal_disk`](crate::Vm::heal_disk)'s. Does nothing if there is none.
    ///
    /// # Errors
    /// If the holder cannot be asked, or cannot mend what it broke.
    pub async fn heal(&self) -> Result<()> {
        match self.client()?.heal(Some(Broken::Network)).await {
            Err(e) if e.kind() == ErrorKind::NotRunning => Ok(()),
            healed => healed,
        }
    }

    /// The faults there are now, whoever caused them, the oldest first.
    ///
    /// # Errors
    /// If the holder cannot be asked.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// for fault in cluster.faults().await? {
    ///     println!("{}: {}", fault.id, fault.what);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn faults(&self) -> Result<Vec<FaultInfo>> {
        match self.client()?.faults().await {
            Err(e) if e.kind() == ErrorKind::NotRunning => Ok(Vec::new()),
            faults => Ok(faults?.into_iter().map(FaultInfo::from).collect()),
        }
    }

    /// Writes every frame on the cluster's bridge to a file in the pcap format: what the members send
    /// one another and the host, and what the host sends them. A frame is seen when it comes to the
    /// bridge, so one that a cut then drops is in the file, and one that a lossy link of its sender
    /// lost is not. Else as [`Vm::capture`](crate::Vm::capture).
    ///
    /// # Errors
    /// As [`Vm::capture`](crate::Vm::capture); [`ErrorKind::NotRunning`] if no member runs.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let capture = cluster.capture("cluster.pcap").await?;
    /// // …
    /// capture.stop().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn capture(&self, path: impl AsRef<Path>) -> Result<Capture> {
        if let Some(vm) = self.vms().first() {
            vm.note_capture(path.as_ref());
        }
        Capture::to_path(&self.client()?, None, path.as_ref()).await
    }

    /// [`Cluster::capture`] to what is open already, such as a pipe.
    ///
    /// # Errors
    /// As [`Cluster::capture`].
    pub async fn capture_to(&self, file: impl AsFd) -> Result<Capture> {
        Capture::to_file(&self.client()?, None, file.as_fd()).await
    }

    pub(super) async fn cause(&self, fault: Fault) -> Result<NetworkFault> {
        NetworkFault::cause(self.client()?, fault).await
    }

    /// The name of a member there is.
    pub(super) fn member(&self, vm: &str) -> Result<Name> {
        Name::new(self.vm(vm)?.name())
    }

    pub(super) fn client(&self) -> Result<Client> {
        Ok(Client::new(Paths::from_env()?.cluster(&self.inner.name).socket()))
    }
}

pub(super) fn with_itself(vm: &Name) -> Error {
    Error::new(ErrorKind::InvalidSpec, "break the network between a VM and itself")
        .vm(vm.as_str())
        .hint("name two members")
}
