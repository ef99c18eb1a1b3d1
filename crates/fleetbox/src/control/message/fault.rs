//! Owns the wire types of faults in networks and disks. Frozen as all of the wire is. No behaviour here.

use serde::{Deserialize, Serialize};

use crate::spec::Name;

/// What is broken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum Fault {
    /// Nothing goes from one member to another; the way back stays.
    Cut { from: Name, to: Name },
    /// Nothing goes from one group to another.
    Partition { groups: Vec<Vec<Name>> },
    /// Nothing goes to or from the member but the host's own traffic.
    Isolate { vm: Name },
    /// The member's link, or the one between two of them.
    Link {
        vm: Name,
        #[serde(default)]
        peer: Option<Name>,
        link: Link,
        /// Drawn by the holder if absent.
        #[serde(default)]
        seed: Option<u64>,
    },
    /// What the world is to a member, or to all.
    Egress {
        #[serde(default)]
        vm: Option<Name>,
        policy: Policy,
    },
    /// The member's disk is slow or fails.
    Disk { vm: Name, disk: Disk },
}

/// What a disk does to requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Disk {
    /// Requests it takes in a second, at most.
    pub iops: Option<u64>,
    pub bytes_per_s: Option<u64>,
    pub read_errors: bool,
    pub write_errors: bool,
}

/// What a link does to frames, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Link {
    pub latency_us: u64,
    pub jitter_us: u64,
    /// From 0 to 1, like the next two.
    pub loss: f64,
    pub duplicate: f64,
    pub reorder: f64,
    pub bandwidth_kbit_per_s: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Policy {
    Allow,
    Deny,
    /// Names, addresses and networks as their users write them.
    Only(Vec<String>),
}

/// Some of the faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Broken {
    /// The network's.
    Network,
    /// Those of a member's disk.
    Disk { vm: Name },
}

impl Broken {
    pub(crate) fn has(&self, fault: &Fault) -> bool {
        match (self, fault) {
            (Self::Network, Fault::Disk { .. }) => false,
            (Self::Network, _) => true,
            (Self::Disk { vm }, Fault::Disk { vm: at, .. }) => vm == at,
            (Self::Disk { .. }, _) => false,
        }
    }
}

/// A fault that is there now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ActiveFault {
    pub id: u64,
    pub fault: Fault,
    /// It stays when whoever caused it is gone.
    pub kept: bool,
    pub age_ms: u64,
}
