//! Owns making a VM that does not exist yet: its record, disk, seed and pinned host key, in a directory
//! that appears whole or not at all. It must not start anything.

use std::time::SystemTime;

use super::prepared::Bootable;
use super::restore::{self, Saved};
use super::{StartRequest, fixtures};
use crate::backend::Restore;
use crate::backend::select::Choice;
use crate::error::{Error, ErrorKind, Result};
use crate::images::{self, CachedImage};
use crate::net::plan;
use crate::prepare::{disk, fixture, seed};
use crate::spec::{DEFAULT_USER, VmSpec};
use crate::ssh::keys::{self, KeyPair};
use crate::store::paths::{ClusterPaths, MemberPaths, Paths};
use crate::store::place;
use crate::store::record::{self, ImageStamp, VmRecord};
use crate::store::whole::half_made_dir;

/// What a VM is made of.
#[derive(Clone, Copy)]
pub(super) struct From<'a> {
    pub image: Option<&'a Bootable>,
    pub saved: Option<&'a Saved>,
}

/// Makes the VM's directory, whole or not at all.
pub(super) async fn create(
    paths: &Paths,
    request: &StartRequest,
    cluster: &ClusterPaths,
    choice: &Choice,
    From { image, saved }: From<'_>,
) -> Result<(VmRecord, Option<Restore>)> {
    let host_key = KeyPair::generate(request.name.as_str())?;
    let image = image.map(|(image, _)| image);
    let mut record = new_record(request, cluster, choice, image, &host_key)?;
    if let Some(saved) = saved {
        saved.describe(&mut record);
        record.machine_id = Some(restore::machine_id()?);
    }
    let half_made = half_made_dir(cluster.dir())?;
    let member = MemberPaths::at(half_made.path().to_owned());
    let client_key = keys::installation_key(paths)?;
    match (saved, image) {
        (Some(saved), _) => saved.link_layers(&member)?,
        (None, Some(image)) => images::layer::link(&image.layers, member.dir())?,
        (None, None) => {}
    }
    if let Some(image) = image.filter(|_| choice.backend.has_guest()) {
        let size_bytes = u64::from(record.spec.disk_gib) << 30;
        match record.layers.first() {
            Some(layer) => {
                check_size(image, size_bytes)?;
                disk::create_overlay_on_layer(&member.disk(), layer, size_bytes)?;
            }
            None => disk::create_overlay(&member.disk(), &image.path, size_bytes)?,
        }
    }
    let packed = match saved {
        Some(saved) if saved.has_fixtures() => saved.link_fixtures(&member).map(|()| false)?,
        _ => fixtures::pack(request, &record.spec.fixtures, &member).await.map(|()| true)?,
    };
    write_seed(&record, &member, &client_key, &host_key)?;
    write_known_hosts(&record, &member)?;
    record.write(&member)?;
    let target = cluster.member(&record.name);
    let _claim = place::claim(paths, &record.name, &record.cluster)?;
    std::fs::rename(half_made.path(), target.dir())
        .map_err(|e| Error::io("make", target.dir(), e))?;
    request.trail.creates();
    if packed {
        request.packed.note(&record.spec.fixtures, &target);
    }
    // It is no longer there under its temporary name.
    drop(half_made.keep());
    let restore = saved.map(|saved| saved.restore(&record, host_key.private_openssh()));
    Ok((record, restore))
}

/// A derived image's file systems fill the disk it was built on.
fn check_size(image: &CachedImage, size_bytes: u64) -> Result<()> {
    if image.layers.is_empty() || size_bytes >= image.size_bytes {
        return Ok(());
    }
    let image_gib = image.size_bytes.div_ceil(1 << 30);
    Err(Error::new(
        ErrorKind::InvalidSpec,
        format!(
            "make a disk of {} GiB: the image {} was built on one of {image_gib} GiB",
            size_bytes >> 30,
            image.reference
        ),
    )
    .hint(format!("give the disk {image_gib} GiB or more, or build the image on a smaller one")))
}

fn new_record(
    request: &StartRequest,
    cluster: &ClusterPaths,
    choice: &Choice,
    image: Option<&CachedImage>,
    host_key: &KeyPair,
) -> Result<VmRecord> {
    let index = free_index(cluster, request.index)?;
    let place = plan::place(index)?;
    let (image_path, image_digest) =
        image.map(|i| (i.path.clone(), i.digest.clone())).unwrap_or_default();
    let image_stamp = match image {
        Some(image) if choice.backend.has_guest() => ImageStamp::of(&image.path)?,
        _ => ImageStamp { size_bytes: 0, modified_ns: 0 },
    };
    Ok(VmRecord {
        format: VmRecord::FORMAT,
        name: request.name.clone(),
        cluster: cluster.name()?,
        index,
        address: place.address,
        mac: place.mac,
        user: DEFAULT_USER.to_owned(),
        spec: request.spec.clone(),
        backend: Some(choice.backend),
        image_path,
        image_stamp,
        image_digest,
        host_key: host_key.public_openssh(),
        layers: image.map(CachedImage::layer_names).unwrap_or_default(),
        aliases: request.aliases.clone(),
        snapshot: None,
        machine_id: None,
        ephemeral: request.ephemeral,
        created_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
    })
}

/// The index asked for, if it is free, else the lowest no member has.
fn free_index(cluster: &ClusterPaths, asked: Option<usize>) -> Result<usize> {
    let taken = record::indices(cluster)?;
    Ok(asked.filter(|index| !taken.contains(index)).unwrap_or_else(|| record::lowest_free(&taken)))
}

fn write_seed(
    record: &VmRecord,
    member: &MemberPaths,
    client_key: &KeyPair,
    host_key: &KeyPair,
) -> Result<()> {
    let authorized_key = client_key.public_openssh();
    let private = host_key.private_openssh();
    let instance_id = format!("{}-{}", record.name, record.created_at);
    seed::write(&member.seed(), &seed_spec(record, &instance_id, &authorized_key, &private))
}

fn seed_spec<'a>(
    record: &'a VmRecord,
    instance_id: &'a str,
    authorized_key: &'a str,
    host_key_private_openssh: &'a str,
) -> seed::SeedSpec<'a> {
    seed::SeedSpec {
        instance_id,
        hostname: record.name.as_str(),
        user: &record.user,
        authorized_key,
        host_key_private_openssh,
        host_key_public: &record.host_key,
        network: seed::NetworkSpec {
            mac: record.mac.clone(),
            address: record.address,
            prefix_length: plan::PREFIX_LENGTH,
            gateway: plan::GATEWAY,
            dns: plan::GATEWAY,
            search: Some(plan::DOMAIN.to_owned()),
        },
        mounts: fixture::mounts(&record.spec.fixtures),
    }
}

/// What every seed of this installation says, without what is one VM's own.
pub(super) fn seed_shape(client_key: &KeyPair) -> Result<String> {
    let record = VmRecord::described(&VmSpec::default())?;
    let files = seed::render(&seed_spec(&record, "", &client_key.public_openssh(), ""));
    Ok([files.meta_data, files.user_data, files.network_config].concat())
}

fn write_known_hosts(record: &VmRecord, member: &MemberPaths) -> Result<()> {
    let line = keys::known_hosts_line(&[record.name.as_str()], &record.host_key);
    crate::store::whole::write_atomic(&member.known_hosts(), line.as_bytes())
}
