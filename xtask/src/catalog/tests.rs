//! Refreshes from a server of our own that publishes what a test wants.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256, Sha512};

use super::site::hex;
use super::*;

const OLD: &str = "20260601-2496";
const NEW: &str = "20260701-2510";

/// The paths and contents of a site.
#[derive(Default)]
struct Pages(HashMap<String, Vec<u8>>);

impl Pages {
    fn add(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.0.insert(path.to_owned(), content.into());
    }

    fn index(&mut self, dir: &str, names: &[&str]) {
        let links: Vec<String> =
            names.iter().map(|name| format!("<a href=\"{name}/\">{name}/</a>")).collect();
        self.add(&format!("{dir}/"), links.join("\n"));
    }

    /// A snapshot of Debian 12 with these architectures.
    fn debian(&mut self, snapshot: &str, architectures: &[&str]) {
        let dir = format!("/images/cloud/bookworm/{snapshot}");
        let mut sums = String::new();
        for architecture in architectures {
            let name = format!("debian-12-generic-{architecture}-{snapshot}.raw");
            let content = content(architecture, snapshot);
            sums.extend([&hex(&Sha512::digest(&content)), "  ", &name, "\n"]);
            self.add(&format!("{dir}/{name}"), content);
        }
        self.add(&format!("{dir}/SHA512SUMS"), sums);
    }
}

fn content(architecture: &str, snapshot: &str) -> Vec<u8> {
    format!("{architecture} {snapshot} ").repeat(50_000).into_bytes()
}

/// A site that serves, a catalog to refresh, and what was asked for.
struct Stage {
    _dir: tempfile::TempDir,
    file: PathBuf,
    mirror: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Stage {
    fn new(pages: Pages) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mirror = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let path = request.split(' ').nth(1).unwrap().to_owned();
                let none = Vec::new();
                let (status, body) = match pages.0.get(&path) {
                    Some(body) => ("200 OK", body),
                    None => ("404 Not Found", &none),
                };
                seen.lock().unwrap().push(path);
                // The client may be gone; it then says so itself.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(body);
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("catalog.json");
        std::fs::write(&file, catalog()).unwrap();
        Self { _dir: dir, file, mirror, asked }
    }

    fn refresh(&self, aliases: &[&str], check: bool) -> (Outcome<bool>, String) {
        let args = Args {
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
            check,
            mirror: Some(self.mirror.clone()),
        };
        let mut out = Vec::new();
        let outcome = refresh(&self.file, &args, &mut out);
        (outcome, String::from_utf8(out).unwrap())
    }

    fn asked_for(&self, word: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|path| path.contains(word))
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }
}

fn catalog() -> String {
    let entry = |synonym: &str, snapshot: &str, url: &dyn Fn(&str) -> String| {
        let pinned = |arch| Pinned { url: url(arch), sha256: "0".repeat(64) };
        Entry {
            synonym: synonym.to_owned(),
            snapshot: snapshot.to_owned(),
            amd64: pinned("amd64"),
            arm64: pinned("arm64"),
        }
    };
    let debian = |arch: &str| {
        let site = "https://cloud.debian.org/images/cloud/bookworm";
        format!("{site}/{OLD}/debian-12-generic-{arch}-{OLD}.raw")
    };
    let ubuntu = |arch: &str| {
        let site = "https://cloud-images.ubuntu.com/releases/noble/release-20260518";
        format!("{site}/ubuntu-24.04-server-cloudimg-{arch}.img")
    };
    let catalog = [
        ("debian-12".to_owned(), entry("bookworm", OLD, &debian)),
        ("ubuntu-24.04".to_owned(), entry("noble", "release-20260518", &ubuntu)),
    ];
    written(&Catalog::from(catalog)).unwrap()
}

#[test]
fn our_own_file_is_as_a_refresh_would_write_it() {
    let text = include_str!("../../../crates/fleetbox/src/images/catalog.json");
    assert_eq!(written(&serde_json::from_str(text).unwrap()).unwrap(), text);
}

/// Both publishers with the pinned snapshots, and for Debian also `more`.
fn pages(more: &[&str]) -> Pages {
    let mut pages = Pages::default();
    let names: Vec<&str> =
        ["20250101-1", OLD, "daily", "latest"].into_iter().chain(more.iter().copied()).collect();
    pages.index("/images/cloud/bookworm", &names);
    pages.index("/releases/noble", &["release", "release-20260518", "release-20260101"]);
    pages
}

