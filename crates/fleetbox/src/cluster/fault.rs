//! Owns [`NetworkFault`], the hand on something broken in a cluster's network, and [`FaultInfo`],
//! what is broken now. It must not break anything itself.

use std::fmt;
use std::time::Duration;

use super::egress::Egress;
use super::link::Impairment;
use crate::control::client::{Client, FaultHold};
use crate::control::message::{ActiveFault, Fault};
use crate::error::{ErrorKind, Result};
use crate::vm::DiskImpairment;

/// Something that is broken in a cluster's network, from when it is returned until it is healed: by
/// [`NetworkFault::heal`], by dropping this, or by the end of the process, be it by `kill -9`. Only
/// a [kept](NetworkFault::keep) one stays, until [`Cluster::heal`](crate::Cluster::heal) or until no
/// member runs any more.
///
/// Faults may overlap: what two forbid is allowed again when both are healed. A member that is
/// stopped and started again is still at fault.
///
/// ```no_run
/// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
/// let fault = cluster.isolate("node-1").await?;
/// // … the others elect a new leader …
/// fault.heal().await
/// # }
/// ```
#[must_use = "the fault is healed when this is dropped"]
pub struct NetworkFault {
    client: Client,
    hold: FaultHold,
}

impl NetworkFault {
    pub(crate) async fn cause(client: Client, fault: Fault) -> Result<Self> {
        let hold = client.fault(fault).await?;
        Ok(Self { client, hold })
    }

    /// The fault's number in its cluster, as [`FaultInfo::id`] has it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.hold.id
    }

    /// What the dice of a [link](crate::Cluster::link) were seeded with, given or drawn: given
    /// again, the n-th frame each way has the same fate. `None` for faults without chance.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.hold.seed
    }

    /// Heals it, and returns when that is done; dropping it does the same without waiting. Frames
    /// under way on a slow link arrive at once. Does nothing if it is healed already.
    ///
    /// # Errors
    /// If the holder cannot be asked, or cannot mend what it broke.
    pub async fn heal(self) -> Result<()> {
        match self.client.heal_fault(self.hold.id).await {
            // Without a holder there is no network that could be at fault.
            Err(e) if e.kind() == ErrorKind::NotRunning => Ok(()),
            healed => healed,
        }
    }

    /// Lets it stay when this handle and the process are gone.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it was healed meanwhile.
    pub async fn keep(self) -> Result<()> {
        self.client.keep_fault(self.hold.id).await
    }
}

impl fmt::Debug for NetworkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkFault").field("id", &self.id()).field("seed", &self.seed()).finish()
    }
}

/// Something that is broken now.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FaultInfo {
    /// Its number in its cluster; none is used twice while members run.
    pub id: u64,
    /// What is broken.
    pub what: FaultKind,
    /// Whether it stays when whoever caused it is gone.
    pub kept: bool,
    /// How long it has been there.
    pub age: Duration,
}

/// What can be broken in a cluster's network. `Display` says it in a
/// line, in the words of `fleetbox net`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FaultKind {
    /// [`Cluster::cut`](crate::Cluster::cut).
    #[non_exhaustive]
    Cut {
        /// The member whose frames do not arrive.
        from: String,
        /// The member at which they do not.
        to: String,
    },
    /// [`Cluster::partition`](crate::Cluster::partition).
    #[non_exhaustive]
    Partition {
        /// The members that still reach one another.
        groups: Vec<Vec<String>>,
    },
    /// [`Cluster::isolate`](crate::Cluster::isolate).
    #[non_exhaustive]
    Isolate {
        /// The member that is alone.
        vm: String,
    },
    /// [`Cluster::link`](crate::Cluster::link), or with a peer
    /// [`Cluster::link_between`](crate::Cluster::link_between).
    #[non_exhaustive]
    Link {
        /// The member.
        vm: String,
        /// The member at the other end, else everything but the host.
        peer: Option<String>,
        /// What the link does.
        impairment: Impairment,
        /// What its dice were seeded with.
        seed: u64,
    },
    /// [`Vm::disk`](crate::Vm::disk).
    #[non_exhaustive]
    Disk {
        /// The member.
        vm: String,
        /// What its disk does.
        disk: DiskImpairment,
    },
    /// [`Cluster::egress`](crate::Cluster::egress).
    #[non_exhaustive]
    Egress {
        /// The member it is for, else all.
        vm: Option<String>,
        /// What they may reach.
        policy: Egress,
    },
}

impl From<ActiveFault> for FaultInfo {
    fn from(active: ActiveFault) -> Self {
        let age = Duration::from_millis(active.age_ms);
        Self { id: active.id, what: active.fault.into(), kept: active.kept, age }
    }
}

impl From<Fault> for FaultKind {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Cut { from, to } => Self::Cut { from: from.to_string(), to: to.to_string() },
            Fault::Partition { groups } => {
                let names = |group: Vec<_>| group.iter().map(ToString::to_string).collect();
                Self::Partition { groups: groups.into_iter().map(names).collect() }
            }
            Fault::Isolate { vm } => Self::Isolate { vm: vm.to_string() },
            Fault::Link { vm, peer, link, seed } => Self::Link {
                vm: vm.to_string(),
                peer: peer.map(|peer| peer.to_string()),
                impairment: link.into(),
                seed: seed.unwrap_or_default(),
            },
            Fault::Disk { vm, disk } => Self::Disk { vm: vm.to_string(), disk: disk.into() },
            Fault::Egress { vm, policy } => {
                Self::Egress { vm: vm.map(|vm| vm.to_string()), policy: policy.into() }
            }
        }
    }
}

impl FaultKind {
    /// One word for its kind: `cut`, `partition`, `isolate`, `link`, `egress` or `disk`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "cut",
            Self::Partition { .. } => "partition",
            Self::Isolate { .. } => "isolate",
            Self::Link { .. } => "link",
            Self::Egress { .. } => "egress",
            Self::Disk { .. } => "disk",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut { from, to } => write!(f, "cut {from} {to}"),
            Self::Partition { groups } => {
                let groups: Vec<String> = groups.iter().map(|group| group.join(",")).collect();
                write!(f, "partition {}", groups.join(" / "))
            }
            Self::Isolate { vm } => write!(f, "isolate {vm}"),
            Self::Link { vm, peer, impairment, seed } => {
                write!(f, "link {vm}")?;
                if let Some(peer) = peer {
                    write!(f, " {peer}")?;
                }
                write!(f, " {impairment} --seed {seed}")
            }
            Self::Disk { vm, disk } => write!(f, "disk {vm} {disk}"),
            Self::Egress { vm, policy } => {
                write!(f, "egress ")?;
                if let Some(vm) = vm {
                    write!(f, "{vm} ")?;
                }
                write!(f, "{policy}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Name;

    #[test]
    fn a_fault_is_said_in_a_line() {
        let name = |text: &str| Name::new(text).unwrap();
        let groups = vec![vec![name("a"), name("b")], vec![name("c")]];
        let link = crate::control::message::Link {
            latency_us: 50_000,
            loss: 0.1,
            bandwidth_kbit_per_s: Some(10_000),
            ..Default::default()
        };
        for (fault, line) in [
            (Fault::Cut { from: name("a"), to: name("b") }, "cut a b"),
            (Fault::Partition { groups }, "partition a,b / c"),
            (
                Fault::Link { vm: name("a"), peer: None, link, seed: Some(3) },
                "link a --latency 50ms --loss 10% --bandwidth 10mbit --seed 3",
            ),
        ] {
            assert_eq!(FaultKind::from(fault).to_string(), line);
        }
    }
}
