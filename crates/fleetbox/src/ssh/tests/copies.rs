//! Owns the tests of copies in both directions.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::lab::Lab;
use crate::ErrorKind;
use crate::ssh::copy::{copy_from, copy_to};

super::scenarios!(
    files_go_where_cp_puts_them,
    directories_go_where_cp_puts_them,
    files_come_where_cp_puts_them,
    directories_come_where_cp_puts_them,
    a_tree_survives_the_round_trip,
    contents_leave_the_directory_alone,
    bad_paths_are_refused_before_any_work,
    what_cannot_be_copied_is_named,
    a_failed_file_leaves_nothing,
    a_dropped_copy_ends_both_sides,
    large_files,
);

fn tree(root: &Path) {
    fs::create_dir_all(root.join("sub/empty")).unwrap();
    fs::write(root.join("a"), "alpha").unwrap();
    fs::write(root.join("sub/b"), vec![9; 300_000]).unwrap();
    fs::write(root.join("sub").join(OsStr::from_bytes(b"\xff it's\n-odd")), "odd").unwrap();
    let long = format!("{}/{}", "d".repeat(120), "e".repeat(130));
    fs::create_dir(root.join("d".repeat(120))).unwrap();
    fs::write(root.join(long), "long").unwrap();
    symlink("../a", root.join("sub/link")).unwrap();
    symlink("/nowhere//x", root.join("dangling")).unwrap();
    symlink("t".repeat(150), root.join("far")).unwrap();
    fs::hard_link(root.join("a"), root.join("hard")).unwrap();
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(root.join("sub/b"), fs::Permissions::from_mode(0o755)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_hours(416_666);
    for name in ["a", "sub/b"] {
        fs::File::options().append(true).open(root.join(name)).unwrap().set_modified(then).unwrap();
    }
    fs::set_permissions(root.join("sub/empty"), fs::Permissions::from_mode(0o555)).unwrap();
    fs::File::open(root.join("sub")).unwrap().set_modified(then).unwrap();
}

/// Names, kinds, modes, times and contents below `root`.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let content = if meta.is_symlink() {
                format!("{}", fs::read_link(&path).unwrap().to_string_lossy())
            } else if meta.is_dir() {
                left.push(path.clone());
                String::new()
            } else {
                let bytes = fs::read(&path).unwrap();
                format!("{} {:?}", bytes.len(), bytes.first())
            };
            let mode = if meta.is_symlink() { 0 } else { meta.mode() };
            lines.push(format!("{} {mode:o} {} {content}", name.to_string_lossy(), meta.mtime()));
        }
    }
    lines.sort();
    lines
}

async fn to(lab: &Lab, host: &str, guest: &str) -> crate::Result<()> {
    copy_to(&lab.session, &lab.path(host), &lab.at(guest)).await
}

async fn from(lab: &Lab, guest: &str, host: &str) -> crate::Result<()> {
    copy_from(&lab.session, &lab.at(guest), &lab.path(host)).await
}

fn read(lab: &Lab, name: &str) -> String {
    fs::read_to_string(lab.path(name)).unwrap()
}

async fn files_go_where_cp_puts_them(lab: &Lab) {
    fs::write(lab.path("f"), "new").unwrap();
    fs::write(lab.path("old"), "old and longer").unwrap();
    fs::create_dir_all(lab.path("d/f2/x")).unwrap();
    symlink("old", lab.path("link")).unwrap();
    to(lab, "f", "named").await.unwrap();
    assert_eq!(read(lab, "named"), "new");
    to(lab, "f", "d").await.unwrap();
    assert_eq!(read(lab, "d/f"), "new");
    fs::remove_file(lab.path("d/f")).unwrap();
    to(lab, "f", "d/").await.unwrap();
    assert_eq!(read(lab, "d/f"), "new");
    // Through a link the user has made, as cp does.
    to(lab, "f", "link").await.unwrap();
    assert_eq!(read(lab, "old"), "new");
    assert!(lab.path("link").is_symlink());
    for (guest, word) in [("no/such", "no directory"), ("missing/", "not a directory")] {
        let error = to(lab, "f", guest).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Copy);
        assert!(error.report().contains(word), "{error:?}");
    }
    fs::create_dir(lab.path("d2")).unwrap();
    fs::create_dir(lab.path("d2/f")).unwrap();
    let error = to(lab, "f", "d2").await.unwrap_err();
    assert!(error.report().contains("is a directory"), "{error:?}");
    assert!(fs::read_dir(lab.path("d")).unwrap().count() == 2);
}

