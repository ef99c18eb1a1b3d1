//! Owns what stands for the layer of a disk: an archive of the fake guest's files. Files that are removed
//! stay in the layers below; no test goes by that. It must not know who asks.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The guest's own, which every start makes anew.
const PROGRAMS: &str = ".bin";

/// Writes what is in `home` to the file at `target`.
pub(super) fn write(home: &Path, target: &Path) -> io::Result<()> {
    let mut archive = tar::Builder::new(File::create(target)?);
    archive.follow_symlinks(false);
    for entry in std::fs::read_dir(home)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        if name == PROGRAMS {
            continue;
        }
        if entry.file_type()?.is_dir() {
            archive.append_dir_all(name, path)?;
        } else {
            archive.append_path_with_name(path, name)?;
        }
    }
    archive.into_inner()?.sync_all()
}

/// Fills `home` from the layers, of which the last is the lowest.
pub(super) fn read(layers: &[PathBuf], home: &Path) -> io::Result<()> {
    for layer in layers.iter().rev() {
        tar::Archive::new(File::open(layer)?).unpack(home)?;
    }
    Ok(())
}
