//! A private state root. When it is dropped, what lives in it is ended through the command, and
//! nothing may be left.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{self, FLEETBOX, Ran};

/// What a user is promised: two seconds after the end of whoever held a machine nothing is left.
pub(crate) const GONE: Duration = Duration::from_secs(2);

pub(crate) struct Home {
    dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        // Short, as a socket's path must fit below it.
        Self { dir: tempfile::Builder::new().prefix("fbt").tempdir_in("/tmp").unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn cluster(&self, cluster: &str) -> PathBuf {
        self.path().join("clusters").join(cluster)
    }

    pub(crate) fn socket(&self, cluster: &str) -> PathBuf {
        self.cluster(cluster).join("holder.sock")
    }

    /// Any program, with this state root and none of fleetbox's other settings.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FLEETBOX_") {
                command.env_remove(name);
            }
        }
        command.env("FLEETBOX_HOME", self.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, words: I) -> Command {
        let mut command = self.program(FLEETBOX);
        command.args(words);
        command
    }

    pub(crate) fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, words: I) -> Ran {
        self.command(words).output().unwrap().into()
    }

    #[track_caller]
    pub(crate) fn ok<const N: usize>(&self, words: [&str; N]) -> String {
        self.run(words).ok()
    }

    /// A running machine of the fake backend.
    #[track_caller]
    pub(crate) fn up(&self, name: &str) {
        self.ok(["up", name, "--backend", "fake"]);
    }

    /// The rows of `ls -o json`.
    #[track_caller]
    pub(crate) fn rows(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.ok(["ls", "-o", "json"])).unwrap()
    }

    /// The state `ls` gives for a name, if it lists it.
    #[track_caller]
    pub(crate) fn state(&self, name: &str) -> Option<String> {
        let rows = self.rows();
        let row = rows.iter().find(|row| row["name"] == name)?;
        Some(row["state"].as_str().unwrap().to_owned())
    }

    /// Every process that belongs to this state root.
    pub(crate) fn processes(&self) -> Vec<u32> {
        process::with_text(self.path())
    }

    #[track_caller]
    pub(crate) fn assert_no_process_within(&self, limit: Duration) {
        let began = std::time::Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < limit, "left:\n{}", process::describe(&left));
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// The directories of clusters that are there, and what is in them.
    pub(crate) fn clusters(&self) -> Vec<PathBuf> {
        let list = |dir: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let clusters = list(&self.path().join("clusters"));
        let inside: Vec<PathBuf> = clusters.iter().flat_map(|dir| list(dir)).collect();
        clusters.into_iter().chain(inside).collect()
    }

    #[track_caller]
    pub(crate) fn assert_no_cluster_within(&self, limit: Duration) {
        let began = std::time::Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            let left = self.clusters();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < limit, "left: {left:?}");
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Asserts that a request left nothing at all: no process, no VM, no cluster.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        self.assert_no_process_within(GONE);
        self.assert_no_cluster_within(GONE);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let listed = self.run(["ls", "-q"]);
        let removed = self.run(["rm", "-f"].into_iter().chain(listed.stdout.lines()));
        if std::thread::panicking() {
            // One failure is enough to tell; what would not end by itself is ended here.
            for pid in self.processes() {
                eprintln!("ends {}", process::describe(&[pid]));
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
                    rustix::process::Signal::KILL,
                );
            }
            return;
        }
        assert!(listed.code == 0, "{listed:?}");
        // Without a name there is nothing to remove, which is wrong usage.
        assert!(removed.code == 0 || listed.stdout.is_empty(), "{removed:?}");
        self.assert_untouched();
    }
}
