//! Owns a user's new crate: empty, with one dependency for its tests. It must not measure.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::stage::Stage;
use crate::failure::{Failure, Outcome};
use crate::process;

/// It lies within another workspace's directory, of which `cargo init` would make it a member.
const MANIFEST: &str =
    "[package]\nname = \"first\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n";

/// With what the library is compared, as a dependency of tests.
pub(super) const PEER: &str = "testcontainers@0.28";

/// What is compared, as a user adds it.
pub(super) enum Dependency {
    /// The library of this workspace.
    Ours,
    /// As `cargo add` takes it.
    Published(&'static str),
}

/// A crate in a directory of the stage, with everything fetched.
pub(super) struct Crate {
    dir: PathBuf,
}

impl Crate {
    pub(super) fn new(stage: &Stage, name: &str, dependency: &Dependency) -> Outcome<Self> {
        let new = Self { dir: stage.file(name) };
        new.write("Cargo.toml", MANIFEST)?;
        new.write("src/lib.rs", "")?;
        let library = stage.root.join("crates/fleetbox");
        match dependency {
            Dependency::Ours => {
                new.cargo(&["add", "--quiet", "--dev", "--path", &library.to_string_lossy()])?;
            }
            Dependency::Published(name) => {
                new.cargo(&["add", "--quiet", "--dev", name])?;
            }
        }
        new.cargo(&["fetch", "--quiet"])?;
        Ok(new)
    }

    /// Builds its tests, in debug.
    pub(super) fn build(&self) -> Outcome<()> {
        self.cargo(&["build", "--quiet", "--tests"]).map(drop)
    }

    /// How many packages, by name and version, are built for it on this host.
    pub(super) fn packages(&self) -> Outcome<u32> {
        let tree = self.cargo(&["tree", "--prefix", "none", "--no-dedupe"])?;
        Ok(count(&tree))
    }

    /// How many are locked for it, whatever the system.
    pub(super) fn locked(&self) -> Outcome<u32> {
        let path = self.dir.join("Cargo.lock");
        let lock = std::fs::read_to_string(&path).map_err(Failure::io("read", &path))?;
        let all = lock.lines().filter(|line| *line == "[[package]]").count();
        // Its own is one.
        Ok(u32::try_from(all).unwrap_or(u32::MAX).saturating_sub(1))
    }

    fn write(&self, name: &str, text: &str) -> Outcome<()> {
        let path = self.dir.join(name);
        let dir = path.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(dir).map_err(Failure::io("make", dir))?;
        std::fs::write(&path, text).map_err(Failure::io("write", &path))
    }

    fn cargo(&self, words: &[&str]) -> Outcome<String> {
        // As cargo builds whatever comes from a registry, which ours here does not.
        let mut cargo = process::cargo(&self.dir);
        let output = process::run(cargo.env("CARGO_INCREMENTAL", "0").args(words))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The lines of a tree but for the user's own crate's and the words between them.
fn count(tree: &str) -> u32 {
    let packages: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, rest)| (name, rest.split(' ').next().unwrap_or(rest)))
        .filter(|(name, _)| *name != "first")
        .collect();
    u32::try_from(packages.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_repetitions_and_the_users_own_do_not() {
        let tree = "first v0.1.0 (/x)\n[dev-dependencies]\nsyn v2.0.1\nsyn v2.0.1\nsyn v1.0.9\n\
                    fleetbox-macros v0.1.0 (proc-macro) (/x)\n\nctor v1.0.0 (proc-macro)\n";
        assert_eq!(count(tree), 4);
    }
}
