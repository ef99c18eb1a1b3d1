//! Owns what a reference means: an alias, a URL or a path, and which of several images wins.
//! It must not transfer or convert by itself.

use std::collections::HashSet;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::cache::{self, Origin, Record, Slot};
use super::download::{self, Format, Keep, Remote};
use super::{CachedImage, Settings, catalog, layer, work};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::ProgressSink;
use crate::spec::Arch;
use crate::store::lock;
use crate::store::paths::Paths;

/// The raw disk behind `reference`, fetched or unpacked first if it must be. An image that is here
/// costs a look at its record, never at its bytes.
pub(crate) async fn resolve(
    paths: &Paths,
    reference: &str,
    arch: Arch,
    progress: &ProgressSink,
) -> Result<CachedImage> {
    resolve_with(paths, &Settings::from_env()?, reference, arch, progress).await
}

pub(super) async fn resolve_with(
    paths: &Paths,
    settings: &Settings,
    reference: &str,
    arch: Arch,
    progress: &ProgressSink,
) -> Result<CachedImage> {
    let reference = reference.trim();
    if reference.starts_with("http://") || reference.starts_with("https://") {
        let remote = remote_of_url(paths, reference, arch)?;
        return download::fetch(remote, settings, progress).await;
    }
    if reference.contains('/') {
        return resolve_path(paths, Path::new(reference), arch, progress).await;
    }
    if let Some(image) = layer::resolve(paths, reference, arch)? {
        return layer::for_guests(image);
    }
    let alias = catalog::canonical(reference);
    if let Some((slot, record)) = cache::local(paths, alias, arch) {
        if record.origin == Origin::Built && catalog::find(alias, arch).is_some() {
            say_once(&slot, &record, progress);
        }
        return Ok(slot.image(record));
    }
    if let Some(published) = catalog::find(alias, arch) {
        let remote = Remote {
            reference: published.alias.to_owned(),
            arch,
            snapshot: published.snapshot.to_owned(),
            url: mirrored(published.url, settings.mirror.as_deref())?,
            sha256: Some(published.sha256.to_owned()),
            slot: Slot::new(paths, published.alias, published.snapshot, arch),
        };
        return download::fetch(remote, settings, progress).await;
    }
    if Path::new(reference).exists() {
        return resolve_path(paths, Path::new(reference), arch, progress).await;
    }
    Err(unknown(paths, reference))
}

fn unknown(paths: &Paths, reference: &str) -> Error {
    let mut local = layer::all_names(paths);
    local.extend(cache::all(paths).into_iter().map(|(_, record)| record.reference));
    catalog::unknown(reference, &local)
}

/// Refuses a name that nothing goes by, before any work.
pub(crate) fn check(paths: &Paths, reference: &str, arch: Arch) -> Result<()> {
    let reference = reference.trim();
    let alias = catalog::canonical(reference);
    let is_known = reference.contains('/')
        || layer::is_reference(paths, reference, arch)
        || catalog::find(alias, arch).is_some()
        || cache::local(paths, alias, arch).is_some()
        || Path::new(reference).exists();
    if is_known { Ok(()) } else { Err(unknown(paths, reference)) }
}

/// That a name stands for something else than everywhere is said once in a process, not per VM.
fn say_once(slot: &Slot, record: &Record, progress: &ProgressSink) {
    static SAID: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.get_or_insert_default().insert(slot.raw()) {
        progress.note(format!(
            "{} is the image built here on {}, not the published one",
            record.reference,
            record.made_on.as_deref().unwrap_or("an unknown day"),
        ));
    }
}

/// The catalog's URL with the mirror's scheme, host and base path in front of its own path.
pub(crate) fn mirrored(url: &str, mirror: Option<&str>) -> Result<String> {
    let Some(mirror) = mirror else { return Ok(url.to_owned()) };
    if !(mirror.starts_with("http://") || mirror.starts_with("https://")) {
        return Err(Error::new(
            ErrorKind::InvalidSetting,
            format!("use FLEETBOX_MIRROR={}: it is no http or https URL", mirror.escape_debug()),
        )
        .hint("give a base URL such as http://mirror.example/images"));
    }
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    Ok(format!("{}/{path}", mirror.trim_end_matches('/')))
}

fn remote_of_url(paths: &Paths, reference: &str, arch: Arch) -> Result<Remote> {
    let (url, fragment) = match reference.split_once('#') {
        Some((url, fragment)) => (url, Some(fragment)),
        None => (reference, None),
    };
    let sha256 = match fragment {
        None | Some("") => None,
        Some(fragment) => {
            let digest = fragment.strip_prefix("sha256=").map(str::to_ascii_lowercase);
            let digest = digest
                .filter(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidSpec,
                        format!(
                            "use the image {}: its fragment is no checksum",
                            url.escape_debug()
                        ),
                    )
                    .hint("write #sha256= and 64 hex digits")
                })?;
            Some(digest)
        }
    };
    // The checksum is part of the name: another promise is another image.
    let key = cache::hex(&Sha256::digest(reference));
    Ok(Remote {
        reference: reference.to_owned(),
        arch,
        snapshot: String::new(),
        url: url.to_owned(),
        sha256,
        slot: Slot::new(paths, &format!("url-{}", &key[..32]), "", arch),
    })
}

