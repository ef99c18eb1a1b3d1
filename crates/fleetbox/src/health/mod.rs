//! Owns a machine's health: what console and journal tell of it since a moment. It must not decide what
//! follows from that; a test does.

mod signs;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

pub use self::signs::Ailment;
use crate::console::{harmless, uncoloured};
use crate::error::{Error, ErrorKind, Result};
use crate::vm::{State, Vm};

/// A guest that is well answers in a second or two, emulated; one whose journal is flooded may not.
const ANSWER_WAIT: Duration = Duration::from_mins(1);
/// What is read of a console at most: a guest that floods it is not read for ever.
const CONSOLE_BYTES_MAX: u64 = 256 * 1024 * 1024;
const LINE_BYTES_MAX: u64 = 4096;
/// Lines of the journal that are looked at, at most.
const LINES_MAX: usize = 500;
/// Far above what they take.
const JOURNAL_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Findings told at most of one machine.
const FINDINGS_MAX: usize = 100;

/// Something that is wrong with a machine, from [`Vm::health`]. `Display` says it in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The machine.
    pub vm: String,
    /// What it is.
    pub ailment: Ailment,
    /// The guest's own line, harmless, without its time.
    pub line: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.vm, self.ailment, self.line)
    }
}

/// A moment of a machine, from [`Vm::health_mark`].
#[derive(Debug, Clone)]
pub struct HealthMark {
    console_bytes: u64,
    boot_id: Option<String>,
    /// Where the journal was; `None` if the guest has none.
    journal: Option<String>,
}

/// The boot's id and the place in the journal. `--show-cursor` writes the place of the last entry it shows.
const MARK: &str =
    "cat /proc/sys/kernel/random/boot_id; exec sudo -n journalctl -q -n 1 -o cat --show-cursor";
const CURSOR: &str = "-- cursor: ";

