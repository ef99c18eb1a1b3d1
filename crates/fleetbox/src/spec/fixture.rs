//! Owns [`Fixture`], a directory of the host that guests have, and how it is frozen in a VM's record. It
//! must not look at the host's files: every check here is pure.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::DEFAULT_USER;
use crate::error::{Error, ErrorKind, Result};

/// More drives than that do not fit into every machine besides its own.
pub(crate) const FIXTURES_MAX: usize = 16;
/// So that a path fits into what a guest is told at once, whatever its bytes.
const GUEST_BYTES_MAX: usize = 512;
/// What a guest needs as it is. Below most of them there is room.
const NEEDED: &[&str] = &[
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/proc",
    "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var",
];
/// What the kernel makes, where nothing can be made.
const MADE_BY_KERNEL: &[&str] = &["/dev", "/proc", "/sys"];

/// A directory of the host that a guest has, read-only, at a path of its own.
///
/// It is packed into a file system of its own at each start of the VM and mounted before anyone can
/// log in. Regular files are 0444 and directories 0555 there, all of root; symbolic links and hard links
/// are kept as such, names are any bytes, and files keep their times and holes. Other attributes are not
/// kept. What is neither file, directory nor symbolic link, as a socket, is refused when it is packed.
///
/// ```
/// use fleetbox::Fixture;
///
/// let site = Fixture::new("tests/site", "/srv/site");
/// let tools = Fixture::new("target/debug", "/opt/tools").preserve_modes();
/// assert_eq!("target/debug:/opt/tools:modes".parse::<Fixture>().unwrap(), tools);
/// assert_eq!(Fixture::from(("tests/site", "/srv/site")), site);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixture {
    host: PathBuf,
    guest: String,
    preserve_modes: bool,
}

impl Fixture {
    /// The directory `host`, for guests at the absolute path `guest`. A relative `host` is one of the
    /// working directory. Whether both can be is told by the start.
    pub fn new(host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        Self { host: host.into(), guest: guest.into(), preserve_modes: false }
    }

    /// Files and directories keep their permission bits: programs can be run, and what only its owner
    /// may read only root can. Set-user-ID, set-group-ID and sticky bits are not kept.
    #[must_use]
    pub fn preserve_modes(self) -> Self {
        Self { preserve_modes: true, ..self }
    }

    /// The directory of the host, as it was given; of a VM that is there, absolute.
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// Where guests have it.
    pub fn guest(&self) -> &str {
        &self.guest
    }

    /// Whether permission bits are [kept](Self::preserve_modes).
    pub fn preserves_modes(&self) -> bool {
        self.preserve_modes
    }
}

impl<H: Into<PathBuf>, G: Into<String>> From<(H, G)> for Fixture {
    fn from((host, guest): (H, G)) -> Self {
        Self::new(host, guest)
    }
}

/// `HOST:GUEST`, or `HOST:GUEST:modes` to [preserve modes](Fixture::preserve_modes). The guest's path
/// begins after the last `:` that a `/` follows.
impl FromStr for Fixture {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let (paths, preserve_modes) = match text.strip_suffix(":modes") {
            Some(paths) => (paths, true),
            None => (text, false),
        };
        let at = paths.rfind(":/").or_else(|| paths.rfind(':'));
        let Some((host, guest)) = at.map(|at| (&paths[..at], &paths[at + 1..])) else {
            return Err(Error::new(
                ErrorKind::InvalidPath,
                format!("take \"{}\" for a fixture", text.escape_debug()),
            )
            .hint("give HOST:GUEST, such as ./site:/srv/site"));
        };
        Ok(Self { preserve_modes, ..Self::new(host, guest) })
    }
}

/// A fixture as it is frozen when its VM is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FixtureSpec {
    /// A directory of the host. Without one there is nothing in the fixture.
    pub host: PathBuf,
    /// Where the guest has it. Without one it is nowhere, and the drive waits for another machine's.
    pub guest: String,
    #[serde(default)]
    pub preserve_modes: bool,
}

