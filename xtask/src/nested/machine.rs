//! Owns the machine with a working KVM: its image, its boot, what is done in it, and what is kept of
//! it when that fails. It must not decide what is run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox::images::{self, BuildOptions};
use fleetbox::{Arch, Progress, Vm};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Clock;
use super::load::{self, silent};
use crate::failure::{Failure, Outcome};

/// The machine's own image: the plain one, QEMU, and what figures are measured with.
const IMAGE: &str = "nested-debian-12-qemu";
const PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-utils"];
/// One, as QEMU's emulation of guests inside a machine with more of them crashes it within minutes:
/// kicks from processor to processor arrive where they are held off (seen under 7.2, 10.0 and 11.1).
const CPUS: u32 = 1;
/// Three guests of a test's size side by side, and what QEMU takes besides.
const MEMORY_MIB: u32 = 6144;
const DISK_GIB: u32 = 20;
const BOOT_LIMIT: Duration = Duration::from_mins(20);
/// A guest of an emulated machine: minutes where others take seconds.
const GUEST_LIMIT: &str = "15m";
/// Where the load is in the machine.
const PLACE: &str = "/home/fleetbox/load";
const REQUIRE: &str = "FLEETBOX_REQUIRE";
const BACKENDS: &str = "qemu,cloud-hypervisor";

/// Builds the machine's image unless it is here.
pub(super) async fn ensure_image(clock: &Clock) -> Outcome<()> {
    let is_here = images::list()
        .await?
        .iter()
        .any(|image| image.reference == IMAGE && image.arch == Arch::host());
    if is_here {
        return Ok(());
    }
    clock.say(&format!("building the image {IMAGE}, once"));
    let options = PACKAGES.iter().fold(BuildOptions::default().name(IMAGE), |o, p| o.package(*p));
    images::build("debian-12", Arch::host(), options, silent).await?;
    Ok(())
}

/// The running machine. Dropping it ends it.
pub(super) struct Machine {
    vm: Vm,
}

/// A row of `doctor -o json`.
#[derive(Debug, Deserialize)]
struct Check {
    name: String,
    verdict: String,
    detail: String,
}

impl Machine {
    pub(super) async fn boot(clock: &Clock) -> Outcome<Self> {
        let began = clock.0;
        let vm = Vm::builder(format!("nested-p{}x", std::process::id()))
            .image(IMAGE)
            .cpus(CPUS)
            .memory_mib(MEMORY_MIB)
            .disk_gib(DISK_GIB)
            .nested_virt(true)
            .ephemeral(true)
            .timeout(BOOT_LIMIT)
            .on_progress(move |event| {
                if let Progress::Begin(stage) = event {
                    Clock(began).say(&format!("booting the machine: {stage}"));
                }
            })
            .start()
            .await?;
        Ok(Self { vm })
    }

    /// Takes the directory in.
    pub(super) async fn take_in(&self, load: &Path) -> Outcome<()> {
        Ok(self.vm.copy_to(load, PLACE).await?)
    }

    /// Does what udev does on other machines, and asks fleetbox itself whether KVM works.
    pub(super) async fn prepare(&self) -> Outcome<()> {
        let devices = "modprobe -a kvm_amd tun && chmod 666 /dev/kvm /dev/net/tun";
        self.vm.command("sh").args(["-c", devices]).sudo().run().await?;
        // Its exit code tells of what is missing, which the answer tells better.
        let said = self
            .vm
            .command(format!("{PLACE}/{}", load::CLI))
            .args(["doctor", "-o", "json"])
            .output()
            .await?;
        let checks: Vec<Check> = serde_json::from_slice(&said.stdout)
            .map_err(|e| Failure::new(format!("failed to read what doctor says: {e}: {said:?}")))?;
        let bad: Vec<String> = checks
            .iter()
            .filter(|check| {
                check.verdict == "missing" || check.name == "kvm" && check.verdict != "good"
            })
            .map(|check| format!("{}: {}", check.name, check.detail))
            .collect();
        if bad.is_empty() && checks.iter().any(|check| check.name == "kvm") {
            return Ok(());
        }
        Err(Failure::new(format!("KVM does not work in the machine: {}", bad.join("; "))))
    }

