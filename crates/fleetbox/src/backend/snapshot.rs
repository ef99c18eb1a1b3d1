//! Owns what a backend is told of snapshots: what to save of a running machine and where, and what one
//! comes back from. It must not save or restore.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::spec::Name;

/// What to save of one running machine. The files' directory is there, and so are both disks, empty
/// overlays on what the machine's own disk is one on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavePlan {
    pub vm: Name,
    /// The guest's memory will be here, byte by byte.
    pub memory: PathBuf,
    /// Everything else of the machine's state.
    pub device: PathBuf,
    /// Gets what the machine's own overlay has.
    pub disk: PathBuf,
    /// For whatever the backend needs a disk of the same size for; whoever asked removes it.
    pub spare: PathBuf,
    /// What further monitors have to say.
    pub vmm_log: PathBuf,
    /// Ends what waits in the guest for another identity, as it keeps its own.
    pub token: String,
}

/// What a machine comes back from instead of booting.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Restore {
    /// Mapped privately: not written to.
    pub memory: PathBuf,
    pub device: PathBuf,
    pub identity: Identity,
    /// What is on drives that the guest has not looked at yet, in the order in which it is to be mounted.
    #[serde(default)]
    pub mounts: Vec<Mount>,
}

/// A drive that is to be mounted in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// The drive's.
    pub serial: String,
    /// Absolute.
    pub path: String,
}

/// Who a restored guest is to be, instead of who it was when it was saved.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// What the one waits for who takes it.
    pub token: String,
    pub hostname: String,
    pub fqdn: String,
    /// 32 hexadecimal digits (machine-id(5)); it keeps its own without.
    pub machine_id: Option<String>,
    pub host_key_private_openssh: String,
    pub host_key_public: String,
    pub mac: String,
    pub address: Ipv4Addr,
    pub prefix_length: u8,
    pub gateway: Ipv4Addr,
    /// Who it was in the network.
    pub saved_mac: String,
    pub saved_address: Ipv4Addr,
    /// Members that were saved in the same instant and come back with it: connections with them go on.
    pub fellows: Vec<Ipv4Addr>,
}

/// Without its secrets.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hostname, address, .. } = self;
        f.debug_struct("Identity")
            .field("hostname", hostname)
            .field("address", address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Identity {
    /// Somebody, for tests that ask nobody.
    pub(super) fn sample() -> Self {
        Self {
            token: "token".into(),
            hostname: "web".into(),
            fqdn: "web.fleetbox.internal".into(),
            machine_id: None,
            host_key_private_openssh: String::new(),
            host_key_public: String::new(),
            mac: "52:54:00:00:00:01".into(),
            address: Ipv4Addr::new(10, 213, 77, 10),
            prefix_length: 24,
            gateway: Ipv4Addr::new(10, 213, 77, 1),
            saved_mac: "52:54:00:00:00:01".into(),
            saved_address: Ipv4Addr::new(10, 213, 77, 10),
            fellows: Vec::new(),
        }
    }
}

/// What a save came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saved {
    /// How long the guest stood still.
    pub paused: Duration,
}

/// Holds machines that are saved together until all stand still: what one sent to another is then in
/// the state of both, or of neither.
#[derive(Debug)]
pub(crate) struct Together {
    members: usize,
    arrived: watch::Sender<Arrived>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Arrived {
    still: usize,
    failed: bool,
}

impl Together {
    pub(crate) fn of(members: usize) -> Self {
        Self { members, arrived: watch::Sender::default() }
    }

    /// One more stands still. Returns when all do, or one could not be made to; tells whether all do.
    pub(crate) async fn wait(&self) -> bool {
        self.arrived.send_modify(|arrived| arrived.still += 1);
        let mut arrived = self.arrived.subscribe();
        let all = |arrived: &Arrived| arrived.failed || arrived.still >= self.members;
        // The sender is ours.
        arrived.wait_for(all).await.is_ok_and(|arrived| !arrived.failed)
    }

    /// One will not stand still: the others need not wait for it.
    pub(crate) fn fail(&self) {
        self.arrived.send_modify(|arrived| arrived.failed = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_wait_for_the_last_and_none_for_one_that_failed() {
        let together = Together::of(2);
        let (first, second) = tokio::join!(together.wait(), together.wait());
        assert!(first && second);
        let together = Together::of(2);
        let (first, ()) = tokio::join!(together.wait(), async { together.fail() });
        assert!(!first);
    }
}