async fn directories_go_where_cp_puts_them(lab: &Lab) {
    fs::create_dir_all(lab.path("src/in")).unwrap();
    fs::write(lab.path("src/in/x"), "1").unwrap();
    fs::set_permissions(lab.path("src"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::create_dir(lab.path("d")).unwrap();
    to(lab, "src", "new").await.unwrap();
    assert_eq!(read(lab, "new/in/x"), "1");
    assert_eq!(lab.path("new").metadata().unwrap().mode() & 0o777, 0o750);
    to(lab, "src/", "new2/").await.unwrap();
    assert_eq!(read(lab, "new2/in/x"), "1");
    to(lab, "src", "d").await.unwrap();
    fs::write(lab.path("d/src/kept"), "").unwrap();
    to(lab, "src", "d").await.unwrap();
    assert_eq!(read(lab, "d/src/in/x"), "1");
    assert!(lab.path("d/src/kept").exists());
    to(lab, "src/.", "d").await.unwrap();
    assert_eq!(read(lab, "d/in/x"), "1");
    fs::write(lab.path("file"), "").unwrap();
    let error = to(lab, "src", "file").await.unwrap_err();
    assert!(error.report().contains("not a directory"), "{error:?}");
    let error = to(lab, "src", "no/such").await.unwrap_err();
    assert!(error.report().contains("no directory"), "{error:?}");
}

async fn files_come_where_cp_puts_them(lab: &Lab) {
    fs::write(lab.path("f"), "new").unwrap();
    symlink("f", lab.path("link")).unwrap();
    fs::write(lab.path("old"), "old and longer").unwrap();
    fs::create_dir_all(lab.path("d/link")).unwrap();
    from(lab, "f", "named").await.unwrap();
    assert_eq!(read(lab, "named"), "new");
    from(lab, "link", "old").await.unwrap();
    assert_eq!(read(lab, "old"), "new");
    from(lab, "f", "d").await.unwrap();
    assert_eq!(read(lab, "d/f"), "new");
    for (guest, host) in [("f", "no/such"), ("f", "missing/"), ("link", "d")] {
        let error = from(lab, guest, host).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidPath, "{error:?}");
    }
}

async fn directories_come_where_cp_puts_them(lab: &Lab) {
    fs::create_dir_all(lab.path("src/in")).unwrap();
    fs::write(lab.path("src/in/x"), "1").unwrap();
    fs::set_permissions(lab.path("src"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::create_dir(lab.path("d")).unwrap();
    from(lab, "src", "new").await.unwrap();
    assert_eq!(read(lab, "new/in/x"), "1");
    assert_eq!(lab.path("new").metadata().unwrap().mode() & 0o777, 0o750);
    from(lab, "src/", "d").await.unwrap();
    from(lab, "src", "d").await.unwrap();
    assert_eq!(read(lab, "d/src/in/x"), "1");
    from(lab, "src/.", "d").await.unwrap();
    assert_eq!(read(lab, "d/in/x"), "1");
    fs::write(lab.path("file"), "").unwrap();
    let error = from(lab, "src", "file").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidPath);
}

async fn a_tree_survives_the_round_trip(lab: &Lab) {
    tree(&lab.path("src"));
    let before = listing(&lab.path("src"));
    to(lab, "src", "there").await.unwrap();
    assert_eq!(listing(&lab.path("there")), before);
    from(lab, "there", "back").await.unwrap();
    assert_eq!(listing(&lab.path("back")), before);
}

async fn contents_leave_the_directory_alone(lab: &Lab) {
    fs::create_dir(lab.path("src")).unwrap();
    fs::write(lab.path("src/x"), "1").unwrap();
    fs::set_permissions(lab.path("src"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(lab.path("d")).unwrap();
    fs::set_permissions(lab.path("d"), fs::Permissions::from_mode(0o755)).unwrap();
    to(lab, "src/.", "d").await.unwrap();
    from(lab, "src/.", "d").await.unwrap();
    assert_eq!(lab.path("d").metadata().unwrap().mode() & 0o777, 0o755);
}

async fn bad_paths_are_refused_before_any_work(lab: &Lab) {
    fs::write(lab.path("f"), "").unwrap();
    let kind = |result: crate::Result<()>| result.unwrap_err().kind();
    for guest in ["tmp/x", "", "~/x", "/tmp/\0x"] {
        let result = copy_to(&lab.session, &lab.path("f"), guest).await;
        assert_eq!(kind(result), ErrorKind::InvalidPath);
        let result = copy_from(&lab.session, guest, &lab.path("g")).await;
        assert_eq!(kind(result), ErrorKind::InvalidPath);
    }
    assert_eq!(kind(to(lab, "missing", "g").await), ErrorKind::InvalidPath);
    assert_eq!(kind(from(lab, "f", "no/such").await), ErrorKind::InvalidPath);
    assert_eq!(lab.connections(), 0);
}

async fn what_cannot_be_copied_is_named(lab: &Lab) {
    fs::create_dir(lab.path("src")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(lab.path("src/sock")).unwrap();
    let error = to(lab, "src", "there").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Copy);
    assert!(error.report().contains("sock") && error.report().contains("stays"), "{error:?}");
    lab.ssh(&format!("mkdir {0} && mkfifo {0}/pipe", lab.at("fifo"))).await;
    let error = from(lab, "fifo", "back").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Copy);
    assert!(error.report().contains("pipe"), "{error:?}");
    let error = from(lab, "missing", "back").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Copy && error.report().contains("there is no"), "{error:?}");
}

async fn a_failed_file_leaves_nothing(lab: &Lab) {
    fs::write(lab.path("f"), vec![1; 1_000_000]).unwrap();
    fs::create_dir(lab.path("d")).unwrap();
    fs::create_dir(lab.path("d/blocked")).unwrap();
    fs::write(lab.path("d/old"), "old").unwrap();
    // A guest whose tar fails half way.
    let tar = "head -c 500000 >/dev/null; echo it broke >&2; exit 2";
    lab.ssh(&format!(
        "mkdir -p {0} && printf '#!/bin/sh\\n{tar}\\n' >{0}/tar && chmod +x {0}/tar",
        lab.at(".bin")
    ))
    .await;
    if lab.target.user == "fleetbox" {
        let error = to(lab, "f", "d/old").await.unwrap_err();
        assert!(error.report().contains("it broke"), "{error:?}");
        assert_eq!(read(lab, "d/old"), "old");
        assert_eq!(fs::read_dir(lab.path("d")).unwrap().count(), 2);
    }
}

async fn a_dropped_copy_ends_both_sides(lab: &Lab) {
    fs::create_dir(lab.path("d")).unwrap();
    lab.ssh(&format!("truncate -s 4G {}", lab.at("big"))).await;
    let temporary = |dir: &Path| {
        fs::read_dir(dir)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().as_bytes().starts_with(b".fleetbox-"))
            .count()
    };
    let dir = lab.path("d");
    for up in [true, false] {
        let (session, path, text) = (lab.session.clone(), lab.path("big"), lab.at("big"));
        let (to_dir, to_text) = (dir.clone(), lab.at("d"));
        let copying = tokio::spawn(async move {
            if up {
                copy_to(&session, &path, &to_text).await
            } else {
                copy_from(&session, &text, &to_dir).await
            }
        });
        lab.until(|| (temporary(&dir) == 1).then_some(())).await;
        copying.abort();
        assert!(copying.await.unwrap_err().is_cancelled());
        lab.until(|| (temporary(&dir) == 0).then_some(())).await;
        assert!(!dir.join("big").exists());
    }
    assert_eq!(lab.ssh("echo on").await, "on");
}

async fn large_files(lab: &Lab) {
    let bytes: Vec<u8> = (0..30_000_000_u32).map(|n| (n >> 7).to_le_bytes()[0]).collect();
    fs::write(lab.path("f"), &bytes).unwrap();
    to(lab, "f", "there").await.unwrap();
    from(lab, "there", "back").await.unwrap();
    assert!(fs::read(lab.path("back")).unwrap() == bytes);
}
