//! Boots of real guests that cannot succeed: each is broken from inside, booted again, and its cause is told.

use std::time::{Duration, Instant};

use fleetbox::{Backend, BootCause, ErrorKind, Result, Stage, Vm};

use crate::require::can_boot;
use crate::unique;

/// What a boot may take that has to be given up for want of an end of its own.
const PATIENCE: Duration = Duration::from_secs(100);

/// Breaks a guest's disk, boots it, and tells what was told of that.
async fn told(part: &str, breaking: &str) -> Result<Option<BootCause>> {
    if !can_boot().await {
        return Ok(None);
    }
    let vm = Vm::builder(unique(part)).memory_mib(crate::MEMORY_MIB).warm(true).start().await?;
    // With its disk gone the shell may not come to its end.
    vm.shell(format!("{breaking}; sync")).sudo().timeout(Duration::from_secs(30)).output().await?;
    vm.power_cut().await?;
    let outcome = Vm::builder(vm.name()).timeout(PATIENCE).start().await;
    let error = outcome.expect_err("it was broken");
    eprintln!("{}\n", error.report());
    assert_eq!(error.kind(), ErrorKind::BootFailed, "{error:?}");
    assert!(error.hint_text().is_some());
    let report = error.boot_report().expect("a boot that fails has a report").clone();
    assert!(report.stages.iter().any(|stage| stage.stage == Stage::Kernel), "{report}");
    assert!(!error.boot_console().unwrap_or_default().is_empty());
    vm.destroy().await?;
    Ok(Some(report.cause.unwrap_or_else(|| panic!("no cause: {}", error.report()))))
}

fn is(told: Option<BootCause>, cause: BootCause) {
    // None where there are no machines.
    if let Some(told) = told {
        assert_eq!(told, cause);
    }
}

#[tokio::test]
async fn a_root_that_is_not_there_is_told() -> Result<()> {
    let zap = "dd if=/dev/zero of=/dev/vda bs=512 count=34 oflag=direct; \
               dd if=/dev/zero of=/dev/vda bs=512 count=34 oflag=direct seek=$(( $(cat /sys/block/vda/size) - 34 ))";
    is(told("rootless", zap).await?, BootCause::NoRootDevice);
    Ok(())
}

#[tokio::test]
async fn a_panic_is_told_long_before_the_time_is_up() -> Result<()> {
    let began = Instant::now();
    is(told("panic", "ln -sf /bin/false /sbin/init").await?, BootCause::Panic);
    eprintln!("after {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn an_emergency_shell_is_told() -> Result<()> {
    let line = "UUID=dead-beef /mnt ext4 defaults,x-systemd.device-timeout=1s 0 2";
    is(
        told("emergency", &format!("echo '{line}' >> /etc/fstab")).await?,
        BootCause::EmergencyShell,
    );
    Ok(())
}

#[tokio::test]
async fn too_little_memory_is_told() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let outcome = Vm::builder(unique("small"))
        .memory_mib(128)
        .ephemeral(true)
        .timeout(PATIENCE)
        .start()
        .await;
    let error = outcome.expect_err("so little memory is too little");
    eprintln!("{}\n", error.report());
    assert_eq!(error.boot_report().unwrap().cause, Some(BootCause::OutOfMemory), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_cloud_init_that_fails_is_told() -> Result<()> {
    let fail =
        "printf '#!/bin/sh\\nexit 1\\n' > /usr/bin/cloud-init; rm -f /home/*/.ssh/authorized_keys";
    is(told("cloudless", fail).await?, BootCause::CloudInit);
    Ok(())
}

#[tokio::test]
async fn a_guest_without_an_address_is_told() -> Result<()> {
    let cut = "echo 'network: {config: disabled}' > /etc/cloud/cloud.cfg.d/99-none.cfg; \
               rm -rf /etc/netplan/* /run/systemd/network/* /etc/systemd/network/* /etc/network/interfaces.d/*";
    is(told("addressless", cut).await?, BootCause::NoAddress);
    Ok(())
}

#[tokio::test]
async fn an_sshd_that_is_down_is_told() -> Result<()> {
    is(told("sshless", "systemctl mask ssh.service ssh.socket").await?, BootCause::SshDown);
    Ok(())
}

/// A kernel whose first instructions stop the processor: `cli; hlt; jmp -3`, where a boot loader enters it
/// (Documentation/arch/x86/boot.rst).
fn mute_kernel() -> Vec<u8> {
    let mut kernel = vec![0; 8192];
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, b"\xeb\x66HdrS\x0c\x02"); // jump to 0x268, header, version 2.12
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x0010_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x268, &[0xfa, 0xf4, 0xeb, 0xfd]);
    kernel
}

#[tokio::test]
async fn a_guest_that_says_nothing_is_told() -> Result<()> {
    if !can_boot().await || fleetbox::Arch::host() != fleetbox::Arch::X86_64 {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (tree, image) = (dir.path().join("tree"), dir.path().join("mute.raw"));
    std::fs::create_dir_all(tree.join("boot"))?;
    std::fs::create_dir_all(tree.join("etc"))?;
    std::fs::write(tree.join("etc/os-release"), "ID=mute\n")?;
    std::fs::write(tree.join("boot/vmlinuz-1"), mute_kernel())?;
    #[expect(clippy::disallowed_methods, reason = "makes an image with the tools there are")]
    let made = std::process::Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&tree, &image])
        .arg("16M")
        .output()?;
    assert!(made.status.success(), "{made:?}");
    let vm = Vm::builder(unique("mute")).backend(Backend::Qemu).image(image.to_str().unwrap());
    let outcome = vm.ephemeral(true).timeout(Duration::from_secs(15)).start().await;
    let error = outcome.expect_err("nothing is there that could answer");
    eprintln!("{}\n", error.report());
    assert_eq!(error.kind(), ErrorKind::BootFailed, "{error:?}");
    assert_eq!(error.boot_report().unwrap().cause, Some(BootCause::Silent), "{error:?}");
    assert!(error.hint_text().unwrap().contains("console="), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_boot_that_goes_well_is_reported_too() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let vm = Vm::builder(unique("well"))
        .memory_mib(crate::MEMORY_MIB)
        .ephemeral(true)
        .warm(true)
        .start()
        .await?;
    let report = vm.boot_report().await?;
    assert!(report.restored, "{report}");
    let stages: Vec<Stage> = report.stages.iter().map(|stage| stage.stage).collect();
    assert!(stages.contains(&Stage::Init) && stages.contains(&Stage::Ssh), "{report}");
    assert!(!report.units.is_empty() && report.cause.is_none(), "{report}");
    vm.destroy().await
}
