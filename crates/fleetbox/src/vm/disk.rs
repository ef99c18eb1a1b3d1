//! Owns what makes the disk of a [`Vm`] bad: [`Disk`] describes one that is slow or fails, and there is
//! filling it up. It must not know how a backend does it.

use std::fmt;

use super::Vm;
use crate::cluster::NetworkFault;
use crate::control::message::{self, Broken, Fault};
use crate::error::{Error, ErrorKind, Result};

/// Where the space goes that [`Vm::fill_disk`] takes.
const FILL: &str = "/.fleetbox-fill";
/// How much of a disk that is filled whole is written rather than reserved, at most.
const WRITTEN_MIB: u32 = 32;
/// No disk does more, and QEMU's limits end not far above.
const IOPS_MAX: u64 = 10_000_000;
const KIB_PER_S_MAX: u64 = 1 << 30;

/// What a disk does to the guest's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskImpairment {
    /// How many requests it takes in a second; `None` is as many as it can.
    pub iops: Option<u64>,
    /// How many KiB it reads and writes in a second, together; `None` is as many as it can.
    pub kib_per_s: Option<u64>,
    /// Whether every read fails.
    pub read_errors: bool,
    /// Whether every write fails, discards included; flushes do not.
    pub write_errors: bool,
}

/// A bad disk, to be [applied](Disk::apply): made by [`Vm::disk`].
///
/// A guest caches: what it read before, it does not ask the disk for, and what it writes reaches the
/// disk later, or at a `sync`. A file system that meets errors may give up until the next boot:
/// Debian's ext4 turns read-only.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// let slow = vm.disk().iops(20).kib_per_s(1024).apply().await?;
/// vm.ssh("sync").await?; // … takes its time …
/// slow.heal().await?;
///
/// let failing = vm.disk().write_errors().apply().await?;
/// vm.ssh("echo lost > file && sync file").await.unwrap_err();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens until it is applied"]
pub struct Disk {
    vm: Vm,
    impairment: DiskImpairment,
}

impl Disk {
    /// The disk takes this many requests a second at most, short bursts aside. Default: no bound.
    pub fn iops(mut self, iops: u64) -> Self {
        self.impairment.iops = Some(iops);
        self
    }

    /// The disk reads and writes this many KiB a second at most, short bursts aside. Default: no bound.
    pub fn kib_per_s(mut self, kib_per_s: u64) -> Self {
        self.impairment.kib_per_s = Some(kib_per_s);
        self
    }

    /// Every read fails with an input/output error. Default: none does.
    pub fn read_errors(mut self) -> Self {
        self.impairment.read_errors = true;
        self
    }

    /// Every write fails with an input/output error. Default: none does.
    pub fn write_errors(mut self) -> Self {
        self.impairment.write_errors = true;
        self
    }

    /// Makes the disk as bad as described, until what is returned is healed or dropped. Several of
    /// them add up: the lowest limit counts, and errors of any.
    ///
    /// # Errors
    /// Before any work: [`ErrorKind::InvalidSpec`] if there is nothing to be done or a limit is not
    /// one; [`ErrorKind::Unsupported`] if the backend cannot
    /// ([`Capabilities::disk_faults`](crate::Capabilities)); [`ErrorKind::NotRunning`].
    pub async fn apply(self) -> Result<NetworkFault> {
        let Self { vm, impairment } = self;
        check(&impairment).map_err(|e| vm.mine(e))?;
        vm.able("make its disk bad", |can| can.disk_faults)?;
        let fault = Fault::Disk { vm: vm.inner.record.name.clone(), disk: impairment.into() };
        NetworkFault::cause(vm.inner.client.clone(), fault).await.map_err(|e| vm.mine(e))
    }
}

impl Vm {
    /// Begins to describe a bad disk.
    pub fn disk(&self) -> Disk {
        Disk { vm: self.clone(), impairment: DiskImpairment::default() }
    }

    /// Heals every fault of the disk that [`Vm::disk`] made, whoever caused it, kept or not, and gives
    /// back what [`Vm::fill_disk`] took. Does nothing if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`]; [`ErrorKind::CommandFailed`] if the guest cannot remove the file
    /// that fills it, which a file system turned read-only is a reason for.
    pub async fn heal_disk(&self) -> Result<()> {
        let vm = self.inner.record.name.clone();
        let healed = self.inner.client.heal(Some(Broken::Disk { vm })).await;
        healed.map_err(|e| self.mine(e))?;
        if !self.is_able(|can| can.disk_fill) {
            return Ok(());
        }
        self.command("rm").args(["-f", FILL]).sudo().run().await.map(drop)
    }

