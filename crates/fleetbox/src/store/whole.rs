//! Owns how what matters appears on disk: whole or not at all, and readable by its owner only. It must not
//! know what it is or where it lies.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use tempfile::TempDir;

use crate::error::{Error, ErrorKind, Result};

/// What the names of files and directories begin with until they are whole.
pub(crate) const HALF_MADE: &str = ".new-";
/// And while they go.
pub(crate) const GONE: &str = ".gone-";

/// Makes `dir` and its parents readable by their owner only.
pub(crate) fn make_private_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| {
        Error::new(ErrorKind::StateRoot, format!("make the state directory {}", dir.display()))
            .hint("set FLEETBOX_HOME to a directory you can write to")
            .source(e)
    })
}

/// Writes a whole file or none, readable by its owner only.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    let dir = path.parent().unwrap_or(Path::new("."));
    let io = |e| Error::io("write", path, e);
    let mut file = tempfile::Builder::new()
        .prefix(HALF_MADE)
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(io)?;
    file.write_all(content).map_err(io)?;
    file.as_file().sync_data().map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// A directory in `parent` to be filled and renamed; until then it goes with the value.
pub(crate) fn half_made_dir(parent: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(HALF_MADE)
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|e| Error::io("make a directory in", parent, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
