//! Owns how a guest's archive becomes files of the host. The guest is hostile: nothing it sends may
//! reach outside the destination, or name more memory than a header's worth.
//!
//! Every name is split into components and walked from the destination's descriptor, one component
//! at a time, without following links. So a link the archive has made is never a way to anywhere.

mod tree;

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use self::tree::Tree;
use super::destination::{self, Kind};
use crate::error::{Error, ErrorKind};
use crate::ssh::output;

/// The most that may stand between the data of two entries: headers and long names.
const HEADER_BYTES_MAX: u64 = 1024 * 1024;
const BUFFER_BYTES: usize = 256 * 1024;
const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why unpacking stopped.
#[derive(Debug)]
pub(super) enum Failure {
    /// The destination cannot be.
    Destination(Error),
    /// The archive broke off, or is none.
    Incomplete(io::Error),
    /// The entry would have done what no entry may.
    Refused { entry: Vec<u8>, rule: &'static str },
    /// The host could not write.
    Write { path: PathBuf, source: io::Error },
}

type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(super) fn into_error(self, what: &str) -> Error {
        match self {
            Failure::Destination(error) => error,
            Failure::Incomplete(source) => {
                Error::new(ErrorKind::Copy, format!("{what}: read the guest's archive"))
                    .source(source)
            }
            Failure::Refused { entry, rule } => Error::new(
                ErrorKind::Copy,
                format!("{what}: the entry \"{}\" {rule}", output::label(&entry, 1000)),
            )
            .hint("the copy was stopped there; what came before it stays at the destination"),
            Failure::Write { path, source } => Error::io(&format!("{what}: write"), &path, source)
                .detail("what was copied before stays at the destination"),
        }
    }
}

/// What was unpacked, and is kept only with [`Done::keep`].
#[derive(Debug)]
pub(super) enum Done {
    File { file: tempfile::NamedTempFile, target: PathBuf },
    Dir,
}

impl Done {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Done::File { .. } => Kind::File,
            Done::Dir => Kind::Dir,
        }
    }

    pub(super) fn keep(self) -> Result<()> {
        match self {
            Done::Dir => Ok(()),
            Done::File { file, target } => match file.persist(&target) {
                Ok(_) => Ok(()),
                Err(e) => Err(Failure::Write { path: target, source: e.error }),
            },
        }
    }
}

/// Reads the kind and the archive from `stream` and puts it at `host`.
pub(super) fn unpack(mut stream: impl Read, host: &Path, base: Option<&OsStr>) -> Result<Done> {
    let mut line = [0; 2];
    stream.read_exact(&mut line).map_err(Failure::Incomplete)?;
    let kind = match &line {
        b"d\n" => Kind::Dir,
        b"f\n" => Kind::File,
        _ => return Err(Failure::Incomplete(io::Error::other("the guest talks before it"))),
    };
    let target = destination::resolve_host(host, base, kind).map_err(Failure::Destination)?;
    let budget = Rc::new(Cell::new(u64::MAX));
    let mut archive = Archive::new(Metered { stream, budget: budget.clone() });
    match kind {
        Kind::File => unpack_file(&mut archive, &budget, target),
        Kind::Dir => unpack_dir(&mut archive, &budget, &target),
    }
}

fn unpack_file(
    archive: &mut Archive<impl Read>,
    budget: &Cell<u64>,
    target: PathBuf,
) -> Result<Done> {
    let mut entries = archive.entries().map_err(Failure::Incomplete)?;
    let Some(mut entry) = next(&mut entries, budget)? else {
        return Err(Failure::Incomplete(io::ErrorKind::UnexpectedEof.into()));
    };
    if !is_file(entry.header().entry_type()) {
        return Err(refuse(&entry, "is no file, where one was asked for"));
    }
    let write = |source| Failure::Write { path: target.clone(), source };
    let parent = destination::parent_of(&target).map_err(Failure::Destination)?;
    let mut file =
        tempfile::Builder::new().prefix(".fleetbox-").tempfile_in(parent).map_err(write)?;
    fill(&mut entry, file.as_file_mut(), &target)?;
    drop(entry);
    if let Some(entry) = next(&mut entries, budget)? {
        return Err(refuse(&entry, "comes after the only file asked for"));
    }
    Ok(Done::File { file, target })
}

