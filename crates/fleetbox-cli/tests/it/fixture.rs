//! Fixtures by the command: what is refused before any work, when their content is taken, and that no
//! death of a process leaves half of one. How a guest has them is the library's to test.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::home::Home;
use crate::process::{signal, until};

const SOON: Duration = Duration::from_secs(20);

struct Lab {
    home: Home,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { home: Home::new(), dir: tempfile::tempdir().unwrap() }
    }

    /// A directory of the host with these files in it.
    fn host(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for (name, content) in files {
            std::fs::write(dir.join(name), content).unwrap();
        }
        dir
    }

    fn at(&self, host: &str, guest: &str) -> String {
        format!("{}:{guest}", self.dir.path().join(host).display())
    }
}

fn up<'a>(name: &'a str, fixture: &'a str) -> [&'a str; 6] {
    ["up", name, "--backend", "fake", "--fixture", fixture]
}

#[test]
fn what_cannot_be_a_fixture_is_refused_before_any_work() {
    let lab = Lab::new();
    lab.host("site", &[("file", "x")]);
    let good = lab.at("site", "/srv/site");
    for (fixture, word) in [
        (lab.at("none", "/srv"), "cannot be found"),
        (lab.at("site/file", "/srv"), "no directory"),
        (lab.at("site", "srv"), "not absolute"),
        (lab.at("site", "/"), "needs for itself"),
        (lab.at("site", "/etc"), "needs for itself"),
        (lab.at("site", "/srv/../x"), ".. in it"),
        (lab.at("site", "/sys/x"), "nothing can be made"),
        (lab.at("site", "/s\u{1b}[2J"), "control character"),
        (format!(":{}", "/srv"), "is empty"),
        (format!("{}:/srv", lab.home.path().display()), "state directory"),
        ("/:/srv".to_owned(), "state directory"),
    ] {
        lab.home.run(up("web", &fixture)).refused(2, &[word]);
        let run = ["run", "-q", "--backend", "fake", "--fixture", &fixture, "--", "true"];
        lab.home.run(run).refused(255, &[word]);
        let together = ["up", "node", "-n", "2", "--backend", "fake", "--fixture", &fixture];
        lab.home.run(together).refused(2, &[word]);
    }
    for bad in ["", "site", "/a/b"] {
        lab.home.run(up("web", bad)).fails(2, &["is no fixture; give HOST:GUEST"]);
    }
    let same = lab.at("site", "/srv//site/");
    let twice = [&up("web", &good)[..], &["--fixture", &same]].concat();
    lab.home.run(twice).refused(2, &["two fixtures at \"/srv/site\""]);
    let mut many = up("web", &good).map(str::to_owned).to_vec();
    for number in 0..16 {
        many.extend(["--fixture".to_owned(), lab.at("site", &format!("/srv/{number}"))]);
    }
    lab.home.run(many).refused(2, &["17 fixtures", "16 fit"]);
    lab.home.assert_untouched();
    assert!(lab.home.rows().is_empty());
}

#[test]
fn what_cannot_be_packed_leaves_no_vm() {
    let lab = Lab::new();
    let dir = lab.host("site", &[]);
    let _listener = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    let fixture = lab.at("site", "/srv/site");
    lab.home.run(up("web", &fixture)).refused(2, &["site/socket", "a socket"]);
    let node = ["up", "node", "-n", "2", "--backend", "fake", "--fixture", &fixture];
    lab.home.run(node).refused(2, &["site/socket"]);
    lab.home.assert_untouched();
    std::fs::remove_file(dir.join("socket")).unwrap();
    lab.home.ok(up("web", &fixture));
}

