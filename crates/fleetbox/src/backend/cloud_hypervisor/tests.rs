//! The real monitor, as far as it goes without a guest that makes progress: it starts, answers,
//! refuses, hangs, dies. Wherever `FLEETBOX_CLOUD_HYPERVISOR`, /dev/kvm and root are to be had.

use std::path::{Path, PathBuf};

use super::*;
use crate::backend::{Accel, Backend, Boot, Identity, Restore};
use crate::env;
use crate::spec::Arch;

/// A network and the files of one machine.
struct Lab {
    network: Network,
    program: PathBuf,
    dir: tempfile::TempDir,
}

fn lab() -> Option<Lab> {
    let program = env::path(env::CLOUD_HYPERVISOR)
        .ok_or_else(|| "FLEETBOX_CLOUD_HYPERVISOR is not set".to_owned());
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.map_err(|e| format!("/dev/kvm: {e}"));
    let network = || Network::start().map_err(|e| e.report());
    match program.and_then(|program| kvm.and_then(|_| network()).map(|(n, _)| (program, n))) {
        Ok((program, network)) => Some(Lab { network, program, dir: tempfile::tempdir().unwrap() }),
        Err(why) => {
            skip(&why);
            None
        }
    }
}

/// A machine of this kind may be required and yet not be had by these tests, which act as root: the
/// conformance list is what a requirement is about.
fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

impl Lab {
    async fn boot(&self, plan: &BootPlan, number: u32) -> Result<CloudHypervisor> {
        let tap = crate::backend::tap(plan, &self.network, number).await?;
        boot(plan, &self.network, number, tap).await
    }

    fn plan(&self) -> BootPlan {
        let file = |name: &str| self.dir.path().join(name);
        let image = file("image.raw");
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        if !file("disk.qcow2").exists() {
            crate::prepare::disk::create_overlay(&file("disk.qcow2"), &image, 1 << 20).unwrap();
        }
        std::fs::write(file("seed.img"), vec![0; 1 << 20]).unwrap();
        std::fs::write(file("kernel"), kernel()).unwrap();
        BootPlan {
            program: self.program.clone(),
            arch: Arch::host(),
            cpus: 1,
            memory_mib: 256,
            boot: Boot::Kernel {
                kernel: file("kernel"),
                initrd: None,
                cmdline: "console=ttyS0".into(),
            },
            disk: file("disk.qcow2"),
            image,
            seed: file("seed.img"),
            console: file("console.log"),
            vmm_log: file("vmm.log"),
            scratch: file("scratch"),
            ephemeral: true,
            ..BootPlan::sample(Backend::CloudHypervisor, Accel::Kvm)
        }
    }
}

/// The smallest bzImage that is loaded (Documentation/arch/x86/boot.rst): one sector of set-up and
/// code that halts for ever.
fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 4096];
    kernel[0x1f1] = 1;
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    // Loaded high, at 1 MiB.
    kernel[0x211] = 1;
    kernel[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    kernel[1024..].fill(0xf4);
    kernel
}

/// The monitor's pid: the child that was told to write to `console`.
fn pid(console: &Path) -> rustix::process::Pid {
    let console = console.to_str().unwrap();
    let is_it = |pid: &str| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(console)
    };
    let entries = std::fs::read_dir("/proc").unwrap().map(|e| e.unwrap().file_name());
    let pid = entries.map(|name| name.to_string_lossy().into_owned()).find(|name| is_it(name));
    rustix::process::Pid::from_raw(pid.unwrap().parse().unwrap()).unwrap()
}

#[tokio::test]
async fn it_starts_answers_refuses_and_goes() {
    let Some(lab) = lab() else { return };
    let plan = lab.plan();
    let machine = lab.boot(&plan, 1).await.unwrap();
    machine.pause().await.unwrap();
    let twice = machine.pause().await.unwrap_err();
    assert!(twice.report().contains("could not be paused"), "{}", twice.report());
    machine.resume().await.unwrap();
    machine.set_balloon(64).await.unwrap();
    machine.reset().await.unwrap();
    machine.power_button().await.unwrap();
    let taken = lab.boot(&plan, 2).await.err().unwrap();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "two on one disk: {}", taken.report());
    machine.kill().await.unwrap();
    assert_eq!(machine.ended().borrow().as_deref(), Some("it was cut off"));
    machine.power_button().await.expect("after the end nothing is asked");
    let gone = machine.api.put("vm.pause", None).await.unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
}

