//! The cache and the protocol, and a real client where one is installed.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::cache::Cache;
use super::protocol::{self, End};
use super::*;

const SIZE: u64 = 1 << 20;

fn file(dir: &Path) -> File {
    let path = dir.join("disk");
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn read(cache: &Cache, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![9; length];
    cache.read(offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_not_flushed_is_seen_but_not_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path()).write_all(&[1; 5000]).unwrap();
    let mut cache = Cache::new(file(dir.path()), SIZE);
    cache.write(4000, &[2; 200]).unwrap();
    let expected = [vec![1], vec![2; 200], vec![1; 800], vec![0; 2]].concat();
    assert_eq!(read(&cache, 3999, 1003), expected);
    drop(cache);
    let mut cache = Cache::new(file(dir.path()), SIZE);
    assert_eq!(read(&cache, 0, 6000), [vec![1; 5000], vec![0; 1000]].concat());
    cache.write(4000, &[2; 200]).unwrap();
    cache.flush().unwrap();
    assert_eq!(cache.unflushed_bytes(), 0);
    drop(cache);
    let cache = Cache::new(file(dir.path()), SIZE);
    assert_eq!(read(&cache, 4000, 200), [2; 200]);
    assert_eq!(read(&cache, 0, 4000), [1; 4000]);
}

#[test]
fn nothing_is_outside_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(file(dir.path()), SIZE);
    cache.write(SIZE - 1, &[1]).unwrap();
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 2)] {
        assert!(cache.write(offset, &vec![1; length]).is_err());
        assert!(cache.read(offset, &mut vec![1; length]).is_err());
    }
}

#[test]
fn a_full_cache_writes_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(file(dir.path()), 1 << 30);
    let many = vec![7; 8 << 20];
    for n in 0..9 {
        cache.write(n * (16 << 20), &many).unwrap();
    }
    assert!(cache.unflushed_bytes() < 64 << 20);
    assert_eq!(file(dir.path()).metadata().unwrap().len(), (8 * 16 + 8) << 20);
    assert_eq!(read(&cache, 8 * (16 << 20) - 1, 2), [0, 7]);
}

/// Speaks the client's part; what it ends with is the server's view.
fn converse(dir: &Path, client: impl FnOnce(&UnixStream)) -> End {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut cache = Cache::new(file(dir), SIZE);
    thread::scope(|scope| {
        let served = scope.spawn(|| protocol::serve(&ours, &mut cache).unwrap());
        client(&theirs);
        drop(theirs);
        served.join().unwrap()
    })
}

fn begin(mut socket: &UnixStream) {
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    socket.write_all(&3u32.to_be_bytes()).unwrap();
    // One it does not know, then the beginning, without a name and without questions.
    for (option, data) in [(8u32, &[][..]), (7, &[0, 0, 0, 0, 0, 0][..])] {
        socket.write_all(b"IHAVEOPT").unwrap();
        socket.write_all(&option.to_be_bytes()).unwrap();
        socket.write_all(&u32::try_from(data.len()).unwrap().to_be_bytes()).unwrap();
        socket.write_all(data).unwrap();
    }
    let mut replies = [0; 20 + 20 + 12 + 20];
    socket.read_exact(&mut replies).unwrap();
    assert_eq!(replies[12..16], [0x80, 0, 0, 1], "refused");
    assert_eq!(replies[42..50], SIZE.to_be_bytes());
}

