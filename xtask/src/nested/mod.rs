//! Owns running the library's tests on a real KVM where the host has none: in a machine that
//! fleetbox itself emulates with the processor's extension, so that guests of that machine run on
//! its `/dev/kvm`. It must not skip what it cannot do: it fails.

mod cargo;
mod load;
mod machine;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use self::machine::Machine;
use crate::bench;
use crate::failure::{Failure, Outcome};
use crate::process;

/// The variable that names the monitor under test. None is downloaded here.
const CLOUD_HYPERVISOR: &str = "FLEETBOX_CLOUD_HYPERVISOR";
/// What runs unless the caller says: every backend's conformance.
const DEFAULT_TESTS: &str = "conformance";
/// The oldest QEMU that emulates the processor's extension well enough.
const SOUND_QEMU: u32 = 11;
/// What an interrupted build of an image needs to tidy up.
const TIDY_WAIT: Duration = Duration::from_secs(2);

/// What to run. Exits with 1 if a test fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measure the figures of `xtask bench kvm` there instead of running tests
    #[arg(long)]
    figures: bool,
    /// Arguments of the test binary [default: conformance], or of `xtask bench kvm`
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Runs the tests; true if they pass.
pub(crate) fn run(root: &Path, args: &Args) -> Outcome<bool> {
    let monitor = monitor()?;
    if !fleetbox::nested_virt_supported() {
        return Err(Failure::new(
            "KVM cannot work inside guests of this host; `fleetbox doctor` tells why",
        ));
    }
    qemu_is_sound()?;
    let arguments = arguments(args);
    let dir = root.join("target/nested");
    std::fs::create_dir_all(&dir).map_err(Failure::io("make", &dir))?;
    let clock = Clock::start();

    clock.say("building what is taken into the machine");
    let built = cargo::build(root, args.figures)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("failed to start a runtime: {e}")))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            // Listens before there is anything that would have to be undone.
            biased;
            () = interrupted() => Err(Failure::new("interrupted; the machine is ended")),
            outcome = on_kvm(&dir, &built, &monitor, &arguments, &clock) => outcome,
        }
    });
    runtime.shutdown_timeout(TIDY_WAIT);
    clock.say("done");
    outcome
}

fn arguments(args: &Args) -> Vec<String> {
    let mut arguments = match (args.figures, args.arguments.is_empty()) {
        (true, _) => vec!["bench".to_owned(), bench::KVM.to_owned()],
        (false, true) => vec![DEFAULT_TESTS.to_owned()],
        (false, false) => Vec::new(),
    };
    arguments.extend(args.arguments.iter().cloned());
    arguments
}

async fn on_kvm(
    dir: &Path,
    built: &cargo::Built,
    monitor: &Path,
    arguments: &[String],
    clock: &Clock,
) -> Outcome<bool> {
    let load = load::pack(dir, built, monitor, clock).await?;
    machine::ensure_image(clock).await?;
    clock.say("booting the machine, by emulation");
    let machine = Machine::boot(clock).await?;
    // A machine that is dropped ends at once: nothing else has to be undone.
    let outcome = in_machine(&machine, &load, dir, arguments, clock).await;
    if !matches!(outcome, Ok(true)) {
        let kept = machine.keep_evidence(dir).await;
        clock.say(&format!("what the machine leaves is in {}", kept.display()));
    }
    machine.end().await?;
    outcome
}

async fn in_machine(
    machine: &Machine,
    load: &Path,
    dir: &Path,
    arguments: &[String],
    clock: &Clock,
) -> Outcome<bool> {
    clock.say("copying the executables and the guests' image into it");
    machine.take_in(load).await?;
    clock.say("asking it whether KVM works");
    machine.prepare().await?;
    clock.say("taking the image in there");
    machine.import_image().await?;
    clock.say(&format!("running there: {}", arguments.join(" ")));
    machine.run_task(arguments, &dir.join("output.log")).await
}

/// An older one was not seen to hold (`backend/nested.rs` of the library). Where KVM is at hand it is not
/// asked.
fn qemu_is_sound() -> Outcome<()> {
    if Path::new("/sys/module/kvm_intel").exists() || Path::new("/sys/module/kvm_amd").exists() {
        return Ok(());
    }
    let said = process::run(process::command("qemu-system-x86_64").arg("--version"))?.stdout;
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().next().unwrap_or_default();
    let major = line.split_once("version ").and_then(|(_, v)| v.split('.').next()?.parse().ok());
    if major.is_some_and(|major: u32| major >= SOUND_QEMU) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{line} does not bear guests inside an emulated machine for long\n\
         hint: put QEMU {SOUND_QEMU} or newer first on PATH, or use a host with KVM"
    )))
}

/// The monitor's executable. A run without it would prove nothing of its backend.
fn monitor() -> Outcome<PathBuf> {
    let hint = "hint: set it to a cloud-hypervisor executable";
    let path = std::env::var_os(CLOUD_HYPERVISOR)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .ok_or_else(|| Failure::new(format!("{CLOUD_HYPERVISOR} is not set\n{hint}")))?;
    if path.is_file() {
        return Ok(path);
    }
    let path = path.display();
    Err(Failure::new(format!("{CLOUD_HYPERVISOR}={path}: there is no such file\n{hint}")))
}

async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Says what is being done, and when since the start.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    #[expect(clippy::print_stderr, reason = "a chore says what it is doing")]
    fn say(&self, what: &str) {
        eprintln!("nested: {:>6.1} s: {what}", self.0.elapsed().as_secs_f64());
    }
}
