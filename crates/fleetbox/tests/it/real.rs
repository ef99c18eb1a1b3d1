//! Real machines through the library.

use std::time::Duration;

use fleetbox::{Backend, Result, State, Vm};
use tokio::io::AsyncReadExt;

use crate::unique;

/// Whether real machines can be had here; if not, says why, or fails where they are required.
async fn can_boot() -> bool {
    let required = fleetbox::testing::required(Backend::Qemu).unwrap();
    let missing: Vec<String> = fleetbox::host::check()
        .await
        .into_iter()
        .filter(|check| check.verdict == fleetbox::host::Verdict::Missing)
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    let has_image = fleetbox::images::list().await.unwrap().iter().any(|image| {
        image.reference == "debian-12" && image.state != fleetbox::ImageState::Available
    });
    if missing.is_empty() && has_image {
        return true;
    }
    assert!(!required, "QEMU is required, but: {missing:?}, image here: {has_image}");
    eprintln!("skipped: no machine boots here: {missing:?}, image here: {has_image}");
    false
}

#[tokio::test]
async fn a_machine_runs_commands_copies_connects_reboots_and_goes() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let vm = Vm::builder(unique("journey")).memory_mib(1024).start().await?;
    assert!(vm.ssh("uname -a").await?.contains(vm.name()));
    assert_eq!(vm.ssh("systemctl is-system-running --wait").await?, "running");
    assert_eq!(vm.command("id").arg("-u").sudo().run().await?.stdout_text(), "0");

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), vec![7; 1 << 20]).unwrap();
    vm.copy_to(dir.path().join("f"), "/tmp/").await?;
    vm.copy_from("/tmp/f", dir.path().join("back")).await?;
    assert_eq!(std::fs::read(dir.path().join("back")).unwrap(), vec![7; 1 << 20]);

    // sshd speaks first.
    let mut banner = [0; 4];
    vm.connect(22).await?.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-");

    // sudo'ed commands are ended with their handle, too.
    let child = vm.command("sleep").arg("1234").sudo().spawn().await?;
    drop(child);
    let gone = "for i in $(seq 100); do pgrep -f 'sleep 1234$' >/dev/null || exit 0; sleep 0.1; done; exit 1";
    vm.ssh(gone).await?;

    let before = vm.ssh("cat /proc/sys/kernel/random/boot_id").await?;
    vm.reboot().await?;
    assert_ne!(vm.ssh("cat /proc/sys/kernel/random/boot_id").await?, before);
    vm.destroy().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_machines_start_at_once() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let part = unique("three");
    let starts: Vec<_> = ["a", "b", "c"]
        .map(|n| Vm::builder(format!("{part}{n}")).memory_mib(768).ephemeral(true).start())
        .into_iter()
        .map(tokio::spawn)
        .collect();
    let mut vms = Vec::new();
    for start in starts {
        vms.push(start.await.unwrap()?);
    }
    for vm in &vms {
        assert_eq!(vm.ssh("hostname").await?, vm.name());
        assert_eq!(vm.state().await?, State::Running);
    }
    for vm in vms {
        vm.destroy().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_never_comes_up_is_explained() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    // Long enough for some lines of the kernel's, far too short for sshd.
    let kvm = fleetbox::host::check()
        .await
        .iter()
        .any(|check| check.name == "kvm" && check.verdict == fleetbox::host::Verdict::Good);
    let limit = Duration::from_secs(if kvm { 1 } else { 12 });
    let name = unique("late");
    let outcome = Vm::builder(&name).memory_mib(512).timeout(limit).start().await;
    let error = outcome.expect_err("so little time must not be enough");
    assert_eq!(error.kind(), fleetbox::ErrorKind::BootFailed);
    let report = error.report();
    assert!(
        report.contains(&format!("within {} s; it had reached the stage ", limit.as_secs())),
        "{report}"
    );
    let (_, console) = report.split_once("the console's last lines:\n").expect("the console");
    assert!(console.lines().count() > 2, "{report}");
    assert!(report.contains("hint: "), "{report}");
    let vm = Vm::find(&name)?;
    assert_eq!(vm.state().await?, State::Stopped, "nothing runs on");
    vm.destroy().await
}
