//! Owns [`TimelineEntry`], what was done to a cluster and when, and reading a cluster's. It must not
//! write any: the holder does.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cluster::Cluster;
use crate::error::Result;
use crate::spec::Name;
use crate::store::paths::Paths;
use crate::store::timeline::{self as file, Line, What};

/// Something that was done to a cluster or one of its members, from [`Cluster::timeline`].
///
/// `Display` says all but the times in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimelineEntry {
    /// The host's wall clock then, in microseconds. It may jump; the order of entries does not go by
    /// it.
    pub at: SystemTime,
    /// How long after the start of its holder, by the host's monotonic clock, in microseconds: the
    /// difference of two entries of one holder is the time between them.
    pub since_start: Duration,
    /// The wall clock at its holder's start: what tells the entries of one holder from another's.
    pub holder_started: SystemTime,
    /// The member, if it was done to one alone.
    pub vm: Option<String>,
    /// What was done.
    pub event: TimelineEvent,
}

/// What is done to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimelineEvent {
    /// A holder took the cluster over; monotonic time begins anew. Whatever faults there were before
    /// are healed, and no member runs.
    #[non_exhaustive]
    HolderStarted {
        /// Its release of fleetbox.
        version: String,
    },
    /// The holder ended in good order. One that is killed leaves no such entry.
    HolderEnded,
    /// The machine was started; the guest begins to boot.
    Boot,
    /// The machine came back from a snapshot, as another.
    Restore,
    /// The machine was saved in a snapshot.
    #[non_exhaustive]
    Save {
        /// How long it stood still for that.
        paused: Duration,
    },
    /// The machine ended, whoever was the reason.
    #[non_exhaustive]
    End {
        /// In words.
        why: String,
    },
    /// Nobody holds the bound VM any more, so it is ended.
    LetGo,
    /// The guest was asked to shut down.
    #[non_exhaustive]
    StopAsked {
        /// What it was given for that, before it is cut off.
        grace: Duration,
    },
    /// The plug was pulled.
    PowerCut,
    /// The reset button was pressed.
    Reset,
    /// The processors were stopped.
    Pause,
    /// They went on.
    Resume,
    /// The memory taken from the guest was set.
    #[non_exhaustive]
    Balloon {
        /// How much is taken in all, in MiB.
        mib: u32,
    },
    /// The guest's wall clock was moved.
    #[non_exhaustive]
    ClockJump {
        /// By how many milliseconds.
        by_ms: i64,
    },
    /// Something was broken.
    #[non_exhaustive]
    Fault {
        /// The number by which [`FaultInfo`](crate::FaultInfo) knows it, of this holder.
        id: u64,
        /// What [`FaultKind`](crate::FaultKind)'s `Display` says of it.
        what: String,
    },
    /// It was mended.
    #[non_exhaustive]
    Heal {
        /// The number of the fault.
        id: u64,
        /// What it was.
        what: String,
        /// How long it was there.
        lasted: Duration,
    },
}

impl TimelineEvent {
    /// One word for it in `snake_case`, stable: `holder_started`, `boot`, `fault`, `heal`, …
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::HolderStarted { .. } => "holder_started",
            Self::HolderEnded => "holder_ended",
            Self::Boot => "boot",
            Self::Restore => "restore",
            Self::Save { .. } => "save",
            Self::End { .. } => "end",
            Self::LetGo => "let_go",
            Self::StopAsked { .. } => "stop_asked",
            Self::PowerCut => "power_cut",
            Self::Reset => "reset",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Balloon { .. } => "balloon",
            Self::ClockJump { .. } => "clock_jump",
            Self::Fault { .. } => "fault",
            Self::Heal { .. } => "heal",
        }
    }
}