    pub(super) async fn import_image(&self) -> Outcome<()> {
        let disk = format!("{PLACE}/{}", load::GUEST_DISK);
        let mut import = self.vm.command(format!("{PLACE}/{}", load::CLI));
        import.args(["image", "import", &disk, load::GUEST_IMAGE]).run().await?;
        self.vm.command("rm").arg(&disk).run().await?;
        Ok(())
    }

    /// Runs the task as the ordinary user, tests one at a time. What it writes goes to standard
    /// output and to `log` as it comes.
    pub(super) async fn run_task(&self, arguments: &[String], log: &Path) -> Outcome<bool> {
        let mut run = self.vm.command("sh");
        run.args(["-c", "exec \"$0\" \"$@\" 2>&1", &format!("{PLACE}/{}", load::TASK)])
            .args(arguments);
        run.env("RUST_TEST_THREADS", "1")
            .env("RUST_TEST_NOCAPTURE", "1")
            .env("RUST_BACKTRACE", "1");
        run.env(REQUIRE, std::env::var(REQUIRE).unwrap_or_else(|_| BACKENDS.to_owned()));
        run.env(super::CLOUD_HYPERVISOR, format!("{PLACE}/{}", load::MONITOR));
        run.env("FLEETBOX_IP_WAIT_TIMEOUT", GUEST_LIMIT);
        let mut child = run.spawn().await?;
        let mut output = child.stdout.take().ok_or_else(|| Failure::new("the task is mute"))?;
        let mut file = tokio::fs::File::create(log).await.map_err(Failure::io("write", log))?;
        let mut ours = std::io::stdout();
        let mut bytes = vec![0; 16 << 10];
        loop {
            let count = output
                .read(&mut bytes)
                .await
                .map_err(|e| Failure::new(format!("failed to read the task's output: {e}")))?;
            if count == 0 {
                break;
            }
            file.write_all(&bytes[..count]).await.map_err(Failure::io("write", log))?;
            // Guests' consoles are in it: they shall do nothing to this terminal.
            let text = fleetbox::harmless(&bytes[..count]);
            ours.write_all(text.as_bytes())
                .and_then(|()| ours.flush())
                .map_err(|e| Failure::new(format!("failed to print the task's output: {e}")))?;
        }
        file.flush().await.map_err(Failure::io("write", log))?;
        Ok(child.wait().await?.success())
    }

    /// Keeps what explains a failure: consoles and logs of guests, the machine's own console and
    /// kernel log. Says in their place why one could not be had.
    pub(super) async fn keep_evidence(&self, dir: &Path) -> PathBuf {
        let kept = dir.join(format!("evidence-p{}", std::process::id()));
        // What cannot be made cannot be written to either, which the next step tells.
        drop(std::fs::create_dir_all(&kept));
        let logs = "cd .fleetbox && tar -cz --exclude='*.qcow2' --exclude='*.sock' --exclude='seed.img' clusters";
        let sources = [
            ("console.log", self.vm.console().await.map_err(|e| e.report())),
            ("dmesg.log", self.said("sudo dmesg").await),
            ("processes.log", self.said("ps -ef; free -m; df -h; lsmod").await),
            ("clusters.tar.gz", self.said(logs).await),
        ];
        for (name, content) in sources {
            let bytes = content.unwrap_or_else(String::into_bytes);
            if let Err(e) = std::fs::write(kept.join(name), bytes) {
                Clock::start().say(&format!("{name} cannot be kept: {e}"));
            }
        }
        kept
    }

    async fn said(&self, line: &str) -> Result<Vec<u8>, String> {
        let output = self.vm.shell(line).timeout(Duration::from_mins(3)).output().await;
        output.map(|output| output.stdout).map_err(|e| e.report())
    }

    pub(super) async fn end(self) -> Outcome<()> {
        Ok(self.vm.destroy().await?)
    }
}
