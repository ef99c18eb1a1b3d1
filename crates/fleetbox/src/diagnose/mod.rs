//! Owns what can be told of a boot: [`BootReport`], the stages with their times, the likely cause of one
//! that does not come up. It must not boot or wait: `launch` does, and asks here.

mod cause;
mod follow;
mod guest;
mod marks;

use std::fmt;
use std::time::Duration;

pub use self::cause::BootCause;
pub(crate) use self::follow::Follower;
pub(crate) use self::guest::Units;
use crate::error::Result;
use crate::progress::Stage;
use crate::vm::Vm;

/// What is known of a boot, from [`Vm::boot_report`] and, of one that failed, from
/// [`Error::boot_report`](crate::Error::boot_report). `Display` shows it as a table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BootReport {
    /// The stages that were seen, in the order in which they came.
    pub stages: Vec<BootStage>,
    /// The slowest units of a system that came up, the slowest first.
    pub units: Vec<BootUnit>,
    /// Why it did not come up, if it did not and that can be told.
    pub cause: Option<BootCause>,
    /// The line of the console that shows the cause, harmless.
    pub evidence: Option<String>,
    /// What of this boot was before the machine was saved in a snapshot: it was not booted for this start.
    pub restored: bool,
}

/// A stage of a boot that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BootStage {
    /// Which.
    pub stage: Stage,
    /// When it began by the guest's clock, since the start of its kernel. Firmware has no such time, nor has
    /// what systemd says on the console.
    pub guest_clock: Option<Duration>,
    /// When its first word was read on the console, since the machine was started. Only of a boot that was
    /// waited for.
    pub since_power_on: Option<Duration>,
}

/// A unit of the guest's systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BootUnit {
    /// Its name, harmless.
    pub name: String,
    /// How long its start took.
    pub took: Duration,
}

impl BootReport {
    /// What a boot that failed left.
    pub(crate) fn failed(
        stages: Vec<BootStage>,
        cause: Option<BootCause>,
        line: Option<&str>,
    ) -> Self {
        let evidence = line.map(|line| crate::console::harmless(line.as_bytes()));
        Self { stages, units: Vec::new(), cause, evidence, restored: false }
    }
}

impl fmt::Display for BootReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.restored {
            writeln!(f, "restored from a snapshot; its one boot, before that:")?;
        }
        let seconds = |time: Option<Duration>| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
        };
        writeln!(f, "{:<18} {:>11} {:>11}", "stage", "guest", "host")?;
        for stage in &self.stages {
            let (guest, host) = (seconds(stage.guest_clock), seconds(stage.since_power_on));
            writeln!(f, "{:<18} {guest:>11} {host:>11}", stage.stage.as_str())?;
        }
        for unit in &self.units {
            writeln!(f, "  {:>8.2} s  {}", unit.took.as_secs_f64(), unit.name)?;
        }
        if let Some(cause) = self.cause {
            writeln!(f, "likely cause: {cause}")?;
        }
        if let Some(evidence) = &self.evidence {
            writeln!(f, "shown by: {evidence}")?;
        }
        Ok(())
    }
}

impl Vm {
    /// What is known of the guest's boot: its stages with the times of the guest's own clock, its slowest
    /// units. What the console shows is in it also of a guest that does not answer; one that answers is
    /// asked for the rest, and so far as it has no systemd the rest is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the console cannot be read.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// for stage in vm.boot_report().await?.stages {
    ///     println!("{} {:?}", stage.stage, stage.guest_clock);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn boot_report(&self) -> Result<BootReport> {
        self.report_boot(Units::All).await
    }

    /// [`Vm::boot_report`] with as much of the units as is wanted.
    pub(crate) async fn report_boot(&self, units: Units) -> Result<BootReport> {
        let console = self.console_end(CONSOLE_BYTES_MAX)?;
        let (mut stages, shown) = follow::read(this_boot(&console));
        let asked = match guest::ask(self, units).await {
            Ok(asked) => asked,
            Err(e) => {
                log::debug!("the guest tells nothing of its boot: {}", e.report());
                let evidence = shown.as_ref().map(|shown| harmless(&shown.line));
                let cause = shown.map(|shown| shown.cause);
                return Ok(BootReport {
                    stages,
                    units: Vec::new(),
                    cause,
                    evidence,
                    restored: false,
                });
            }
        };
        // The guest's own word has a time where the console's has none.
        for known in asked.stages {
            match stages.iter_mut().find(|stage| stage.stage == known.stage) {
                Some(stage) => stage.guest_clock = known.guest_clock,
                None => stages.push(known),
            }
        }
        stages.sort_by_key(|stage| stage.stage);
        // What was saved has no beginning on the console of what came back.
        let begins_here = stages.iter().any(|stage| stage.stage == Stage::Kernel);
        let restored = self.is_from_snapshot() && !begins_here;
        Ok(BootReport { stages, units: asked.units, cause: None, evidence: None, restored })
    }
}

/// A boot says all there is to it in far less.
const CONSOLE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A guest that rebooted has several boots on one console: the last counts.
fn this_boot(console: &[u8]) -> &[u8] {
    const FIRST: &[u8] = b"Linux version ";
    let begin = console.windows(FIRST.len()).rposition(|window| window == FIRST);
    let line = |at: usize| console[..at].iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    &console[begin.map_or(0, line)..]
}

fn harmless(line: &str) -> String {
    crate::console::harmless(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_boots_on_a_console_the_last_counts() {
        let console = b"[ 0.0] Linux version 6\n[ 1.0] systemd[1]: x\n[ 0.0] Linux version 6\nrest";
        assert_eq!(this_boot(console), b"[ 0.0] Linux version 6\nrest");
        assert_eq!(this_boot(b"no boot"), b"no boot");
    }

    #[test]
    fn the_report_is_a_table_with_the_cause_below() {
        let stage = |stage, guest: u64| BootStage {
            stage,
            guest_clock: Some(Duration::from_millis(guest)),
            since_power_on: None,
        };
        let stages = vec![stage(Stage::Kernel, 0), stage(Stage::Root, 3500)];
        let report =
            BootReport::failed(stages, Some(BootCause::Panic), Some("Kernel \x1b[2J panic"));
        let text = report.to_string();
        assert!(text.contains("root                    3.50 s           -"), "{text}");
        assert!(text.contains("likely cause: its kernel panicked"), "{text}");
        assert!(text.contains("shown by: Kernel ^[[2J panic"), "{text}");
    }
}
