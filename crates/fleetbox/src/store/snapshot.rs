//! Owns the record of a snapshot, `snapshot.json`: which machines it has, what they need to come back,
//! and whether its files are still what they were. It must not save or restore.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::paths::{SavedPaths, SnapshotPaths};
use super::record::{ImageStamp, VmRecord};
use super::whole::write_atomic;
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::images::hex;
use crate::spec::Name;

/// The version of the record's format. Another is not read.
const FORMAT: u32 = 1;

/// A snapshot as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub format: u32,
    /// The cluster, if all its members are in it, saved together.
    #[serde(default)]
    pub cluster: Option<Name>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// By the members' indices.
    pub members: Vec<SavedMember>,
}

/// One machine of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedMember {
    /// The VM as it was.
    pub record: VmRecord,
    /// Its disk and what that lies on, down to the image: files in the member's directory.
    pub layers: Vec<String>,
    /// What its guest waits for who it is to be.
    pub token: String,
    /// What it can be restored by.
    pub maker: Maker,
    pub memory: ImageStamp,
    /// sha256 in hexadecimal.
    pub device_digest: String,
}

/// What made a snapshot: nothing else can restore it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Maker {
    pub backend: Backend,
    /// The monitor's program: path, size and time.
    pub program: String,
    /// The machine as the monitor is told it, as a sha256.
    pub machine: String,
    /// The host's processor and kernel, where guests see them.
    pub host: String,
}

impl Maker {
    /// Why what that made cannot be restored by this, if so.
    pub(crate) fn differs(&self, made: &Maker) -> Option<String> {
        let pairs = [
            ("the monitor is", &self.program, &made.program),
            ("the processor or kernel is", &self.host, &made.host),
        ];
        if self.backend != made.backend {
            return Some(format!("{} made it, and here it is {}", made.backend, self.backend));
        }
        let told = pairs.iter().find(|(_, here, there)| here != there);
        if let Some((what, here, there)) = told {
            return Some(format!("{what} {here}, and was {there}"));
        }
        (self.machine != made.machine).then(|| "the machine is put together otherwise".to_owned())
    }
}

impl SnapshotRecord {
    pub(crate) const FORMAT: u32 = FORMAT;

    /// The record of a snapshot, if there is one.
    pub(crate) fn read(paths: &SnapshotPaths) -> Result<Option<Self>> {
        let path = paths.record();
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| Error::io("read", &path, e))?,
        };
        let unusable = |why: String| {
            Error::new(
                ErrorKind::SnapshotUnusable,
                format!("read the record {}: {why}", path.display()),
            )
            .hint("remove the snapshot and make it anew")
        };
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|e| unusable(format!("it is damaged ({e})")))?;
        if record.format != FORMAT {
            return Err(unusable("another release of fleetbox wrote it".to_owned()));
        }
        Ok(Some(record))
    }

    pub(crate) fn write(&self, paths: &SnapshotPaths) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "write a record").source(e))?;
        bytes.push(b'\n');
        write_atomic(&paths.record(), &bytes)
    }
}

impl SavedMember {
    /// Refuses files that are not what was saved. Memory is too large to be read each time: its size
    /// and time have to do.
    pub(crate) fn check(&self, saved: &SavedPaths) -> Result<()> {
        let unusable = |path: &Path, why: &str| {
            Error::new(ErrorKind::SnapshotUnusable, format!("restore {}: {why}", path.display()))
                .hint("remove the snapshot and make it anew")
        };
        let (memory, device) = (saved.memory(), saved.device());
        match ImageStamp::of(&memory) {
            Ok(stamp) if stamp == self.memory => {}
            Ok(_) => return Err(unusable(&memory, "it was changed")),
            Err(_) => return Err(unusable(&memory, "it is missing")),
        }
        match digest(&device) {
            Ok(digest) if digest == self.device_digest => {}
            Ok(_) => return Err(unusable(&device, "it was changed")),
            Err(e) => return Err(unusable(&device, "it cannot be read").source(e)),
        }
        for layer in &self.layers {
            let layer = saved.layer(layer);
            if !layer.is_file() {
                return Err(unusable(&layer, "it is missing"));
            }
        }
        for place in self.record.spec.mounted_fixtures() {
            let drive = saved.fixture(place);
            if !drive.is_file() {
                return Err(unusable(&drive, "it is missing"));
            }
        }
        self.record.check_base_image()
    }
}

/// The sha256 of a file of moderate size.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hex(&hash.finalize())),
            length => hash.update(&block[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker() -> Maker {
        Maker {
            backend: Backend::Qemu,
            program: "/qemu".into(),
            machine: "m".into(),
            host: String::new(),
        }
    }

    #[test]
    fn what_made_it_differs_in_words() {
        assert_eq!(maker().differs(&maker()), None);
        for (other, word) in [
            (Maker { backend: Backend::CloudHypervisor, ..maker() }, "cloud-hypervisor"),
            (Maker { program: "/other".into(), ..maker() }, "/other"),
            (Maker { machine: "n".into(), ..maker() }, "otherwise"),
            (Maker { host: "cpu".into(), ..maker() }, "cpu"),
        ] {
            let why = maker().differs(&other).unwrap();
            assert!(why.contains(word), "{why}");
        }
    }
}
