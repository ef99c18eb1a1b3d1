//! Owns images: what a reference means, the cache of raw disks, and what a user can ask about them.
//! It must not know what a VM does with one.

mod build;
mod cache;
mod catalog;
mod download;
mod import;
pub(crate) mod layer;
pub(crate) mod qcow2;
mod resolve;
pub(crate) mod space;
mod transfer;
pub(crate) mod work;

use std::path::{Path, PathBuf};

use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Progress, ProgressSink};
use crate::spec::Arch;
use crate::store::lock;
use crate::store::paths::Paths;

pub use crate::image::Image;
pub use build::BuildOptions;
pub(crate) use cache::hex;
use cache::{Origin, Record, Slot};
pub(crate) use download::with_retries;
pub(crate) use import::check_derived_name;
pub(crate) use resolve::{check, mirrored, resolve};
pub(crate) use transfer::{Failure, Transfer};

/// A raw disk ready to back a VM's own.
#[derive(Debug, Clone)]
pub(crate) struct CachedImage {
    pub reference: String,
    /// The raw file; only ever to be opened for reading.
    pub path: PathBuf,
    /// Identity of the content: a sha256 in hex. Of a raw file used in place, of its path, size,
    /// times and inode; of a derived image, the key of its last step.
    pub digest: String,
    /// What the guest sees.
    pub size_bytes: u64,
    pub arch: Arch,
    /// What a derived image has on the raw file, the topmost first; none of others.
    pub layers: Vec<PathBuf>,
}

impl CachedImage {
    /// Its layers' names, in whatever directory they are.
    pub(crate) fn layer_names(&self) -> Vec<String> {
        let names = self.layers.iter().map(|layer| layer.file_name().unwrap_or_default());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }
}

/// What the environment says about fetching.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    offline: bool,
    mirror: Option<String>,
}

impl Settings {
    pub(crate) fn from_env() -> Result<Self> {
        Ok(Self { offline: env::offline(), mirror: env::text(env::MIRROR)? })
    }

    pub(crate) fn offline(&self) -> bool {
        self.offline
    }

    pub(crate) fn mirror(&self) -> Option<&str> {
        self.mirror.as_deref()
    }
}

/// An image that can be used, as [`list`] reports it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ImageInfo {
    /// What to name it by: an alias, a URL or a path.
    pub reference: String,
    /// The architecture it is for.
    pub arch: Arch,
    /// Which dated version it is; empty for URLs and paths.
    pub snapshot: String,
    /// The size of its disk as a guest sees it, once it is cached.
    pub size_bytes: Option<u64>,
    /// The bytes it takes on the host's disk.
    pub disk_bytes: u64,
    /// Whether it is here, and where from.
    pub state: ImageState,
    /// The image that a derived one was made from, as it was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The raw disk, once it is cached; of a derived image, the topmost of its layers.
    pub path: Option<PathBuf>,
}

/// Whether an image is here, and where from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImageState {
    /// Fetched, and checked against its published checksum where there is one.
    Cached,
    /// Built on this host from packages.
    Built,
    /// Brought in by [`import`].
    Imported,
    /// Made from another by steps, as [`Image`] describes.
    Derived,
    /// Known, and fetched at its first use.
    Available,
}

/// Every image that can be named: those here, newest first, and those that would be fetched for
/// this host's architecture.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// for image in fleetbox::images::list().await? {
///     println!("{} {:?} {} bytes on disk", image.reference, image.state, image.disk_bytes);
/// }
/// # Ok(())
/// # }
/// ```
pub async fn list() -> Result<Vec<ImageInfo>> {
    let paths = Paths::from_env()?;
    work::run("list images", move |_| Ok(list_at(&paths))).await
}

