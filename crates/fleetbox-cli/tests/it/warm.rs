//! Golden machines and snapshots of many processes beside each other: one makes, all use, and whoever
//! dies at any instant, what is left is whole or nothing.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::home::Home;
use crate::process::{Ran, until};

const SOON: Duration = Duration::from_secs(20);

fn warm(home: &Home) -> Command {
    home.command(["run", "--backend", "fake", "--", "true"])
}

#[track_caller]
fn ran(command: &mut Command) -> Ran {
    Ran::from(command.output().unwrap())
}

/// What `snapshot ls` has, by name and kind.
fn snapshots(home: &Home) -> Vec<(String, String)> {
    let rows = home.ok(["snapshot", "ls", "-o", "json"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.iter().map(|row| (text(row, "name"), text(row, "kind"))).collect()
}

fn golden(home: &Home) -> String {
    let rows = snapshots(home);
    let golden: Vec<_> = rows.iter().filter(|(_, kind)| kind == "golden").collect();
    assert_eq!(golden.len(), 1, "{rows:?}");
    golden[0].0.clone()
}

fn dir(home: &Home) -> PathBuf {
    home.path().join("cache/golden").join(golden(home))
}

/// The one machine's directory in a snapshot's.
fn saved(snapshot: &std::path::Path) -> PathBuf {
    let entries = std::fs::read_dir(snapshot).unwrap().flatten();
    entries.map(|entry| entry.path()).find(|path| path.is_dir()).unwrap()
}

fn quiet_child(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn two_processes_have_one_golden_machine() {
    let home = Home::new();
    let children: Vec<Child> = (0..4).map(|_| quiet_child(warm(&home))).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let first = dir(&home);
    let made = first.metadata().unwrap().modified().unwrap();
    ran(&mut warm(&home)).ok();
    assert_eq!(dir(&home).metadata().unwrap().modified().unwrap(), made, "it was made again");
    assert!(home.rows().is_empty(), "a golden machine is no VM that stays");
}

#[test]
fn a_start_waits_for_whoever_makes_the_same_and_says_so() {
    let home = Home::new();
    ran(&mut warm(&home)).ok();
    let key = golden(&home);
    home.ok(["snapshot", "rm", &key]);
    let lock = File::open(home.path().join("cache/golden").join(format!("{key}.lock"))).unwrap();
    lock.lock().unwrap();
    let said = home.path().join("said");
    let mut command = warm(&home);
    command.stdout(Stdio::null()).stderr(File::create(&said).unwrap());
    let mut child = command.spawn().unwrap();
    let waits = || std::fs::read_to_string(&said).unwrap().contains("waiting for another process");
    until("the word that it waits", SOON, waits);
    drop(lock);
    assert!(child.wait().unwrap().success());
    assert_eq!(golden(&home), key);
}

type Damage = fn(&std::path::Path);

#[test]
fn a_damaged_one_is_told_and_made_anew() {
    let home = Home::new();
    ran(&mut warm(&home)).ok();
    let damages: [(&str, Damage); 4] = [
        ("the memory", |dir| std::fs::write(saved(dir).join("memory"), "other").unwrap()),
        ("the state", |dir| std::fs::write(saved(dir).join("device"), "other").unwrap()),
        ("no memory", |dir| std::fs::remove_file(saved(dir).join("memory")).unwrap()),
        ("the record", |dir| std::fs::write(dir.join("snapshot.json"), "{").unwrap()),
    ];
    for (what, damage) in damages {
        damage(&dir_of_any(&home));
        let again = ran(&mut warm(&home));
        assert_eq!(again.code, 0, "{what}: {}", again.stderr);
        assert!(again.stderr.contains("is made anew: "), "{what}: {}", again.stderr);
        let after = ran(&mut warm(&home));
        assert!(!after.stderr.contains("anew"), "{what}: {}", after.stderr);
    }
    std::fs::remove_file(dir(&home).join("snapshot.json")).unwrap();
    ran(&mut warm(&home)).ok();
    golden(&home);
}

#[test]
fn a_damaged_one_that_is_in_use_is_passed_over() {
    let home = Home::new();
    home.ok(["up", "web", "--warm", "--backend", "fake"]);
    std::fs::write(saved(&dir(&home)).join("device"), "other").unwrap();
    let beside = ran(&mut warm(&home));
    assert_eq!(beside.code, 0, "{}", beside.stderr);
    assert!(beside.stderr.contains("a cold boot: "), "{}", beside.stderr);
    assert!(beside.stderr.contains("it is in use"), "{}", beside.stderr);
    home.ok(["rm", "-f", "web"]);
    let again = ran(&mut warm(&home));
    assert!(again.stderr.contains("is made anew: "), "{}", again.stderr);
    golden(&home);
}

/// Also of one whose record cannot be read.
fn dir_of_any(home: &Home) -> PathBuf {
    let entries = std::fs::read_dir(home.path().join("cache/golden")).unwrap().flatten();
    entries.map(|entry| entry.path()).find(|path| path.is_dir()).unwrap()
}

#[test]
fn whoever_is_killed_while_it_is_made_leaves_none_or_a_whole_one() {
    let home = Home::new();
    // From before anything is there to when all is.
    for step in 0..20 {
        if let Some((key, _)) = snapshots(&home).pop() {
            // The last of those killed may still be ending.
            until("its removal", SOON, || home.run(["snapshot", "rm", &key]).code == 0);
        }
        let mut child = quiet_child(warm(&home));
        std::thread::sleep(Duration::from_millis(step * 6));
        child.kill().unwrap();
        child.wait().unwrap();
        let listed = home.run(["snapshot", "ls"]);
        assert_eq!((listed.code, listed.stderr.as_str()), (0, ""), "after {step} steps");
        let next = ran(&mut warm(&home));
        assert_eq!(next.code, 0, "after {step} steps: {}", next.stderr);
        golden(&home);
    }
    // What the dead were just about to make, as their holders end.
    until("the end of all machines", SOON, || {
        home.ok(["prune"]);
        home.rows().is_empty()
    });
}

#[test]
fn a_budget_is_kept_but_not_with_what_is_used() {
    let home = Home::new();
    let within = |budget: &str, words: &[&str]| {
        let mut command = home.command(words);
        ran(command.env("FLEETBOX_CACHE_GIB", budget))
    };
    within("0", &["up", "web", "--warm", "--backend", "fake"]).ok();
    let key = golden(&home);
    let refused = home.run(["snapshot", "rm", &key[..8]]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("it is in use"), "{}", refused.stderr);
    within("0", &["snapshot", "save", "web", "one"]).ok();
    assert_eq!(golden(&home), key);
    assert_eq!(snapshots(&home).len(), 2);
    // The one before goes: it is over the budget, and nobody uses it.
    within("0", &["snapshot", "save", "web", "next"]).ok();
    assert_eq!(snapshots(&home).len(), 2);
    within("5", &["snapshot", "save", "web", "two"]).ok();
    assert_eq!(snapshots(&home).len(), 3);
    let refused = within("much", &["snapshot", "save", "web", "three"]);
    assert!(refused.stderr.contains("FLEETBOX_CACHE_GIB=much"), "{}", refused.stderr);
    home.ok(["rm", "-f", "web"]);
    home.ok(["snapshot", "rm", &key[..8], "next", "two"]);
    assert_eq!(snapshots(&home), []);
}

#[test]
fn a_snapshot_of_another_monitor_is_refused_before_any_work() {
    let home = Home::new();
    home.up("web");
    home.ok(["snapshot", "save", "web", "one"]);
    let record = home.path().join("snapshots/one/snapshot.json");
    let text = std::fs::read_to_string(&record).unwrap();
    for (from, to, told) in [
        ("\"program\": \"", "\"program\": \"/other", "the monitor is /"),
        ("\"host\": \"", "\"host\": \"another", "the processor or kernel is "),
        ("\"machine\": \"", "\"machine\": \"0", "put together otherwise"),
    ] {
        std::fs::write(&record, text.replace(from, to)).unwrap();
        let refused = home.run(["up", "copy", "--from", "one"]);
        assert_eq!(refused.code, 3, "{}", refused.stderr);
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
        assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
        assert_eq!(home.state("copy"), None);
    }
    std::fs::write(&record, text).unwrap();
    home.ok(["up", "copy", "--from", "one"]);
    home.ok(["rm", "-f", "web", "copy"]);
}

#[test]
fn what_cannot_be_saved_or_made_is_said() {
    let home = Home::new();
    home.up("web");
    home.ok(["snapshot", "save", "web", "one"]);
    for (words, told) in [
        (&["snapshot", "save", "web", "one"][..], "there is one of this name"),
        (&["snapshot", "save", "webb", "two"], "did you mean web?"),
        (&["snapshot", "save", "web", "No"], "characters a host name cannot have"),
        (&["up", "copy", "--from", "on"], "did you mean one?"),
        (&["up", "copy", "--from", "one", "--memory", "64G"], "leave these options out"),
        (&["snapshot", "rm", "on"], "did you mean one?"),
    ] {
        let refused = home.run(words);
        assert_ne!(refused.code, 0, "{words:?}");
        assert!(refused.stderr.contains(told), "{words:?}: {}", refused.stderr);
    }
    home.ok(["down", "--grace", "0", "web"]);
    let refused = home.run(["snapshot", "save", "web", "late"]);
    assert!(refused.stderr.contains("not running"), "{}", refused.stderr);
    assert_eq!(snapshots(&home).len(), 1);
    // What was made of it does not need it.
    home.ok(["up", "copy", "--from", "one"]);
    home.ok(["down", "--grace", "0", "copy"]);
    home.ok(["snapshot", "rm", "one"]);
    home.ok(["up", "copy"]);
    home.ok(["rm", "-f", "web", "copy"]);
}
