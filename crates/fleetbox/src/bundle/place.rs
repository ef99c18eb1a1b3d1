//! Owns where bundles are: one directory a test, in it one a failure, the oldest of which go. It must not
//! know what is in them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::TempDir;

use crate::env;
use crate::error::{Error, Result};

/// Bundles kept of one test.
const KEPT: usize = 5;
/// Marks the directory that cargo builds into, wherever that is (the Cache Directory Tagging Specification).
const TARGET_MARK: &str = "CACHEDIR.TAG";
const NAME_CHARS: usize = 150;

/// The directory of one test's bundles.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
}

impl Place {
    /// In `FLEETBOX_BUNDLE_DIR`, else in cargo's target directory, else with other temporary files.
    pub(super) fn of(test: &str) -> Result<Self> {
        let root = match env::path(env::BUNDLE_DIR) {
            Some(root) => root,
            None => target().unwrap_or_else(std::env::temp_dir).join("fleetbox"),
        };
        let dir = root.join(name(test));
        std::fs::create_dir_all(&dir).map_err(|e| Error::io("make", &dir, e))?;
        let dir = std::path::absolute(&dir).map_err(|e| Error::io("find", &dir, e))?;
        Ok(Self { dir })
    }

    /// A directory to write to, that goes unless it is finished.
    pub(super) fn begin(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix(".half-")
            .tempdir_in(&self.dir)
            .map_err(|e| Error::io("make a directory in", &self.dir, e))
    }

    pub(super) fn finish(&self, half: TempDir) -> Result<PathBuf> {
        let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let stamp: String = now.chars().filter(char::is_ascii_alphanumeric).collect();
        let path = self.dir.join(format!("{stamp}-{}", std::process::id()));
        std::fs::rename(half.path(), &path).map_err(|e| Error::io("make", &path, e))?;
        // It is no longer there under its temporary name.
        drop(half.keep());
        self.forget_oldest();
        Ok(path)
    }

    /// What cannot be removed is tried again at the next failure.
    fn forget_oldest(&self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let mut bundles: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| !is_hidden(path) && path.is_dir())
            .collect();
        // The names begin with their time.
        bundles.sort();
        for old in &bundles[..bundles.len().saturating_sub(KEPT)] {
            if let Err(e) = std::fs::remove_dir_all(old) {
                log::warn!("remove {}: {e}", old.display());
            }
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// The directory cargo built this executable into.
fn target() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    exe.ancestors().find(|dir| dir.join(TARGET_MARK).exists()).map(Path::to_owned)
}

/// The test's name as a file's.
fn name(test: &str) -> String {
    let name: String = test
        .replace("::", ".")
        .chars()
        .map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .take(NAME_CHARS)
        .collect();
    let name = name.trim_matches('.').to_owned();
    if name.is_empty() { "test".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tests_are_names_of_directories() {
        assert_eq!(name("it::attribute::boots"), "it.attribute.boots");
        assert_eq!(name("../../etc"), "_.._etc");
        assert_eq!(name("::"), "test");
        assert_eq!(name(&"x".repeat(1000)).len(), NAME_CHARS);
    }

    #[test]
    fn a_bundle_appears_whole_and_only_the_newest_stay() {
        let root = tempfile::tempdir().unwrap();
        let place = Place { dir: root.path().to_owned() };
        drop(place.begin().unwrap());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        for _ in 0..KEPT + 3 {
            let half = place.begin().unwrap();
            std::fs::write(half.path().join("x"), "x").unwrap();
            let path = place.finish(half).unwrap();
            assert!(path.join("x").exists());
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), KEPT);
    }

    #[test]
    fn tests_find_cargos_target_directory() {
        let target = target().expect("cargo builds tests into one");
        assert!(std::env::current_exe().unwrap().starts_with(target));
    }
}
