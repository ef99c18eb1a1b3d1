//! Executables that are not what they should be, and releases that come wrong.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use super::*;

const CONTENT: &[u8] = b"#!/bin/sh\necho cloud-hypervisor v52.0\n";
const SHA256: &str = "8f0e6f6f";

/// Serves `CONTENT` to everyone who asks.
fn serve() -> &'static str {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v52.0/cloud-hypervisor-static", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            drop(lines.map_while(std::result::Result::ok).find(String::is_empty));
            // The client may be gone; it then says so itself.
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", CONTENT.len());
            let _ = stream.write_all(CONTENT);
        }
    });
    url.leak()
}

fn script(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn digest() -> &'static str {
    use sha2::Digest;
    crate::images::hex(&sha2::Sha256::digest(CONTENT)).leak()
}

#[tokio::test]
async fn what_is_no_usable_cloud_hypervisor_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let why = async |path: PathBuf| usable(&path).await.unwrap_err();
    assert!(why(dir.path().join("none")).await.contains("no such file"));
    let plain = script(dir.path(), "plain", "x", 0o600);
    assert!(why(plain).await.contains("not executable"));
    let old = script(dir.path(), "old", "#!/bin/sh\necho cloud-hypervisor v41.0\n", 0o700);
    assert!(why(old).await.contains("v41, older than v52.0"));
    let other = script(dir.path(), "other", "#!/bin/sh\necho hello\n", 0o700);
    assert!(why(other).await.contains("not cloud-hypervisor"));
    let noise = script(dir.path(), "noise", "\u{7f}nothing a kernel runs", 0o700);
    assert!(why(noise).await.contains("does not run"));
    let good = script(dir.path(), "good", "#!/bin/sh\necho cloud-hypervisor v53.0-dirty\n", 0o700);
    usable(&good).await.unwrap();
}

#[tokio::test]
async fn the_release_is_fetched_once_checked_and_executable() {
    let home = tempfile::tempdir().unwrap();
    let paths = Paths::at(home.path()).unwrap();
    let pinned = Pinned { url: serve(), sha256: digest() };
    let sink = ProgressSink::default();
    let file = fetched(&paths, pinned, Want::Only, &sink).await.unwrap();
    usable(&file).await.unwrap();
    // A second time nobody is asked.
    let nowhere = Pinned { url: "http://127.0.0.1:1/x", ..pinned };
    assert_eq!(fetched(&paths, nowhere, Want::Only, &sink).await.unwrap(), file);
}

#[tokio::test]
async fn a_release_with_another_checksum_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let paths = Paths::at(home.path()).unwrap();
    let pinned = Pinned { url: serve(), sha256: SHA256 };
    let error = fetched(&paths, pinned, Want::Only, &ProgressSink::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChecksumMismatch);
    let left: Vec<_> = std::fs::read_dir(paths.monitors()).unwrap().map(|e| e.unwrap()).collect();
    assert!(left.iter().all(|e| e.file_name() == "lock"), "{left:?}");
}

#[tokio::test]
async fn where_it_need_not_be_one_failed_fetch_is_enough_for_a_while() {
    let home = tempfile::tempdir().unwrap();
    let paths = Paths::at(home.path()).unwrap();
    let nowhere = Pinned { url: "http://127.0.0.1:1/x", sha256: SHA256 };
    let sink = ProgressSink::default();
    let first = fetched(&paths, nowhere, Want::Rather, &sink).await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Download);
    assert!(first.hint_text().unwrap().contains("FLEETBOX_BACKEND=qemu"), "{first:?}");
    // The server is there now, but is not asked.
    let pinned = Pinned { url: serve(), sha256: digest() };
    let second = fetched(&paths, pinned, Want::Rather, &sink).await.unwrap_err();
    assert!(second.message().contains("a while ago"));
    fetched(&paths, pinned, Want::Only, &sink).await.unwrap();
}

#[test]
fn versions_are_read_in_all_their_forms() {
    assert_eq!(version("cloud-hypervisor v52.0\n"), Some(52));
    assert_eq!(version("cloud-hypervisor v52.1-3-gabc-dirty"), Some(52));
    assert_eq!(version("QEMU emulator version 7.2"), None);
}