/// Fetches an image, unless it is here already. `reference` is an alias, a URL (with an optional
/// `#sha256=…`) or a path. Dropping the future ends the transfer; the next one goes on from there.
///
/// # Errors
/// [`ErrorKind::UnknownImage`], [`ErrorKind::Download`], [`ErrorKind::Offline`],
/// [`ErrorKind::ChecksumMismatch`], [`ErrorKind::NoSpace`], [`ErrorKind::ImageUnreadable`].
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// let image = fleetbox::images::pull("debian-12", fleetbox::Arch::host(), |_| {}).await?;
/// println!("{}", image.reference);
/// # Ok(())
/// # }
/// ```
pub async fn pull(
    reference: &str,
    arch: Arch,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<ImageInfo> {
    let paths = Paths::from_env()?;
    let image = resolve(&paths, reference, arch, &ProgressSink::new(progress)).await?;
    Ok(info(&paths, &image))
}

/// Removes every image here that goes by `reference`, and returns the bytes of disk given back.
/// One that no VM was made from and is not here is [`ErrorKind::NotFound`]. A [derived](Image) image may
/// go at any time: VMs and images that were made from it have all they need.
///
/// # Errors
/// [`ErrorKind::Conflict`] while a VM's disk is backed by it or a derived image lies on it, unless
/// `force`; such a VM can never start again, and such an image goes too.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// let freed_bytes = fleetbox::images::remove("debian-12", false).await?;
/// println!("{freed_bytes} bytes freed");
/// # Ok(())
/// # }
/// ```
pub async fn remove(reference: &str, force: bool) -> Result<u64> {
    let paths = Paths::from_env()?;
    remove_at(&paths, reference, force).await
}

/// Copies the raw or qcow2 disk at `path` into the cache under `alias`, which wins over a published
/// image of that name from then on. The file itself is left alone.
///
/// # Errors
/// [`ErrorKind::InvalidPath`], [`ErrorKind::ImageUnreadable`], [`ErrorKind::InvalidName`] for an
/// alias that could be taken for a path, [`ErrorKind::NoSpace`].
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// let path = std::path::Path::new("golden.qcow2");
/// fleetbox::images::import(path, "golden", fleetbox::Arch::host(), |_| {}).await?;
/// # Ok(())
/// # }
/// ```
pub async fn import(
    path: &Path,
    alias: &str,
    arch: Arch,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<ImageInfo> {
    let paths = Paths::from_env()?;
    let image = import::import_at(&paths, path, alias, arch, &ProgressSink::new(progress)).await?;
    Ok(info(&paths, &image))
}

/// Builds `alias` (debian-12 or debian-13) from the host's own Debian packages with mmdebstrap, as
/// root or as an ordinary user with subordinate ids, in about a minute. The result wins over the
/// published image of that name, unless the options give it a name of its own. Dropping the future ends the build and leaves nothing.
///
/// # Errors
/// [`ErrorKind::HostUnsupported`] where mmdebstrap or mke2fs is missing or cannot work, with the
/// fix as hint; before any work [`ErrorKind::UnknownImage`] for an alias that cannot be built,
/// [`ErrorKind::InvalidSpec`] and [`ErrorKind::InvalidName`] for bad options.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::images::{BuildOptions, build};
/// build("debian-12", fleetbox::Arch::host(), BuildOptions::default(), |_| {}).await?;
/// # Ok(())
/// # }
/// ```
pub async fn build(
    alias: &str,
    arch: Arch,
    options: BuildOptions,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<ImageInfo> {
    let paths = Paths::from_env()?;
    let sink = ProgressSink::new(progress);
    let image = build::build_at(&paths, catalog::canonical(alias), arch, options, &sink).await?;
    Ok(info(&paths, &image))
}

fn list_at(paths: &Paths) -> Vec<ImageInfo> {
    let cached = cache::all(paths);
    let mut list: Vec<ImageInfo> =
        cached.iter().map(|(slot, record)| describe(slot, record)).collect();
    for alias in catalog::aliases() {
        let Some(published) = catalog::find(alias, Arch::host()) else { continue };
        let is_here = list.iter().any(|image| {
            image.reference == alias
                && image.arch == Arch::host()
                && image.snapshot == published.snapshot
        });
        if !is_here {
            list.push(ImageInfo {
                reference: alias.to_owned(),
                arch: Arch::host(),
                snapshot: published.snapshot.to_owned(),
                size_bytes: None,
                disk_bytes: 0,
                state: ImageState::Available,
                from: None,
                path: None,
            });
        }
    }
    list.extend(layer::list(paths));
    // Stable: within a name the cached ones stay first and newest first.
    list.sort_by(|a, b| a.reference.cmp(&b.reference));
    list
}

fn describe(slot: &Slot, record: &Record) -> ImageInfo {
    let path = slot.raw();
    ImageInfo {
        reference: record.reference.clone(),
        arch: record.arch,
        snapshot: record.snapshot.clone(),
        size_bytes: Some(record.size_bytes),
        disk_bytes: disk_bytes(&path),
        state: match record.origin {
            Origin::Fetched | Origin::Unpacked => ImageState::Cached,
            Origin::Built => ImageState::Built,
            Origin::Imported => ImageState::Imported,
        },
        from: None,
        path: Some(path),
    }
}

fn info(paths: &Paths, image: &CachedImage) -> ImageInfo {
    if let Some(info) = layer::info(paths, image) {
        return info;
    }
    let recorded = cache::all(paths).into_iter().find(|(slot, _)| slot.raw() == image.path);
    recorded.map_or_else(
        // A raw file used in place has no record.
        || ImageInfo {
            reference: image.reference.clone(),
            arch: image.arch,
            snapshot: String::new(),
            size_bytes: Some(image.size_bytes),
            disk_bytes: disk_bytes(&image.path),
            state: ImageState::Cached,
            from: None,
            path: Some(image.path.clone()),
        },
        |(slot, record)| describe(&slot, &record),
    )
}

fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}

async fn remove_at(paths: &Paths, reference: &str, force: bool) -> Result<u64> {
    if let Some(freed_bytes) = layer::remove(paths, reference).await? {
        return Ok(freed_bytes);
    }
    let name = catalog::canonical(reference);
    let slots: Vec<Slot> = cache::all(paths)
        .into_iter()
        .filter(|(_, record)| record.reference == name)
        .map(|(slot, _)| slot)
        .collect();
    if slots.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("remove the image {}: it is not in the cache", name.escape_debug()),
        )
        .hint("`fleetbox image ls` shows what is"));
    }
    for slot in slots.iter().filter(|_| !force) {
        let users = slot.users(paths);
        if !users.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("remove the image {name}: {} needs it", users.join(", ")),
            )
            .hint("remove those first, or force it and lose them"));
        }
    }
    let mut freed_bytes = 0;
    for slot in slots {
        freed_bytes += layer::remove_on_image(paths, &slot.raw()).await?;
        let _held = lock::lock(&slot.lock(), || {}).await?;
        freed_bytes += slot.remove(paths)?;
    }
    Ok(freed_bytes)
}

#[cfg(test)]
mod tests;
