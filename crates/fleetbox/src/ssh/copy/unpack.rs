//! Owns how a guest's archive becomes files of the host. The guest is hostile: nothing it sends may
//! reach outside the destination, or name more memory than a header's worth.
//!
//! Every name is split into components and walked from the destination's descriptor, one component
//! at a time, without following links. So a link the archive has made is never a way to anywhere.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

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

/// The destination while it fills, with one directory open: that of the last entry.
struct Tree<'a> {
    target: &'a Path,
    root: OwnedFd,
    /// Set on the root at the end, if the copy has made it.
    made: bool,
    root_attributes: Option<Attributes>,
    levels: Vec<Level>,
    current: OwnedFd,
}

/// A directory on the way to the open one. Its attributes are set when it is left: it may be one
/// that nobody can write to, and what is put into it changes its time.
struct Level {
    name: Vec<u8>,
    attributes: Option<Attributes>,
}

impl<'a> Tree<'a> {
    fn new(root: OwnedFd, target: &'a Path, made: bool) -> std::result::Result<Self, Errno> {
        let current = rustix::io::fcntl_dupfd_cloexec(&root, 0)?;
        Ok(Self { target, root, made, root_attributes: None, levels: Vec::new(), current })
    }

    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let full = entry.path_bytes().into_owned();
        let names = components(&full)?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let Some((name, parent)) = names.split_last() else {
            if kind != EntryType::Directory {
                return Err(refuse(entry, "would replace the destination"));
            }
            self.root_attributes = Some(Attributes::of(entry)?);
            return Ok(());
        };
        self.enter(parent)?;
        match kind {
            EntryType::Directory => self.add_dir(name, Attributes::of(entry)?),
            EntryType::Symlink => self.add_symlink(name, entry),
            EntryType::Link => self.add_link(name, entry),
            kind if is_file(kind) => {
                let path = self.path(name);
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let create = |dir: &OwnedFd| fs::openat(dir, *name, flags, Mode::RUSR | Mode::WUSR);
                let file = self.replace(name, create)?;
                fill(entry, &mut File::from(file), &path)
            }
            _ => Err(refuse(entry, "is neither file, directory nor link")),
        }
    }

    fn add_dir(&mut self, name: &[u8], attributes: Attributes) -> Result<()> {
        match fs::mkdirat(&self.current, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(self.failed(name, e)),
        }
        self.descend(name)?;
        if let Some(level) = self.levels.last_mut() {
            level.attributes = Some(attributes);
        }
        Ok(())
    }

    fn add_symlink<R: Read>(&mut self, name: &[u8], entry: &Entry<'_, R>) -> Result<()> {
        let target = link_name(entry)?;
        let times = Attributes::of(entry)?.times();
        self.replace(name, |dir| {
            fs::symlinkat(target.as_slice(), dir, name)?;
            fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    /// A further name of a file that is already there, itself found without following links.
    fn add_link<R: Read>(&mut self, name: &[u8], entry: &Entry<'_, R>) -> Result<()> {
        let target = link_name(entry)?;
        let names = components(&target)?;
        let Some((old, parent)) = names.split_last() else {
            return Err(refuse(entry, "links to the destination itself"));
        };
        let dir = self.walk(parent.iter().copied()).map_err(|e| self.failed(name, e))?;
        let is_file = fs::statat(&dir, *old, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| fs::FileType::from_raw_mode(stat.st_mode).is_file());
        if !is_file {
            return Err(refuse(entry, "links to what is no file of the copy"));
        }
        let same = self.levels.iter().map(|level| level.name.as_slice()).eq(parent.iter().copied());
        if same && *old == name {
            return Ok(());
        }
        // Without AT_SYMLINK_FOLLOW the kernel takes the name itself.
        self.replace(name, |current| fs::linkat(&dir, *old, current, name, AtFlags::empty()))
    }

    /// Makes a new thing called `name`, in place of a file or link that is there.
    fn replace<T>(
        &self,
        name: &[u8],
        make: impl Fn(&OwnedFd) -> std::result::Result<T, Errno>,
    ) -> Result<T> {
        let made = match make(&self.current) {
            Err(Errno::EXIST) => fs::unlinkat(&self.current, name, AtFlags::empty())
                .and_then(|()| make(&self.current)),
            made => made,
        };
        made.map_err(|e| self.failed(name, e))
    }

    /// Makes the directory of these components the open one.
    fn enter(&mut self, names: &[&[u8]]) -> Result<()> {
        let common =
            self.levels.iter().zip(names).take_while(|(level, name)| level.name == **name).count();
        self.leave(common)?;
        for name in &names[common..] {
            self.descend(name)?;
        }
        Ok(())
    }

    fn descend(&mut self, name: &[u8]) -> Result<()> {
        self.current = fs::openat(&self.current, name, DIR_FLAGS, Mode::empty())
            .map_err(|e| self.failed(name, e))?;
        self.levels.push(Level { name: name.to_vec(), attributes: None });
        Ok(())
    }

    /// Leaves all but the first `keep` levels, the deepest first.
    fn leave(&mut self, keep: usize) -> Result<()> {
        while self.levels.len() > keep {
            let Some(level) = self.levels.pop() else {
                break;
            };
            if let Some(attributes) = level.attributes {
                attributes.apply(&self.current).map_err(|e| self.failed(&level.name, e))?;
            }
            let names = self.levels.iter().map(|level| level.name.as_slice());
            self.current = self.walk(names).map_err(|e| self.failed(b"", e))?;
        }
        Ok(())
    }

    fn walk<'n>(
        &self,
        names: impl IntoIterator<Item = &'n [u8]>,
    ) -> std::result::Result<OwnedFd, Errno> {
        let mut dir = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
        for name in names {
            dir = fs::openat(&dir, name, DIR_FLAGS, Mode::empty())?;
        }
        Ok(dir)
    }

    fn finish(mut self) -> Result<()> {
        self.leave(0)?;
        match self.root_attributes {
            Some(attributes) if self.made => {
                attributes.apply(&self.root).map_err(|e| self.failed(b"", e))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        let names = self.levels.iter().map(|level| level.name.as_slice()).chain([name]);
        self.target.join(names.map(OsStr::from_bytes).collect::<PathBuf>())
    }

    /// A link, or a file, in a place where the archive wants to go through a directory shows as
    /// `ENOTDIR` or `ELOOP`.
    fn failed(&self, name: &[u8], errno: Errno) -> Failure {
        let path = self.path(name);
        let rule = match errno {
            Errno::NOTDIR | Errno::LOOP => "leads through something that is no directory",
            Errno::ISDIR => "would replace a directory",
            _ => return Failure::Write { path, source: errno.into() },
        };
        let entry = path.strip_prefix(self.target).unwrap_or(&path);
        Failure::Refused { entry: entry.as_os_str().as_bytes().to_vec(), rule }
    }
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Result<Vec<u8>> {
    match entry.link_name_bytes() {
        Some(name) if !name.is_empty() && !name.contains(&0) => Ok(name.into_owned()),
        _ => Err(refuse(entry, "is a link to nothing")),
    }
}

/// The components of a name, without empty ones and `.`.
fn components(name: &[u8]) -> Result<Vec<&[u8]>> {
    let refused = |rule| Err(Failure::Refused { entry: name.to_vec(), rule });
    if name.starts_with(b"/") {
        return refused("has an absolute name");
    }
    if name.contains(&0) {
        return refused("has NUL in its name");
    }
    let names: Vec<&[u8]> =
        name.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if names.contains(&&b".."[..]) {
        return refused("climbs with `..`");
    }
    Ok(names)
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
