//! Owns what derived images are called: names, references by key, and the list of both. It must not make
//! or remove a layer.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FORMAT, Layer, all, dir, keys, touch_key};
use crate::error::{Error, ErrorKind, Result};
use crate::images::cache::{absent_is_fine, read_small};
use crate::images::import::check_alias;
use crate::images::{CachedImage, ImageInfo};
use crate::spec::Arch;
use crate::store::paths::Paths;
use crate::store::whole::{make_private_dir, write_atomic};

/// What references without a name begin with; some digits of the key follow.
pub(crate) const PREFIX: &str = "derived:";
/// Digits of a key that have to be given at the least.
const DIGITS_MIN: usize = 8;

/// Which layer goes by a name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Named {
    format: u32,
    pub name: String,
    arch: Arch,
    pub key: String,
}

/// The image a reference stands for, if it is one of a derived image. Marks it as used.
///
/// # Errors
/// [`ErrorKind::UnknownImage`] for a key of which there is none; [`ErrorKind::ImageUnreadable`] if the
/// image it lies on is gone.
pub(crate) fn resolve(paths: &Paths, reference: &str, arch: Arch) -> Result<Option<CachedImage>> {
    let Some(key) = key_of(paths, reference, arch)? else { return Ok(None) };
    let Some(layer) = Layer::read(&dir(paths, &key)) else {
        return Err(broken(reference, "its layer is gone"));
    };
    if !layer.has_base() {
        let base = layer.image_path.display();
        return Err(broken(
            reference,
            &format!("{base}, which it lies on, was changed or removed"),
        ));
    }
    if !layer.is_usable(paths) {
        return Err(broken(reference, "a file of its layers is gone"));
    }
    touch_key(paths, &key)?;
    Ok(Some(layer.image(paths, reference)))
}

/// Whether the reference is one of a derived image, or looks like it.
pub(in crate::images) fn is_reference(paths: &Paths, reference: &str, arch: Arch) -> bool {
    reference.starts_with(PREFIX) || named(paths, reference, arch).is_some()
}

/// Refuses what fake machines made: there is no disk to it.
pub(in crate::images) fn for_guests(image: CachedImage) -> Result<CachedImage> {
    if image.path.as_os_str().is_empty() {
        return Err(broken(&image.reference, "it was built by the fake backend"));
    }
    Ok(image)
}

fn broken(reference: &str, why: &str) -> Error {
    Error::new(ErrorKind::ImageUnreadable, format!("use the derived image {reference}: {why}"))
        .hint("build it again")
}

pub(super) fn key_of(paths: &Paths, reference: &str, arch: Arch) -> Result<Option<String>> {
    let Some(digits) = reference.strip_prefix(PREFIX) else {
        return Ok(named(paths, reference, arch).map(|named| named.key));
    };
    let unknown = |why: &str| {
        Error::new(
            ErrorKind::UnknownImage,
            format!("find the image {}: {why}", reference.escape_debug()),
        )
        .hint("`fleetbox image ls` shows all")
    };
    let is_key = digits.len() >= DIGITS_MIN && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_key {
        return Err(unknown("that is no key"));
    }
    let mut matching = keys(paths).into_iter().filter(|key| key.starts_with(digits));
    match (matching.next(), matching.next()) {
        (Some(key), None) => Ok(Some(key)),
        (Some(_), Some(_)) => Err(unknown("there are several")),
        (None, _) => Err(unknown("there is none")),
    }
}

fn name_path(paths: &Paths, name: &str, arch: Arch) -> PathBuf {
    paths.derived().join(format!("{name}-{}.json", arch.debian()))
}

fn named(paths: &Paths, name: &str, arch: Arch) -> Option<Named> {
    if check_alias(name).is_err() {
        return None;
    }
    read_name(&name_path(paths, name, arch)).filter(|named| named.name == name)
}

fn read_name(path: &Path) -> Option<Named> {
    let named: Named = serde_json::from_slice(&read_small(path)?).ok()?;
    (named.format == FORMAT).then_some(named)
}

/// Whether a derived image of any architecture has that name.
pub(in crate::images) fn has_name(paths: &Paths, name: &str) -> bool {
    names(paths).iter().any(|named| named.name == name)
}

/// Lets the name stand for that layer from now on.
pub(crate) fn set_name(paths: &Paths, name: &str, layer: &Layer) -> Result<()> {
    let named =
        Named { format: FORMAT, name: name.to_owned(), arch: layer.arch, key: layer.key.clone() };
    make_private_dir(&paths.derived())?;
    let json = serde_json::to_vec_pretty(&named)
        .map_err(|e| Error::new(ErrorKind::Internal, "write an image's name").source(e))?;
    write_atomic(&name_path(paths, name, layer.arch), &json)
}

impl Named {
    pub(super) fn forget(&self, paths: &Paths) -> Result<()> {
        let path = name_path(paths, &self.name, self.arch);
        absent_is_fine("remove", &path, std::fs::remove_file(&path))
    }
}

pub(super) fn names(paths: &Paths) -> Vec<Named> {
    let Ok(entries) = std::fs::read_dir(paths.derived()) else { return Vec::new() };
    let mut names: Vec<Named> = entries
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .filter_map(|entry| read_name(&entry.path()))
        .collect();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    names
}

/// The names of all derived images, for the hint of one that is not there.
pub(in crate::images) fn all_names(paths: &Paths) -> Vec<String> {
    names(paths).into_iter().map(|named| named.name).collect()
}

/// The derived images: those with a name, and layers without one that no other was made on.
pub(in crate::images) fn list(paths: &Paths) -> Vec<ImageInfo> {
    images(paths).iter().map(|(reference, layer)| layer.describe(paths, reference)).collect()
}

/// A derived image as it is listed; none of others.
pub(in crate::images) fn info(paths: &Paths, image: &CachedImage) -> Option<ImageInfo> {
    if image.layers.is_empty() {
        return None;
    }
    let layer = all(paths).into_iter().find(|layer| layer.digest == image.digest)?;
    Some(layer.describe(paths, &image.reference))
}

fn images(paths: &Paths) -> Vec<(String, Layer)> {
    let (layers, names) = (all(paths), names(paths));
    let mut images = Vec::new();
    for named in &names {
        if let Some(layer) = layers.iter().find(|layer| layer.key == named.key) {
            images.push((named.name.clone(), layer.clone()));
        }
    }
    let used: HashSet<&str> = layers.iter().filter_map(|layer| layer.parent.as_deref()).collect();
    for layer in &layers {
        let has_name = names.iter().any(|named| named.key == layer.key);
        if !has_name && !used.contains(layer.key.as_str()) {
            images.push((layer.reference(), layer.clone()));
        }
    }
    images
}

/// The derived images that lie on the raw image at `path`, as they are named.
pub(in crate::images) fn on_image(paths: &Paths, path: &Path) -> Vec<String> {
    let images = images(paths).into_iter().filter(|(_, layer)| layer.image_path == path);
    images.map(|(reference, _)| reference).collect()
}
