//! Owns the keys of layers: a number for what a step and all before it say, and for what it copies. It
//! must not know which layers are there.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Step;
use crate::error::{Error, ErrorKind, Result};
use crate::images::hex;
use crate::spec::Arch;

/// Another one makes all layers anew: the way they are made has changed.
const GENERATION: &[u8] = b"1";
const BLOCK_BYTES: usize = 1 << 20;

/// What all steps begin with: an image's content on a disk of that size.
pub(super) fn root(image_digest: &str, arch: Arch, disk_gib: u32) -> String {
    let mut hash = Sha256::new();
    for part in [GENERATION, image_digest.as_bytes(), arch.as_str().as_bytes()] {
        add(&mut hash, part);
    }
    add(&mut hash, &disk_gib.to_le_bytes());
    hex(&hash.finalize())
}

/// The key of a step after the one of key `parent`. Reads what is copied.
pub(super) fn of_step(parent: &str, step: &Step) -> Result<String> {
    let mut hash = Sha256::new();
    add(&mut hash, parent.as_bytes());
    match step {
        Step::Run { line, env } => {
            add(&mut hash, b"run");
            add(&mut hash, line.as_bytes());
            for (name, value) in env {
                add(&mut hash, name.as_bytes());
                add(&mut hash, value.as_bytes());
            }
        }
        Step::Copy { host, guest } => {
            add(&mut hash, b"copy");
            add(&mut hash, guest.as_bytes());
            // A directory that is there takes it in under its own name.
            add(&mut hash, host.file_name().unwrap_or_default().as_bytes());
            add_source(&mut hash, host)?;
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Each part with its length, so that no two lists of parts look alike.
fn add(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_le_bytes());
    hash.update(part);
}

/// What is named is followed if it is a link; those below it are copied as links.
fn add_source(hash: &mut Sha256, path: &Path) -> Result<()> {
    let metadata = path.metadata().map_err(|e| {
        Error::new(ErrorKind::InvalidPath, format!("find {}", path.display()))
            .hint("what an image copies must exist on the host")
            .source(e)
    })?;
    add_mode(hash, &metadata);
    if metadata.is_dir() {
        return add_tree(hash, path);
    }
    if !metadata.is_file() {
        return Err(special(path));
    }
    add_file(hash, path)
}

fn add_tree(hash: &mut Sha256, dir: &Path) -> Result<()> {
    add(hash, b"directory");
    let read = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    let mut entries =
        read.collect::<std::io::Result<Vec<_>>>().map_err(|e| Error::io("list", dir, e))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let metadata = path.symlink_metadata().map_err(|e| Error::io("read", &path, e))?;
        add(hash, entry.file_name().as_bytes());
        if metadata.is_symlink() {
            let target = std::fs::read_link(&path).map_err(|e| Error::io("read", &path, e))?;
            add(hash, b"link");
            add(hash, target.as_os_str().as_bytes());
            continue;
        }
        add_mode(hash, &metadata);
        if metadata.is_dir() {
            add_tree(hash, &path)?;
        } else if metadata.is_file() {
            add_file(hash, &path)?;
        } else {
            return Err(special(&path));
        }
    }
    add(hash, b"end");
    Ok(())
}

fn add_mode(hash: &mut Sha256, metadata: &std::fs::Metadata) {
    add(hash, &(metadata.permissions().mode() & 0o7777).to_le_bytes());
}

fn add_file(hash: &mut Sha256, path: &Path) -> Result<()> {
    let io = |e| Error::io("read", path, e);
    let (mut file, mut content) = (File::open(path).map_err(io)?, Sha256::new());
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block).map_err(io)? {
            0 => break,
            length => content.update(&block[..length]),
        }
    }
    add(hash, b"file");
    add(hash, &content.finalize());
    Ok(())
}

fn special(path: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidPath,
        format!("copy {} into an image: it is a socket, pipe or device", path.display()),
    )
    .hint("copy files and directories")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn run(line: &str) -> Step {
        Step::Run { line: line.to_owned(), env: Vec::new() }
    }

    fn key(parent: &str, step: &Step) -> String {
        of_step(parent, step).unwrap()
    }

    #[test]
    fn a_key_changes_with_all_that_shapes_the_layer() {
        let first = root("a", Arch::X86_64, 20);
        assert_eq!(first, root("a", Arch::X86_64, 20));
        let others = [
            root("b", Arch::X86_64, 20),
            root("a", Arch::Aarch64, 20),
            root("a", Arch::X86_64, 21),
        ];
        assert!(!others.contains(&first));
        let step = key(&first, &run("true"));
        assert_eq!(step, key(&first, &run("true")));
        assert_ne!(step, key(&others[0], &run("true")));
        assert_ne!(step, key(&first, &run("true ")));
        let env = |name: &str, value: &str| Step::Run {
            line: "true".to_owned(),
            env: vec![(name.to_owned(), value.to_owned())],
        };
        assert_ne!(step, key(&first, &env("A", "b")));
        assert_ne!(key(&first, &env("A", "b")), key(&first, &env("Ab", "")), "parts are apart");
        assert!(step.len() == 64);
    }

    #[test]
    fn a_copys_key_goes_by_names_modes_and_content_and_not_by_place_or_time() {
        let dir = tempfile::tempdir().unwrap();
        let tree = |at: &str| {
            let tree = dir.path().join(at).join("site");
            std::fs::create_dir_all(tree.join("sub")).unwrap();
            std::fs::write(tree.join("index"), "hello").unwrap();
            std::fs::write(tree.join("sub/run"), "#!").unwrap();
            symlink("index", tree.join("link")).unwrap();
            tree
        };
        let of =
            |host: &Path| key("p", &Step::Copy { host: host.to_owned(), guest: "/srv".to_owned() });
        let (one, two) = (tree("one"), tree("two"));
        File::open(one.join("index")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        let same = of(&one);
        assert_eq!(same, of(&two));
        let mut seen = vec![same];
        let mut changes: Vec<Box<dyn Fn()>> = Vec::new();
        let at = two.clone();
        changes.push(Box::new(move || std::fs::write(at.join("index"), "hellO").unwrap()));
        let at = two.clone();
        changes.push(Box::new(move || {
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(at.join("sub/run"), mode).unwrap();
        }));
        let at = two.clone();
        changes.push(Box::new(move || std::fs::rename(at.join("sub"), at.join("zub")).unwrap()));
        let at = two.clone();
        changes.push(Box::new(move || {
            std::fs::remove_file(at.join("link")).unwrap();
            symlink("zub", at.join("link")).unwrap();
        }));
        for change in changes {
            change();
            let now = of(&two);
            assert!(!seen.contains(&now));
            seen.push(now);
        }
        let elsewhere = Step::Copy { host: one, guest: "/opt".to_owned() };
        assert!(!seen.contains(&key("p", &elsewhere)));
    }

    #[test]
    fn what_cannot_be_copied_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let copy = |host: &Path| {
            of_step("p", &Step::Copy { host: host.to_owned(), guest: "/x".to_owned() })
        };
        let absent = copy(&dir.path().join("absent")).unwrap_err();
        assert_eq!(absent.kind(), ErrorKind::InvalidPath);
        assert!(absent.report().contains("absent"), "{}", absent.report());
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let special = copy(dir.path()).unwrap_err();
        assert!(special.report().contains("socket, pipe or device"), "{}", special.report());
    }
}
