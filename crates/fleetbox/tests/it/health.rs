//! The health of real guests: each ailment provoked in one. Those that no stock kernel can be made to have are
//! written on the fake's console.

use std::path::Path;
use std::time::Duration;

use fleetbox::{Ailment, Result, Vm};

use crate::child;
use crate::require::can_boot;
use crate::unique;

async fn start(part: &str) -> Result<Vm> {
    Vm::builder(unique(part)).memory_mib(crate::MEMORY_MIB).ephemeral(true).warm(true).start().await
}

/// Provokes it, and waits until it is found.
async fn provoked(vm: &Vm, ailment: Ailment, how: &str) -> Result<()> {
    let mark = vm.health_mark().await?;
    // What is made to fail fails.
    vm.shell(how).timeout(Duration::from_mins(2)).output().await?;
    let mut pause = Duration::from_millis(100);
    for _ in 0..8 {
        let findings = vm.health(&mark).await?;
        if findings.iter().any(|finding| finding.ailment == ailment) {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    panic!("{ailment} is not found after `{how}`: {:?}", vm.health(&mark).await?);
}

#[tokio::test]
async fn what_ails_a_guest_is_found() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let vm = start("ill").await?;
    let mark = vm.health_mark().await?;
    assert_eq!(vm.health(&mark).await?, [], "a guest that was left alone is well");
    provoked(&vm, Ailment::FailedUnit, "sudo systemd-run -q --unit broken false").await?;
    provoked(&vm, Ailment::Segfault, "python3 -c 'import ctypes; ctypes.string_at(0)'").await?;
    let hog = "sudo systemd-run -q --wait -p MemoryMax=30M -p MemorySwapMax=0 python3 -c 'x = bytearray(1 << 28)'";
    provoked(&vm, Ailment::OomKill, hog).await?;
    let cycle = "for pair in 'one two' 'two one'; do set -- $pair; \
        printf '[Unit]\\nAfter=%s.service\\nWants=%s.service\\n[Service]\\nType=oneshot\\nExecStart=/bin/true\\n' $2 $2 | \
        sudo tee /run/systemd/system/$1.service >/dev/null; done; \
        printf '[Unit]\\nRequires=one.service two.service\\nAfter=one.service two.service\\n' | \
        sudo tee /run/systemd/system/round.target >/dev/null; \
        sudo systemctl daemon-reload; sudo systemctl start round.target";
    provoked(&vm, Ailment::OrderingCycle, cycle).await?;
    let hang = "sudo sh -c 'echo 1 > /proc/sys/kernel/hung_task_timeout_secs; \
        truncate -s 64M /tmp/fs && mke2fs -q /tmp/fs && mkdir -p /tmp/mnt && mount -o loop /tmp/fs /tmp/mnt && \
        fsfreeze -f /tmp/mnt && (touch /tmp/mnt/x & sleep 5; fsfreeze -u /tmp/mnt)'";
    provoked(&vm, Ailment::HungTask, hang).await?;
    vm.destroy().await
}

#[tokio::test]
async fn a_bad_disk_is_found() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    // Only QEMU has bad disks.
    let vm = Vm::builder(unique("bad"))
        .backend(fleetbox::Backend::Qemu)
        .memory_mib(crate::MEMORY_MIB)
        .ephemeral(true)
        .warm(true)
        .start()
        .await?;
    let mark = vm.health_mark().await?;
    let bad = vm.disk().write_errors().apply().await?;
    // The guest's answer may never come: its shell may not be readable any more.
    let write = "dd if=/dev/zero of=/var/tmp/x bs=1M count=1 conv=fsync; mkdir /var/tmp/y; sync";
    drop(vm.shell(write).timeout(Duration::from_secs(20)).output().await);
    let mut pause = Duration::from_millis(200);
    let mut found = Ok(Vec::new());
    let both = |found: &Result<Vec<fleetbox::Finding>>| {
        let Ok(found) = found else { return false };
        let has = |ailment| found.iter().any(|finding| finding.ailment == ailment);
        has(Ailment::IoError) && has(Ailment::ReadOnly)
    };
    for _ in 0..8 {
        // It may not be able to read its journal at times.
        found = vm.health(&mark).await;
        if both(&found) {
            break;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    assert!(both(&found), "{found:?}");
    drop(bad);
    vm.destroy().await
}

#[tokio::test]
async fn a_panic_is_found_on_the_console_of_a_dead_guest() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let vm = start("dead").await?;
    let mark = vm.health_mark().await?;
    let crash = "sudo sh -c '(sleep 0.5; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &'";
    vm.ssh(crash).await?;
    vm.wait(fleetbox::wait::console("Kernel panic - not syncing")?).await?;
    let findings = vm.health(&mark).await?;
    assert!(findings.iter().any(|finding| finding.ailment == Ailment::Panic), "{findings:?}");
    vm.destroy().await
}

/// What fails for it is the body's own; what is known of the failure needs no room in the guest.
#[test]
fn a_guest_that_fills_its_disk_leaves_all_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let output = child::test("health::fills_its_disk")
        .env("FLEETBOX_BUNDLE_DIR", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if said.contains("skipped: ") {
        return eprintln!("{said}");
    }
    assert!(!output.status.success() && said.contains("No space left on device"), "{said}");
    let page = said.split_whitespace().find(|word| word.ends_with("index.html"));
    let page = Path::new(page.unwrap_or_else(|| panic!("no page in {said}")));
    assert!(page.starts_with(dir.path()));
    assert!(std::fs::read_to_string(page).unwrap().contains("No space left on device"));
    let members = std::fs::read_dir(page.parent().unwrap()).unwrap().map(|entry| entry.unwrap());
    let member = members.map(|entry| entry.path()).find(|path| path.is_dir()).unwrap();
    for file in ["journal.txt", "processes.txt", "network.txt"] {
        let told = std::fs::read(member.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(told.len() > 100, "{file} has {} bytes", told.len());
    }
    let vm = member.file_name().unwrap().to_str().unwrap();
    assert!(Vm::find(vm).is_err(), "{vm} is still there");
}

/// Fails on purpose, for the test above, which runs it in a process of its own.
#[test]
#[ignore = "fails on purpose"]
fn fills_its_disk() {
    let test = fleetbox::testing::Test::new("health::fills_its_disk");
    test.vm(|vm| vm.memory_mib(crate::MEMORY_MIB))
        .run(async |vm: Vm| -> Result<()> {
            vm.ssh("sudo fallocate -l $(df --output=avail -B1 / | tail -n 1) /big").await?;
            vm.ssh("sudo dd if=/dev/zero of=/more bs=1M status=none").await.map(drop)
        })
        .unwrap();
}

#[cfg(feature = "unstable-fake")]
#[tokio::test]
async fn what_a_stock_kernel_is_not_made_to_say_is_found_on_a_console() -> Result<()> {
    use std::io::Write;
    let fake = Vm::builder(unique("ill")).backend(fleetbox::Backend::Fake).ephemeral(true);
    let vm = fake.start().await?;
    let mark = vm.health_mark().await?;
    let mut console = std::fs::File::options().append(true).open(vm.console_path()).unwrap();
    for line in [
        "[ 1.0] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[ 2.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [kworker/0:1:7]",
        "[ 3.0] kernel BUG at mm/slub.c:435!",
        "[ 4.0] EXT4-fs (vda1): Remounting filesystem read-only",
    ] {
        writeln!(console, "{line}").unwrap();
    }
    let found: Vec<Ailment> = vm.health(&mark).await?.iter().map(|f| f.ailment).collect();
    assert_eq!(found, [Ailment::Oops, Ailment::SoftLockup, Ailment::Bug, Ailment::ReadOnly]);
    vm.destroy().await
}