fn unpack_dir(archive: &mut Archive<impl Read>, budget: &Cell<u64>, target: &Path) -> Result<Done> {
    let write = |e: Errno| Failure::Write { path: target.to_owned(), source: e.into() };
    let made = match fs::mkdir(target, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(e) => return Err(write(e)),
    };
    // The destination is the caller's: a link to a directory, made before, may lead there.
    let flags = DIR_FLAGS.difference(OFlags::NOFOLLOW);
    let root = fs::open(target, flags, Mode::empty()).map_err(write)?;
    let mut tree = Tree::new(root, target, made).map_err(write)?;
    let mut entries = archive.entries().map_err(Failure::Incomplete)?;
    while let Some(mut entry) = next(&mut entries, budget)? {
        tree.add(&mut entry)?;
    }
    tree.finish()?;
    Ok(Done::Dir)
}

fn next<'a, R: Read>(
    entries: &mut tar::Entries<'a, R>,
    budget: &Cell<u64>,
) -> Result<Option<Entry<'a, R>>> {
    budget.set(HEADER_BYTES_MAX);
    let entry = entries.next().transpose().map_err(Failure::Incomplete);
    budget.set(u64::MAX);
    entry
}

fn is_file(kind: EntryType) -> bool {
    matches!(kind, EntryType::Regular | EntryType::Continuous)
}

fn refuse<R: Read>(entry: &Entry<'_, R>, rule: &'static str) -> Failure {
    Failure::Refused { entry: entry.path_bytes().into_owned(), rule }
}

/// Copies the entry's data, all of it, and sets mode and time.
fn fill<R: Read>(entry: &mut Entry<'_, R>, file: &mut File, path: &Path) -> Result<()> {
    let attributes = Attributes::of(entry)?;
    let write = |source| Failure::Write { path: path.to_owned(), source };
    let mut left = entry.size();
    let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(left).unwrap_or(BUFFER_BYTES))];
    while left > 0 {
        let count = entry.read(&mut buffer).map_err(Failure::Incomplete)?;
        if count == 0 {
            return Err(Failure::Incomplete(io::ErrorKind::UnexpectedEof.into()));
        }
        file.write_all(&buffer[..count]).map_err(write)?;
        left = left.saturating_sub(count as u64);
    }
    attributes.apply(file).map_err(|e| write(e.into()))
}

/// What is kept of an entry besides its content.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    mode: Mode,
    mtime: i64,
}

impl Attributes {
    fn of<R: Read>(entry: &Entry<'_, R>) -> Result<Self> {
        let header = entry.header();
        let mode = header.mode().map_err(Failure::Incomplete)?;
        let mtime = header.mtime().map_err(Failure::Incomplete)?;
        Ok(Self {
            // No setuid, setgid or sticky bit from a guest.
            mode: Mode::from_raw_mode((mode & 0o777) as fs::RawMode),
            mtime: i64::try_from(mtime).unwrap_or(0),
        })
    }

    fn apply(self, file: impl std::os::fd::AsFd) -> std::result::Result<(), Errno> {
        fs::fchmod(&file, self.mode)?;
        fs::futimens(&file, &self.times())
    }

    fn times(self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// Reads no more than the budget: the archive reader keeps long names in memory, whatever their
/// length.
struct Metered<R> {
    stream: R,
    budget: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let budget = self.budget.get();
        if budget == 0 {
            return Err(io::Error::other("a header is larger than any honest one"));
        }
        let most = buffer.len().min(usize::try_from(budget).unwrap_or(usize::MAX));
        let count = self.stream.read(&mut buffer[..most])?;
        if budget != u64::MAX {
            self.budget.set(budget - count as u64);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
