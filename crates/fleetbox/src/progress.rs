//! Owns the events that long work reports: which stage of a start is under way and how far.
//! It must not decide how they look.

use std::fmt;
use std::sync::Arc;

/// A stage of starting a VM, in the order they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The image is fetched, or built.
    Download,
    /// The machine that warm starts come from is booted and saved, once.
    Golden,
    /// Disk, seed, kernel and holder are made ready.
    Prepare,
    /// Fixtures are packed, if there are any.
    Pack,
    /// A saved machine comes back, and becomes another.
    Restore,
    /// The monitor runs; the guest's kernel has not spoken yet, but perhaps its firmware.
    Firmware,
    /// The guest's kernel starts.
    Kernel,
    /// Its initrd looks for the root file system.
    Initrd,
    /// The root file system is mounted.
    Root,
    /// systemd runs in the guest.
    Init,
    /// cloud-init reads its seed, before there is a network.
    CloudInitLocal,
    /// The network is up.
    Network,
    /// cloud-init configures the guest.
    CloudInit,
    /// Waiting for the guest's sshd to let us in.
    Ssh,
}

impl Stage {
    /// The stage in one lowercase word.
    ///
    /// ```
    /// assert_eq!(fleetbox::Stage::CloudInit.as_str(), "cloud-init");
    /// ```
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Download => "download",
            Stage::Golden => "golden",
            Stage::Prepare => "prepare",
            Stage::Pack => "pack",
            Stage::Restore => "restore",
            Stage::Firmware => "firmware",
            Stage::Kernel => "kernel",
            Stage::Initrd => "initrd",
            Stage::Root => "root",
            Stage::Init => "init",
            Stage::CloudInitLocal => "cloud-init-local",
            Stage::Network => "network",
            Stage::CloudInit => "cloud-init",
            Stage::Ssh => "ssh",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event of long work. Events come in order; a stage may be skipped when there was nothing to
/// do in it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Progress {
    /// The stage begins; the one before it is over.
    Begin(Stage),
    /// How far the stage is, in bytes; `total` is unknown for some sources.
    Advance {
        /// The stage.
        stage: Stage,
        /// Bytes done so far.
        done: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
    /// Something the user should read once: a fallback taken, an option ignored, a wait for another
    /// process.
    Note(String),
    /// A step of a derived image begins, or is passed over.
    Step {
        /// Which step it is, from 1.
        number: usize,
        /// How many there are.
        total: usize,
        /// The step on one line, as an image file has it.
        text: String,
        /// Its layer is there already.
        cached: bool,
    },
    /// A line that a step writes, without what could act on a terminal.
    Output(String),
    /// The VM, or the derived image, is ready; no more events follow.
    Ready,
}

/// Where events go: called from any thread, must be quick and must not panic.
#[derive(Clone, Default)]
pub(crate) struct ProgressSink(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl ProgressSink {
    pub(crate) fn new(f: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(f)))
    }

    pub(crate) fn send(&self, event: Progress) {
        if let Some(f) = &self.0 {
            f(event);
        }
    }

    pub(crate) fn begin(&self, stage: Stage) {
        self.send(Progress::Begin(stage));
    }

    pub(crate) fn advance(&self, stage: Stage, done: u64, total: Option<u64>) {
        self.send(Progress::Advance { stage, done, total });
    }

    /// A note is also a warning in the log, for users without a sink.
    pub(crate) fn note(&self, text: impl Into<String>) {
        let text = text.into();
        log::warn!("{text}");
        self.send(Progress::Note(text));
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ProgressSink(set)" } else { "ProgressSink(none)" })
    }
}
