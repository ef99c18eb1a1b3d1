//! Every command that asks something of a machine, over the fake backend.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::home::{GONE, Home};
use crate::process::run;

#[test]
fn ls_has_a_table_names_and_json_rows() {
    let home = Home::new();
    assert_eq!(home.ok(["ls", "-o", "json"]).trim(), "[]");
    home.ok(["up", "web", "--backend", "fake", "--cpus", "3", "--memory", "2G", "--disk", "7"]);
    home.up("db");
    home.ok(["down", "db"]);

    let table = home.ok(["ls"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..4], ["NAME", "STATE", "ADDRESS", "CLUSTER"], "{table}");
    assert_eq!(lines[1][..2], ["db", "stopped"], "{table}");
    assert_eq!(lines[2][..2], ["web", "running"], "{table}");
    assert_eq!(home.ok(["ls", "-q"]), "db\nweb\n");
    assert_eq!(home.ok(["list", "--quiet"]), "db\nweb\n");

    let rows = home.rows();
    let web = rows[1].as_object().unwrap();
    let mut keys: Vec<&str> = web.keys().map(String::as_str).collect();
    keys.sort_unstable();
    let mut expected = [
        "name",
        "cluster",
        "state",
        "address",
        "image",
        "cpus",
        "memory_mib",
        "disk_gib",
        "nested_virt",
        "durable",
        "fixtures",
        "host_address",
        "created_at",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(web["name"], "web");
    assert_eq!(web["cluster"], "web");
    assert_eq!(web["state"], "running");
    assert_eq!(web["image"], "debian-12");
    assert_eq!(web["cpus"], 3);
    assert_eq!(web["memory_mib"], 2048);
    assert_eq!(web["disk_gib"], 7);
    let address: std::net::Ipv4Addr = web["address"].as_str().unwrap().parse().unwrap();
    assert!(address.is_private());
    let created_at = web["created_at"].as_str().unwrap();
    assert!(created_at.len() == 20 && created_at.ends_with('Z'), "{created_at}");
    assert_eq!(rows[0]["state"], "stopped");
}

#[test]
fn up_prints_where_the_machine_is_and_tells_stages_on_standard_error() {
    let home = Home::new();
    let ran = home.run(["up", "web", "--backend", "fake"]);
    let address = home.rows()[0]["address"].as_str().unwrap().to_owned();
    assert_eq!(ran.stdout, format!("web running {address}\n"));
    assert!(ran.stderr.contains("web: ready"), "{}", ran.stderr);
    let rows = home.ok(["up", "web", "--backend", "fake", "-o", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    assert_eq!(rows[0]["address"], address);
}

#[test]
fn ssh_and_exec_end_with_the_commands_own_code() {
    let home = Home::new();
    home.up("web");
    assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
    assert_eq!(home.ok(["ssh", "web", "--", "echo one; echo two"]), "one\ntwo\n");
    assert_eq!(home.run(["ssh", "web", "--", "exit 7"]).code, 7);
    assert_eq!(home.run(["exec", "web", "exit", "7"]).code, 7);
    assert_eq!(home.run(["exec", "web", "--", "exit", "7"]).code, 7);
    assert_eq!(home.ok(["exec", "web", "printf", "%s", "-x"]), "-x");
    assert_eq!(home.run(["ssh", "web", "--", "kill -KILL $$"]).code, 128 + 9);
    assert_eq!(home.run(["ssh", "web", "--", "kill -TERM $$"]).code, 128 + 15);

    let ran = home.run(["shell", "web", "--", "echo out; echo err >&2"]);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn what_cannot_be_run_ends_with_255() {
    let home = Home::new();
    home.run(["ssh", "none", "--", "true"]).refused(255, &["there is no such VM"]);
    home.up("web");
    home.ok(["down", "web"]);
    home.run(["ssh", "web", "--", "true"]).refused(255, &["web: ", "fleetbox up web"]);
}

#[test]
fn standard_input_goes_to_the_guest_whole_and_ends_there() {
    let home = Home::new();
    home.up("web");
    let input: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(3 << 20).collect();
    let ran = run(&mut home.command(["ssh", "web", "--", "cksum"]), &input);
    let here = run(&mut home.program("cksum"), &input);
    assert_eq!(ran.ok(), here.ok());
    // A command that does not read its input does not hang.
    assert_eq!(run(&mut home.command(["ssh", "web", "--", "echo done"]), &input).ok(), "done\n");
}

#[test]
fn a_port_is_reached_at_a_loopback_address_that_lasts() {
    let home = Home::new();
    home.up("web");
    let printed = home.ok(["port", "web", "7"]);
    let address: std::net::SocketAddr = printed.trim().parse().unwrap();
    assert!(address.ip().is_loopback());
    assert_eq!(home.ok(["port", "web", "7"]), printed, "asked again, it is the same");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"ping");

    home.run(["port", "web", "7", "--listen", "0.0.0.0:0"]).refused(2, &["loopback"]);
    home.run(["port", "web", "7", "--listen", &address.to_string()]).ok();
    home.run(["port", "web", "22", "--listen", &address.to_string()]).refused(1, &["listen at"]);
    home.run(["port", "web", "0"]).fails(2, &["0"]);
    home.ok(["down", "web"]);
    // The holder lets go of it as it ends.
    crate::process::until("the port's end", GONE, || TcpStream::connect(address).is_err());
}

#[test]
fn what_a_guest_wrote_to_its_console_cannot_act_on_a_terminal() {
    let home = Home::new();
    home.up("web");
    assert!(home.ok(["logs", "web"]).contains("Linux version"));
    let hostile = b"\x1b]0;title\x07\x1b[2J\x08\x7f\rover\r\nl\xc3\xafne \xff \xc2\x9b31m\nlast\n";
    let console = home.cluster("web").join("web/console.log");
    std::fs::write(console, hostile).unwrap();
    let shown = home.ok(["logs", "web"]);
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
    assert!(shown.contains("^[]0;title^G^[[2J") && shown.contains("l\u{ef}ne"), "{shown:?}");
    assert_eq!(home.ok(["logs", "web", "--tail", "1"]), "last\n");
    assert_eq!(home.ok(["logs", "web", "--tail", "0"]), "");
}

#[test]
fn following_a_console_ends_with_the_machine() {
    let home = Home::new();
    home.up("web");
    let mut command = home.command(["logs", "web", "--follow"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 5];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"Linux");
    let console = home.cluster("web").join("web/console.log");
    let mut file = std::fs::OpenOptions::new().append(true).open(console).unwrap();
    file.write_all(b"added \x1b[2J later\n").unwrap();
    home.ok(["down", "web"]);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("added ^[[2J later"), "{rest}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn rm_asks_unless_forced_and_forced_may_be_repeated() {
    let home = Home::new();
    home.up("web");
    home.run(["rm", "web"]).refused(2, &["delete web", "-f"]);
    let ran = run(&mut home.command(["rm", "web"]), b"y\n");
    assert_eq!(ran.code, 2, "a pipe is nobody: {ran:?}");
    assert_eq!(home.state("web").as_deref(), Some("running"));
    home.ok(["rm", "-f", "web"]);
    home.ok(["rm", "-f", "web"]);
    home.ok(["delete", "--force", "never-was"]);
    assert_eq!(home.ok(["ls", "-q"]), "");
    home.run(["rm", "web"]).refused(1, &["there is no such VM"]);
    home.assert_untouched();
}

#[test]
fn a_name_is_a_vm_or_else_a_clusters() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "3", "--backend", "fake"]);
    home.up("node");
    assert_eq!(home.ok(["ls", "-q"]), "node\nnode-1\nnode-2\nnode-3\n");
    let rows = home.rows();
    assert!(rows.iter().all(|row| row["cluster"] == "node"));
    let addresses: std::collections::HashSet<&str> =
        rows.iter().map(|row| row["address"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 4);

    home.ok(["stop", "node"]);
    assert_eq!(home.state("node").as_deref(), Some("stopped"));
    assert_eq!(home.state("node-1").as_deref(), Some("running"));
    home.ok(["destroy", "-f", "node"]);
    home.ok(["halt", "node", "node-2"]);
    for name in ["node-1", "node-2", "node-3"] {
        assert_eq!(home.state(name).as_deref(), Some("stopped"));
    }
    home.run(["down", "nod"]).refused(1, &["did you mean node-"]);
    // A prefix that is no cluster's stands for nothing.
    home.run(["rm", "-f", "no"]).ok();
    assert_eq!(home.rows().len(), 3);
    home.ok(["remove", "-f", "node"]);
    assert_eq!(home.rows().len(), 0);
}