    /// Fills the guest's root file system up to the last `left_mib` MiB that others than root have, so
    /// that whoever writes more is told that no space is left; 0 leaves none, not even to root, and
    /// then next to nothing works. It counts from the full space, not from what an earlier call left,
    /// and lasts until [`Vm::heal_disk`], boots included.
    ///
    /// It is done in the guest, as root, by a file `/.fleetbox-fill`, which takes nearly all of its
    /// space without writing it.
    ///
    /// Dropped before it is done, the guest may be filled in part.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] before any work if the backend's guests have no disk of their own
    /// ([`Capabilities::disk_fill`](crate::Capabilities)); [`ErrorKind::NotRunning`];
    /// [`ErrorKind::CommandFailed`] if the guest refuses.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.fill_disk(0).await?;
    /// let error = vm.ssh("head -c 1M /dev/zero > more").await.unwrap_err();
    /// assert!(error.report().contains("No space left"));
    /// vm.heal_disk().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fill_disk(&self, left_mib: u32) -> Result<()> {
        self.able("fill its disk", |can| can.disk_fill)?;
        // All there is, or what others than root have (statfs(2)). Of all, the last is written: a file
        // system keeps some back from those who only reserve (ext4: 16 MiB, its `s_resv_clusters`).
        let (count, written_mib) = if left_mib == 0 { ("%f", WRITTEN_MIB) } else { ("%a", 0) };
        // What a removed file had is free once that is synced.
        let line = format!(
            "rm -f {FILL}; sync -f /; set -- $(stat -f -c '{count} %S' /); umask 077
             take=$(($1 * $2 - ({left_mib} + {written_mib}) * 1048576))
             [ $take -le 0 ] || fallocate -l $take {FILL} || exit 1
             [ {left_mib} -gt 0 ] ||
             dd if=/dev/zero of={FILL} bs=64k oflag=append conv=notrunc status=none 2>/dev/null
             sync -f /; set -- $(stat -f -c '{count} %S' /); left=$(($1 * $2 / 1048576))
             [ $left -le $(({left_mib} + 16)) ] || {{ echo \"$left MiB are left\" >&2; exit 1; }}"
        );
        self.command("sh").args(["-c", &line]).sudo().run().await.map(drop)
    }
}

fn check(impairment: &DiskImpairment) -> Result<()> {
    let refused = |what: String, hint: &str| {
        Err(Error::new(ErrorKind::InvalidSpec, format!("make a disk bad: {what}")).hint(hint))
    };
    if *impairment == DiskImpairment::default() {
        return refused(
            "nothing is to be done to it".into(),
            "limit requests or KiB a second, or let reads or writes fail",
        );
    }
    for (what, limit, max) in
        [("requests", impairment.iops, IOPS_MAX), ("KiB", impairment.kib_per_s, KIB_PER_S_MAX)]
    {
        if limit.is_some_and(|limit| !(1..=max).contains(&limit)) {
            return refused(
                format!("a limit of {} {what} a second", limit.unwrap_or_default()),
                "use 1 or more; let reads and writes fail instead of 0",
            );
        }
    }
    Ok(())
}

impl From<DiskImpairment> for message::Disk {
    fn from(impairment: DiskImpairment) -> Self {
        Self {
            iops: impairment.iops,
            bytes_per_s: impairment.kib_per_s.map(|kib| kib << 10),
            read_errors: impairment.read_errors,
            write_errors: impairment.write_errors,
        }
    }
}

impl From<message::Disk> for DiskImpairment {
    fn from(disk: message::Disk) -> Self {
        Self {
            iops: disk.iops,
            kib_per_s: disk.bytes_per_s.map(|bytes| bytes >> 10),
            read_errors: disk.read_errors,
            write_errors: disk.write_errors,
        }
    }
}

/// As the command line takes it.
impl fmt::Display for DiskImpairment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.iops.map(|iops| format!("--iops {iops}")));
        parts.extend(self.kib_per_s.map(|kib| format!("--kib-per-s {kib}")));
        for (on, word) in
            [(self.read_errors, "--read-errors"), (self.write_errors, "--write-errors")]
        {
            parts.extend(on.then(|| word.to_owned()));
        }
        f.write_str(&parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_disk_can_be_is_refused() {
        let good = DiskImpairment { iops: Some(1), ..DiskImpairment::default() };
        assert!(check(&good).is_ok());
        for bad in [
            DiskImpairment::default(),
            DiskImpairment { iops: Some(0), ..good },
            DiskImpairment { kib_per_s: Some(u64::MAX), ..good },
        ] {
            let error = check(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{bad:?}");
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn it_is_the_same_after_the_wire_and_said_as_it_is_typed() {
        let all = DiskImpairment {
            iops: Some(20),
            kib_per_s: Some(512),
            read_errors: true,
            write_errors: true,
        };
        assert_eq!(DiskImpairment::from(message::Disk::from(all)), all);
        assert_eq!(all.to_string(), "--iops 20 --kib-per-s 512 --read-errors --write-errors");
    }
}
