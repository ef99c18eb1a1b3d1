//! Owns building what is taken into the machine: the command and the library's tests, as cargo
//! names them. It must not copy them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;

use crate::failure::{Failure, Outcome};
use crate::process;

/// The executables.
pub(super) struct Built {
    pub cli: PathBuf,
    pub task: Task,
}

/// What is to be done in the machine, and the executable that does it.
pub(super) enum Task {
    Tests(PathBuf),
    Figures(PathBuf),
}

impl Task {
    pub(super) fn executable(&self) -> &Path {
        match self {
            Task::Tests(path) | Task::Figures(path) => path,
        }
    }
}

/// The part of cargo's messages that says what was built.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    target: Target,
}

#[derive(Default, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Debug builds, which `./check` has made already, as the machines take the time, not fleetbox;
/// unless figures are measured.
pub(super) fn build(root: &Path, figures: bool) -> Outcome<Built> {
    let cli = ["build", "--package", "fleetbox-cli"];
    let tests = ["test", "--no-run", "--package", "fleetbox", "--test", "it", "--all-features"];
    let bench = ["build", "--release", "--package", "xtask"];
    Ok(Built {
        cli: executable(root, &cli, "fleetbox", "bin")?,
        task: if figures {
            Task::Figures(executable(root, &bench, "xtask", "bin")?)
        } else {
            Task::Tests(executable(root, &tests, "it", "test")?)
        },
    })
}

fn executable(root: &Path, args: &[&str], name: &str, kind: &str) -> Outcome<PathBuf> {
    let mut cargo = process::cargo(root);
    cargo.args(args).args(["--locked", "--quiet", "--message-format", "json-render-diagnostics"]);
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Failure::new(format!("failed to run cargo: {e}")))?;
    if !output.status.success() {
        return Err(Failure::new(format!("cargo {} failed with {}", args[0], output.status)));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| {
            message.target.name == name && message.target.kind.iter().any(|k| k == kind)
        })
        .find_map(|message| message.executable)
        .ok_or_else(|| Failure::new(format!("cargo does not tell where it built {name}")))
}
