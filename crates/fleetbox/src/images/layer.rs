//! Owns the cache of layers: the disks that the steps of derived images left, by their keys, and the names
//! of such images (`name`). A layer is there when its directory is, which appears by a rename and goes by one;
//! what lies on it has its files under names of their own, so that it may go at any time. It must not
//! build one; `remove` removes them.
//!
//! ```text
//! cache/layers/KEY/layer.json, used     cache/layers/KEY.lock: held while it is made or removed
//!                  layer-1.qcow2        what the step and those before it in one machine changed
//!                  layer-2.qcow2 …      what that machine lay on, down to the raw image
//! cache/derived/NAME-ARCH.json          which key goes by that name
//! ```

mod name;
mod remove;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::cache::read_small;
use super::{CachedImage, ImageInfo, ImageState};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Arch;
use crate::store::paths::Paths;
use crate::store::record::ImageStamp;
use crate::store::whole::{HALF_MADE, make_private_dir, write_atomic};

pub(crate) use self::name::{PREFIX, resolve, set_name};
pub(super) use self::name::{all_names, for_guests, has_name, info, is_reference, list, on_image};
pub(crate) use self::remove::{evict, kept, remove_half_made};
pub(super) use self::remove::{remove, remove_on_image};

const FORMAT: u32 = 1;
/// Digits of a key that are shown.
const SHOWN_DIGITS: usize = 16;

/// The layer that one step left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub format: u32,
    pub key: String,
    /// Of what is in it: another if it is made again, as the same steps may leave something else.
    pub digest: String,
    /// The layer of the step before; none of the first.
    pub parent: Option<String>,
    /// What the first step was run on, as it was named.
    pub from: String,
    /// The step in a few words.
    pub step: String,
    pub arch: Arch,
    pub disk_gib: u32,
    /// The raw image under it all; empty if no machine but a fake one can use it.
    pub image_path: PathBuf,
    pub image_stamp: ImageStamp,
    /// Files in its directory, its own first.
    pub layers: Vec<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
}

impl Layer {
    pub(crate) const FORMAT: u32 = FORMAT;

    /// The layer of that key, if it is there and what it lies on is what it was.
    pub(crate) fn find(paths: &Paths, key: &str) -> Option<Self> {
        let layer = Self::read(&dir(paths, key))?;
        (layer.key == key && layer.is_usable(paths)).then_some(layer)
    }

    fn read(dir: &Path) -> Option<Self> {
        let layer: Self = serde_json::from_slice(&read_small(&dir.join("layer.json"))?).ok()?;
        (layer.format == FORMAT && !layer.layers.is_empty()).then_some(layer)
    }

    fn is_usable(&self, paths: &Paths) -> bool {
        let dir = dir(paths, &self.key);
        self.has_base() && self.layers.iter().all(|layer| dir.join(layer).is_file())
    }

    fn has_base(&self) -> bool {
        self.is_fake() || ImageStamp::of(&self.image_path).is_ok_and(|s| s == self.image_stamp)
    }

    /// Only a fake machine can be made of it.
    pub(crate) fn is_fake(&self) -> bool {
        self.image_path.as_os_str().is_empty()
    }

    pub(crate) fn image(&self, paths: &Paths, reference: &str) -> CachedImage {
        self.image_in(&dir(paths, &self.key), reference)
    }

    /// The same with its files in that directory.
    pub(crate) fn image_in(&self, dir: &Path, reference: &str) -> CachedImage {
        CachedImage {
            reference: reference.to_owned(),
            path: self.image_path.clone(),
            digest: self.digest.clone(),
            size_bytes: u64::from(self.disk_gib) << 30,
            arch: self.arch,
            layers: self.layers.iter().map(|layer| dir.join(layer)).collect(),
        }
    }

    pub(crate) fn reference(&self) -> String {
        format!("{PREFIX}{}", &self.key[..SHOWN_DIGITS.min(self.key.len())])
    }

    pub(crate) fn describe(&self, paths: &Paths, reference: &str) -> ImageInfo {
        let dir = dir(paths, &self.key);
        ImageInfo {
            reference: reference.to_owned(),
            arch: self.arch,
            snapshot: String::new(),
            size_bytes: Some(u64::from(self.disk_gib) << 30),
            disk_bytes: bytes(&dir, |_| true),
            state: ImageState::Derived,
            from: Some(self.from.clone()),
            path: self.layers.first().map(|layer| dir.join(layer)),
        }
    }

    /// Writes its record, which makes whoever finds it half made know what belongs to it. Its files are
    /// in the directory that [`half_made`] gave; the caller has its lock.
    pub(crate) fn write(&self, paths: &Paths) -> Result<()> {
        let half_made = paths.layers().join(format!("{HALF_MADE}{}", self.key));
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "write a layer's record").source(e))?;
        write_atomic(&half_made.join("layer.json"), &json)?;
        touch(&half_made)
    }

    /// Makes it one.
    pub(crate) fn commit(&self, paths: &Paths) -> Result<()> {
        let dir = dir(paths, &self.key);
        // One that is there is of no use, or it would not be made.
        remove::clear(paths, &dir)?;
        let half_made = paths.layers().join(format!("{HALF_MADE}{}", self.key));
        std::fs::rename(&half_made, &dir).map_err(|e| Error::io("make", &dir, e))
    }
}

pub(crate) fn dir(paths: &Paths, key: &str) -> PathBuf {
    paths.layers().join(key)
}

/// Held while the layer is made or removed.
pub(crate) fn lock_path(paths: &Paths, key: &str) -> PathBuf {
    paths.layers().join(format!("{key}.lock"))
}

/// An empty directory for the files of a layer that is made. The caller has its lock.
pub(crate) fn half_made(paths: &Paths, key: &str) -> Result<PathBuf> {
    let dir = paths.layers().join(format!("{HALF_MADE}{key}"));
    remove::clear(paths, &dir)?;
    make_private_dir(&dir)?;
    Ok(dir)
}

/// Marks it as used now.
pub(crate) fn touch_key(paths: &Paths, key: &str) -> Result<()> {
    touch(&dir(paths, key))
}

fn touch(dir: &Path) -> Result<()> {
    let path = dir.join("used");
    let touched = File::create(&path).and_then(|file| file.set_modified(SystemTime::now()));
    touched.map_err(|e| Error::io("write", &path, e))
}

fn keys(paths: &Paths) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(paths.layers()) else { return Vec::new() };
    let mut keys: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    keys.sort();
    keys
}

fn all(paths: &Paths) -> Vec<Layer> {
    keys(paths).iter().filter_map(|key| Layer::read(&dir(paths, key))).collect()
}

/// The bytes of disk of those files in a directory.
fn bytes(dir: &Path, counted: impl Fn(&std::fs::Metadata) -> bool) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let found = entries.flatten().filter_map(|entry| entry.metadata().ok());
    found.filter(|m| m.is_file() && counted(m)).map(|m| m.blocks().saturating_mul(512)).sum()
}

/// Gives the directory the layers, each under its own name.
pub(crate) fn link(layers: &[PathBuf], to: &Path) -> Result<()> {
    for layer in layers {
        let name = layer.file_name().unwrap_or_default();
        std::fs::hard_link(layer, to.join(name)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::new(ErrorKind::ImageUnreadable, format!("use the layer {}", layer.display()))
                    .hint("it was removed meanwhile; build the image again")
                    .source(e)
            }
            _ => Error::io("link", layer, e),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