async fn resolve_path(
    paths: &Paths,
    path: &Path,
    arch: Arch,
    progress: &ProgressSink,
) -> Result<CachedImage> {
    let (path, metadata) = local_file(path)?;
    let identity = cache::file_identity(&path, &metadata);
    let reference = path.display().to_string();
    if download::sniff(&path)? == Format::Raw {
        if !metadata.len().is_multiple_of(512) {
            return Err(Error::new(
                ErrorKind::ImageUnreadable,
                format!("use the image {reference}: its length is no multiple of 512 bytes"),
            )
            .hint("give a raw or qcow2 disk; was the transfer complete?"));
        }
        return Ok(CachedImage {
            reference,
            path,
            digest: identity,
            size_bytes: metadata.len(),
            arch,
            layers: Vec::new(),
        });
    }
    // The identity is part of the name: a changed file is another image, and disks backed by the
    // old one keep it.
    let slot = Slot::new(paths, &format!("file-{}", &identity[..32]), "", arch);
    if let Some(image) = slot.cached(arch) {
        return Ok(image);
    }
    slot.make_dir()?;
    let held = lock::lock(&slot.lock(), || {
        progress.note(format!("waiting for another process that unpacks {reference}"));
    })
    .await?;
    if let Some(image) = slot.cached(arch) {
        return Ok(image);
    }
    forget_outdated(paths, &reference, &slot)?;
    let record = Record {
        version: 0,
        reference: reference.clone(),
        arch,
        snapshot: String::new(),
        origin: Origin::Unpacked,
        digest: identity,
        size_bytes: 0,
        source: Some(reference),
        made_on: None,
        suite: None,
    };
    let progress = progress.clone();
    work::run("unpack an image", move |cancel| {
        let _held = held;
        download::store(&slot, &path, record, Keep::Source, &progress, cancel)
    })
    .await
}

/// Removes what was unpacked from an earlier state of the file, unless a VM needs it.
fn forget_outdated(paths: &Paths, reference: &str, current: &Slot) -> Result<()> {
    cache::forget(paths, |slot, record| {
        record.origin == Origin::Unpacked
            && record.reference == reference
            && slot.raw() != current.raw()
    })
}

/// The absolute path of a readable, non-empty regular file.
pub(super) fn local_file(path: &Path) -> Result<(PathBuf, Metadata)> {
    let shown = path.display().to_string().escape_debug().to_string();
    let invalid = |what: &str| {
        Error::new(ErrorKind::InvalidPath, format!("use the image {shown}: {what}"))
            .hint("give the path of a raw or qcow2 disk that you can read")
    };
    let absolute = path.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => invalid("there is no such file"),
        _ => invalid("it cannot be reached").source(e),
    })?;
    let metadata = absolute.metadata().map_err(|e| invalid("it cannot be looked at").source(e))?;
    if metadata.is_dir() {
        return Err(invalid("it is a directory"));
    }
    // A device or a pipe has no length to trust, and opening a pipe would wait for ever.
    if !metadata.is_file() {
        return Err(invalid("it is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(Error::new(
            ErrorKind::ImageUnreadable,
            format!("use the image {shown}: it is empty"),
        )
        .hint("fetch or build it again"));
    }
    std::fs::File::open(&absolute).map_err(|e| invalid("it cannot be read").source(e))?;
    Ok((absolute, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_replaces_scheme_and_host_and_keeps_the_path() {
        let url = "https://cloud.example/a/b.img";
        assert_eq!(mirrored(url, None).unwrap(), url);
        assert_eq!(mirrored(url, Some("http://m:8/x/")).unwrap(), "http://m:8/x/a/b.img");
        let error = mirrored(url, Some("m")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSetting);
    }

    #[test]
    fn a_url_may_carry_its_checksum() {
        let paths = Paths::at(Path::new("/nowhere")).unwrap();
        let pin = "AB".repeat(32);
        let url = format!("https://h/x.img#sha256={pin}");
        let remote = remote_of_url(&paths, &url, Arch::X86_64).unwrap();
        assert_eq!(remote.url, "https://h/x.img");
        assert_eq!(remote.sha256.as_deref(), Some(pin.to_lowercase().as_str()));
        for bad in ["https://h/x#sha256=12", "https://h/x#md5=1", "https://h/x#frag"] {
            let error = remote_of_url(&paths, bad, Arch::X86_64).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec);
        }
    }

    #[test]
    fn what_is_no_image_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        let kind = |path: &Path| local_file(path).unwrap_err().kind();
        assert_eq!(kind(dir.path()), ErrorKind::InvalidPath);
        assert_eq!(kind(&dir.path().join("absent")), ErrorKind::InvalidPath);
        assert_eq!(kind(Path::new("/dev/null")), ErrorKind::InvalidPath);
        assert_eq!(kind(&empty), ErrorKind::ImageUnreadable);
    }
}
