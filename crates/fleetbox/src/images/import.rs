//! Owns bringing images in that are made or found on this host: their names, their age, and that a newer one
//! takes an older one's place. It must not read what is in them.

use std::path::Path;
use std::time::SystemTime;

use super::cache::{self, Origin, Record, Slot};
use super::{CachedImage, build, catalog, download, layer, resolve, work};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::ProgressSink;
use crate::spec::Arch;
use crate::store::lock;
use crate::store::paths::Paths;

pub(super) async fn import_at(
    paths: &Paths,
    path: &Path,
    alias: &str,
    arch: Arch,
    progress: &ProgressSink,
) -> Result<CachedImage> {
    let alias = catalog::canonical(alias);
    check_alias(alias)?;
    check_not_derived(paths, alias)?;
    let (path, metadata) = resolve::local_file(path)?;
    let made = Made::now();
    let slot = Slot::new(paths, alias, &made.snapshot, arch);
    slot.make_dir()?;
    let held = lock::lock(&slot.lock(), || {
        progress.note(format!("waiting for another process that imports {alias}"));
    })
    .await?;
    let record = Record {
        version: 0,
        reference: alias.to_owned(),
        arch,
        snapshot: made.snapshot,
        origin: Origin::Imported,
        digest: cache::file_identity(&path, &metadata),
        size_bytes: 0,
        source: Some(path.display().to_string()),
        made_on: Some(made.on),
        suite: None,
    };
    let (thread_slot, sink) = (slot.clone(), progress.clone());
    let image = work::run("import an image", move |cancel| {
        let _held = held;
        download::store(&thread_slot, &path, record, download::Keep::Source, &sink, cancel)
    })
    .await?;
    forget_older(paths, alias, arch, &slot)?;
    Ok(image)
}

/// Removes local images that a newer one of the same name replaces, unless a VM needs them.
pub(super) fn forget_older(paths: &Paths, alias: &str, arch: Arch, newest: &Slot) -> Result<()> {
    cache::forget(paths, |slot, record| {
        matches!(record.origin, Origin::Built | Origin::Imported)
            && record.reference == alias
            && record.arch == arch
            && slot.raw() != newest.raw()
    })
}

/// A name stands for one image: a derived one's would hide another.
pub(super) fn check_not_derived(paths: &Paths, alias: &str) -> Result<()> {
    if !layer::has_name(paths, alias) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("call an image {alias}: a derived image has that name"),
    )
    .hint(format!("choose another name, or `fleetbox image rm {alias}` first")))
}

/// Refuses a name that a derived image cannot have: another image has it, or may get it by right.
pub(crate) fn check_derived_name(paths: &Paths, name: &str) -> Result<()> {
    build::check_name(name)?;
    match cache::all(paths).iter().find(|(_, record)| record.reference == name) {
        None => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::Conflict,
            format!("call a derived image {name}: another image has that name"),
        )
        .hint(format!("choose another name, or `fleetbox image rm {name}` first"))),
    }
}

pub(super) fn check_alias(alias: &str) -> Result<()> {
    let good = !alias.is_empty()
        && alias.len() <= 63
        && alias.starts_with(|c: char| c.is_ascii_alphanumeric())
        && alias.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c));
    if good {
        return Ok(());
    }
    let shown: String = alias.chars().take(80).collect();
    Err(Error::new(
        ErrorKind::InvalidName,
        format!("use \"{}\" as an image's alias", shown.escape_debug()),
    )
    .hint("use up to 63 lowercase letters, digits, dots, hyphens and underscores"))
}

/// When an image was made here.
pub(super) struct Made {
    /// As 2026-11-23, for people.
    pub on: String,
    /// As 20261123-201500: no two images share a file, so none is changed under a VM.
    pub snapshot: String,
}

impl Made {
    pub(super) fn now() -> Self {
        Self::at(SystemTime::now())
    }

    fn at(time: SystemTime) -> Self {
        let now = humantime::format_rfc3339_seconds(time).to_string();
        let (date, time) = now.split_once('T').unwrap_or((&now, ""));
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        Self { on: date.to_owned(), snapshot: format!("{}-{}", digits(date), digits(time)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_the_second_it_was_made_in() {
        let made = Made::at(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(951_782_405));
        assert_eq!((made.on.as_str(), made.snapshot.as_str()), ("2000-02-29", "20000229-000005"));
    }
}
