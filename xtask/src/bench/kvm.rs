//! Owns the figures of a working KVM: cloud-hypervisor through fleetbox against QEMU through fleetbox
//! and against cloud-hypervisor alone, and the memory of either monitor.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fleetbox::host::{Verdict, check};
use fleetbox::{Backend, Vm};

use super::bare_kvm::Kept;
use super::report::{Bound, Row};
use super::sample::{in_turns, median, seconds};
use super::stage::{IMAGE, MEMORY_MIB, Stage, machine_name};
use crate::failure::{Failure, Outcome};

const RUNS: usize = 3;
const START: &str = "vm.start and vm.ssh(\"uname\") of a new machine on KVM, cloud-hypervisor against \
    QEMU, all else the same";
const BARE: &str = "the same against a cloud-hypervisor of the same arguments, kernel, initrd and \
    seed on a new disk, its tap in a namespace of its own, polled with ssh";
const MEMORY: &str = "resident memory of cloud-hypervisor's process besides the guest's own, against \
    QEMU's, after the first output (Rss of smaps without the mappings of the guest's memory)";

/// What one start of ours showed.
struct Seen {
    seconds: f64,
    monitor_mib: f64,
}

pub(super) fn kvm(stage: &Stage) -> Outcome<Vec<Row>> {
    needs_kvm(stage)?;
    let image = stage.image()?;
    let kept = RefCell::new(None);
    let memory = RefCell::new((Vec::new(), Vec::new()));
    let ours = |_| {
        let seen = boot(stage, Backend::CloudHypervisor, Some(&kept))?;
        memory.borrow_mut().0.push(seen.monitor_mib);
        Ok(seen.seconds)
    };
    let qemu = |_| {
        let seen = boot(stage, Backend::Qemu, None)?;
        memory.borrow_mut().1.push(seen.monitor_mib);
        Ok(seen.seconds)
    };
    // Takes what ours leaves to boot alone, so it does not go first.
    ours(0)?;
    memory.borrow_mut().0.clear();
    let bare = |_| {
        let kept = kept.borrow();
        let kept: &Kept = kept.as_ref().ok_or_else(|| Failure::new("no machine to boot again"))?;
        Ok(seconds(kept.boot(stage, &image)?))
    };
    let runs = stage.runs_or(RUNS);
    let [ours, qemu, bare] = in_turns(runs, [&ours, &qemu, &bare])?;
    let (mut ours_mib, mut qemu_mib) = memory.into_inner();
    let mib = (median(&mut ours_mib), Some(median(&mut qemu_mib)));
    let row = |name, pair, unit, bound, note| Row::new(name, pair, unit, bound, runs, note);
    Ok(vec![
        row("kvm/start", (ours, Some(qemu)), "s", Bound::TimesAsLong(1.0), START),
        row("kvm/overhead", (ours, Some(bare)), "s", Bound::TimesAsLong(1.05), BARE),
        row("kvm/monitor-memory", mib, "MiB", Bound::TimesAsFast(3.0), MEMORY),
    ])
}

fn needs_kvm(stage: &Stage) -> Outcome<()> {
    let checks = stage.wait(async { Ok(check().await) })?;
    let kvm = checks.iter().find(|check| check.name == "kvm");
    match kvm {
        Some(kvm) if kvm.verdict == Verdict::Good => Ok(()),
        Some(kvm) => Err(Failure::new(format!("no KVM: {}", kvm.detail))),
        None => Err(Failure::new("no KVM: this is no Linux host")),
    }
}

fn boot(stage: &Stage, backend: Backend, keep: Option<&RefCell<Option<Kept>>>) -> Outcome<Seen> {
    let name = machine_name(&format!("kvm-{backend}x"));
    let outcome = boot_once(stage, &name, backend, keep);
    if let Ok(vm) = Vm::find(&name) {
        stage.wait(async { Ok(vm.destroy().await?) })?;
    }
    outcome
}

fn boot_once(
    stage: &Stage,
    name: &str,
    backend: Backend,
    keep: Option<&RefCell<Option<Kept>>>,
) -> Outcome<Seen> {
    let (vm, took) = stage.wait(async {
        let builder = Vm::builder(name).image(IMAGE).memory_mib(MEMORY_MIB).cpus(2);
        let began = Instant::now();
        let vm = builder.backend(backend).ephemeral(true).start().await?;
        vm.ssh("uname").await?;
        Ok((vm, began.elapsed()))
    })?;
    let info = stage.wait(async { Ok(vm.info().await?) })?;
    let holder = info.holder_pid.ok_or_else(|| Failure::new("the holder's pid is not known"))?;
    let monitor_mib = besides_the_guest_mib(child_of(holder)?)?;
    if let Some(keep) = keep {
        *keep.borrow_mut() = Some(Kept::of(stage, &vm)?);
    }
    stage.wait(async { Ok(vm.destroy().await?) })?;
    Ok(Seen { seconds: seconds(took), monitor_mib })
}

/// The holder's one child.
fn child_of(holder: u32) -> Outcome<u32> {
    let proc = Path::new("/proc");
    let entries = std::fs::read_dir(proc).map_err(Failure::io("list", proc))?;
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| parent(pid) == Some(holder))
        .ok_or_else(|| Failure::new("the holder has no monitor"))
}

/// Resident memory without the mappings that are the guest's: those of half its memory or more.
fn besides_the_guest_mib(monitor: u32) -> Outcome<f64> {
    let path = PathBuf::from(format!("/proc/{monitor}/smaps"));
    let text = std::fs::read_to_string(&path).map_err(Failure::io("read", &path))?;
    Ok(f64::from(besides_kib(&text, MEMORY_MIB * 1024 / 2)) / 1024.0)
}

fn besides_kib(smaps: &str, guests_kib: u32) -> u32 {
    let number = |rest: &str| rest.split_whitespace().next()?.parse::<u32>().ok();
    let (mut total_kib, mut is_guests) = (0, false);
    for line in smaps.lines() {
        if let Some(size_kib) = line.strip_prefix("Size:").and_then(number) {
            is_guests = size_kib >= guests_kib;
        } else if let Some(rss_kib) = line.strip_prefix("Rss:").and_then(number)
            && !is_guests
        {
            total_kib += rss_kib;
        }
    }
    total_kib
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_does_not_count() {
        let smaps = "55-56 r-xp /bin/x\nSize:    4096 kB\nRss:     1000 kB\nPss:  9 kB\n\
                     7f-8f rw-p\nSize:  1048576 kB\nRss:   400000 kB\n\
                     90-91 rw-p\nSize:     512 kB\nRss:      24 kB\n";
        assert_eq!(besides_kib(smaps, 524_288), 1024);
    }
}