impl Lab {
    /// Saves the machine into a new directory, which is empty but for the disk's.
    /// None where KVM is one that does not tell all of a processor's state.
    async fn save(&self, machine: &CloudHypervisor, name: &str) -> Option<SavePlan> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let plan = SavePlan {
            vm: machine.plan.vm.clone(),
            memory: dir.join("memory"),
            device: dir.join("device"),
            disk: dir.join(format!("layer-{name}.qcow2")),
            spare: dir.join("spare"),
            vmm_log: dir.join("log"),
            token: String::new(),
        };
        std::fs::write(&plan.disk, "").unwrap();
        let tap = self.network.tap_apart(format!("spare-{name}")).await.unwrap();
        match machine.save(&plan, false, tap, &Together::of(1)).await {
            Err(e) if e.report().contains("GetNestedState") => {
                skip(&e.report());
                None
            }
            saved => {
                saved.unwrap();
                Some(plan)
            }
        }
    }

    /// A machine that comes back from that.
    fn fork(&self, like: &BootPlan, saved: &SavePlan, name: &str) -> BootPlan {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let layer = saved.disk.file_name().unwrap();
        let link = |from: &Path| std::fs::hard_link(from, dir.join(from.file_name().unwrap()));
        link(&saved.disk).unwrap();
        like.layers.iter().try_for_each(|layer| link(layer)).unwrap();
        let disk = dir.join("disk.qcow2");
        crate::prepare::disk::create_overlay_on_layer(&disk, layer.to_str().unwrap(), 1 << 20)
            .unwrap();
        let below = like.layers.iter().map(|layer| layer.file_name().unwrap());
        let restore = Restore {
            mounts: Vec::new(),
            memory: saved.memory.clone(),
            device: saved.device.clone(),
            identity: Identity::sample(),
        };
        BootPlan {
            layers: [layer].into_iter().chain(below).map(|layer| dir.join(layer)).collect(),
            disk,
            console: dir.join("console.log"),
            vmm_log: dir.join("vmm.log"),
            scratch: dir.join("scratch"),
            restore: Some(Box::new(restore)),
            ..like.clone()
        }
    }
}

