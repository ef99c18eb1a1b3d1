//! The machine as it runs: what it is, standing still, memory.

use std::path::Path;
use std::time::{Duration, Instant};

use fleetbox::{ErrorKind, Result, State, Vm};

use super::bed::{Bed, CPUS, DISK_GIB, MEMORY_MIB, until, until_within};

/// Long enough for any guest to have answered, were it running.
const STANDS_STILL: Duration = Duration::from_secs(2);
/// It gives up page by page, each by an exit to the monitor where the machine is emulated.
const BALLOON_WAIT: Duration = Duration::from_mins(3);

pub(super) async fn a_start_returns_what_was_asked_for(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    assert_eq!(vm.name(), bed.name);
    assert_eq!(vm.state().await?, State::Running);
    let info = vm.info().await?;
    assert_eq!((info.name.as_str(), info.state), (vm.name(), State::Running));
    assert_eq!(std::net::IpAddr::V4(info.address), vm.address());
    assert_eq!((info.cpus, info.memory_mib, info.disk_gib), (CPUS, MEMORY_MIB, DISK_GIB));
    assert_eq!(info.image, fleetbox::DEFAULT_IMAGE);
    assert_eq!(info.arch, fleetbox::Arch::host());
    let holder = info.holder_pid.expect("a holder");
    assert!(Path::new(&format!("/proc/{holder}")).exists());
    let listed: Vec<_> = fleetbox::list().await?.into_iter().flatten().collect();
    let listed = listed.iter().find(|listed| listed.name == bed.name).expect("a row in the list");
    assert_eq!((listed.state, listed.address), (State::Running, info.address));
    Ok(())
}

pub(super) async fn a_start_of_a_running_one_joins_it(bed: &mut Bed) -> Result<()> {
    let before = boot_id(bed.vm()).await?;
    let joined = bed.builder().start().await?;
    assert_eq!(joined.info().await?.holder_pid, bed.vm().info().await?.holder_pid);
    assert_eq!(boot_id(&joined).await?, before);
    // The other handle's end is not the machine's.
    joined.release().await;
    assert_eq!(bed.vm().ssh("echo here").await?, "here");
    Ok(())
}

pub(super) async fn the_console_has_the_boot(bed: &mut Bed) -> Result<()> {
    let console = bed.vm().console().await?;
    assert!(String::from_utf8_lossy(&console).contains("Linux version"));
    assert!(std::fs::read(bed.vm().console_path())?.starts_with(&console));
    Ok(())
}

pub(super) async fn the_host_key_is_the_pinned_one(bed: &mut Bed) -> Result<()> {
    let config = bed.vm().ssh_config(Path::new("/usr/bin/fleetbox"))?;
    assert!(config.contains("StrictHostKeyChecking yes"), "{config}");
    let line = config.lines().find_map(|line| line.trim().strip_prefix("UserKnownHostsFile "));
    let known_hosts = std::fs::read_to_string(line.expect("the file").trim_matches('"'))?;
    let pinned: Vec<_> = known_hosts.split_whitespace().take(3).collect();
    assert_eq!(pinned[..2], [bed.name.as_str(), "ssh-ed25519"]);
    if bed.has_guest() {
        let keys = bed.vm().ssh("sudo sh -c 'cat /etc/ssh/ssh_host_*_key.pub'").await?;
        assert!(keys.contains(pinned[2]) && keys.lines().count() == 1, "{keys}");
    }
    Ok(())
}

pub(super) async fn the_user_has_the_name_and_sudo(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    assert_eq!(vm.ssh("hostname").await?, vm.name());
    assert_eq!(vm.ssh("echo $USER").await?, fleetbox::DEFAULT_USER);
    let home = vm.ssh("echo ~").await?;
    assert_eq!(vm.ssh("pwd").await?, home);
    assert_eq!(vm.command("echo").arg("root's").sudo().run().await?.stdout_text(), "root's");
    if bed.has_guest() {
        assert_eq!(vm.ssh("id -un").await?, vm.info().await?.user);
        assert_eq!(vm.command("id").arg("-u").sudo().run().await?.stdout_text(), "0");
    }
    Ok(())
}

pub(super) async fn the_system_is_whole(bed: &mut Bed) -> Result<()> {
    assert_eq!(bed.vm().ssh("systemctl is-system-running --wait").await?, "running");
    Ok(())
}

