//! Owns what figures share: the built command, the image, a running guest, a place for files, and
//! tidying all of it up, also after an interrupt. It must not measure.

use std::cell::OnceCell;
use std::future::Future;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox::{Arch, Vm};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::net::Pair;
use super::report;
use crate::failure::{Failure, Outcome};
use crate::process;

/// The image all machines are made of, 2 GiB large when built here.
pub(super) const IMAGE: &str = "debian-12";
pub(super) const MEMORY_MIB: u32 = 1024;
const RUNS: usize = 5;

/// What figures are measured on.
pub(super) struct Stage {
    pub root: PathBuf,
    runs: Option<usize>,
    runtime: Runtime,
    interrupted: watch::Receiver<bool>,
    files: TempDir,
    cli: OnceCell<PathBuf>,
    guest: OnceCell<Guest>,
    pair: OnceCell<Pair>,
}

/// The running guest that the figures about SSH share.
pub(super) struct Guest {
    pub vm: Vm,
    /// For `ssh -F`.
    pub config: PathBuf,
}

/// The cached image as a file.
pub(super) struct Image {
    pub path: PathBuf,
}

impl Image {
    /// What the file takes on the disk, without its holes.
    pub(super) fn data_mib(&self) -> Outcome<u64> {
        let metadata = self.path.metadata().map_err(Failure::io("look at", &self.path))?;
        Ok((metadata.blocks() * 512) >> 20)
    }
}

