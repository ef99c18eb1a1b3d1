//! Transfers from a server of our own that breaks off, lies, or ignores what it is asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::super::cache::hex;
use super::super::resolve::resolve_with;
use super::*;
use crate::progress::Progress;
use crate::store::paths::Paths;

/// How the server answers its n-th request (counted from 0) for `content`.
type Answer = fn(n: usize, range_begin: Option<usize>, content: &[u8], out: &mut TcpStream);

struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
    ranges: Arc<Mutex<Vec<Option<usize>>>>,
}

fn serve(content: Vec<u8>, answer: Answer) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/image.raw", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let (count, seen) = (requests.clone(), ranges.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut begin = None;
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let line = line.unwrap_or_default().to_ascii_lowercase();
                if let Some(range) = line.strip_prefix("range: bytes=") {
                    begin = range.trim_end_matches('-').parse().ok();
                }
                if line.is_empty() {
                    break;
                }
            }
            seen.lock().unwrap().push(begin);
            let n = count.fetch_add(1, Ordering::SeqCst);
            answer(n, begin, &content, &mut stream);
        }
    });
    Server { url, requests, ranges }
}

fn head(out: &mut TcpStream, status: &str, length: usize, extra: &str) {
    // The client may be gone; it then says so itself.
    let _ = write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"v1\"\r\nConnection: close\r\n{extra}\r\n"
    );
}

fn whole(_: usize, _: Option<usize>, content: &[u8], out: &mut TcpStream) {
    head(out, "200 OK", content.len(), "");
    let _ = out.write_all(content);
}

/// Breaks off in the middle at first, then goes on from where it is asked to.
fn breaks_once(n: usize, begin: Option<usize>, content: &[u8], out: &mut TcpStream) {
    match (n, begin) {
        (0, _) => {
            head(out, "200 OK", content.len(), "");
            let _ = out.write_all(&content[..content.len() / 2]);
        }
        (_, Some(begin)) => {
            let range =
                format!("Content-Range: bytes {begin}-{}/{}\r\n", content.len() - 1, content.len());
            head(out, "206 Partial Content", content.len() - begin, &range);
            let _ = out.write_all(&content[begin..]);
        }
        _ => whole(n, begin, content, out),
    }
}

/// Breaks off in the middle at first, then sends everything whatever it is asked.
fn ignores_range(n: usize, begin: Option<usize>, content: &[u8], out: &mut TcpStream) {
    if n == 0 {
        breaks_once(n, begin, content, out);
    } else {
        whole(n, begin, content, out);
    }
}

fn not_found(_: usize, _: Option<usize>, _: &[u8], out: &mut TcpStream) {
    head(out, "404 Not Found", 0, "");
}

fn busy_once(n: usize, begin: Option<usize>, content: &[u8], out: &mut TcpStream) {
    if n == 0 {
        head(out, "503 Service Unavailable", 0, "");
    } else {
        whole(n, begin, content, out);
    }
}

fn endless(_: usize, _: Option<usize>, _: &[u8], out: &mut TcpStream) {
    head(out, "200 OK", usize::MAX >> 2, "");
}

fn content() -> Vec<u8> {
    (0..200_000u32).flat_map(u32::to_le_bytes).take(786_432).collect()
}

struct Home {
    _dir: tempfile::TempDir,
    paths: Paths,
}

fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::at(&dir.path().join("home")).unwrap();
    Home { _dir: dir, paths }
}

async fn get(home: &Home, url: &str) -> Result<CachedImage> {
    let sink = ProgressSink::default();
    resolve_with(&home.paths, &Settings::default(), url, Arch::X86_64, &sink).await
}

fn leftovers(home: &Home, extension: &str) -> usize {
    std::fs::read_dir(home.paths.images()).map_or(0, |entries| {
        entries
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(extension))
            .count()
    })
}