pub(super) async fn cpus_memory_and_disk_are_as_asked(bed: &mut Bed) -> Result<()> {
    assert_eq!(bed.vm().ssh("nproc").await?, CPUS.to_string());
    // The kernel and firmware keep some for themselves.
    let total_mib = memory_mib(bed.vm(), "MemTotal").await?;
    assert!((MEMORY_MIB * 3 / 4..=MEMORY_MIB).contains(&total_mib), "{total_mib} MiB");
    let disk = bed.vm().ssh("cat /sys/class/block/vda/size").await?;
    assert_eq!(disk, (u64::from(DISK_GIB) << 21).to_string(), "sectors of 512 bytes");
    // The root file system was grown over it.
    let root_mib = number(&bed.vm().ssh("df -BM --output=size / | tail -n 1").await?);
    assert!(root_mib > DISK_GIB * 1024 * 4 / 5, "{root_mib} MiB of {DISK_GIB} GiB");
    Ok(())
}

pub(super) async fn a_paused_one_stands_still_and_goes_on(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    if !bed.backend.capabilities().pause {
        for refused in [vm.pause().await, vm.resume().await] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
        }
        assert_eq!(vm.ssh("echo here").await?, "here");
        return Ok(());
    }
    let boot = boot_id(vm).await?;
    // It ticks: were it not paused, it would be found to have gone on.
    let ticking = "echo 0 > ticks; while sleep 0.1; do echo $(($(cat ticks) + 1)) > ticks.new && \
                   mv ticks.new ticks; done";
    let ticker = vm.shell(ticking).spawn().await?;
    until("the first tick", async || vm.ssh("cat ticks").await.is_ok_and(|t| t != "0")).await;
    vm.pause().await?;
    vm.pause().await?;
    assert_eq!(vm.state().await?, State::Paused);
    let mut late = Box::pin(vm.ssh("cat ticks"));
    let waited = tokio::time::timeout(STANDS_STILL, &mut late).await;
    assert!(waited.is_err(), "a paused guest answered: {waited:?}");
    vm.resume().await?;
    vm.resume().await?;
    assert_eq!(vm.state().await?, State::Running);
    // What was asked meanwhile is answered now.
    let ticks = number(&late.await?);
    until("the next tick", async || vm.ssh("cat ticks").await.is_ok_and(|t| number(&t) > ticks))
        .await;
    drop(ticker);
    assert_eq!(boot_id(vm).await?, boot);
    Ok(())
}

pub(super) async fn a_start_of_a_paused_one_resumes_it(bed: &mut Bed) -> Result<()> {
    if bed.backend.capabilities().pause {
        bed.vm().pause().await?;
        let joined = bed.builder().start().await?;
        assert_eq!(joined.state().await?, State::Running);
        assert_eq!(joined.ssh("echo here").await?, "here");
    }
    Ok(())
}

pub(super) async fn a_balloon_takes_memory_and_gives_it_back(bed: &mut Bed) -> Result<()> {
    const TAKEN_MIB: u32 = 256;
    let vm = bed.vm();
    if !bed.backend.capabilities().balloon {
        let error = vm.set_balloon_mib(TAKEN_MIB).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.hint_text().is_some());
        assert_eq!(vm.ssh("echo here").await?, "here");
        return Ok(());
    }
    let before_mib = memory_mib(vm, "MemTotal").await?;
    vm.set_balloon_mib(TAKEN_MIB).await?;
    until_within(BALLOON_WAIT, "the balloon's growth", async || {
        memory_mib(vm, "MemTotal").await.is_ok_and(|mib| mib + TAKEN_MIB <= before_mib)
    })
    .await;
    vm.set_balloon_mib(0).await?;
    until_within(BALLOON_WAIT, "the balloon's end", async || {
        memory_mib(vm, "MemTotal").await.is_ok_and(|mib| mib == before_mib)
    })
    .await;
    Ok(())
}

pub(super) async fn too_large_a_balloon_is_refused(bed: &mut Bed) -> Result<()> {
    let began = Instant::now();
    let error = bed.vm().set_balloon_mib(MEMORY_MIB - 64).await.unwrap_err();
    let can = bed.backend.capabilities().balloon;
    let expected = if can { ErrorKind::InvalidSpec } else { ErrorKind::Unsupported };
    assert_eq!(error.kind(), expected);
    assert!(began.elapsed() < Duration::from_secs(1), "work was done for nothing");
    Ok(())
}