impl FixtureSpec {
    pub(crate) fn of(fixture: Fixture) -> Self {
        let Fixture { host, guest, preserve_modes } = fixture;
        // What cannot be made absolute is refused as it is.
        let host = std::path::absolute(&host).unwrap_or(host);
        Self { host, guest: tidy(&guest), preserve_modes }
    }

    /// As it was asked for; none for a drive that waits.
    pub(crate) fn asked(&self) -> Option<Fixture> {
        let Self { host, guest, preserve_modes } = self.clone();
        (!self.is_blank()).then_some(Fixture { host, guest, preserve_modes })
    }

    /// A drive for a fixture that is not known yet.
    pub(crate) fn blank() -> Self {
        Self { host: PathBuf::new(), guest: String::new(), preserve_modes: false }
    }

    pub(crate) fn is_blank(&self) -> bool {
        self.guest.is_empty()
    }

    /// The names on the way to this fixture from the root of `other`, if it lies in that.
    pub(crate) fn inside(&self, other: &FixtureSpec) -> Option<Vec<&str>> {
        let rest = self.guest.strip_prefix(&other.guest)?.strip_prefix('/')?;
        Some(rest.split('/').collect())
    }
}

/// Refuses what no guest can have, before any work.
pub(super) fn check(fixtures: &[FixtureSpec]) -> Result<()> {
    if fixtures.len() > FIXTURES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidSpec,
            format!("have {} fixtures: {FIXTURES_MAX} fit", fixtures.len()),
        )
        .hint("put several directories into one"));
    }
    for (place, fixture) in fixtures.iter().enumerate() {
        if fixture.is_blank() && fixture.host.as_os_str().is_empty() {
            continue;
        }
        check_host(&fixture.host)?;
        check_guest(&fixture.guest)?;
        if fixtures[..place].iter().any(|before| before.guest == fixture.guest) {
            let guest = fixture.guest.escape_debug();
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                format!("have two fixtures at \"{guest}\" of the guest"),
            )
            .hint("give each a path of its own"));
        }
    }
    Ok(())
}

fn check_host(host: &Path) -> Result<()> {
    let problem = if host.as_os_str().is_empty() {
        "is empty"
    } else if host.to_str().is_none() {
        "is no text in UTF-8"
    } else {
        return Ok(());
    };
    let shown = host.to_string_lossy();
    Err(Error::new(
        ErrorKind::InvalidPath,
        format!("have a fixture: the host's path \"{}\" {problem}", shown.escape_debug()),
    )
    .hint("give the path of a directory"))
}

fn check_guest(guest: &str) -> Result<()> {
    let below = |dir: &&&str| Path::new(guest).starts_with(dir);
    let home = format!("/home/{DEFAULT_USER}");
    let problem = if !guest.starts_with('/') {
        "is not absolute".to_owned()
    } else if guest.contains(char::is_control) || guest.ends_with([' ', '\\']) {
        // A line of its own in systemd's units (systemd.syntax(7)).
        "has a control character in it, or ends with a space or backslash".to_owned()
    } else if guest.len() > GUEST_BYTES_MAX {
        format!("is longer than {GUEST_BYTES_MAX} bytes")
    } else if guest.split('/').any(|name| name.len() > 255) {
        "has a name of more than 255 bytes in it".to_owned()
    } else if guest.split('/').any(|name| name == "." || name == "..") {
        "has . or .. in it".to_owned()
    } else if guest == "/" || NEEDED.contains(&guest) || guest == home {
        "is one the guest needs for itself".to_owned()
    } else if let Some(dir) = MADE_BY_KERNEL.iter().find(below) {
        format!("is in {dir}, where nothing can be made")
    } else if Path::new(guest).starts_with(format!("{home}/.ssh")) {
        "is where the guest has its key".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::InvalidPath,
        format!("have a fixture: the guest's path \"{}\" {problem}", guest.escape_debug()),
    )
    .hint("give an absolute path of its own, such as /srv/data"))
}