impl fmt::Display for TimelineEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HolderStarted { version } => write!(f, "holder started (fleetbox {version})"),
            Self::HolderEnded => f.write_str("holder ended"),
            Self::Boot => f.write_str("boot"),
            Self::Restore => f.write_str("restored from a snapshot"),
            Self::Save { paused } => {
                write!(f, "saved in a snapshot, paused for {} ms", paused.as_millis())
            }
            Self::End { why } => write!(f, "end: {why}"),
            Self::LetGo => f.write_str("let go: nobody holds it"),
            Self::StopAsked { grace } => {
                write!(f, "stop asked, {} of grace", humantime::format_duration(*grace))
            }
            Self::PowerCut => f.write_str("power cut"),
            Self::Reset => f.write_str("reset"),
            Self::Pause => f.write_str("pause"),
            Self::Resume => f.write_str("resume"),
            Self::Balloon { mib } => write!(f, "balloon of {mib} MiB"),
            Self::ClockJump { by_ms } => write!(f, "clock jump by {by_ms} ms"),
            Self::Fault { id, what } => write!(f, "fault {id}: {what}"),
            Self::Heal { id, what, lasted } => {
                write!(f, "heal {id}: {what}, after {:.3} s", lasted.as_secs_f64())
            }
        }
    }
}

impl fmt::Display for TimelineEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vm) = &self.vm {
            write!(f, "{vm}: ")?;
        }
        self.event.fmt(f)
    }
}

impl From<Line> for TimelineEntry {
    fn from(line: Line) -> Self {
        let us = Duration::from_micros;
        Self {
            at: UNIX_EPOCH + us(line.at_us),
            since_start: us(line.since_start_us),
            holder_started: UNIX_EPOCH + us(line.holder_us),
            vm: line.vm.map(|vm| vm.to_string()),
            event: line.what.into(),
        }
    }
}

impl From<What> for TimelineEvent {
    fn from(what: What) -> Self {
        match what {
            What::HolderStarted { version } => Self::HolderStarted { version },
            What::HolderEnded => Self::HolderEnded,
            What::Boot => Self::Boot,
            What::Restore => Self::Restore,
            What::Save { paused_us } => Self::Save { paused: Duration::from_micros(paused_us) },
            What::End { why } => Self::End { why },
            What::LetGo => Self::LetGo,
            What::StopAsked { grace_ms } => {
                Self::StopAsked { grace: Duration::from_millis(grace_ms) }
            }
            What::PowerCut => Self::PowerCut,
            What::Reset => Self::Reset,
            What::Pause => Self::Pause,
            What::Resume => Self::Resume,
            What::Balloon { mib } => Self::Balloon { mib },
            What::ClockJump { by_ms } => Self::ClockJump { by_ms },
            What::Fault { id, fault } => Self::Fault { id, what: fault },
            What::Heal { id, fault, lasted_us } => {
                Self::Heal { id, what: fault, lasted: Duration::from_micros(lasted_us) }
            }
        }
    }
}

impl Cluster {
    /// What was done to the cluster and its members, by whatever process, the oldest first: each
    /// fault and its heal, each boot and end, stop, power cut, reset, pause, resume, balloon and clock
    /// jump. What was asked for and failed, or changed nothing, is not in it; nor is what a guest does
    /// by itself, save its end.
    ///
    /// It is there also when no member runs, until the last one is removed. What former holders saw
    /// stays, but it is bounded: of the newest entries at least 4 MiB and at most 8 MiB are kept, some
    /// 20,000 at least. An entry is written before the call that did it returns; one that a full disk
    /// or a `kill -9` of the holder tore is left out. Faults that were there when a holder ended have no
    /// heal: they ended with it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be read. A cluster that is gone has none.
    ///
    /// ```no_run
    /// # fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// for entry in cluster.timeline()? {
    ///     println!("{:>12.6} {entry}", entry.since_start.as_secs_f64());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn timeline(&self) -> Result<Vec<TimelineEntry>> {
        let paths = Paths::from_env()?.cluster(&Name::new(self.name())?);
        Ok(file::read(&paths)?.into_iter().map(TimelineEntry::from).collect())
    }
}