/// How the monitor has the file mapped, of each mapping.
fn mappings(console: &Path, file: &Path) -> Vec<String> {
    // Restored ones are told of it in a file only; it is open.
    let opens = |pid: &str| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| fd.path().read_link().ok()).any(|path| path == console)
    };
    let entries = std::fs::read_dir("/proc").unwrap().map(|e| e.unwrap().file_name());
    let own = std::process::id().to_string();
    let mut pids = entries.map(|name| name.to_string_lossy().into_owned()).filter(|p| *p != own);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", pids.find(|p| opens(p)).unwrap()));
    let file = file.to_str().unwrap();
    let maps = maps.unwrap();
    let of_file = maps.lines().filter(|line| line.ends_with(file));
    of_file.map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_is_saved_comes_back_side_by_side_on_one_memory_and_can_be_saved_again() {
    let Some(lab) = lab() else { return };
    let plan = lab.plan();
    let machine = lab.boot(&plan, 1).await.unwrap();
    let Some(saved) = lab.save(&machine, "first").await else { return };
    assert_eq!(saved.memory.metadata().unwrap().len(), 256 << 20);
    assert!(std::fs::read(&saved.disk).unwrap() == std::fs::read(&plan.disk).unwrap());
    assert_eq!(std::fs::read_dir(&plan.scratch).unwrap().count(), 0, "something is left");
    machine.pause().await.expect("it runs on");
    machine.kill().await.unwrap();

    let (one, other) = (lab.fork(&plan, &saved, "one"), lab.fork(&plan, &saved, "other"));
    let (first, second) = tokio::try_join!(lab.boot(&one, 2), lab.boot(&other, 3)).unwrap();
    for plan in [&one, &other] {
        assert_eq!(mappings(&plan.console, &saved.memory), ["rw-p"]);
        assert_eq!(std::fs::read_dir(&plan.scratch).unwrap().count(), 0, "something is left");
    }
    let again = lab.save(&first, "second").await.unwrap();
    assert_eq!(again.memory.metadata().unwrap().len(), 256 << 20);
    let last = lab.fork(&one, &again, "last");
    assert_eq!(last.layers.len(), 2);
    let third = lab.boot(&last, 4).await.unwrap();
    for machine in [first, second, third] {
        machine.pause().await.unwrap();
        machine.resume().await.unwrap();
        machine.reset().await.unwrap();
        machine.kill().await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_come_back_says_why() {
    let Some(lab) = lab() else { return };
    let plan = lab.plan();
    let machine = lab.boot(&plan, 1).await.unwrap();
    let Some(saved) = lab.save(&machine, "first").await else { return };
    let fork = lab.fork(&plan, &saved, "fork");
    std::fs::remove_file(&saved.memory).unwrap();
    let error = lab.boot(&fork, 2).await.err().unwrap();
    assert!(error.report().contains("restore a machine with"), "{}", error.report());
}

#[tokio::test]
async fn one_that_cannot_be_saved_runs_on() {
    let Some(lab) = lab() else { return };
    let plan = lab.plan();
    let machine = lab.boot(&plan, 1).await.unwrap();
    let to = lab.dir.path().join("absent");
    let save = SavePlan {
        vm: plan.vm.clone(),
        memory: to.join("memory"),
        device: to.join("device"),
        disk: to.join("disk"),
        spare: to.join("spare"),
        vmm_log: to.join("log"),
        token: String::new(),
    };
    let tap = lab.network.tap_apart("spare".to_owned()).await.unwrap();
    let together = Together::of(2);
    let (saved, fellow) = tokio::join!(machine.save(&save, false, tap, &together), together.wait());
    let error = saved.unwrap_err();
    assert!(error.report().contains("save the machine to"), "{}", error.report());
    assert!(!fellow, "another waits for it");
    machine.pause().await.expect("it does not stand still");
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn its_death_is_noticed_at_once() {
    let Some(lab) = lab() else { return };
    let plan = lab.plan();
    let machine = lab.boot(&plan, 1).await.unwrap();
    let mut ended = machine.ended();
    rustix::process::kill_process(pid(&plan.console), rustix::process::Signal::KILL).unwrap();
    let why = tokio::time::timeout(Duration::from_secs(10), ended.wait_for(Option::is_some));
    let why = why.await.unwrap().unwrap().clone();
    assert_eq!(why.as_deref(), Some("its monitor was killed by signal 9"));
}

#[tokio::test]
async fn one_that_hangs_is_told_and_can_still_be_ended() {
    let Some(lab) = lab() else { return };
    let plan = lab.plan();
    let mut machine = lab.boot(&plan, 1).await.unwrap();
    rustix::process::kill_process(pid(&plan.console), rustix::process::Signal::STOP).unwrap();
    machine.api = machine.api.answering_within(Duration::from_millis(300));
    let hangs = machine.ask("vm.pause", None).await.unwrap_err();
    assert!(hangs.report().contains("ask cloud-hypervisor for vm.pause"), "{}", hangs.report());
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_kernel_that_is_none_is_refused_in_its_own_words() {
    let Some(lab) = lab() else { return };
    let plan = lab.plan();
    std::fs::write(lab.dir.path().join("kernel"), "not a kernel").unwrap();
    let error = lab.boot(&plan, 1).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::BackendUnavailable);
    assert!(error.report().contains("kernel"), "{}", error.report());
}

#[tokio::test]
async fn events_are_read_however_they_are_cut() {
    let text = r#"{"timestamp":{"secs":0,"nanos":1},"source":"vm","event":"booted","properties":null}

{"timestamp":{"secs":9,"nanos":1},"source":"vm","event":"shutdown","properties":null}
"#;
    for cut in 0..text.len() {
        let (first, second) = text.as_bytes().split_at(cut);
        let (runs, mut is_running) = watch::channel(false);
        let (shutdown, mut shutdowns) = tokio::sync::mpsc::unbounded_channel();
        read_events(first.chain(second), runs, shutdown).await;
        assert!(*is_running.borrow_and_update(), "cut at {cut}");
        assert_eq!(shutdowns.recv().await, Some(()), "cut at {cut}");
    }
}
