//! Owns where a copy ends up, on both sides, and the shell text that decides it in the guest. It
//! must not move data.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::pack::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::ssh::{output, quote};

/// What a copy is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Dir,
}

/// Arguments: destination, base name or nothing, kind, mode, modification time.
const RECEIVE: &str = r#"
dst=$1 base=$2 kind=$3 mode=$4 mtime=$5
fail() { printf '%s\n' "$1" >&2; exit 1; }
bare=${dst%"${dst##*[!/]}"}; : "${bare:=/}"
if [ -d "$dst" ]; then
  target=$bare; [ -z "$base" ] || target=${bare%/}/$base
else
  [ "$kind" = d ] || [ "$dst" = "$bare" ] || fail "$bare is not a directory"
  target=$bare
fi
if [ "$kind" = f ] && [ -L "$target" ]; then
  link=$(readlink -f -- "$target" && echo x) || fail "$target is a link to nowhere"
  target=${link%?x}
fi
parent=${target%/*}; : "${parent:=/}"
[ -d "$parent" ] || fail "there is no directory $parent"
if [ "$kind" = d ]; then
  made=
  if [ ! -d "$target" ]; then
    [ -e "$target" ] || [ -L "$target" ] && fail "$target is there and is not a directory"
    mkdir -- "$target" || exit 1
    made=1
  fi
  cd "$target" && tar -xpof - || exit $?
  if [ "$made" ]; then touch -d "@$mtime" . && chmod "$mode" .; fi
  exit $?
fi
[ ! -d "$target" ] || fail "$target is a directory"
tmp=$(mktemp -d "$parent/.fleetbox-XXXXXX") || exit 1
trap 'rm -rf -- "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
tar -xpof - -C "$tmp" && mv -f -- "$tmp/f" "$target"
"#;

/// Argument: source. The first line of its output is the kind.
const SEND: &str = r#"
src=$1
fail() { printf '%s\n' "$1" >&2; exit 1; }
if [ -d "$src" ]; then
  cd "$src" && echo d && exec tar -cf - .
elif [ -f "$src" ]; then
  cd "${src%/*}/" && echo f && exec tar -chf - "./${src##*/}"
elif [ -e "$src" ]; then
  fail "$src is neither a file nor a directory"
else
  fail "there is no $src"
fi
exit 1
"#;

/// An absolute path in the guest.
#[derive(Debug, Clone)]
pub(super) struct GuestPath(String);

impl GuestPath {
    pub(super) fn new(path: &str) -> Result<Self> {
        let problem = if !path.starts_with('/') {
            "is not absolute"
        } else if path.contains('\0') {
            "contains NUL"
        } else {
            return Ok(Self(path.to_owned()));
        };
        let shown = output::label(path.as_bytes(), super::LABEL_CHARS);
        Err(Error::new(ErrorKind::InvalidPath, format!("the guest path {shown} {problem}"))
            .hint("give it from the guest's root on, such as /tmp/data"))
    }

    /// The name under which it goes into a directory; none if it stands for its contents.
    pub(super) fn base(&self) -> Option<OsString> {
        base_name(self.0.as_bytes()).map(|name| OsStr::from_bytes(name).to_owned())
    }

    pub(super) fn receive(&self, source: &Source) -> Vec<u8> {
        let kind = if source.kind() == Kind::Dir { "d" } else { "f" };
        let (mode, mtime) = (format!("{:o}", source.mode()), source.mtime().to_string());
        let args: [&[u8]; 5] = [
            self.0.as_bytes(),
            source.base().unwrap_or_default(),
            kind.as_bytes(),
            mode.as_bytes(),
            mtime.as_bytes(),
        ];
        script(RECEIVE, &args)
    }

    pub(super) fn send(&self) -> Vec<u8> {
        let mut text = script(SEND, &[self.0.as_bytes()]);
        text.extend_from_slice(b" </dev/null");
        text
    }
}

fn script(script: &str, args: &[&[u8]]) -> Vec<u8> {
    let mut text = b"exec sh -c".to_vec();
    quote::words(&mut text, [script.as_bytes(), b"sh"]);
    quote::words(&mut text, args.iter().copied());
    text
}

