//! Owns the question whether a fork has its memory as it was at one instant, while a guest never ceases to
//! write to it.

use std::time::Duration;

use fleetbox::{Result, Vm};

use super::super::bed::until_within;
use super::Bed;
use crate::unique;

/// Some seconds are what an emulated guest takes for a round, and to notice a signal.
const ROUND: Duration = Duration::from_mins(1);
/// What was lost is not lost each time.
const SAVES: usize = 3;

/// Writes the same number to each of a megabyte's pages, round for round, and looks for the last one before.
/// Once told to, it does one more whole round and ends.
const WRITER: &str = "
import mmap, signal
memory, told, last = mmap.mmap(-1, 1 << 20), [], 0
signal.signal(signal.SIGUSR1, lambda *_: told.append(True))
while True:
    ends = bool(told)
    for at in range(0, 1 << 20, 4096):
        if memory[at] != last:
            raise SystemExit('page %d has %d, not %d' % (at >> 12, memory[at], last))
        memory[at] = last + 1 & 255
    last = last + 1 & 255
    if ends:
        break
";

pub(super) async fn it_is_that_of_one_instant(bed: &Bed) -> Result<()> {
    if !bed.has_guests() {
        return Ok(());
    }
    let vm = bed.warm(&unique("writes")).start().await?;
    vm.command("systemd-run")
        .args(["--quiet", "--unit=writes", "--property=RemainAfterExit=yes"])
        .args(["python3", "-c", WRITER])
        .sudo()
        .run()
        .await?;
    for _ in 0..SAVES {
        let saved = vm.snapshot(&unique("snap")).await?;
        let fork = saved.fork(unique("fork"))?.ephemeral(true).start().await?;
        ends_well(&fork).await?;
        fork.destroy().await?;
        saved.remove()?;
    }
    ends_well(&vm).await?;
    vm.destroy().await
}

async fn ends_well(vm: &Vm) -> Result<()> {
    // It may have found something already, and be gone.
    vm.ssh("sudo systemctl kill --signal=USR1 writes || true").await?;
    let state = "systemctl show --value --property=SubState writes";
    let ended = async || vm.ssh(state).await.is_ok_and(|state| state != "running");
    until_within(ROUND, "the end of what writes", ended).await;
    let said = vm.ssh("sudo journalctl --quiet --unit=writes --output=cat --lines=3").await?;
    assert_eq!(vm.ssh(state).await?, "exited", "{}: {said}", vm.name());
    Ok(())
}
