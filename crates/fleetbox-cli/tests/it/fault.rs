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
