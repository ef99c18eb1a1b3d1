//! Owns the record of a VM, `config.json`: what was frozen at its creation. The directory tree of
//! these is the whole database. It must not know whether the VM runs.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::paths::{ClusterPaths, MemberPaths, Paths};
use super::whole::write_atomic;
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::net::plan;
use crate::spec::{DEFAULT_USER, Name, VmSpec};

/// The version of the record's format. A newer one is refused, an older one is read.
const FORMAT: u32 = 1;

/// A VM as it was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    pub format: u32,
    pub name: Name,
    pub cluster: Name,
    /// Decides address and MAC.
    pub index: usize,
    pub address: Ipv4Addr,
    pub mac: String,
    pub user: String,
    #[serde(flatten)]
    pub spec: VmSpec,
    pub backend: Option<Backend>,
    /// The raw image the disk is an overlay on.
    pub image_path: PathBuf,
    pub image_stamp: ImageStamp,
    pub image_digest: String,
    /// The guest's public host key, pinned before its first boot.
    pub host_key: String,
    /// What the disk is an overlay on, each on the next, the last on the image: files in the member's
    /// directory. None if it lies on the image itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    /// Further names by which its fellows know it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Name>,
    /// The snapshot it was last saved in, or made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotOf>,
    /// What it was told to be, if it did not choose that itself (machine-id(5)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// The disk goes when the machine does.
    pub ephemeral: bool,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// A machine in a snapshot with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotOf {
    pub snapshot: Name,
    /// Its name there.
    pub vm: Name,
}

/// Tells whether an image was changed under the overlays that lie on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageStamp {
    pub size_bytes: u64,
    pub modified_ns: u64,
}

impl ImageStamp {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let metadata = path.metadata().map_err(|e| {
            Error::new(ErrorKind::ImageUnreadable, format!("find the image {}", path.display()))
                .hint("the VM's disk lies on this file: put it back, or `fleetbox rm` the VM")
                .source(e)
        })?;
        let modified = metadata.modified().map_err(|e| Error::io("read", path, e))?;
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            size_bytes: metadata.len(),
            modified_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        })
    }
}

impl VmRecord {
    pub(crate) const FORMAT: u32 = FORMAT;

    /// One of no VM there is: the first of a cluster, as it would be.
    pub(crate) fn described(spec: &VmSpec) -> Result<Self> {
        let plan::Place { address, mac } = plan::place(0)?;
        let name = Name::new("described")?;
        Ok(Self {
            format: FORMAT,
            cluster: name.clone(),
            name,
            index: 0,
            address,
            mac,
            user: DEFAULT_USER.to_owned(),
            spec: spec.clone(),
            backend: None,
            image_path: PathBuf::new(),
            image_stamp: ImageStamp { size_bytes: 0, modified_ns: 0 },
            image_digest: String::new(),
            host_key: String::new(),
            layers: Vec::new(),
            aliases: Vec::new(),
            snapshot: None,
            machine_id: None,
            ephemeral: false,
            created_at: String::new(),
        })
    }

    /// The record in a member's directory, if there is one.
    pub(crate) fn read_dir(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("config.json");
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| Error::io("read", &path, e))?,
        };
        let damaged = |e: serde_json::Error| {
            Error::new(ErrorKind::StateRoot, format!("read the record {}", path.display()))
                .hint(format!(
                    "it was changed by hand or by a newer release; to give the VM up, delete {}",
                    dir.display()
                ))
                .source(e)
        };
        let record: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        if record.format > FORMAT {
            return Err(Error::new(
                ErrorKind::StateRoot,
                format!("read the record {}: it is of a newer release", path.display()),
            )
            .hint("update fleetbox"));
        }
        Ok(Some(record))
    }

    pub(crate) fn read(member: &MemberPaths) -> Result<Option<Self>> {
        Self::read_dir(member.dir())
    }

    pub(crate) fn write(&self, member: &MemberPaths) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "write a record").source(e))?;
        bytes.push(b'\n');
        write_atomic(&member.config(), &bytes)
    }

    /// Refuses to go on when the image is not what the disk was made on: the guest would see
    /// garbage.
    pub(crate) fn check_image(&self) -> Result<()> {
        self.check_base_image().map_err(|e| {
            e.vm(self.name.as_str())
                .hint(format!("`fleetbox rm {}`, then start it anew", self.name))
        })
    }

    /// The same for whatever lies on the image.
    pub(crate) fn check_base_image(&self) -> Result<()> {
        if self.image_path.as_os_str().is_empty() {
            // The fake backend has none.
            return Ok(());
        }
        if ImageStamp::of(&self.image_path)? == self.image_stamp {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ImageUnreadable,
            format!("use the disk: its image {} was changed since", self.image_path.display()),
        )
        .hint("make anew what lies on it"))
    }
}

/// The members of a cluster by name. A directory that cannot be read is an error of its own, not
/// of its neighbours.
pub(crate) fn members(cluster: &ClusterPaths) -> Result<Vec<Result<VmRecord>>> {
    let read = match std::fs::read_dir(cluster.dir()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|e| Error::io("list", cluster.dir(), e))?,
    };
    let mut names: Vec<Name> =
        read.flatten().filter_map(|e| Name::new(e.file_name().to_str()?).ok()).collect();
    names.sort();
    Ok(names.iter().filter_map(|name| VmRecord::read(&cluster.member(name)).transpose()).collect())
}