#[test]
fn a_newer_snapshot_is_pinned_and_the_rest_of_the_file_stays() {
    let mut pages = pages(&[NEW]);
    pages.debian(NEW, &["amd64", "arm64"]);
    pages.index("/releases/noble", &["release-20260518", "release-20260518.1"]);
    let sum = |digit: &str| digit.repeat(64);
    let sums = format!(
        "{} *ubuntu-24.04-server-cloudimg-amd64.img\n{} *ubuntu-24.04-server-cloudimg-arm64.img\n",
        sum("a"),
        sum("b")
    );
    pages.add("/releases/noble/release-20260518.1/SHA256SUMS", sums);
    let stage = Stage::new(pages);
    let (outcome, said) = stage.refresh(&[], false);
    assert!(outcome.unwrap());
    assert_eq!(
        said,
        format!("debian-12: {OLD} → {NEW}\nubuntu-24.04: release-20260518 → release-20260518.1\n")
    );
    let mut expected =
        catalog().replace(OLD, NEW).replace("release-20260518", "release-20260518.1");
    let sha256 = |architecture| hex(&Sha256::digest(content(architecture, NEW)));
    for sum in [sha256("amd64"), sha256("arm64"), sum("a"), sum("b")] {
        expected = expected.replacen(&"0".repeat(64), &sum, 1);
    }
    assert_eq!(stage.text(), expected);
    assert!(!stage.asked_for("cloudimg"));
}

#[test]
fn a_file_that_is_not_the_published_one_is_refused_and_the_catalog_stays() {
    let mut pages = pages(&[NEW]);
    pages.debian(NEW, &["amd64", "arm64"]);
    let path = format!("/images/cloud/bookworm/{NEW}/debian-12-generic-arm64-{NEW}.raw");
    pages.add(&path, "something else");
    let stage = Stage::new(pages);
    let failure = stage.refresh(&[], false).0.unwrap_err().to_string();
    assert!(failure.contains("sha512") && failure.contains("\nhint: "), "{failure}");
    assert_eq!(stage.text(), catalog());
    assert_eq!(std::fs::read_dir(stage.file.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn without_anything_newer_only_the_lists_are_read_and_not_a_byte_changes() {
    let stage = Stage::new(pages(&[]));
    for check in [false, true] {
        let (outcome, said) = stage.refresh(&[], check);
        assert!(outcome.unwrap());
        assert_eq!(said, "debian-12: unchanged\nubuntu-24.04: unchanged\n");
    }
    assert_eq!(stage.text(), catalog());
    assert_eq!(stage.asked.lock().unwrap()[..2], ["/images/cloud/bookworm/", "/releases/noble/"]);
    assert_eq!(stage.asked.lock().unwrap().len(), 4);
}

#[test]
fn an_incomplete_snapshot_is_passed_over() {
    let mut pages = pages(&[NEW, "20260702-2511", "20260703-2512"]);
    pages.debian(NEW, &["amd64", "arm64"]);
    pages.debian("20260702-2511", &["amd64"]);
    let stage = Stage::new(pages);
    let (outcome, said) = stage.refresh(&["debian-12"], false);
    assert!(outcome.unwrap());
    assert_eq!(said, format!("debian-12: {OLD} → {NEW}\n"));
}

#[test]
fn a_check_says_what_is_newer_and_writes_nothing() {
    let mut pages = pages(&[NEW]);
    pages.debian(NEW, &["amd64", "arm64"]);
    let stage = Stage::new(pages);
    let (outcome, said) = stage.refresh(&["debian-12"], true);
    assert!(!outcome.unwrap());
    assert_eq!(said, format!("debian-12: {OLD} → {NEW}\n"));
    assert_eq!(stage.text(), catalog());
    assert!(!stage.asked_for("generic"));
}

#[test]
fn what_cannot_be_asked_for_is_told_with_a_hint() {
    let stage = Stage::new(Pages::default());
    for (aliases, word) in [(&["debian-99"][..], "ubuntu-24.04"), (&[], "archive")] {
        let failure = stage.refresh(aliases, false).0.unwrap_err().to_string();
        let (_, hint) = failure.split_once("\nhint: ").unwrap();
        assert!(hint.contains(word), "{failure}");
    }
    assert!(Site::new(Some("mirror.example")).is_err());
}