/// The last component, or nothing where that is `.`, `..` or the root.
pub(super) fn base_name(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().rposition(|b| *b != b'/')? + 1;
    let start = path[..end].iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    Some(&path[start..end]).filter(|name| *name != b"." && *name != b"..")
}

/// What can be known of a destination on the host before anything is asked of the guest.
pub(super) fn check_host(host: &Path) -> Result<()> {
    if host.metadata().is_ok() {
        return Ok(());
    }
    parent_of(host).map(drop)
}

/// Where on the host a copy of this kind, with this base name, goes.
pub(super) fn resolve_host(host: &Path, base: Option<&OsStr>, kind: Kind) -> Result<PathBuf> {
    let is_dir = |path: &Path| path.metadata().is_ok_and(|m| m.is_dir());
    let mut target = if is_dir(host) {
        base.map_or_else(|| host.to_owned(), |base| host.join(base))
    } else {
        if kind == Kind::File && host.as_os_str().as_bytes().ends_with(b"/") {
            return Err(not(host, "is not a directory"));
        }
        host.to_owned()
    };
    match (kind, target.symlink_metadata()) {
        (Kind::File, Ok(_)) if is_dir(&target) => Err(not(&target, "is a directory")),
        (Kind::Dir, Ok(_)) if !is_dir(&target) => {
            Err(not(&target, "is there and is not a directory"))
        }
        (Kind::File, Ok(metadata)) if metadata.is_symlink() => {
            // The user's own link, made before the copy: write through it, as cp does.
            target = target.canonicalize().map_err(|e| Error::io("follow the link", &target, e))?;
            Ok(target)
        }
        (_, Ok(_)) => Ok(target),
        (_, Err(_)) => {
            parent_of(&target)?;
            Ok(target)
        }
    }
}

/// The directory the path's last component is in; an error if there is none.
pub(super) fn parent_of(path: &Path) -> Result<&Path> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(path),
    };
    if parent.metadata().is_ok_and(|m| m.is_dir()) {
        return Ok(parent);
    }
    Err(Error::new(ErrorKind::InvalidPath, format!("there is no directory {}", parent.display()))
        .hint("make it first"))
}

fn not(path: &Path, problem: &str) -> Error {
    Error::new(ErrorKind::InvalidPath, format!("{} {problem}", path.display()))
        .hint("name another destination, or move what is there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_names() {
        for (path, name) in [
            ("/a/b", Some("b")),
            ("/a/b//", Some("b")),
            ("b", Some("b")),
            ("/a/b/.", None),
            ("/a/..", None),
            ("/", None),
            ("", None),
            ("/a/...", Some("...")),
        ] {
            assert_eq!(base_name(path.as_bytes()), name.map(str::as_bytes), "{path}");
        }
    }

    #[test]
    fn a_relative_guest_path_is_refused() {
        for path in ["", "tmp", "~/x", "./x", "/tmp/\0"] {
            assert_eq!(GuestPath::new(path).unwrap_err().kind(), ErrorKind::InvalidPath);
        }
    }

    #[test]
    fn host_destinations() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("f"), "").unwrap();
        std::os::unix::fs::symlink("f", at("to-f")).unwrap();
        let base = Some(OsStr::new("b"));
        let ok = |path: &str, kind| resolve_host(&at(path), base, kind).unwrap();
        let no = |path: &str, kind| resolve_host(&at(path), base, kind).unwrap_err().kind();
        assert_eq!(ok("d", Kind::File), at("d/b"));
        assert_eq!(ok("d/", Kind::Dir), at("d/b"));
        assert_eq!(ok("new", Kind::File), at("new"));
        assert_eq!(ok("new/", Kind::Dir), at("new/"));
        assert_eq!(ok("f", Kind::File), at("f"));
        assert_eq!(ok("to-f", Kind::File), at("f").canonicalize().unwrap());
        assert_eq!(resolve_host(&at("d"), None, Kind::Dir).unwrap(), at("d"));
        assert_eq!(no("new/", Kind::File), ErrorKind::InvalidPath);
        assert_eq!(no("f", Kind::Dir), ErrorKind::InvalidPath);
        assert_eq!(no("missing/new", Kind::Dir), ErrorKind::InvalidPath);
        std::fs::create_dir(at("d/b")).unwrap();
        assert_eq!(no("d", Kind::File), ErrorKind::InvalidPath);
    }
}
