//! Owns the hostile archives: each tries one way out of the destination.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tar::{EntryType, Header};

use super::*;

/// An archive written by hand: no library would.
#[derive(Default)]
struct Hostile(Vec<u8>);

impl Hostile {
    fn raw(mut self, kind: EntryType, name: &[u8], link: &[u8], mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.raw(EntryType::Regular, name.as_bytes(), b"", 0o644, data.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.raw(EntryType::Directory, name.as_bytes(), b"", 0o755, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, name.as_bytes(), target.as_bytes(), 0o777, b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Link, name.as_bytes(), target.as_bytes(), 0o644, b"")
    }

    fn stream(&self, kind: &str) -> Vec<u8> {
        [kind.as_bytes(), b"\n", &self.0, &[0; 1024]].concat()
    }
}

/// A destination, and beside it what must not be touched.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("dst")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        Self(dir)
    }

    fn dst(&self) -> PathBuf {
        self.0.path().join("dst")
    }

    fn unpack(&self, archive: &Hostile) -> Result<Done> {
        unpack(archive.stream("d").as_slice(), &self.dst(), None)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dst().join(name)).unwrap()
    }

    #[track_caller]
    fn untouched(&self) {
        assert_eq!(fs::read_to_string(self.0.path().join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_dir(self.0.path().join("outside")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 3);
    }

    /// The archive is refused, the entry named, nothing outside touched.
    #[track_caller]
    fn refuses(archive: &Hostile, entry: &str) {
        let place = Self::new();
        let failure = place.unpack(archive).unwrap_err();
        let error = failure.into_error("copy x to y");
        assert_eq!(error.kind(), ErrorKind::Copy, "{error:?}");
        assert!(error.to_string().contains(entry), "{error:?}");
        place.untouched();
    }
}

#[test]
fn names_that_lead_out() {
    Place::refuses(&Hostile::default().file("/tmp/fleetbox-evil", "x"), "/tmp/fleetbox-evil");
    Place::refuses(&Hostile::default().file("../evil", "x"), "../evil");
    Place::refuses(&Hostile::default().dir("a").file("a/../../evil", "x"), "a/../../evil");
    Place::refuses(&Hostile::default().file("a/..", "x"), "a/..");
    Place::refuses(&Hostile::default().dir("//tmp/evil"), "//tmp/evil");
}

#[test]
fn a_file_through_a_link() {
    let outside = "../outside";
    Place::refuses(&Hostile::default().symlink("l", outside).file("l/evil", "x"), "l");
    Place::refuses(&Hostile::default().symlink("l", outside).dir("l"), "l");
    Place::refuses(&Hostile::default().symlink("l", outside).symlink("l/m", "x"), "l");
    Place::refuses(
        &Hostile::default().dir("a").symlink("a/l", "../../outside").dir("a/l/b"),
        "a/l",
    );
    Place::refuses(&Hostile::default().symlink("l", "/").file("l/tmp/fleetbox-evil", "x"), "l");
}

#[test]
fn a_directory_swapped_for_a_link() {
    // The open directory stays the one that was made; the name is looked up again and refused.
    let archive = Hostile::default()
        .dir("a")
        .file("a/x", "1")
        .dir("b")
        .symlink("a", "../outside")
        .file("a/evil", "x");
    Place::refuses(&archive, "a");
}

#[test]
fn a_file_over_a_link_replaces_the_link() {
    let place = Place::new();
    let archive = Hostile::default().symlink("l", "../secret").file("l", "mine");
    place.unpack(&archive).unwrap();
    assert!(place.dst().join("l").symlink_metadata().unwrap().is_file());
    assert_eq!(place.read("l"), "mine");
    place.untouched();
}

#[test]
fn a_link_of_the_user_is_not_followed_either() {
    let place = Place::new();
    std::os::unix::fs::symlink("../outside", place.dst().join("sub")).unwrap();
    let failure = place.unpack(&Hostile::default().dir("sub").file("sub/x", "1")).unwrap_err();
    assert!(matches!(failure, Failure::Refused { .. }));
    place.untouched();
}

#[test]
fn hard_links_stay_inside() {
    Place::refuses(&Hostile::default().link("evil", "../secret"), "../secret");
    Place::refuses(&Hostile::default().link("evil", "/etc/passwd"), "/etc/passwd");
    Place::refuses(&Hostile::default().symlink("l", "../secret").link("evil", "l"), "evil");
    Place::refuses(&Hostile::default().symlink("l", "../outside").link("evil", "l/x"), "evil");
    Place::refuses(&Hostile::default().dir("a").link("evil", "a"), "evil");
    Place::refuses(&Hostile::default().link("evil", "missing"), "evil");
    let place = Place::new();
    let archive = Hostile::default()
        .file("a", "one")
        .link("b", "./a")
        .link("a", "a")
        // Replaced, not written through.
        .file("b", "two");
    place.unpack(&archive).unwrap();
    assert_eq!((place.read("a"), place.read("b")), ("one".into(), "two".into()));
}

#[test]
fn special_files() {
    for kind in [EntryType::Fifo, EntryType::Char, EntryType::Block, EntryType::new(b'Z')] {
        Place::refuses(&Hostile::default().raw(kind, b"node", b"", 0o666, b""), "node");
    }
}

#[test]
fn privileged_bits_are_dropped() {
    let place = Place::new();
    let archive = Hostile::default().raw(EntryType::Regular, b"su", b"", 0o6755, b"x").raw(
        EntryType::Directory,
        b"tmp",
        b"",
        0o1777,
        b"",
    );
    place.unpack(&archive).unwrap();
    for (name, mode) in [("su", 0o755), ("tmp", 0o777)] {
        let metadata = place.dst().join(name).metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        assert_eq!(metadata.mtime(), 1_000_000_000);
    }
}

#[test]
fn the_last_of_two_entries_wins() {
    let place = Place::new();
    place.unpack(&Hostile::default().file("a", "1").file("./a", "22").file("a", "3")).unwrap();
    assert_eq!(place.read("a"), "3");
    Place::refuses(&Hostile::default().dir("a").file("a", "x"), "a");
    Place::refuses(&Hostile::default().file("a", "x").dir("a"), "a");
    Place::refuses(&Hostile::default().file(".", "x"), ".");
}

#[test]
fn long_names() {
    let long = |kind, name: &str| {
        let data = [name.as_bytes(), b"\0"].concat();
        Hostile::default().raw(kind, b"././@LongLink", b"", 0o644, &data)
    };
    let name = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let place = Place::new();
    let mut archive = long(EntryType::GNULongName, &"d".repeat(200)).dir("d");
    archive.0.extend(long(EntryType::GNULongName, &name).file("f", "deep").0);
    place.unpack(&archive).unwrap();
    assert_eq!(place.read(&name), "deep");
    let evil = format!("{}/../../evil", "d".repeat(200));
    Place::refuses(&long(EntryType::GNULongName, &evil).file("f", "x"), "evil");
    let record = "22 path=/tmp/fleetbox\n";
    let pax = Hostile::default()
        .raw(EntryType::XHeader, b"pax", b"", 0o644, record.as_bytes())
        .file("innocent", "x");
    Place::refuses(&pax, "/tmp/fleetbox");
    let target = "../".repeat(60) + "etc";
    let link = long(EntryType::GNULongLink, &target).symlink("l", "x");
    let place = Place::new();
    place.unpack(&link).unwrap();
    assert_eq!(fs::read_link(place.dst().join("l")).unwrap(), Path::new(&target));
}

#[test]
fn a_name_of_gigabytes_is_not_kept() {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..4].copy_from_slice(b"long");
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(64 << 30);
    header.set_cksum();
    let endless = Read::chain(&b"d\n"[..], io::Cursor::new(header.as_bytes().to_vec()))
        .chain(io::repeat(b'a'));
    let place = Place::new();
    let failure = unpack(endless, &place.dst(), None).unwrap_err();
    assert!(matches!(failure, Failure::Incomplete(_)));
}

