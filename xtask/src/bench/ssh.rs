//! Owns the figures of talking to a guest that runs, against OpenSSH to the same guest.

use std::path::Path;
use std::time::Instant;

use super::report::{Bound, Row};
use super::sample::{ms, seconds, side_by_side};
use super::stage::{Guest, Stage};
use crate::failure::{Failure, Outcome};
use crate::process;

const COPY_BYTES: u64 = 200_000_000;
const COPY_BOUND: Bound = Bound::TimesAsFast(0.8);
/// A command takes milliseconds: more runs cost nothing.
const COMMAND_RUNS: usize = 20;
/// On the guest's disk, as /tmp may be in its memory.
const GUEST_DIR: &str = "/var/tmp";

pub(super) fn warm_command(stage: &Stage) -> Outcome<Vec<Row>> {
    let guest = stage.guest()?;
    let ours = |_| {
        stage.wait(async {
            let began = Instant::now();
            guest.vm.ssh("true").await?;
            Ok(ms(began.elapsed()))
        })
    };
    let peer = |_| {
        let mut ssh = process::command("ssh");
        ssh.arg("-F").arg(&guest.config).arg(guest.vm.name()).arg("true");
        Ok(ms(process::time(&mut ssh)?))
    };
    ours(0)?;
    peer(0)?;
    let runs = stage.runs_or(COMMAND_RUNS);
    let (ours, peer) = side_by_side(runs, ours, peer)?;
    let note = "`true`: vm.ssh on its connection against one ssh process each";
    let bound = Bound::TimesAsFast(5.0);
    Ok(vec![Row::new("warm-command", (ours, Some(peer)), "ms", bound, runs, note)])
}

pub(super) fn copy_to_guest(stage: &Stage) -> Outcome<Vec<Row>> {
    let guest = stage.guest()?;
    let (file, in_guest) = (stage.noise("noise", COPY_BYTES)?, format!("{GUEST_DIR}/in"));
    let clear = || settle(stage, guest, &format!("rm -f {in_guest}; sync"));
    let ours = |_| {
        clear()?;
        stage.wait(async {
            let began = Instant::now();
            guest.vm.copy_to(&file, &in_guest).await?;
            Ok(seconds(began.elapsed()))
        })
    };
    let peer = |_| {
        clear()?;
        let to = format!("{}:{in_guest}", guest.vm.name());
        Ok(seconds(process::time(scp(guest).arg(&file).arg(to))?))
    };
    let runs = stage.runs();
    let (ours, peer) = side_by_side(runs, ours, peer)?;
    clear()?;
    let note =
        "vm.copy_to of one file of 200 MB of noise against scp, both into the guest's page cache";
    Ok(vec![Row::new("copy-to-guest", (ours, Some(peer)), "s", COPY_BOUND, runs, note)])
}

pub(super) fn copy_from_guest(stage: &Stage) -> Outcome<Vec<Row>> {
    let guest = stage.guest()?;
    let in_guest = format!("{GUEST_DIR}/out");
    settle(stage, guest, &format!("head -c {COPY_BYTES} /dev/urandom > {in_guest}; sync"))?;
    let back = stage.file("back");
    let clear = || match std::fs::remove_file(&back) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::io("remove", &back)(e)),
        _ => Ok(()),
    };
    let ours = |_| {
        clear()?;
        stage.wait(async {
            let began = Instant::now();
            guest.vm.copy_from(&in_guest, &back).await?;
            Ok(seconds(began.elapsed()))
        })
    };
    let peer = |_| {
        clear()?;
        let from = format!("{}:{in_guest}", guest.vm.name());
        let took = process::time(scp(guest).arg(from).arg(&back))?;
        Ok(seconds(took))
    };
    let runs = stage.runs();
    let (ours, peer) = side_by_side(runs, ours, peer)?;
    check_length(&back)?;
    clear()?;
    settle(stage, guest, &format!("rm -f {in_guest}; sync"))?;
    let note =
        "vm.copy_from of one file of 200 MB of noise against scp, out of the guest's page cache";
    Ok(vec![Row::new("copy-from-guest", (ours, Some(peer)), "s", COPY_BOUND, runs, note)])
}

/// Work in the guest between runs, so that one does not pay for the other's writes.
fn settle(stage: &Stage, guest: &Guest, line: &str) -> Outcome<()> {
    stage.wait(async { Ok(guest.vm.ssh(line).await.map(drop)?) })
}

fn scp(guest: &Guest) -> std::process::Command {
    let mut scp = process::command("scp");
    scp.arg("-q").arg("-F").arg(&guest.config);
    scp
}

fn check_length(path: &Path) -> Outcome<()> {
    let length = path.metadata().map_err(Failure::io("look at", path))?.len();
    if length == COPY_BYTES {
        return Ok(());
    }
    Err(Failure::new(format!("{length} of {COPY_BYTES} bytes came out of the guest")))
}