#[test]
fn one_that_is_not_readable_is_refused_by_name() {
    if crate::process::is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let lab = Lab::new();
    let dir = lab.host("site", &[("locked", "x")]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(dir.join("locked"), mode).unwrap();
    let refused = lab.home.run(up("web", &lab.at("site", "/srv")));
    refused.refused(2, &["site/locked", "may not be read"]);
    lab.home.assert_untouched();
}

#[test]
fn content_is_taken_at_each_start_and_a_directory_that_is_gone_is_told() {
    let lab = Lab::new();
    let dir = lab.host("site", &[("file", "one\n")]);
    let cat = ["ssh", "web", "--", "cat /srv/site/file"];
    lab.home.ok(up("web", &lab.at("site", "/srv/site")));
    assert_eq!(lab.home.ok(cat), "one\n");
    let listed = lab.home.ok(["ls", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(
        listed[0]["fixtures"],
        serde_json::json!([{ "host": dir, "guest": "/srv/site", "preserve_modes": false }])
    );
    std::fs::write(dir.join("file"), "two\n").unwrap();
    lab.home.ok(["up", "web"]);
    assert_eq!(lab.home.ok(cat), "one\n", "it runs");
    lab.home.ok(["down", "web"]);
    lab.home.ok(["up", "web"]);
    assert_eq!(lab.home.ok(cat), "two\n");

    lab.home.ok(["down", "web"]);
    std::fs::rename(&dir, dir.with_file_name("moved")).unwrap();
    lab.home.run(["up", "web"]).refused(2, &["web: ", "/site", "cannot be found", "rm web"]);
    assert_eq!(lab.home.state("web").as_deref(), Some("stopped"));
    std::fs::rename(dir.with_file_name("moved"), &dir).unwrap();
    lab.home.ok(["up", "web"]);
    assert_eq!(lab.home.ok(cat), "two\n");
    // Frozen at creation.
    let other = up("web", &lab.at("site", "/elsewhere")).map(str::to_owned);
    let said = lab.home.run(other);
    assert!(said.stderr.contains("it keeps") && said.stderr.contains("at /srv/site"), "{said:?}");
}

#[test]
fn modes_and_links_arrive() {
    let lab = Lab::new();
    let dir = lab.host("tools", &[("run", "#!/bin/sh\necho ran\n")]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.join("run"), mode).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
    let (plain, kept) = (lab.at("tools", "/srv/plain"), lab.at("tools", "/srv/kept") + ":modes");
    let said = lab.home.ok([
        "run",
        "-q",
        "--backend",
        "fake",
        "--fixture",
        &plain,
        "--fixture",
        &kept,
        "--",
        "stat -c %a /srv/plain/run /srv/kept/run; readlink /srv/plain/link; /srv/kept/run",
    ]);
    assert_eq!(said, "444\n755\nnowhere\nran\n");
}

#[test]
fn every_member_of_a_cluster_has_the_same() {
    let lab = Lab::new();
    lab.host("site", &[("file", "same\n")]);
    let fixture = lab.at("site", "/srv/site");
    lab.home.ok(["up", "node", "-n", "3", "--backend", "fake", "--fixture", &fixture]);
    let mut inodes = Vec::new();
    for number in 1..=3 {
        let name = format!("node-{number}");
        assert_eq!(lab.home.ok(["ssh", &name, "--", "cat /srv/site/file"]), "same\n");
        let drive = lab.home.cluster("node").join(name).join("fixture-0.img");
        inodes.push(std::os::unix::fs::MetadataExt::ino(&drive.metadata().unwrap()));
    }
    assert!(inodes.iter().all(|inode| *inode == inodes[0]), "it was packed more than once");
    // Also when all start again.
    lab.home.ok(["down", "node"]);
    lab.host("site", &[("file", "new\n")]);
    lab.home.ok(["up", "node", "-n", "3"]);
    assert_eq!(lab.home.ok(["ssh", "node-3", "--", "cat /srv/site/file"]), "new\n");
}

#[test]
fn other_content_makes_no_other_golden_machine() {
    let lab = Lab::new();
    for content in ["one\n", "two\n"] {
        lab.host("site", &[("file", content)]);
        for guest in ["/srv/site", "/srv/other"] {
            let fixture = lab.at("site", guest);
            let line = format!("cat {guest}/file");
            let run = ["run", "-q", "--backend", "fake", "--fixture", &fixture, "--", &line];
            assert_eq!(lab.home.ok(run), content);
        }
    }
    let goldens = |home: &Home| home.ok(["snapshot", "ls"]).matches("golden").count();
    assert_eq!(goldens(&lab.home), 1, "{}", lab.home.ok(["snapshot", "ls"]));
    // One without a drive is another kind.
    lab.home.ok(["run", "-q", "--backend", "fake", "--", "true"]);
    assert_eq!(goldens(&lab.home), 2);
}

#[test]
fn a_snapshot_has_its_fixtures_and_forks_have_them_too() {
    let lab = Lab::new();
    let dir = lab.host("site", &[("file", "then\n")]);
    lab.home.ok(up("web", &lab.at("site", "/srv/site")));
    lab.home.ok(["snapshot", "save", "web", "ready"]);
    std::fs::write(dir.join("file"), "now\n").unwrap();
    lab.home.ok(["down", "web"]);
    lab.home.ok(["up", "web"]);
    let cat = "cat /srv/site/file";
    assert_eq!(lab.home.ok(["ssh", "web", "--", cat]), "now\n");
    // The directory itself is not needed.
    std::fs::rename(&dir, dir.with_file_name("moved")).unwrap();
    lab.home.ok(["up", "copy", "--from", "ready"]);
    assert_eq!(lab.home.ok(["ssh", "copy", "--", cat]), "then\n");
    lab.home.ok(["snapshot", "revert", "web"]);
    assert_eq!(lab.home.ok(["ssh", "web", "--", cat]), "then\n");
    std::fs::rename(dir.with_file_name("moved"), &dir).unwrap();
    // It is the snapshot's until it boots.
    lab.home.ok(["down", "copy"]);
    lab.home.ok(["up", "copy"]);
    assert_eq!(lab.home.ok(["ssh", "copy", "--", cat]), "now\n");
    let more = ["up", "more", "--from", "ready", "--fixture", &lab.at("site", "/srv/more")];
    lab.home.run(more).refused(2, &["fixtures it was saved with"]);
    let drive = lab.home.path().join("snapshots/ready/web/fixture-0.img");
    std::fs::remove_file(drive).unwrap();
    lab.home.run(["up", "late", "--from", "ready"]).refused(3, &["fixture-0.img", "missing"]);
}

/// Large enough that packing takes a while.
fn vast(lab: &Lab) {
    let dir = lab.host("vast", &[]);
    let file = std::fs::File::create(dir.join("file")).unwrap();
    let block = vec![7; 1 << 20];
    for at in 0..400 {
        std::os::unix::fs::FileExt::write_all_at(&file, &block, at << 20).unwrap();
    }
}

fn half_made(cluster: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(cluster).ok()?.flatten();
    let mut half = entries.filter(|e| e.file_name().to_string_lossy().starts_with(".new-"));
    half.find(|e| e.path().join("fixture-0.img").exists()).map(|e| e.path())
}

#[test]
fn a_kill_while_it_is_packed_leaves_nothing_half_made() {
    let lab = Lab::new();
    vast(&lab);
    let fixture = lab.at("vast", "/srv/vast");
    let cluster = lab.home.cluster("web");
    let mut command = lab.home.command(up("web", &fixture));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("a fixture that is being packed", SOON, || half_made(&cluster).is_some());
    signal(child.id(), Signal::KILL);
    child.wait().unwrap();
    assert!(lab.home.rows().is_empty(), "half a VM is listed");
    lab.home.ok(["prune"]);
    lab.home.assert_untouched();

    // Nor does one who boots a VM again.
    lab.home.ok(up("web", &fixture));
    lab.home.ok(["down", "web"]);
    let drive = cluster.join("web/fixture-0.img");
    let before = std::os::unix::fs::MetadataExt::ino(&drive.metadata().unwrap());
    let mut command = lab.home.command(["up", "web"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("a fixture that is being packed", SOON, || half_made(&cluster).is_some());
    signal(child.id(), Signal::KILL);
    child.wait().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&drive.metadata().unwrap()), before);
    lab.home.ok(["up", "web"]);
    assert!(half_made(&cluster).is_none(), "half a fixture is left");
    assert_eq!(lab.home.ok(["ssh", "web", "--", "stat -c %s /srv/vast/file"]), "419430400\n");
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    if !crate::process::is_root() {
        eprintln!("skipped: only root can make a small disk");
        return;
    }
    let lab = Lab::new();
    vast(&lab);
    let disk = lab.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // In a mount namespace of its own, which goes with it.
    let script = format!(
        "mount -t tmpfs -o size=64m none {0} && FLEETBOX_HOME={0} {1} up web --backend fake --fixture {2}; \
         code=$?; ls -A {0}/clusters; exit $code",
        disk.display(),
        crate::process::FLEETBOX,
        lab.at("vast", "/srv/vast"),
    );
    let mut command = lab.home.program("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let ran = crate::process::Ran::from(command.output().unwrap());
    if ran.stderr.contains("unshare: ") || ran.stderr.contains("mount: ") {
        eprintln!("skipped: {}", ran.stderr);
        return;
    }
    let left = ran.stdout.clone();
    ran.refused(3, &["fixture-0.img"]);
    assert_eq!(left, "", "something is left");
}
