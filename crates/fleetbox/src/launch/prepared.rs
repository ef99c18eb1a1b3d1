//! Owns what is known of a machine before it is made or booted: what runs it, its image, its kernel, what it
//! comes back from. It must not make or boot it.

use std::path::PathBuf;

use super::plan::{self, Start};
use super::restore::{self, Saved};
use super::{Origin, StartRequest, fixtures, golden};
use crate::backend::select::{self, Choice, Wanted};
use crate::backend::{Accel, Backend, nested};
use crate::error::{Error, ErrorKind, Result};
use crate::images::{self, CachedImage};
use crate::prepare::kernel::{self, BootSource};
use crate::store::paths::Paths;
use crate::store::record::VmRecord;

/// All that is known of a machine before it is made or booted.
pub(super) struct Prepared {
    pub request: StartRequest,
    pub image: Option<Bootable>,
    pub start: Start,
    /// What it comes back from, if it is made.
    pub saved: Option<Saved>,
}

/// Decides what runs the machine and what it is made of; fetches and makes what that takes.
pub(super) async fn prepare(
    paths: &Paths,
    request: &StartRequest,
    known: Option<&VmRecord>,
) -> Result<Prepared> {
    let named = match &request.origin {
        Origin::Snapshot(of) if known.is_none() => Some(restore::named(paths, of)?),
        _ => None,
    };
    let request = as_saved(request, named.as_ref())?;
    let like = known.or(named.as_ref().map(|saved| &saved.member.record));
    let choice = choose(paths, &request, like).await?;
    if let Some(record) = known {
        ignore_options(&request, record);
    }
    let layers = layers(paths, known, named.as_ref());
    let image = image(paths, &request, like, layers, &choice).await?;
    let start = plan::start_of(choice, image.as_ref(), &request.progress)?;
    let saved = match named {
        None if known.is_none() && request.origin == Origin::Warm => {
            golden::of(paths, &request, &start, image.as_ref()).await?
        }
        named => named,
    };
    if let Some(saved) = &saved {
        saved.check(&start)?;
    }
    Ok(Prepared { request, image, start, saved })
}

/// What is asked for, as a machine that is restored has it: it is as it was.
fn as_saved(request: &StartRequest, saved: Option<&Saved>) -> Result<StartRequest> {
    let Some(saved) = saved else { return Ok(request.clone()) };
    let spec = &saved.member.record.spec;
    if request.spec_given && request.spec != *spec {
        return Err(Error::new(
            ErrorKind::InvalidSpec,
            "change a machine that comes from a snapshot: it has the image, processors, memory, disk and fixtures it was saved with",
        )
        .hint("leave these options out"));
    }
    Ok(StartRequest { spec: spec.clone(), ..request.clone() })
}

pub(super) async fn choose(
    paths: &Paths,
    request: &StartRequest,
    known: Option<&VmRecord>,
) -> Result<Choice> {
    let wanted =
        Wanted { recorded: known.and_then(|record| record.backend), asked: request.backend };
    let arch = known.map_or(request.spec.arch, |record| record.spec.arch);
    let choice = select::choose(paths, wanted, arch, &request.progress).await?;
    let spec = known.map_or(&request.spec, |record| &record.spec);
    if spec.nested_virt && choice.backend != Backend::Fake {
        nested::check(choice.accel, arch)?;
        if choice.accel == Accel::Tcg
            && let Some(doubts) = nested::doubts(&choice.program, spec.cpus).await
        {
            request.progress.note(doubts);
        }
    }
    if let Some(note) = &choice.note {
        request.progress.note(note.clone());
    }
    Ok(choice)
}

/// Options are frozen at creation; an existing VM keeps its own.
pub(super) fn ignore_options(request: &StartRequest, record: &VmRecord) {
    if request.spec_given && request.spec != record.spec {
        request.progress.note(format!(
            "{} exists: it keeps its image {}, {} cpus, {} MiB, {} GiB, KVM inside {}, durable {}, {}; remove it to change them",
            record.name, record.spec.image, record.spec.cpus, record.spec.memory_mib,
            record.spec.disk_gib, on_or_off(record.spec.nested_virt), on_or_off(record.spec.durable),
            fixtures::told(&record.spec.fixtures)
        ));
    }
}

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// An image and what boots it; nothing boots a fake machine's.
pub(super) type Bootable = (CachedImage, Option<BootSource>);

/// The VM's image: of an existing VM the one its disk lies on, else the one asked for. The fake
/// backend reads nothing of an image but what was derived from one by fake machines.
pub(super) async fn image(
    paths: &Paths,
    request: &StartRequest,
    known: Option<&VmRecord>,
    layers: Vec<PathBuf>,
    choice: &Choice,
) -> Result<Option<Bootable>> {
    let (progress, spec) = (&request.progress, &request.spec);
    if choice.backend == Backend::Fake {
        let derived = match known {
            None => images::layer::resolve(paths, &spec.image, spec.arch)?,
            Some(_) => None,
        };
        let fake = derived.filter(|image| image.path.as_os_str().is_empty());
        return Ok(fake.map(|image| (image, None)));
    }
    let image = match known {
        Some(record) => {
            record.check_image()?;
            CachedImage {
                reference: record.spec.image.clone(),
                path: record.image_path.clone(),
                digest: record.image_digest.clone(),
                size_bytes: record.image_stamp.size_bytes,
                arch: record.spec.arch,
                layers,
            }
        }
        None => images::resolve(paths, &spec.image, spec.arch, progress).await?,
    };
    let source = kernel::extract(paths, &image, progress).await?;
    Ok(Some((image, Some(source))))
}

/// What the disk of a VM that is known lies on: its own files, or those of what it comes from.
pub(super) fn layers(
    paths: &Paths,
    known: Option<&VmRecord>,
    saved: Option<&Saved>,
) -> Vec<PathBuf> {
    match (known, saved) {
        (Some(record), _) => {
            let member = paths.cluster(&record.cluster).member(&record.name);
            record.layers.iter().map(|layer| member.layer(layer)).collect()
        }
        (None, Some(saved)) => saved.layers(),
        (None, None) => Vec::new(),
    }
}
