//! Several machines as one cluster, by the command: which cluster a name joins, all or none, and what a
//! cluster's name stands for.

use std::path::PathBuf;

use crate::home::{GONE, Home};

/// The field of a row of `ls -o json`.
#[track_caller]
fn field(home: &Home, vm: &str, field: &str) -> String {
    let rows = home.rows();
    let row = rows.iter().find(|row| row["name"] == vm);
    row.unwrap_or_else(|| panic!("no {vm} in {rows:?}"))[field].as_str().unwrap().to_owned()
}

fn directories(home: &Home) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.path().join("clusters")).unwrap().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[test]
fn names_without_a_cluster_make_one_called_like_the_first() {
    let home = Home::new();
    let printed = home.ok(["up", "web", "db", "web", "--backend", "fake"]);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 2, "{printed}");
    assert!(lines[0].starts_with("web running ") && lines[1].starts_with("db running "));
    for vm in ["web", "db"] {
        assert_eq!(field(&home, vm, "cluster"), "web");
        assert_eq!(home.ok(["ssh", vm, "--", "hostname"]), format!("{vm}\n"));
    }
    assert_eq!(directories(&home), [home.cluster("web")]);
    // One warden, one holder, two monitors.
    assert_eq!(home.processes().len(), 4);

    // Found by its own name wherever it is.
    let address = field(&home, "db", "address");
    home.ok(["down", "db"]);
    assert!(home.ok(["logs", "db"]).contains("Linux version"));
    assert!(home.ok(["up", "db", "--backend", "fake"]).contains(&address));
    assert_eq!(field(&home, "db", "cluster"), "web");
    let file = home.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let copy = home.path().join("copy");
    home.ok(["cp", file.to_str().unwrap(), &format!("db:{}", copy.display())]);
    assert_eq!(std::fs::read(copy).unwrap(), b"x");
    assert!(home.ok(["ssh-config", "db"]).contains("clusters/web/db/known_hosts"));
}

#[test]
fn new_names_join_the_cluster_of_those_that_exist() {
    let home = Home::new();
    home.ok(["up", "shop-1", "db", "--backend", "fake"]);
    let holder = home.processes().len();
    let printed = home.ok(["up", "cache", "db", "--backend", "fake", "-o", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let clusters: Vec<_> = rows.as_array().unwrap().iter().map(|row| &row["cluster"]).collect();
    assert_eq!(clusters, ["shop", "shop"]);
    assert_eq!(home.processes().len(), holder + 1, "one monitor more, no holder");
    // By its number a sibling joins as well.
    home.up("shop-2");
    assert_eq!(home.processes().len(), holder + 2);
    assert_eq!(field(&home, "shop-2", "cluster"), "shop");
    assert_eq!(home.ok(["ls", "-q", "shop"]).lines().count(), 4);
    assert_eq!(home.ok(["ls", "-q", "cache", "shop-2"]), "cache\nshop-2\n");
    home.run(["ls", "-q", "nobody"]).refused(1, &["nobody"]);
}

#[test]
fn names_of_different_clusters_are_refused_before_any_work() {
    let home = Home::new();
    home.ok(["up", "web", "db", "--backend", "fake"]);
    home.up("lab");
    let before = directories(&home).len();
    let said = home
        .run(["up", "new", "db", "lab", "--backend", "fake"])
        .refused(1, &["db is in web", "lab is in lab"]);
    assert!(!said.contains("prepare"), "work was done: {said}");
    // A prefix's member that is another cluster's.
    home.ok(["up", "lab", "node-2", "--backend", "fake"]);
    home.run(["up", "node", "-n", "3", "--backend", "fake"]).refused(1, &["node-2", "lab", "node"]);
    assert_eq!(directories(&home).len(), before);
    assert!(home.state("node-1").is_none() && home.state("new").is_none());
}

#[test]
fn a_start_that_fails_leaves_what_was_there_as_it_was() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    home.ok(["down", "node-2"]);
    // A record that cannot be read is found when its turn comes.
    let record = home.cluster("node").join("node-2/config.json");
    let kept = std::fs::read(&record).unwrap();
    std::fs::write(&record, b"{").unwrap();
    let ran = home.run(["up", "node", "-n", "4", "--backend", "fake"]);
    assert_eq!(ran.stdout, "");
    ran.refused(3, &["node-2/config.json"]);
    std::fs::write(&record, kept).unwrap();
    assert_eq!(home.ok(["ls", "-q"]), "node-1\nnode-2\n");
    assert_eq!(home.state("node-1").as_deref(), Some("running"));
    assert_eq!(home.state("node-2").as_deref(), Some("stopped"));
}

#[test]
fn members_boot_one_after_another_on_request_and_say_that_they_wait() {
    let home = Home::new();
    let words = ["up", "node", "-n", "3", "--backend", "fake", "--at-once", "1"];
    let ran = home.run(words);
    let said = ran.stderr.clone();
    ran.ok();
    let at = |line: &str| said.find(line).unwrap_or_else(|| panic!("no {line:?} in {said}"));
    for member in ["node-2", "node-3"] {
        at(&format!("{member}: waiting for another member: 1 boot at once"));
    }
    assert!(at("node-1: ready") < at("node-2: prepare"), "{said}");
    assert!(at("node-2: ready") < at("node-3: prepare"), "{said}");
}

#[test]
fn a_clusters_name_stands_for_its_members_with_any_names() {
    let home = Home::new();
    home.ok(["up", "shop-1", "db", "web", "--backend", "fake"]);
    home.ok(["down", "shop"]);
    for vm in ["shop-1", "db", "web"] {
        assert_eq!(home.state(vm).as_deref(), Some("stopped"));
    }
    home.assert_no_process_within(GONE);
    assert_eq!(home.ok(["ssh-config", "shop"]).matches("Host ").count(), 3);
    home.ok(["rm", "-f", "shop"]);
    home.assert_untouched();
}

#[test]
fn two_commands_that_claim_one_name_for_two_clusters_leave_it_in_one() {
    for _ in 0..5 {
        let home = Home::new();
        home.ok(["up", "one", "--backend", "fake"]);
        home.ok(["up", "two", "--backend", "fake"]);
        let mut both: Vec<_> = ["one", "two"]
            .iter()
            .map(|cluster| {
                let mut command = home.command(["up", cluster, "db", "--backend", "fake"]);
                command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
                command.spawn().unwrap()
            })
            .collect();
        let codes: Vec<_> = both.iter_mut().map(|up| up.wait().unwrap().code()).collect();
        assert_eq!(codes.iter().filter(|code| **code == Some(1)).count(), 1, "{codes:?}");
        assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
        assert_eq!(home.rows().iter().filter(|row| row["name"] == "db").count(), 1);
        let cluster = field(&home, "db", "cluster");
        assert!(home.cluster(&cluster).join("db/config.json").exists());
        // Whose start failed is as it was.
        assert_eq!(home.state("one").as_deref(), Some("running"));
        assert_eq!(home.state("two").as_deref(), Some("running"));
    }
}
