//! `fault timeline` as its users have it, and what kills leave of it.

use std::io::Write;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;

use crate::home::{GONE, Home};
use crate::process::signal;

fn events(home: &Home) -> Vec<serde_json::Value> {
    serde_json::from_str(&home.ok(["fault", "timeline", "node", "-o", "json"])).unwrap()
}

fn words(home: &Home) -> Vec<String> {
    let word = |row: &serde_json::Value| row["event"].as_str().unwrap().to_owned();
    events(home).iter().map(word).collect()
}

#[test]
fn what_one_command_did_another_tells() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    home.ok(["net", "cut", "node-1", "node-2"]);
    home.ok(["fault", "pause", "node-1"]);
    home.ok(["fault", "power-cut", "node-1"]);
    home.ok(["net", "heal", "node"]);
    home.ok(["down", "node"]);
    home.assert_no_process_within(GONE);
    let rows = events(&home);
    let words = words(&home);
    assert_eq!(
        words[3..],
        ["fault", "pause", "power_cut", "end", "heal", "stop_asked", "end", "holder_ended"]
    );
    assert_eq!(rows[3]["fault"], "cut node-1 node-2");
    assert_eq!(rows[3]["fault_id"], rows[7]["fault_id"]);
    assert!(rows[7]["lasted_us"].as_u64().unwrap() > 0);
    assert_eq!(rows[4]["vm"], "node-1");
    assert!(rows[0]["at"].as_str().unwrap().ends_with('Z'));
    let table = home.ok(["fault", "timeline", "node-1"]);
    assert!(table.lines().next().unwrap().starts_with("TIME"), "{table}");
    assert!(table.contains("fault 1: cut node-1 node-2"), "{table}");
    assert_eq!(table.lines().count(), rows.len() + 1);
    home.run(["fault", "timeline", "nobody"]).fails(1, &["nobody"]);
}

#[test]
fn a_killed_holder_and_a_torn_line_cost_no_other_entry() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    home.ok(["net", "isolate", "node-1"]);
    let before = words(&home);
    let stream = UnixStream::connect(home.socket("node")).unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap();
    signal(peer.pid.as_raw_nonzero().get().cast_unsigned(), Signal::KILL);
    home.assert_no_process_within(GONE);
    let path = home.cluster("node").join("timeline.jsonl");
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(br#"{"at_us":17"#).unwrap();
    assert_eq!(words(&home), before);
    home.ok(["up", "node-1", "--backend", "fake"]);
    let after = words(&home);
    assert_eq!(after[..before.len()], before[..]);
    assert_eq!(after[before.len()..], ["holder_started", "boot"]);
}