/// Without slashes that say nothing.
fn tidy(guest: &str) -> String {
    if !guest.starts_with('/') {
        return guest.to_owned();
    }
    let names: Vec<&str> = guest.split('/').filter(|name| !name.is_empty()).collect();
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(fixtures: &[(&str, &str)], kind: ErrorKind, word: &str) {
        let specs: Vec<_> =
            fixtures.iter().map(|fixture| FixtureSpec::of(Fixture::from(*fixture))).collect();
        let error = check(&specs).unwrap_err();
        assert_eq!(error.kind(), kind, "{fixtures:?}");
        assert!(error.report().contains(word), "no {word} in {}", error.report());
        assert!(error.hint_text().is_some());
        assert!(!error.report().chars().any(|c| c.is_control() && c != '\n'), "{fixtures:?}");
    }

    #[test]
    fn paths_a_guest_cannot_give_are_refused() {
        for (guest, word) in [
            ("", "not absolute"),
            ("srv", "not absolute"),
            ("./srv", "not absolute"),
            ("/", "needs for itself"),
            ("//", "needs for itself"),
            ("/etc", "needs for itself"),
            ("/etc/", "needs for itself"),
            ("/home/fleetbox", "needs for itself"),
            ("/home/fleetbox/.ssh", "its key"),
            ("/proc/x", "in /proc"),
            ("/srv/../etc", ".. in it"),
            ("/srv/./x", ". or .."),
            ("/srv/\u{1b}[2J", "control"),
            ("/a\0b", "control"),
            ("/a\nb", "control"),
            ("/srv/a ", "ends with a space"),
            ("/srv/a\\", "backslash"),
        ] {
            refused(&[("/host", guest)], ErrorKind::InvalidPath, word);
        }
        refused(&[("/host", &format!("/{}", "x".repeat(256)))], ErrorKind::InvalidPath, "255");
        refused(&[("/host", &"/x".repeat(300))], ErrorKind::InvalidPath, "512");
        refused(&[("", "/srv")], ErrorKind::InvalidPath, "is empty");
    }

    #[test]
    fn a_host_path_that_no_record_can_hold_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let host = Path::new(std::ffi::OsStr::from_bytes(b"/h\xff"));
        let error = check(&[FixtureSpec::of(Fixture::new(host, "/srv"))]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidPath);
    }

    #[test]
    fn two_at_one_path_and_too_many_are_refused() {
        refused(&[("/a", "/srv/x"), ("/b", "/srv//x/")], ErrorKind::InvalidSpec, "/srv/x");
        let many: Vec<String> = (0..=FIXTURES_MAX).map(|n| format!("/srv/{n}")).collect();
        let many: Vec<_> = many.iter().map(|guest| ("/a", guest.as_str())).collect();
        refused(&many, ErrorKind::InvalidSpec, "16 fit");
    }

    #[test]
    fn odd_but_possible_paths_are_taken() {
        let long = format!("/{}", "x".repeat(255));
        for guest in
            ["/srv/a b", "/a:b", "/a\\b\"'#%", "/usr/x", "/etc/x", "/\u{e4}", "/home/x", &long]
        {
            check(&[FixtureSpec::of(Fixture::new("/host", guest))]).unwrap();
        }
    }

    #[test]
    fn text_is_cut_where_the_guests_path_begins() {
        for (text, host, guest, modes) in [
            ("a:/b", "a", "/b", false),
            ("./a:b:/c:d", "./a:b", "/c:d", false),
            ("/a:/b:modes", "/a", "/b", true),
            ("a:b", "a", "b", false),
        ] {
            let fixture: Fixture = text.parse().unwrap();
            let asked = Fixture { preserve_modes: modes, ..Fixture::new(host, guest) };
            assert_eq!(fixture, asked, "{text}");
        }
        for bad in ["", "a", "/a/b", "a:modes"] {
            let error = bad.parse::<Fixture>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidPath, "{bad}");
        }
    }

    #[test]
    fn one_fixture_may_lie_in_another() {
        let at = |guest: &str| FixtureSpec::of(Fixture::new("/host", guest));
        assert_eq!(at("/srv/a/b").inside(&at("/srv")), Some(vec!["a", "b"]));
        assert_eq!(at("/srv2").inside(&at("/srv")), None);
        assert_eq!(at("/srv").inside(&at("/srv")), None);
    }
}