impl Stage {
    pub(super) fn new(root: &Path, runs: Option<usize>) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::new(format!("failed to start a runtime: {e}")))?;
        let (interrupt, interrupted) = watch::channel(false);
        let terminate = runtime
            .block_on(async { signal(SignalKind::terminate()) })
            .map_err(|e| Failure::new(format!("failed to watch for signals: {e}")))?;
        runtime.spawn(watch_signals(terminate, interrupt));
        // Beside the build: a /tmp in memory would flatter copies and may be too small.
        let dir = root.join("target/bench");
        std::fs::create_dir_all(&dir).map_err(Failure::io("make", &dir))?;
        let files = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(&dir)
            .map_err(Failure::io("make a directory in", &dir))?;
        Ok(Self {
            root: root.to_owned(),
            runs,
            runtime,
            interrupted,
            files,
            cli: OnceCell::new(),
            guest: OnceCell::new(),
            pair: OnceCell::new(),
        })
    }

    /// How many runs to take the median of.
    pub(super) fn runs(&self) -> usize {
        self.runs_or(RUNS)
    }

    /// The same where the usual number does not suit.
    pub(super) fn runs_or(&self, usual: usize) -> usize {
        self.runs.unwrap_or(usual)
    }

    /// A path for a file of the run, gone with it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A file of noise, which nothing on the way can make smaller.
    pub(super) fn noise(&self, name: &str, bytes: u64) -> Outcome<PathBuf> {
        let (source, path) = (Path::new("/dev/urandom"), self.file(name));
        let mut noise =
            std::fs::File::open(source).map_err(Failure::io("open", source))?.take(bytes);
        let mut file = std::fs::File::create(&path).map_err(Failure::io("write", &path))?;
        std::io::copy(&mut noise, &mut file).map_err(Failure::io("write", &path))?;
        file.sync_all().map_err(Failure::io("write", &path))?;
        Ok(path)
    }

    /// Waits for it, or for an interrupt.
    pub(super) fn wait<T>(&self, future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let mut interrupted = self.interrupted.clone();
        self.runtime.block_on(async {
            tokio::select! {
                outcome = future => outcome,
                Ok(_) = interrupted.wait_for(|it| *it) => Err(Failure::new("interrupted")),
            }
        })
    }

    /// Lets some time pass between two looks at something.
    pub(super) fn pause(&self, pause: Duration) -> Outcome<()> {
        self.wait(async {
            tokio::time::sleep(pause).await;
            Ok(())
        })
    }

    pub(super) fn check_interrupted(&self) -> Outcome<()> {
        if *self.interrupted.borrow() { Err(Failure::new("interrupted")) } else { Ok(()) }
    }

    /// The command as it is released.
    pub(super) fn cli(&self) -> Outcome<&Path> {
        if let Some(cli) = self.cli.get() {
            return Ok(cli);
        }
        let built = self.build_cli("fleetbox", &[])?;
        Ok(self.cli.get_or_init(|| built))
    }

    /// Builds the command with features and keeps it under a name of its own.
    pub(super) fn build_cli(&self, name: &str, features: &[&str]) -> Outcome<PathBuf> {
        report::progress(&format!("building {name}"));
        let target = self.root.join("target");
        let mut cargo = process::cargo(&self.root);
        cargo.args(["build", "--quiet", "--release", "--package", "fleetbox-cli"]);
        cargo.arg("--target-dir").arg(&target).args(["--features", &features.join(",")]);
        process::run(&mut cargo)?;
        let (from, to) = (target.join("release/fleetbox"), self.file(name));
        std::fs::copy(&from, &to).map_err(Failure::io("copy", &from))?;
        Ok(to)
    }

    /// The image, which must be here.
    pub(super) fn image(&self) -> Outcome<Image> {
        let images = self.wait(async { Ok(fleetbox::images::list().await?) })?;
        images
            .into_iter()
            .filter(|image| image.reference == IMAGE && image.arch == Arch::host())
            .find_map(|image| Some(Image { path: image.path? }))
            .ok_or_else(|| {
                Failure::new(format!(
                    "the image {IMAGE} is not here\nhint: make it with `fleetbox image build {IMAGE}`"
                ))
            })
    }

    /// The shared guest, booted by the first who asks.
    pub(super) fn guest(&self) -> Outcome<&Guest> {
        if let Some(guest) = self.guest.get() {
            return Ok(guest);
        }
        self.image()?;
        let cli = self.cli()?;
        report::progress("booting a guest");
        let vm = self.wait(async {
            let builder = Vm::builder(machine_name("guest")).image(IMAGE).ephemeral(true);
            Ok(builder.memory_mib(MEMORY_MIB).cpus(2).start().await?)
        })?;
        // What the first minutes of a machine's life do in the background would be measured too.
        self.wait(async { Ok(vm.ssh("systemctl is-system-running --wait || true").await?) })?;
        let config = self.file("ssh_config");
        let text = vm.ssh_config(cli)?;
        std::fs::write(&config, text).map_err(Failure::io("write", &config))?;
        Ok(self.guest.get_or_init(|| Guest { vm, config }))
    }

    /// The two guests on one network that the figures about networks share, booted by the first who
    /// asks.
    pub(super) fn pair(&self) -> Outcome<&Pair> {
        if let Some(pair) = self.pair.get() {
            return Ok(pair);
        }
        let pair = Pair::start(self)?;
        Ok(self.pair.get_or_init(|| pair))
    }

    /// Ends the guests; everything else goes with the value.
    pub(super) fn close(mut self) -> Outcome<()> {
        let (guest, pair) = (self.guest.take(), self.pair.take());
        // Also after an interrupt, so not by `wait`.
        self.runtime.block_on(async {
            let one = match guest {
                Some(guest) => guest.vm.destroy().await,
                None => Ok(()),
            };
            let two = match pair {
                Some(pair) => pair.cluster.destroy().await,
                None => Ok(()),
            };
            Ok(one.and(two)?)
        })
    }
}

/// Tells of an interrupt, so that everything can be tidied up.
async fn watch_signals(mut terminate: Signal, interrupt: watch::Sender<bool>) {
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        Some(()) = terminate.recv() => {}
    }
    interrupt.send_replace(true);
}

/// A name no other machine has, on this host or in this run. `what` must not end in a digit: that
/// would make it a member of a cluster.
pub(super) fn machine_name(what: &str) -> String {
    format!("bench-p{}-{what}", std::process::id())
}
