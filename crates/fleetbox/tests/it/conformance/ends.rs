//! How a machine boots anew and ends, and what is there afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use fleetbox::{ErrorKind, Result, State, Vm};
use tokio::net::TcpStream;

use super::bed::{Bed, until};
use super::machine::boot_id;

/// Notes a polite shutdown on the disk.
const UNIT: &str = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStop=/bin/sh -c 'echo polite >> /var/lib/stops; sync'\n\
                    [Install]\nWantedBy=multi-user.target\n";

/// What must be the same after each start.
async fn is_itself(bed: &Bed) -> Result<()> {
    let (address, created_at) = bed.first.clone().expect("a first start");
    let info = bed.vm().info().await?;
    assert_eq!((bed.vm().address(), info.created_at), (address, created_at));
    assert_eq!(info.state, State::Running);
    // That the host key is the same is what a login checks.
    assert_eq!(bed.vm().ssh("hostname").await?, bed.name);
    Ok(())
}

pub(super) async fn a_reboot_is_a_new_boot_of_the_same_disk(bed: &mut Bed) -> Result<()> {
    let (vm, holder) = (bed.vm(), bed.vm().info().await?.holder_pid);
    let before = boot_id(vm).await?;
    vm.ssh("echo rebooted > kept").await?;
    vm.reboot().await?;
    assert_ne!(boot_id(vm).await?, before);
    assert_eq!(vm.ssh("cat kept").await?, "rebooted");
    assert_eq!(vm.info().await?.holder_pid, holder);
    is_itself(bed).await
}

pub(super) async fn a_reset_is_a_new_boot_of_the_same_disk(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    let before = boot_id(vm).await?;
    vm.ssh("echo reset > kept; sync").await?;
    if bed.backend.capabilities().pause {
        vm.pause().await?;
    }
    vm.reset().await?;
    assert_ne!(boot_id(vm).await?, before);
    assert_eq!(vm.ssh("cat kept").await?, "reset");
    is_itself(bed).await
}

pub(super) async fn a_stop_is_polite_even_to_a_paused_one(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm.take().expect("a machine");
    if bed.has_guest() {
        vm.command("tee")
            .arg("/etc/systemd/system/stops.service")
            .sudo()
            .stdin_bytes(UNIT)
            .run()
            .await?;
        vm.ssh("sudo systemctl enable --now stops.service").await?;
    }
    vm.ssh("echo stopped > kept").await?;
    if bed.backend.capabilities().pause {
        vm.pause().await?;
    }
    let forwarded = vm.forward(22).await?;
    vm.stop_within(Duration::from_mins(3)).await?;
    assert_eq!(vm.state().await?, State::Stopped);
    vm.stop().await?;
    until("the forwarded port's end", async || TcpStream::connect(forwarded).await.is_err()).await;
    drop(vm);
    bed.start().await?;
    assert_eq!(bed.vm().ssh("cat kept").await?, "stopped");
    if bed.has_guest() {
        assert_eq!(bed.vm().ssh("cat /var/lib/stops").await?, "polite");
    }
    is_itself(bed).await
}

pub(super) async fn a_power_cut_keeps_what_was_synced(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm.take().expect("a machine");
    vm.ssh("echo synced > kept; sync").await?;
    if bed.has_guest() && bed.backend.capabilities().disk_faults {
        writes_fail(&vm).await?;
    }
    let began = Instant::now();
    vm.power_cut().await?;
    assert_eq!(vm.state().await?, State::Stopped);
    assert!(began.elapsed() < Duration::from_secs(15), "no guest was to be asked");
    vm.power_cut().await?;
    drop(vm);
    bed.start().await?;
    assert_eq!(bed.vm().ssh("cat kept").await?, "synced");
    if bed.has_guest() {
        assert_eq!(bed.vm().ssh("cat /var/lib/stops").await?, "polite", "nothing was asked");
    }
    is_itself(bed).await
}

/// Its file system has given up after that: it is not to be used any more.
async fn writes_fail(vm: &Vm) -> Result<()> {
    let failing = vm.disk().write_errors().apply().await?;
    let error = vm.ssh("echo after > after && sync after").await.unwrap_err();
    assert!(error.output().is_some(), "{}", error.report());
    failing.heal().await
}

pub(super) async fn a_killed_monitor_is_noticed_and_named(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm.take().expect("a machine");
    let monitor = monitor(vm.info().await?.holder_pid.expect("a holder"));
    let mut waiting = vm.command("sleep").arg("600").spawn().await?;
    let began = Instant::now();
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    let lost = waiting.wait().await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::ConnectionLost);
    assert!(began.elapsed() < Duration::from_secs(5), "it was noticed late");
    // The fake's SSH server is the holder's own: it hangs up first.
    let why = lost.report();
    assert!(why.contains("its monitor was killed by signal 9") || !bed.has_guest(), "{why}");
    until("the end", async || vm.state().await.is_ok_and(|state| state == State::Stopped)).await;
    let error = vm.connect(22).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "it was noticed late");
    for error in [error, vm.ssh("true").await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NotRunning);
        let report = error.report();
        assert!(report.contains("its monitor was killed by signal 9"), "{report}");
    }
    bed.vm = Some(vm);
    Ok(())
}

pub(super) async fn a_stopped_one_refuses_calls_at_once(bed: &mut Bed) -> Result<()> {
    bed.vm().stop().await?;
    let vm = Vm::find(&bed.name)?;
    let info = vm.info().await?;
    assert_eq!((info.state, info.holder_pid.is_some()), (State::Stopped, false));
    let began = Instant::now();
    let can = bed.backend.capabilities();
    let mut refusals = vec![
        vm.ssh("true").await.map(drop),
        vm.connect(22).await.map(drop),
        vm.forward(22).await.map(drop),
        vm.copy_from("/etc/hostname", "unused").await,
        vm.reboot().await,
        vm.reset().await,
    ];
    if can.pause {
        refusals.extend([vm.pause().await, vm.resume().await]);
    }
    if can.balloon {
        refusals.push(vm.set_balloon_mib(1).await);
    }
    for refused in refusals {
        let error = refused.expect_err("it does not run");
        assert_eq!(error.kind(), ErrorKind::NotRunning, "{}", error.report());
        assert!(error.hint_text().is_some(), "{}", error.report());
    }
    assert!(began.elapsed() < Duration::from_secs(5), "they waited for nothing");
    // Its console can still be read.
    assert!(!vm.console().await?.is_empty());
    Ok(())
}

pub(super) async fn a_destroyed_one_leaves_nothing(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm.take().expect("a machine");
    let directory = vm.console_path().parent().unwrap().to_owned();
    assert!(directory.exists());
    // Two at once are one.
    let other = Vm::find(&bed.name)?;
    let asked = tokio::join!(vm.destroy(), other.destroy());
    asked.0?;
    asked.1?;
    vm.destroy().await?;
    assert!(!directory.exists());
    assert_eq!(Vm::find(&bed.name).unwrap_err().kind(), ErrorKind::NotFound);
    drop(vm);
    until("the holder's end", async || {
        !processes().iter().any(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&bed.name)
        })
    })
    .await;
    until("the cluster directory's end", async || !directory.parent().unwrap().exists()).await;
    Ok(())
}

/// The holder's one child.
fn monitor(holder: u32) -> rustix::process::Pid {
    let mut children = processes().into_iter().filter(|pid| parent(*pid) == Some(holder));
    let monitor = children.next().expect("a monitor");
    assert_eq!(children.next(), None, "the holder has other children");
    rustix::process::Pid::from_raw(monitor.cast_signed()).unwrap()
}

fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.ok()?.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}
