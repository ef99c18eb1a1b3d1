//! Owns the destination of a directory while it fills. It must not reach anything by more than one
//! component at a time, or through a link.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::{Attributes, DIR_FLAGS, Failure, Result, fill, is_file, refuse};

/// The destination while it fills, with one directory open: that of the last entry.
pub(super) struct Tree<'a> {
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
    pub(super) fn new(
        root: OwnedFd,
        target: &'a Path,
        made: bool,
    ) -> std::result::Result<Self, Errno> {
        let current = rustix::io::fcntl_dupfd_cloexec(&root, 0)?;
        Ok(Self { target, root, made, root_attributes: None, levels: Vec::new(), current })
    }

    pub(super) fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
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

    pub(super) fn finish(mut self) -> Result<()> {
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