fn ask(mut socket: &UnixStream, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) {
    let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
    request.extend(flags.to_be_bytes());
    request.extend(command.to_be_bytes());
    request.extend(77u64.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend(length.to_be_bytes());
    request.extend(data);
    socket.write_all(&request).unwrap();
}

fn answer(mut socket: &UnixStream) -> u32 {
    let mut reply = [0; 16];
    socket.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
    assert_eq!(reply[8..], 77u64.to_be_bytes());
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

#[test]
fn a_client_that_is_gone_loses_what_it_did_not_flush() {
    let dir = tempfile::tempdir().unwrap();
    let end = converse(dir.path(), |socket| {
        begin(socket);
        ask(socket, 1, 0, 0, 3, b"old");
        ask(socket, 3, 0, 0, 0, b"");
        ask(socket, 1, 1, 100, 6, b"forced");
        ask(socket, 1, 0, 0, 3, b"new");
        assert_eq!([0; 4].map(|_: i32| answer(socket)), [0; 4]);
        ask(socket, 0, 0, 0, 3, b"");
        assert_eq!(answer(socket), 0);
        let (mut seen, mut socket) = ([0; 3], socket);
        socket.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"new");
    });
    assert_eq!(end, End::Lost);
    let cache = Cache::new(file(dir.path()), SIZE);
    assert_eq!((read(&cache, 0, 3), read(&cache, 100, 6)), (b"old".to_vec(), b"forced".to_vec()));
}

#[test]
fn a_request_that_cannot_be_is_refused_and_the_next_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let end = converse(dir.path(), |socket| {
        begin(socket);
        ask(socket, 1, 0, SIZE, 3, b"far");
        assert_eq!(answer(socket), 22);
        ask(socket, 4, 0, 0, 4096, b"");
        assert_eq!(answer(socket), 22);
        ask(socket, 3, 0, 0, 0, b"");
        assert_eq!(answer(socket), 0);
        ask(socket, 2, 0, 0, 0, b"");
    });
    assert_eq!(end, End::Goodbye);
}

#[tokio::test]
async fn a_second_server_waits_for_the_end_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    drop(file(dir.path()));
    let path = dir.path().join("disk");
    let first = serve(&path, SIZE).await.unwrap();
    let second = tokio::spawn(async move { serve(&path, SIZE).await });
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    drop(first);
    second.await.unwrap().unwrap();
}

/// QEMU's own client finds a disk in it, and no fault after.
#[test]
fn qemu_takes_it_for_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let made =
        Command::new("qemu-img").args(["create", "-qf", "qcow2"]).arg(&disk).arg("1G").status();
    if made.is_err() {
        crate::skip::skipped("no qemu-img on PATH");
        return;
    }
    let write = ["-c", "write -P 5 100M 3M", "-c", "flush", "-c", "write -z 200M 70000"];
    said_by_qemu(dir.path(), &[&write[..], &["-c", "write -P 6 1000M 64k"]].concat());
    let read = ["-c", "read -P 5 100M 3M", "-c", "read -P 6 1000M 64k", "-c", "read -P 0 99M 1M"];
    let said = said_by_qemu(dir.path(), &read);
    assert!(!said.contains("failed"), "{said}");
    let check = Command::new("qemu-img").args(["check", "-q"]).arg(&disk).output().unwrap();
    assert!(check.status.success(), "{check:?}");
}

/// Serves the disk to one run of QEMU's client with these arguments, which says goodbye.
fn said_by_qemu(dir: &Path, arguments: &[&str]) -> String {
    let socket = dir.join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let server =
        format!("file.driver=nbd,file.server.type=unix,file.server.path={}", socket.display());
    let mut child = Command::new("qemu-io")
        .args(["--image-opts", &format!("driver=qcow2,{server}")])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ours = loop {
        if let Ok((ours, _)) = listener.accept() {
            break ours;
        }
        assert!(child.try_wait().unwrap().is_none(), "{:?}", child.wait_with_output());
        thread::yield_now();
    };
    ours.set_nonblocking(false).unwrap();
    let mut cache = Cache::new(file(dir), export_bytes(1 << 30));
    assert_eq!(protocol::serve(&ours, &mut cache).unwrap(), End::Goodbye);
    cache.flush().unwrap();
    std::fs::remove_file(&socket).unwrap();
    let said = child.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
    String::from_utf8_lossy(&said.stdout).into_owned()
}
