//! Running processes, waiting for what they do, and looking at those that are left.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The command under test.
pub(crate) const FLEETBOX: &str = env!("CARGO_BIN_EXE_fleetbox");

/// How a process ended and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The exit code, or 128 and the signal's number.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let status = output.status;
        Self {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Standard output of a process that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Standard error of a process that must have failed with this code, with `words` in it.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {}", self.stderr);
        }
        self.stderr
    }

    /// [`Ran::fails`] of a request or a host that is wrong: there is a hint, and nothing that could
    /// act on a terminal.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, words: &[&str]) -> String {
        let said = self.fails(code, words);
        assert!(said.contains("\nhint: "), "no hint in {said}");
        assert!(
            said.chars().all(|c| c == '\n' || !c.is_control()),
            "raw control bytes in {said:?}"
        );
        said
    }
}

/// Runs it to its end with `input` at its standard input.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command need not read its input.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let ran = child.wait_with_output().unwrap().into();
    feeder.join().unwrap();
    ran
}

/// Waits until something holds, and panics if it does not within the time.
#[track_caller]
pub(crate) fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    let mut pause = Duration::from_millis(2);
    while !holds() {
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The processes that have `text` in their arguments or environment. A zombie has neither.
pub(crate) fn with_text(text: &Path) -> Vec<u32> {
    let needle = text.as_os_str().as_bytes();
    let has = |pid: u32, file: &str| {
        std::fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id() && (has(*pid, "environ") || has(*pid, "cmdline")))
        .collect()
}

pub(crate) fn describe(pids: &[u32]) -> String {
    let line = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("{pid} {}", String::from_utf8_lossy(&words).replace('\0', " "))
    };
    pids.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Whether it runs; a zombie does not.
pub(crate) fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z")
}

pub(crate) fn parent(pid: u32) -> u32 {
    stat(pid).unwrap()[1].parse().unwrap()
}

/// The fields after the name, which may hold anything (`proc_pid_stat(5)`).
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a tool is there; says that the test is skipped if not.
pub(crate) fn has_tool(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    if !found {
        eprintln!("skipped: there is no {tool} here");
    }
    found
}

/// Whether a command succeeds; says that the test is skipped if not.
pub(crate) fn possible(what: &str, command: &mut Command) -> bool {
    let ran = command.stdin(Stdio::null()).output();
    let possible = ran.as_ref().is_ok_and(|output| output.status.success());
    if !possible {
        eprintln!("skipped: {what} is not possible here: {ran:?}");
    }
    possible
}
