//! Many processes at once.

use std::process::{Child, Stdio};

use crate::home::Home;
use crate::process::Ran;

fn start(home: &Home, words: &[&str]) -> Child {
    home.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(children: Vec<Child>) -> Vec<String> {
    let ran: Vec<Ran> =
        children.into_iter().map(|child| child.wait_with_output().unwrap().into()).collect();
    ran.into_iter().map(Ran::ok).collect()
}

#[test]
fn two_starts_of_one_name_give_one_machine() {
    for _ in 0..5 {
        let home = Home::new();
        let printed =
            finish((0..2).map(|_| start(&home, &["up", "web", "--backend", "fake"])).collect());
        assert_eq!(printed[0], printed[1]);
        assert_eq!(home.rows().len(), 1);
        // The command, nothing else: one warden, one holder, one monitor.
        assert_eq!(home.processes().len(), 3);
        assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
    }
}

#[test]
fn twenty_names_start_at_once() {
    let home = Home::new();
    let names: Vec<String> = (0..20).map(|n| format!("vm{n:02}")).collect();
    let children = names.iter().map(|name| start(&home, &["up", name, "--backend", "fake"]));
    let printed = finish(children.collect());
    for (name, line) in names.iter().zip(&printed) {
        assert!(line.starts_with(&format!("{name} running ")), "{line}");
    }
    let listed: Vec<String> = home.ok(["ls", "-q"]).lines().map(str::to_owned).collect();
    assert_eq!(listed, names);
    let asked = names.iter().map(|name| start(&home, &["ssh", name, "--", "hostname"]));
    let answers = finish(asked.collect());
    for (name, answer) in names.iter().zip(&answers) {
        assert_eq!(answer.trim(), name);
    }
}

#[test]
fn members_of_one_cluster_started_by_many_processes_share_its_holder() {
    let home = Home::new();
    let names: Vec<String> = (1..=8).map(|n| format!("node-{n}")).collect();
    finish(names.iter().map(|n| start(&home, &["up", n, "--backend", "fake"])).collect());
    let rows = home.rows();
    let addresses: std::collections::HashSet<&str> =
        rows.iter().map(|row| row["address"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 8, "{rows:?}");
    // One warden and one holder for eight monitors.
    assert_eq!(home.processes().len(), 10);
}

#[test]
fn starts_stops_and_removals_of_one_name_never_break_it() {
    let home = Home::new();
    for round in 0..4 {
        let children = vec![
            start(&home, &["up", "web", "--backend", "fake"]),
            start(&home, &["down", "web", "--grace", "0"]),
            start(&home, &["rm", "-f", "web"]),
            start(&home, &["ls"]),
        ];
        for child in children {
            let ran: Ran = child.wait_with_output().unwrap().into();
            // A start may lose its machine to the others, and a stop may find none: words, no
            // defect.
            assert!([0, 1, 3, 4].contains(&ran.code), "round {round}: {ran:?}");
        }
        home.up("web");
        assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
    }
}
