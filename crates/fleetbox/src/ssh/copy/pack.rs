//! Owns how a file or directory of the host becomes an archive for the guest's tar. It must not
//! follow links below the source, and keeps one chunk in memory, not the tree.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::ChunkWriter;
use super::destination::{Kind, base_name};
use crate::error::{Error, ErrorKind, Result};
use crate::ssh::input::Feed;

/// The name of a single file in its archive; the guest moves it into place.
const FILE_NAME: &[u8] = b"f";
/// Longer names need an entry of their own before the entry they belong to.
const NAME_BYTES: usize = 100;

/// What is to be copied.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    kind: Kind,
    mode: u32,
    mtime: u64,
}

impl Source {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let metadata = path.metadata().map_err(|e| {
            Error::new(ErrorKind::InvalidPath, format!("find {}", path.display()))
                .hint("the source of a copy must exist on the host")
                .source(e)
        })?;
        let kind = if metadata.is_dir() {
            Kind::Dir
        } else if metadata.is_file() {
            Kind::File
        } else {
            let text = format!("{} is neither a file nor a directory", path.display());
            return Err(Error::new(ErrorKind::InvalidPath, text)
                .hint("only files and directories can be copied"));
        };
        Ok(Self { path: path.to_owned(), kind, mode: mode(&metadata), mtime: mtime(&metadata) })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn mode(&self) -> u32 {
        self.mode
    }

    pub(super) fn mtime(&self) -> u64 {
        self.mtime
    }

    pub(super) fn base(&self) -> Option<&[u8]> {
        base_name(self.path.as_os_str().as_bytes())
    }
}

/// Why packing stopped.
#[derive(Debug)]
pub(super) enum Failure {
    /// The other side is gone, and says itself why.
    Closed,
    Read {
        path: PathBuf,
        source: io::Error,
    },
    Special(PathBuf),
}

impl Failure {
    pub(super) fn into_error(self, what: &str) -> Error {
        match self {
            Failure::Closed => Error::new(ErrorKind::ConnectionLost, what),
            Failure::Read { path, source } => {
                Error::new(ErrorKind::Copy, format!("{what}: read {}", path.display()))
                    .source(source)
            }
            Failure::Special(path) => Error::new(
                ErrorKind::Copy,
                format!("{what}: {} is a socket, pipe or device", path.display()),
            )
            .hint("copy a directory without such files"),
        }
    }
}

type Archive = Builder<ChunkWriter>;

/// Writes the whole archive and its end into `chunks`.
pub(super) fn pack(
    source: &Source,
    chunks: mpsc::Sender<Feed>,
) -> std::result::Result<(), Failure> {
    let mut archive = Builder::new(ChunkWriter::new(chunks));
    match source.kind {
        Kind::File => append_file(&mut archive, &source.path, FILE_NAME)?,
        Kind::Dir => append_tree(&mut archive, &source.path)?,
    }
    // `ChunkWriter` fails only when nobody takes its chunks.
    archive.into_inner().and_then(ChunkWriter::finish).map_err(|_| Failure::Closed)
}

fn append_tree(archive: &mut Archive, root: &Path) -> std::result::Result<(), Failure> {
    // Names still to visit, the next one last, each relative to the root.
    let mut left = names_in(root, b"")?;
    while let Some(name) = left.pop() {
        let path = root.join(std::ffi::OsStr::from_bytes(&name));
        let metadata = path.symlink_metadata().map_err(|e| read(&path, e))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            let mut header = header(EntryType::Directory, &metadata, 0);
            append(archive, &mut header, &name, None, io::empty(), &path)?;
            left.extend(names_in(&path, &name)?);
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(|e| read(&path, e))?;
            let mut header = header(EntryType::Symlink, &metadata, 0);
            let target = target.into_os_string().into_vec();
            append(archive, &mut header, &name, Some(&target), io::empty(), &path)?;
        } else if kind.is_file() {
            append_file(archive, &path, &name)?;
        } else {
            return Err(Failure::Special(path));
        }
    }
    Ok(())
}

/// What is in the directory, under its name, in reverse order.
fn names_in(dir: &Path, name: &[u8]) -> std::result::Result<Vec<Vec<u8>>, Failure> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| read(dir, e))? {
        let entry = entry.map_err(|e| read(dir, e))?;
        let mut full = name.to_vec();
        if !full.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(entry.file_name().as_bytes());
        names.push(full);
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn append_file(
    archive: &mut Archive,
    path: &Path,
    name: &[u8],
) -> std::result::Result<(), Failure> {
    let file = File::open(path).map_err(|e| read(path, e))?;
    let metadata = file.metadata().map_err(|e| read(path, e))?;
    let size = metadata.len();
    let mut header = header(EntryType::Regular, &metadata, size);
    append(archive, &mut header, name, None, Exactly { file, left: size }, path)
}

fn header(kind: EntryType, metadata: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode(metadata));
    header.set_mtime(mtime(metadata));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header
}

fn append(
    archive: &mut Archive,
    header: &mut Header,
    name: &[u8],
    target: Option<&[u8]>,
    data: impl Read,
    path: &Path,
) -> std::result::Result<(), Failure> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => read(path, e),
    };
    // The crate's own way to set names would tidy them: `a//b` and `./a` must stay.
    put(archive, EntryType::GNULongName, &mut header.as_old_mut().name, name).map_err(failed)?;
    if let Some(target) = target {
        let field = &mut header.as_old_mut().linkname;
        put(archive, EntryType::GNULongLink, field, target).map_err(failed)?;
    }
    header.set_cksum();
    archive.append(header, data).map_err(failed)
}

/// Fills a name's field of a header, after an entry with the whole name if it does not fit.
fn put(
    archive: &mut Archive,
    kind: EntryType,
    field: &mut [u8; NAME_BYTES],
    name: &[u8],
) -> io::Result<()> {
    let fits = name.len().min(NAME_BYTES);
    field[..fits].copy_from_slice(&name[..fits]);
    if name.len() <= NAME_BYTES {
        return Ok(());
    }
    let mut long = Header::new_gnu();
    long.set_entry_type(kind);
    long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
    long.set_mode(0o644);
    long.set_size(name.len() as u64 + 1);
    long.set_cksum();
    archive.append(&long, name.chain(&b"\0"[..]))
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

/// Whole seconds; times before 1970 become 1970, which every tar can write.
fn mtime(metadata: &Metadata) -> u64 {
    u64::try_from(metadata.mtime()).unwrap_or(0)
}

fn read(path: &Path, source: io::Error) -> Failure {
    Failure::Read { path: path.to_owned(), source }
}

/// As many bytes as the header has promised: a file may grow or shrink while it is read.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::other("it became shorter while it was copied"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
