//! Owns what makes QEMU's disk slow or failing while the guest runs: limits on the device, and a node
//! above the disk's own that fails requests. It must not decide what is wrong with a disk.

use serde_json::json;

use super::QemuMachine;
use super::args::{DISK_DEVICE, DISK_NODE};
use crate::control::message::Disk;
use crate::error::Result;

/// Where devices with an id are.
const DEVICE_PATH: &str = "/machine/peripheral/";

/// What stands between the device and its disk now.
#[derive(Default)]
pub(super) struct Filters {
    /// The node that fails requests, if there is one.
    failing: Option<String>,
    /// Nodes there were: a name is not used twice.
    made: u32,
}

impl Filters {
    /// Brings about exactly this.
    pub(super) async fn set(&mut self, machine: &QemuMachine, disk: Disk) -> Result<()> {
        // The device's own half has the backend (QEMU's qom-tree); 0 is no limit.
        let limits = json!({
            "id": format!("{DEVICE_PATH}{DISK_DEVICE}/virtio-backend"),
            "iops": disk.iops.unwrap_or(0), "iops_rd": 0, "iops_wr": 0,
            "bps": disk.bytes_per_s.unwrap_or(0), "bps_rd": 0, "bps_wr": 0,
        });
        machine.ask("block_set_io_throttle", limits).await?;
        if !disk.read_errors && !disk.write_errors {
            if let Some(failing) = self.failing.take() {
                // Never onto the node it stands on: QEMU 7.2 does not survive that.
                stand(machine, DISK_NODE).await?;
                remove(machine, &failing).await?;
            }
            return Ok(());
        }
        self.made += 1;
        let node = format!("failing{}", self.made);
        machine.ask("blockdev-add", failing(&node, &disk)).await?;
        if let Err(e) = stand(machine, &node).await {
            remove(machine, &node).await?;
            return Err(e);
        }
        match self.failing.replace(node) {
            Some(before) => remove(machine, &before).await,
            None => Ok(()),
        }
    }
}

/// Puts the device onto a node.
async fn stand(machine: &QemuMachine, node: &str) -> Result<()> {
    let path = format!("{DEVICE_PATH}{DISK_DEVICE}");
    machine.ask("qom-set", json!({ "path": path, "property": "drive", "value": node })).await
}

async fn remove(machine: &QemuMachine, node: &str) -> Result<()> {
    machine.ask("blockdev-del", json!({ "node-name": node })).await
}

/// QEMU's blkdebug (docs/devel/blkdebug.rst): the event `none` is every request.
fn failing(node: &str, disk: &Disk) -> serde_json::Value {
    const EIO: i32 = 5;
    let kinds: [(bool, &[&str]); 2] =
        [(disk.read_errors, &["read"]), (disk.write_errors, &["write", "write-zeroes", "discard"])];
    let rules: Vec<_> = kinds
        .iter()
        .filter(|(fails, _)| *fails)
        .flat_map(|(_, kinds)| *kinds)
        .map(|kind| json!({ "event": "none", "iotype": kind, "errno": EIO }))
        .collect();
    json!({ "driver": "blkdebug", "node-name": node, "image": DISK_NODE, "inject-error": rules })
}
