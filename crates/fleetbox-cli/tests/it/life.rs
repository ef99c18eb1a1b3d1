//! From `up` to `rm` and back: what stays and what goes.

use std::time::Duration;

use crate::home::{GONE, Home};

#[test]
fn a_machine_that_was_stopped_comes_up_as_itself() {
    let home = Home::new();
    home.up("web");
    home.ok(["ssh", "web", "--", "echo kept > kept"]);
    let before = home.rows();
    let known_hosts = home.cluster("web").join("web/known_hosts");
    let key = std::fs::read(&known_hosts).unwrap();

    home.ok(["down", "web"]);
    home.ok(["down", "web"]);
    home.assert_no_process_within(GONE);
    assert!(!home.socket("web").exists());
    assert_eq!(home.state("web").as_deref(), Some("stopped"));

    let again = home.run(["start", "web"]);
    assert_eq!(again.code, 0, "its backend is its own: {again:?}");
    assert_eq!(home.rows(), before);
    assert_eq!(std::fs::read(&known_hosts).unwrap(), key);
    assert_eq!(home.ok(["ssh", "web", "--", "cat kept"]), "kept\n");
}

#[test]
fn stopping_and_starting_at_once_never_meets_a_dying_holder() {
    let home = Home::new();
    for _ in 0..8 {
        home.up("web");
        assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
        home.ok(["down", "web", "--grace", "0"]);
    }
    for _ in 0..8 {
        home.up("web");
        home.ok(["rm", "-f", "web"]);
        assert_eq!(home.ok(["ls", "-q"]), "");
    }
}

#[test]
fn options_of_a_machine_that_exists_are_kept_and_said() {
    let home = Home::new();
    home.up("web");
    let ran = home.run(["up", "web", "--backend", "fake", "--cpus", "7"]);
    assert!(ran.stderr.contains("web exists: it keeps its"), "{ran:?}");
    assert_eq!(home.rows()[0]["cpus"], 2);
}

#[test]
fn one_member_of_a_cluster_ends_without_the_others() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    home.ok(["rm", "-f", "node-1"]);
    assert_eq!(home.ok(["ssh", "node-2", "--", "hostname"]), "node-2\n");
    home.up("node-1");
    assert_eq!(home.ok(["ssh", "node-1", "--", "hostname"]), "node-1\n");
    home.ok(["down", "node-2"]);
    assert_eq!(home.state("node-1").as_deref(), Some("running"));
}

#[test]
fn several_start_all_or_none() {
    let home = Home::new();
    let ran = home.run(["up", "good", "Bad", "--backend", "fake"]);
    assert_eq!(ran.stdout, "");
    ran.refused(2, &["\"Bad\""]);
    home.assert_untouched();
}

#[test]
fn a_record_that_cannot_be_read_does_not_hide_the_others() {
    let home = Home::new();
    home.up("good");
    home.up("hurt");
    home.ok(["down", "hurt"]);
    let record = home.cluster("hurt").join("hurt/config.json");
    let kept = std::fs::read(&record).unwrap();
    std::fs::write(&record, b"{").unwrap();
    let ran = home.run(["ls", "-q"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "good\n"), "{}", ran.stderr);
    ran.refused(3, &["config.json"]);
    // The hint is true.
    let said = home.run(["up", "hurt"]).refused(3, &["config.json"]);
    assert!(said.contains(home.cluster("hurt").join("hurt").to_str().unwrap()), "{said}");
    std::fs::write(&record, kept).unwrap();
}

#[test]
fn a_copied_state_root_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    home.up("web");
    let root = home.path().join("deep/state");
    let ran: crate::process::Ran = home
        .command(["up", "web", "--backend", "fake"])
        .env("FLEETBOX_HOME", &root)
        .output()
        .unwrap()
        .into();
    ran.ok();
    for dir in ["", "keys", "clusters", "clusters/web", "clusters/web/web"] {
        let mode = root.join(dir).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{dir}");
    }
    for file in ["keys/id_ed25519", "clusters/web/holder.sock", "clusters/web/web/seed.img"] {
        let mode = root.join(file).metadata().unwrap().permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{file}");
    }
    let ran: crate::process::Ran =
        home.command(["rm", "-f", "web"]).env("FLEETBOX_HOME", &root).output().unwrap().into();
    ran.ok();
    crate::process::until("the removal", Duration::from_secs(2), || {
        !root.join("clusters/web").exists()
    });
}
