//! Owns whose the state root is when root works in it for a user, as under sudo: what root made
//! becomes the user's. It must not follow a link, nor give away what lies anywhere else.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Result;

/// The deepest file of ours is five directories down.
const DEPTH_MAX: usize = 16;

/// Hands a state root over to the invoking user when it is dropped.
#[derive(Debug)]
pub(super) struct Handover {
    root: PathBuf,
}

/// A user with the group their files are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Handover {
    pub(super) fn of(root: &Path) -> Self {
        // Without a slash at its end, which would follow a link.
        Self { root: root.components().collect() }
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if let Some(uid) = crate::sys::user::invoking_uid() {
            // What cannot be given away stays root's, and the next handover tries again.
            let _ = hand_over(&self.root, uid);
        }
    }
}

/// Gives everything of root's in the state root to the invoking user, if it is in their place.
fn hand_over(root: &Path, invoking_uid: u32) -> Result<()> {
    let dir = open(CWD, root, OFlags::DIRECTORY)?;
    let parent = open(&dir, c"..", OFlags::DIRECTORY)?;
    let (stat, above) = (rustix::fs::fstat(&dir)?, rustix::fs::fstat(&parent)?);
    let Some(heir) = heir(invoking_uid, owner(&stat), owner(&above)) else { return Ok(()) };
    if stat.st_uid == 0 {
        give(&dir, heir)?;
    }
    hand_over_entries(&dir, &stat, heir, DEPTH_MAX)
}

/// Whom a state root belongs to: the invoking user, if it is theirs already or if it is root's in a
/// directory of theirs. Elsewhere it stays as it is.
fn heir(invoking_uid: u32, root: Owner, parent: Owner) -> Option<Owner> {
    let found = if root.uid == 0 { parent } else { root };
    (invoking_uid != 0 && found.uid == invoking_uid).then_some(found)
}

fn hand_over_entries(dir: &OwnedFd, stat: &Stat, heir: Owner, depth: usize) -> Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if ![c".", c".."].contains(&name) {
            // It may be gone meanwhile; the others are still to be given.
            let _ = hand_over_entry(dir, stat, name, heir, depth);
        }
    }
    Ok(())
}

/// The user may exchange entries of their directories at any time. So a name is opened once, never
/// through a link, and given away only if it is the file's sole name: a file of root's elsewhere
/// has another.
fn hand_over_entry(
    dir: &OwnedFd,
    above: &Stat,
    name: &CStr,
    heir: Owner,
    depth: usize,
) -> Result<()> {
    let file = open(dir, name, OFlags::NONBLOCK)?;
    let opened = rustix::fs::fstat(&file)?;
    let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(there.st_mode);
    let is_ours = (opened.st_dev, opened.st_ino) == (there.st_dev, there.st_ino)
        && there.st_dev == above.st_dev
        && (kind == FileType::Directory || kind == FileType::RegularFile && there.st_nlink == 1)
        && [0, heir.uid].contains(&there.st_uid);
    if !is_ours {
        return Ok(());
    }
    if there.st_uid == 0 {
        give(&file, heir)?;
    }
    if kind == FileType::Directory && depth > 0 {
        hand_over_entries(&file, &there, heir, depth - 1)?;
    }
    Ok(())
}

fn open(
    dir: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg,
    more: OFlags,
) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn give(file: &OwnedFd, to: Owner) -> Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)))
}

fn owner(stat: &Stat) -> Owner {
    Owner { uid: stat.st_uid, gid: stat.st_gid }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    use super::*;

    const ROOT: Owner = Owner { uid: 0, gid: 0 };
    const USER: Owner = Owner { uid: 1000, gid: 100 };

    #[test]
    fn only_the_invoking_users_own_place_becomes_theirs() {
        let other = Owner { uid: 1001, gid: 100 };
        for (invoking_uid, root, parent, expected) in [
            (1000, ROOT, USER, Some(USER)),
            (1000, USER, ROOT, Some(USER)),
            (1000, ROOT, ROOT, None),
            (1000, ROOT, other, None),
            (1000, other, USER, None),
            (0, ROOT, ROOT, None),
        ] {
            assert_eq!(heir(invoking_uid, root, parent), expected, "{root:?} in {parent:?}");
        }
    }

    #[test]
    fn what_links_lead_to_and_what_has_another_name_stays_roots() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (root, outside) = (base.path().join("root"), base.path().join("outside"));
        std::fs::create_dir_all(root.join("deep/er")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        for file in [root.join("file"), root.join("deep/er/file"), outside.join("file")] {
            std::fs::write(file, "").unwrap();
        }
        symlink(&outside, root.join("link")).unwrap();
        std::fs::hard_link(outside.join("file"), root.join("second")).unwrap();
        chown(&root, Some(USER.uid), Some(USER.gid)).unwrap();
        let owner_of = |path: &str| {
            let metadata = base.path().join(path).symlink_metadata().unwrap();
            Owner { uid: metadata.uid(), gid: metadata.gid() }
        };

        let link = base.path().join("link");
        symlink(&root, &link).unwrap();
        assert!(hand_over(&link, USER.uid).is_err());
        hand_over(&root, USER.uid + 1).unwrap();
        assert_eq!(owner_of("root/file"), ROOT);

        hand_over(&root, USER.uid).unwrap();
        for path in ["root/file", "root/deep", "root/deep/er", "root/deep/er/file"] {
            assert_eq!(owner_of(path), USER, "{path}");
        }
        for path in ["outside", "outside/file", "root/link", "root/second"] {
            assert_eq!(owner_of(path), ROOT, "{path}");
        }
    }
}
