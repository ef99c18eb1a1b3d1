//! `net` as its users have it, who keeps a fault, and what faults leave behind.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;

use crate::home::{GONE, Home};
use crate::process::{Ran, signal, until};

fn three() -> Home {
    let home = Home::new();
    home.ok(["up", "node", "-n", "3", "--backend", "fake"]);
    home
}

fn shown(home: &Home) -> Vec<serde_json::Value> {
    serde_json::from_str(&home.ok(["net", "show", "-o", "json"])).unwrap()
}

/// The interfaces and the forwarding setting of this host.
fn host() -> (Vec<String>, String) {
    let entries = std::fs::read_dir("/sys/class/net").unwrap().flatten();
    let mut interfaces: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    interfaces.sort();
    (interfaces, std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap())
}

#[test]
fn faults_stay_until_they_are_healed_and_show_says_how_to_repeat_them() {
    let home = three();
    assert_eq!(home.ok(["net", "isolate", "node-3"]), "isolate node-3\n");
    assert_eq!(
        home.ok(["net", "partition", "node-1,node-2", "/", "node-3"]),
        "partition node-1,node-2 / node-3\n"
    );
    assert_eq!(home.ok(["net", "cut", "node-1", "node-2"]), "cut node-1 node-2\n");
    let words = "net link node-1 node-2 --latency 50ms --jitter 5ms --loss 10% --duplicate 0.01 \
                 --reorder 5% --bandwidth 10mbit --seed 7";
    assert_eq!(
        home.run(words.split_whitespace()).ok(),
        "link node-1 node-2 --latency 50ms --jitter 5ms --loss 10% --duplicate 1% --reorder 5% \
         --bandwidth 10mbit --seed 7\n"
    );
    home.ok(["net", "egress", "node", "only", "deb.debian.org:80", "10.0.0.0/8"]);
    home.ok(["net", "egress", "node-2", "deny"]);

    let rows = shown(&home);
    let words: Vec<&str> = rows.iter().map(|row| row["fault"].as_str().unwrap()).collect();
    assert_eq!(words, ["isolate", "partition", "cut", "link", "egress", "egress"]);
    assert!(rows.iter().all(|row| row["kept"] == true && row["cluster"] == "node"));
    assert_eq!(rows[1]["groups"], serde_json::json!([["node-1", "node-2"], ["node-3"]]));
    assert_eq!(rows[3]["link"]["latency_ms"], 50.0);
    assert_eq!(rows[3]["link"]["seed"], 7);
    assert_eq!(rows[4]["destinations"][0], "deb.debian.org:80");
    assert_eq!(rows[5]["vm"], "node-2");
    let table = home.ok(["net", "show", "node"]);
    assert_eq!(table.lines().count(), 7, "{table}");

    // The host's own way survives all of them.
    for name in ["node-1", "node-2", "node-3"] {
        assert_eq!(home.ok(["ssh", name, "--", "hostname"]), format!("{name}\n"));
    }
    assert_eq!(home.ok(["net", "heal", "node"]), "");
    assert!(shown(&home).is_empty());
    assert_eq!(home.ok(["net", "heal", "node-1"]), "");
}

#[test]
fn what_cannot_be_broken_is_refused() {
    let home = three();
    let refused = |code: i32, words: &[&str], said: &[&str]| {
        home.run(words.iter().copied()).fails(code, said);
    };
    refused(1, &["net", "isolate", "node-9"], &["node-9", "did you mean"]);
    refused(1, &["net", "cut", "node-1", "node-9"], &["node-9", "did you mean"]);
    refused(2, &["net", "cut", "node-1", "node-1"], &["itself"]);
    refused(2, &["net", "partition", "node-1,node-2", "/", "node-2"], &["twice"]);
    refused(2, &["net", "partition", "node-1"], &["fewer than two"]);
    refused(2, &["net", "link", "node-1"], &["nothing is to be done"]);
    refused(2, &["net", "link", "node-1", "--loss", "110%"], &["no share"]);
    refused(2, &["net", "link", "node-1", "--loss=-1%"], &["no share"]);
    refused(2, &["net", "link", "node-1", "--latency", "2h"], &["an hour at most"]);
    refused(2, &["net", "link", "node-1", "--bandwidth", "0mbit"], &["no bandwidth"]);
    refused(2, &["net", "egress", "node", "only"], &["DESTINATION"]);
    refused(2, &["net", "egress", "node", "deny", "x.org"], &["only"]);
    refused(2, &["net", "egress", "node", "only", "::1"], &["IPv6"]);
    assert!(shown(&home).is_empty());
    home.ok(["down", "node-2"]);
    refused(1, &["net", "isolate", "node-2"], &["not running"]);
    refused(1, &["net", "heal", "nobody"], &["nobody"]);
}