#[tokio::test]
async fn a_fetched_image_is_whole_private_and_fetched_once() {
    let (home, server) = (home(), serve(content(), whole));
    let image = get(&home, &server.url).await.unwrap();
    assert!(std::fs::read(&image.path).unwrap() == content());
    assert_eq!(image.digest, hex(&Sha256::digest(content())));
    assert_eq!(image.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    get(&home, &server.url).await.unwrap();
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
    assert_eq!(leftovers(&home, ".part"), 0);
    assert_eq!(leftovers(&home, ".part.json"), 0);
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let (home, server) = (home(), serve(content(), breaks_once));
    let image = get(&home, &server.url).await.unwrap();
    assert!(std::fs::read(&image.path).unwrap() == content());
    assert_eq!(image.digest, hex(&Sha256::digest(content())));
    let ranges = server.ranges.lock().unwrap().clone();
    assert_eq!(ranges, [None, Some(content().len() / 2)]);
}

#[tokio::test]
async fn a_server_that_ignores_the_range_starts_over_cleanly() {
    let (home, server) = (home(), serve(content(), ignores_range));
    let image = get(&home, &server.url).await.unwrap();
    assert!(std::fs::read(&image.path).unwrap() == content());
}

#[tokio::test]
async fn a_busy_server_is_asked_again_and_a_missing_file_is_not() {
    let (first, server) = (home(), serve(content(), busy_once));
    get(&first, &server.url).await.unwrap();
    let (second, server) = (home(), serve(content(), not_found));
    let error = get(&second, &server.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Download);
    assert!(error.message().contains("404"), "{error}");
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_wrong_checksum_is_named_and_nothing_is_kept() {
    let (home, server) = (home(), serve(content(), whole));
    let promised = "0".repeat(64);
    let error = get(&home, &format!("{}#sha256={promised}", server.url)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChecksumMismatch);
    assert!(error.message().contains(&promised), "{error}");
    assert!(error.message().contains(&hex(&Sha256::digest(content()))), "{error}");
    assert_eq!(leftovers(&home, ".part") + leftovers(&home, ".raw"), 0);
    let right = hex(&Sha256::digest(content()));
    get(&home, &format!("{}#sha256={right}", server.url)).await.unwrap();
}

#[tokio::test]
async fn a_file_larger_than_the_disk_is_refused_before_it_is_fetched() {
    let (home, server) = (home(), serve(content(), endless));
    let error = get(&home, &server.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(leftovers(&home, ".part"), 0);
}

#[tokio::test]
async fn offline_refuses_before_any_connection_and_says_how_to_go_on() {
    let (home, server) = (home(), serve(content(), whole));
    let settings = Settings { offline: true, mirror: Some(server.url.clone()) };
    let sink = ProgressSink::default();
    let error =
        resolve_with(&home.paths, &settings, "debian-12", Arch::X86_64, &sink).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Offline);
    assert!(error.hint_text().unwrap().contains("fleetbox image build debian-12"), "{error:?}");
    assert_eq!(server.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_mirror_without_the_image_leads_to_the_build() {
    let (home, server) = (home(), serve(content(), not_found));
    let base = server.url.trim_end_matches("/image.raw").to_owned();
    let settings = Settings { offline: false, mirror: Some(base) };
    let sink = ProgressSink::default();
    let error =
        resolve_with(&home.paths, &settings, "bookworm", Arch::X86_64, &sink).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Download);
    assert!(error.hint_text().unwrap().contains("fleetbox image build debian-12"), "{error:?}");
}

#[tokio::test]
async fn many_at_once_fetch_once() {
    let (home, server) = (Arc::new(home()), serve(content(), whole));
    let notes = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let (home, url, notes) = (home.clone(), server.url.clone(), notes.clone());
            tokio::spawn(async move {
                let sink = ProgressSink::new(move |event| {
                    if let Progress::Note(text) = event {
                        notes.lock().unwrap().push(text);
                    }
                });
                let settings = Settings::default();
                resolve_with(&home.paths, &settings, &url, Arch::X86_64, &sink).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_page_instead_of_a_disk_is_refused() {
    let (home, server) = (home(), serve(b"<!DOCTYPE html><p>log in".to_vec(), whole));
    let error = get(&home, &server.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageUnreadable);
    assert_eq!(leftovers(&home, ".part") + leftovers(&home, ".raw"), 0);
}