pub(super) async fn a_clock_jumps_both_ways(bed: &mut Bed) -> Result<()> {
    const HOUR_MS: i64 = 3_600_000;
    let vm = bed.vm();
    let absurd = vm.clock_jump(i64::MIN).await.unwrap_err();
    assert_eq!(absurd.kind(), ErrorKind::InvalidSpec);
    if !bed.backend.capabilities().clock {
        assert_eq!(vm.clock_jump(HOUR_MS).await.unwrap_err().kind(), ErrorKind::Unsupported);
        return Ok(());
    }
    // Wall and monotonic clock in one line, in milliseconds.
    let clocks = async || -> Result<(i64, i64)> {
        let line = vm.ssh("echo $(date +%s%3N) $(cut -d' ' -f1 /proc/uptime | tr -d .)0").await?;
        let (wall, monotonic) = line.split_once(' ').expect("two clocks");
        Ok((wall.parse().unwrap(), monotonic.parse().unwrap()))
    };
    for jump_ms in [HOUR_MS + 250, -2 * HOUR_MS, HOUR_MS - 250] {
        let before = clocks().await?;
        vm.clock_jump(jump_ms).await?;
        let after = clocks().await?;
        let jumped_ms = (after.0 - before.0) - (after.1 - before.1);
        // The clocks are read one after the other, and `date` takes its time.
        assert!((jumped_ms - jump_ms).abs() < 1000, "{jumped_ms} ms of {jump_ms} ms");
    }
    Ok(())
}

pub(super) async fn boot_id(vm: &Vm) -> Result<String> {
    vm.ssh("cat /proc/sys/kernel/random/boot_id").await
}

/// A line of the guest's meminfo.
async fn memory_mib(vm: &Vm, key: &str) -> Result<u32> {
    let line = vm.command("grep").arg(format!("^{key}:")).arg("/proc/meminfo").run().await?;
    Ok(number(&line.stdout_text()) / 1024)
}

/// The number in a text of one.
fn number(text: &str) -> u32 {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|e| panic!("no number in {text:?}: {e}"))
}

/// Reads that go past the guest's cache; how long they took, in seconds.
async fn read_disk(vm: &Vm, kib: u32) -> Result<f64> {
    let count = kib / 64;
    let dd = format!("dd if=/dev/vda of=/dev/null bs=64k count={count} iflag=direct status=none");
    let line = format!("s=$(date +%s%N); {dd} && echo $((($(date +%s%N) - s) / 1000))");
    let output = vm.command("sh").args(["-c", &line]).sudo().run().await?;
    let us: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("microseconds");
    Ok(us / 1e6)
}

pub(super) async fn a_slow_disk_is_as_slow_as_asked(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    if !bed.backend.capabilities().disk_faults {
        return Ok(());
    }
    let free = read_disk(vm, 1024).await?;
    let slow = vm.disk().kib_per_s(256).apply().await?;
    let slowed = read_disk(vm, 1024).await?;
    // Others in the guest may use the disk, too; the first tenth of a second is free.
    assert!(slowed > 3.0 && slowed > free, "{slowed} s, and {free} s without");
    slow.heal().await?;
    let healed = read_disk(vm, 1024).await?;
    assert!(healed < slowed, "{healed} s, and {slowed} s before");
    Ok(())
}

pub(super) async fn a_disk_that_fails_reads_says_so(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    if !bed.backend.capabilities().disk_faults {
        return Ok(());
    }
    // What the command itself needs is in the guest's memory by then.
    read_disk(vm, 64).await?;
    let failing = vm.disk().read_errors().apply().await?;
    let error = read_disk(vm, 64).await.unwrap_err();
    failing.heal().await?;
    assert!(error.output().is_some(), "{}", error.report());
    read_disk(vm, 64).await.map(drop)
}

pub(super) async fn a_full_disk_has_no_space(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    vm.fill_disk(0).await?;
    let refused = vm.ssh("head -c 1M /dev/zero > more").await.unwrap_err();
    assert!(refused.report().contains("No space left"), "{}", refused.report());
    vm.fill_disk(64).await?;
    vm.ssh("head -c 40M /dev/zero > more").await?;
    let refused = vm.ssh("head -c 40M /dev/zero > again").await.unwrap_err();
    assert!(refused.report().contains("No space left"), "{}", refused.report());
    vm.ssh("rm more again").await?;
    vm.heal_disk().await?;
    vm.ssh("head -c 100M /dev/zero > more && rm more").await.map(drop)
}

pub(super) async fn a_bad_disk_is_refused_or_listed(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    let nothing = vm.disk().apply().await.unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::InvalidSpec);
    let can = bed.backend.capabilities();
    if !can.disk_fill {
        assert_eq!(vm.fill_disk(0).await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    let bad = vm.disk().iops(1000).apply().await;
    if !can.disk_faults {
        assert_eq!(bad.unwrap_err().kind(), ErrorKind::Unsupported);
        return Ok(());
    }
    let cluster = fleetbox::Cluster::find(&vm.info().await?.cluster)?;
    let bad = bad?;
    // Another's way to mend networks leaves disks alone.
    cluster.heal().await?;
    let faults = cluster.faults().await?;
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].what.to_string(), format!("disk {} --iops 1000", vm.name()));
    bad.keep().await?;
    vm.heal_disk().await?;
    assert!(cluster.faults().await?.is_empty());
    Ok(())
}
