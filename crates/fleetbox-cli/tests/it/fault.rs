//! `fault` and `prune` as their users have them.

use crate::home::Home;

#[test]
fn machines_are_broken_by_name_or_all_of_a_cluster() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    home.ok(["fault", "pause", "node"]);
    assert!(["node-1", "node-2"].iter().all(|vm| home.state(vm).unwrap() == "paused"));
    home.ok(["fault", "resume", "node-1"]);
    assert_eq!(home.state("node-1").unwrap(), "running");
    home.ok(["fault", "reset", "node-2"]);
    assert_eq!(home.state("node-2").unwrap(), "running");
    home.ok(["fault", "power-cut", "node-1"]);
    assert_eq!(home.state("node-1").unwrap(), "stopped");
    home.run(["fault", "pause", "node-1"]).refused(1, &["not running"]);
    home.run(["fault", "pause", "node-9"]).refused(1, &["did you mean node-"]);
    // The fake's guests have neither a memory nor a clock of their own.
    home.run(["fault", "memory", "node-2", "--take-mib", "64"]).refused(3, &["cannot"]);
    home.run(["fault", "clock", "node-2", "--by=-1h"]).refused(3, &["cannot"]);
    home.run(["fault", "clock", "node-2", "--by", "soon"]).fails(2, &["--by"]);
    home.ok(["rm", "-f", "node"]);
}

#[test]
fn a_bad_disk_stays_until_it_is_healed_and_networks_are_apart() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake", "--durable"]);
    assert!(home.ok(["ls", "-o", "json"]).contains("\"durable\": true"));
    home.ok(["fault", "disk", "node", "--iops", "20", "--write-errors"]);
    home.ok(["net", "isolate", "node-1"]);
    let shown = home.ok(["net", "show", "node", "-o", "json"]);
    let shown: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap();
    let bad = shown.iter().find(|fault| fault["vm"] == "node-2").unwrap();
    assert_eq!((&bad["fault"], &bad["disk"]["iops"]), (&"disk".into(), &20.into()));
    assert_eq!(bad["summary"], "disk node-2 --iops 20 --write-errors");
    home.ok(["net", "heal", "node"]);
    assert_eq!(home.ok(["net", "show", "node"]).matches("disk node-").count(), 2);
    home.ok(["fault", "disk", "node-1", "--heal"]);
    assert!(!home.ok(["net", "show", "node"]).contains("node-1"));
    home.run(["fault", "disk", "node-2"]).fails(2, &["--iops"]);
    home.run(["fault", "disk", "node-2", "--iops", "0"]).refused(2, &["1 or more"]);
    home.run(["fault", "disk", "node-2", "--iops", "5", "--heal"]).fails(2, &["--heal"]);
    // There is no guest whose disk could be filled.
    home.run(["fault", "disk", "node-2", "--leave-mib", "0"]).refused(3, &["cannot"]);
    home.ok(["down", "node-2"]);
    home.run(["fault", "disk", "node-2", "--iops", "5"]).refused(1, &["not running"]);
    home.ok(["rm", "-f", "node"]);
}

#[test]
fn prune_tells_what_it_removed_and_spares_the_rest() {
    let home = Home::new();
    home.ok(["up", "kept", "--backend", "fake"]);
    assert_eq!(home.ok(["prune"]), "");
    let left = home.path().join("clusters/left/.new-half");
    std::fs::create_dir_all(&left).unwrap();
    let removed = home.ok(["prune", "-o", "json"]);
    let removed: Vec<String> = serde_json::from_str(&removed).unwrap();
    assert!(removed.contains(&left.display().to_string()), "{removed:?}");
    assert!(!left.exists());
    assert_eq!(home.state("kept").unwrap(), "running");
    home.ok(["rm", "-f", "kept"]);
}