impl Vm {
    /// The present moment, for [`Vm::health`] to look from. It costs a command in the guest.
    ///
    /// # Errors
    /// If the guest cannot be asked. A guest without a journal is no error: its console remains.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let mark = vm.health_mark().await?;
    /// vm.ssh("sudo modprobe shiny").await?;
    /// for finding in vm.health(&mark).await? {
    ///     eprintln!("{finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn health_mark(&self) -> Result<HealthMark> {
        let console_bytes = self.console_path().metadata().map_or(0, |m| m.len());
        let output = self.shell(MARK).unwritten().timeout(ANSWER_WAIT).output().await?;
        let text = output.stdout_text();
        let boot_id = text.lines().next().map(str::to_owned);
        // After the entry, which may be anything.
        let journal = text.lines().next_back().and_then(|line| line.strip_prefix(CURSOR));
        let journal = journal.map(str::to_owned);
        Ok(HealthMark { console_bytes, boot_id, journal })
    }

    /// What went wrong in the guest since `mark`, as its console and the kernel's and systemd's lines in its
    /// journal tell: panics, oopses, lockups, hung tasks, kills for want of memory, crashes, failed units,
    /// ordering cycles, I/O errors, file systems gone read-only. Each is told once, at most a hundred.
    ///
    /// A guest that runs is asked for its journal, of the boot it is in if it rebooted since. One that does
    /// not run, or does not answer any more, has its console alone.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the console cannot be read; as [`Command::run`](crate::Command::run) if a guest
    /// that answers cannot read its journal.
    pub async fn health(&self, mark: &HealthMark) -> Result<Vec<Finding>> {
        let mut seen = Seen { vm: self.name().to_owned(), ..Seen::default() };
        let path = self.console_path();
        read_console(&path, mark.console_bytes, &mut seen)
            .map_err(|e| Error::io("read", &path, e).vm(self.name()))?;
        let is_dead = seen.findings.iter().any(|finding| finding.ailment == Ailment::Panic);
        if let Some(journal) = mark.journal.as_ref().filter(|_| !is_dead)
            && self.state().await? == State::Running
        {
            let journal = self.journal_since(mark.boot_id.as_deref(), journal).await?;
            for line in journal.unwrap_or_default().lines() {
                seen.look(line);
            }
        }
        Ok(seen.findings)
    }

    /// `None` if the guest does not answer.
    async fn journal_since(&self, boot_id: Option<&str>, cursor: &str) -> Result<Option<String>> {
        let script = format!(
            "read -r boot </proc/sys/kernel/random/boot_id\n\
             if [ \"$boot\" = \"$1\" ]; then set -- \"--after-cursor=$2\"; else set -- -b; fi\n\
             journalctl -q -o short-monotonic --no-hostname \"$@\" _TRANSPORT=kernel + _PID=1 | \
             LC_ALL=C grep -m {LINES_MAX} -aF -e {}; true",
            signs::needles().iter().map(|needle| quoted(needle)).collect::<Vec<_>>().join(" -e ")
        );
        let mut ask = self.command("sh");
        ask.args(["-c", &script, "sh", boot_id.unwrap_or_default(), cursor]);
        ask.sudo().unwritten().timeout(ANSWER_WAIT).output_limit_bytes(JOURNAL_BYTES_MAX);
        match ask.run().await {
            Ok(output) => Ok(Some(output.stdout_text())),
            Err(e) if is_silence(e.kind()) => {
                log::debug!("the guest does not tell its journal: {}", e.report());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// A guest that is gone or dead, however that shows.
fn is_silence(kind: ErrorKind) -> bool {
    use ErrorKind as K;
    matches!(
        kind,
        K::NotRunning
            | K::HolderDied
            | K::HolderUnavailable
            | K::Connect
            | K::ConnectionLost
            | K::TimedOut
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[derive(Default)]
struct Seen {
    vm: String,
    findings: Vec<Finding>,
    known: BTreeSet<(Ailment, String)>,
}

impl Seen {
    fn look(&mut self, line: &str) {
        let line = uncoloured(line);
        let Some((ailment, essence)) = signs::sign(&line) else { return };
        let line = harmless(essence.as_bytes());
        if self.findings.len() < FINDINGS_MAX && self.known.insert((ailment, line.clone())) {
            self.findings.push(Finding { vm: self.vm.clone(), ailment, line });
        }
    }
}

/// Line by line, so that a flood takes no memory.
fn read_console(path: &Path, from: u64, seen: &mut Seen) -> io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // A machine that was started again began a new one.
    let from = if file.metadata()?.len() < from { 0 } else { from };
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::with_capacity(1 << 16, file.take(CONSOLE_BYTES_MAX));
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        seen.look(&String::from_utf8_lossy(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_console_is_read_from_its_mark_on_and_each_line_told_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "[ 1.0] BUG: old").unwrap();
        let mark = file.as_file().metadata().unwrap().len();
        writeln!(file, "[ 2.0] BUG: new \x1b]0;x\x07").unwrap();
        writeln!(file, "[ 3.0] BUG: new \x1b]0;x\x07").unwrap();
        let mut seen = Seen { vm: "web".to_owned(), ..Seen::default() };
        read_console(file.path(), mark, &mut seen).unwrap();
        seen.look("[  2.000000] kernel: BUG: new \x1b]0;x\x07");
        let lines: Vec<String> = seen.findings.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["web: a bug in the kernel: BUG: new ^[]0;x^G"]);
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for n in 0..1000 {
            writeln!(file, "[ 1.0] BUG: {n} {}", "x".repeat(10_000)).unwrap();
        }
        let mut seen = Seen::default();
        read_console(file.path(), 0, &mut seen).unwrap();
        assert_eq!(seen.findings.len(), FINDINGS_MAX);
        assert!(seen.findings.iter().all(|f| f.line.len() <= 4096));
    }

    #[test]
    fn needles_survive_a_shell() {
        for needle in signs::needles() {
            assert!(!needle.contains('\n') && !needle.is_empty());
        }
        assert_eq!(quoted("a'b"), r"'a'\''b'");
    }
}
