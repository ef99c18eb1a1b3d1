//! Owns the list of what was run in guests, for whoever asked to have it written down. It must not run
//! anything, and holds no more than its bounds say.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::output::ExitStatus;
use super::running::Ended;
use crate::error::{Error, Result};

/// Commands kept; the oldest go first.
const COMMANDS_MAX: usize = 2000;
/// What is kept of the end of each stream of a command.
const STREAM_BYTES_MAX: usize = 16 * 1024;

/// What was run, and how it ended. Clones share the list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transcript(Arc<Mutex<Commands>>);

#[derive(Debug, Default)]
struct Commands {
    /// The number of the first one kept.
    first: u64,
    kept: VecDeque<Spoken>,
    captures: Vec<PathBuf>,
}

/// One command or copy.
#[derive(Debug, Clone)]
pub(crate) struct Spoken {
    pub vm: String,
    pub label: String,
    pub began: SystemTime,
    pub took: Option<Duration>,
    pub end: End,
    /// The ends of what was collected of its output; streams go to whoever reads them.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(crate) enum End {
    /// It runs.
    None,
    Done,
    Status(ExitStatus),
    Error(String),
}

/// The place of a command under way.
#[derive(Debug)]
pub(crate) struct Place {
    transcript: Transcript,
    number: u64,
    since: Instant,
}

impl Transcript {
    pub(super) fn begin(&self, vm: &str, label: &str) -> Place {
        let mut commands = self.lock();
        if commands.kept.len() == COMMANDS_MAX {
            commands.kept.pop_front();
            commands.first += 1;
        }
        let number = commands.first + commands.kept.len() as u64;
        commands.kept.push_back(Spoken {
            vm: vm.to_owned(),
            label: label.to_owned(),
            began: SystemTime::now(),
            took: None,
            end: End::None,
            stdout: Vec::new(),
            stderr: Vec::new(),
        });
        Place { transcript: self.clone(), number, since: Instant::now() }
    }

    /// All that is kept, the oldest first.
    pub(crate) fn commands(&self) -> Vec<Spoken> {
        self.lock().kept.iter().cloned().collect()
    }

    /// The network's traffic goes there.
    pub(super) fn capture(&self, path: &Path) {
        self.lock().captures.push(path.to_owned());
    }

    /// The files that captures were begun to; a test that ended well may have removed its own.
    pub(crate) fn captures(&self) -> Vec<PathBuf> {
        self.lock().captures.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Commands> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub(super) fn end(self, result: &Result<Ended>) {
        self.write(|spoken| match result {
            Ok(ended) => {
                spoken.end = End::Status(ended.status.clone());
                spoken.stdout = tail(&ended.stdout);
                spoken.stderr = tail(&ended.stderr);
            }
            Err(e) => spoken.end = End::Error(Error::report(e)),
        });
    }

    /// The end of what was no command.
    pub(crate) fn finish(self, error: Option<String>) {
        self.write(|spoken| spoken.end = error.map_or(End::Done, End::Error));
    }

    fn write(self, write: impl FnOnce(&mut Spoken)) {
        let mut commands = self.transcript.lock();
        // One that was dropped meanwhile is not told of.
        let Some(index) = self.number.checked_sub(commands.first) else { return };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(spoken) = commands.kept.get_mut(index) {
            spoken.took = Some(self.since.elapsed());
            write(spoken);
        }
    }
}

fn tail(bytes: &[u8]) -> Vec<u8> {
    bytes[bytes.len().saturating_sub(STREAM_BYTES_MAX)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(stdout: Vec<u8>) -> Result<Ended> {
        Ok(Ended { status: ExitStatus::from_code(0), stdout, stderr: Vec::new() })
    }

    #[test]
    fn ends_of_output_are_kept_with_their_command() {
        let transcript = Transcript::default();
        let (first, second) = (transcript.begin("a", "one"), transcript.begin("b", "two"));
        second.end(&ended(vec![b'x'; STREAM_BYTES_MAX * 3]));
        first.end(&ended(b"short".to_vec()));
        let commands = transcript.commands();
        assert_eq!(commands[0].stdout, b"short");
        assert_eq!((commands[1].vm.as_str(), commands[1].stdout.len()), ("b", STREAM_BYTES_MAX));
        assert!(matches!(&commands[1].end, End::Status(status) if status.success()));
    }

    #[test]
    fn the_oldest_go_and_their_ends_hurt_nobody() {
        let transcript = Transcript::default();
        let first = transcript.begin("a", "first");
        for n in 0..COMMANDS_MAX {
            transcript.begin("a", &n.to_string()).end(&ended(Vec::new()));
        }
        first.end(&ended(b"late".to_vec()));
        let commands = transcript.commands();
        assert_eq!(commands.len(), COMMANDS_MAX);
        assert_eq!(commands[0].label, "0");
        assert!(commands.iter().all(|command| command.stdout.is_empty()));
    }
}