/// The indices of a cluster's members.
pub(crate) fn indices(cluster: &ClusterPaths) -> Result<Vec<usize>> {
    members(cluster)?.into_iter().map(|record| Ok(record?.index)).collect()
}

/// The lowest index that is not taken.
pub(crate) fn lowest_free(taken: &[usize]) -> usize {
    (0..taken.len()).find(|index| !taken.contains(index)).unwrap_or(taken.len())
}

/// The names of all clusters that have a directory.
pub(crate) fn clusters(paths: &Paths) -> Result<Vec<Name>> {
    let dir = paths.clusters();
    let read = match std::fs::read_dir(&dir) {
        // A state root that cannot be one has no VMs; a start says what is wrong with it.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        read => read.map_err(|e| Error::io("list", &dir, e))?,
    };
    let mut names: Vec<Name> =
        read.flatten().filter_map(|e| Name::new(e.file_name().to_str()?).ok()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of format 1, kept for ever.
    const SAMPLE: &str = r#"{
      "format": 1, "name": "web-1", "cluster": "web", "index": 0,
      "address": "10.213.77.10", "mac": "52:54:00:d5:4d:0a", "user": "fleetbox",
      "image": "debian-12", "arch": "x86_64", "cpus": 2, "memory_mib": 4096, "disk_gib": 20,
      "backend": "qemu",
      "image_path": "/i.raw", "image_stamp": {"size_bytes": 5, "modified_ns": 7},
      "image_digest": "abc", "host_key": "ssh-ed25519 AAAA", "ephemeral": false,
      "created_at": "2026-01-01T00:00:00Z"
    }"#;

    /// The same format with what was added later, kept for ever.
    const SAMPLE_NESTED: &str = r#"{
      "format": 1, "name": "web-1", "cluster": "web", "index": 0,
      "address": "10.213.77.10", "mac": "52:54:00:d5:4d:0a", "user": "fleetbox",
      "image": "debian-12", "arch": "x86_64", "cpus": 2, "memory_mib": 4096, "disk_gib": 20,
      "nested_virt": true, "backend": "qemu",
      "image_path": "/i.raw", "image_stamp": {"size_bytes": 5, "modified_ns": 7},
      "image_digest": "abc", "host_key": "ssh-ed25519 AAAA", "ephemeral": false,
      "created_at": "2026-01-01T00:00:00Z"
    }"#;

    /// With fixtures, kept for ever.
    const SAMPLE_FIXTURES: &str = r#"{
      "format": 1, "name": "web-1", "cluster": "web", "index": 0,
      "address": "10.213.77.10", "mac": "52:54:00:d5:4d:0a", "user": "fleetbox",
      "image": "debian-12", "arch": "x86_64", "cpus": 2, "memory_mib": 4096, "disk_gib": 20,
      "nested_virt": false, "durable": false,
      "fixtures": [{"host": "/h", "guest": "/srv/h", "preserve_modes": true}, {"host": "", "guest": ""}],
      "backend": "qemu",
      "image_path": "/i.raw", "image_stamp": {"size_bytes": 5, "modified_ns": 7},
      "image_digest": "abc", "host_key": "ssh-ed25519 AAAA", "ephemeral": false,
      "created_at": "2026-01-01T00:00:00Z"
    }"#;

    #[test]
    fn records_from_before_fixtures_have_none() {
        let fixtures = |sample| serde_json::from_str::<VmRecord>(sample).unwrap().spec.fixtures;
        assert!(fixtures(SAMPLE).is_empty());
        let both = fixtures(SAMPLE_FIXTURES);
        assert!(both[0].preserve_modes && !both[0].is_blank() && both[1].is_blank());
    }

    #[test]
    fn nested_virtualization_is_off_in_records_from_before_it() {
        let nested = |sample| serde_json::from_str::<VmRecord>(sample).unwrap().spec.nested_virt;
        assert!(!nested(SAMPLE));
        assert!(nested(SAMPLE_NESTED));
    }

    #[test]
    fn an_old_record_still_reads() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), SAMPLE).unwrap();
        let record = VmRecord::read_dir(dir.path()).unwrap().unwrap();
        assert_eq!(record.spec.memory_mib, 4096);
        assert_eq!(record.cluster.as_str(), "web");
    }

    #[test]
    fn absent_damaged_and_newer_records_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(VmRecord::read_dir(dir.path()).unwrap().is_none());
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        assert_eq!(VmRecord::read_dir(dir.path()).unwrap_err().kind(), ErrorKind::StateRoot);
        let newer = SAMPLE.replace("\"format\": 1", "\"format\": 99");
        std::fs::write(dir.path().join("config.json"), newer).unwrap();
        let error = VmRecord::read_dir(dir.path()).unwrap_err();
        assert!(error.report().contains("newer release"));
    }

    #[test]
    fn a_changed_image_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("i.raw");
        std::fs::write(&image, b"12345").unwrap();
        let mut record: VmRecord = serde_json::from_str(SAMPLE).unwrap();
        record.image_path = image.clone();
        record.image_stamp = ImageStamp::of(&image).unwrap();
        record.check_image().unwrap();
        std::fs::write(&image, b"123456").unwrap();
        assert_eq!(record.check_image().unwrap_err().kind(), ErrorKind::ImageUnreadable);
    }
}