/// Causes a fault as a program of the library does, without the library.
fn cause(home: &Home) -> UnixStream {
    let mut stream = UnixStream::connect(home.socket("node")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request =
        br#"{"protocol":1,"op":"fault","fault":{"what":"link","vm":"node-1","link":{"loss":0.5}}}"#;
    stream.write_all(request).unwrap();
    stream.write_all(b"\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
    let reply: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(reply["fault"]["id"].is_u64() && reply["fault"]["seed"].is_u64(), "{reply}");
    stream
}

#[test]
fn a_fault_whose_owner_is_gone_is_healed() {
    let home = three();
    home.ok(["net", "isolate", "node-2"]);
    let owner = cause(&home);
    assert_eq!(shown(&home).len(), 2);
    assert_eq!(shown(&home)[1]["kept"], false);
    // As the kernel does for a process that is killed.
    drop(owner);
    until("its end", GONE, || shown(&home).len() == 1);
    assert_eq!(shown(&home)[0]["fault"], "isolate", "what another keeps stays");
}

#[test]
fn a_holder_killed_with_faults_leaves_nothing_on_the_host() {
    let before = host();
    let home = three();
    home.ok(["net", "isolate", "node-2"]);
    home.ok(["net", "link", "node-1", "--latency", "10ms"]);
    home.ok(["net", "egress", "node", "deny"]);
    let stream = UnixStream::connect(home.socket("node")).unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap();
    signal(peer.pid.as_raw_nonzero().get().cast_unsigned(), Signal::KILL);
    home.assert_no_process_within(GONE);
    assert_eq!(host(), before);
    assert!(shown(&home).is_empty());
    home.ok(["up", "node", "-n", "3", "--backend", "fake"]);
    assert!(shown(&home).is_empty(), "faults end with their holder");
}

#[test]
fn a_capture_ends_well_by_a_signal() {
    let home = three();
    let file = home.path().join("all.pcap");
    for name in ["node", "node-1"] {
        let mut command = home.command(["net", "capture", name, "-w"]);
        let mut child = command.arg(&file).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(said.next().unwrap().unwrap().contains("Ctrl-C"));
        signal(child.id(), Signal::INT);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(said.next().unwrap().unwrap().contains("frames"));
        assert_eq!(std::fs::read(&file).unwrap()[..4], 0xa1b2_3c4d_u32.to_ne_bytes());
    }
    home.run(["net", "capture", "nobody", "-w", "x"]).fails(1, &["nobody"]);
    home.run(["net", "capture", "node", "-w", "/no/such/file"]).fails(3, &["/no/such/file"]);
}

#[test]
fn a_published_port_is_reached_at_the_address() {
    let home = three();
    let address = home.ok(["port", "node-1", "7", "--publish", "127.0.0.1:0"]);
    let mut stream = std::net::TcpStream::connect(address.trim()).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    std::io::Read::read_exact(&mut stream, &mut back).unwrap();
    assert_eq!(&back, b"ping");
}

#[test]
fn help_and_completion_know_net() {
    let home = Home::new();
    let help: Ran = home.run(["net", "--help"]);
    let help = help.ok();
    for word in ["isolate", "partition", "cut", "link", "egress", "heal", "show"] {
        assert!(help.contains(word), "{help}");
    }
}