#[test]
fn an_archive_that_breaks_off() {
    let place = Place::new();
    let mut stream = Hostile::default().file("a", &"x".repeat(5000)).stream("d");
    stream.truncate(2000);
    assert!(matches!(unpack(stream.as_slice(), &place.dst(), None), Err(Failure::Incomplete(_))));
    for noise in [&b""[..], b"d", b"motd of the day", &[0xff; 2000]] {
        assert!(matches!(unpack(noise, &place.dst(), None), Err(Failure::Incomplete(_))));
    }
    let mut noise = b"d\n".to_vec();
    noise.extend([0xff; 2048]);
    assert!(matches!(unpack(noise.as_slice(), &place.dst(), None), Err(Failure::Incomplete(_))));
}

#[test]
fn a_single_file_is_kept_whole_or_not_at_all() {
    let place = Place::new();
    let target = place.dst().join("f");
    let archive = Hostile::default().file("whatever", "content");
    let done = unpack(archive.stream("f").as_slice(), &target, None).unwrap();
    assert!(!target.exists());
    done.keep().unwrap();
    assert_eq!(place.read("f"), "content");
    for archive in [
        Hostile::default().symlink("f", "../secret"),
        Hostile::default().dir("f"),
        Hostile::default().file("a", "x").file("b", "x"),
    ] {
        assert!(matches!(
            unpack(archive.stream("f").as_slice(), &target, None),
            Err(Failure::Refused { .. })
        ));
    }
    // A guest that answers with a directory where the name was a file.
    let failure = unpack(Hostile::default().dir("x").stream("d").as_slice(), &target, None);
    assert!(matches!(failure, Err(Failure::Destination(_))));
    assert_eq!(fs::read_dir(place.dst()).unwrap().count(), 1);
    place.untouched();
}
