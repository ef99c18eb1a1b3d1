//! Members that the host reaches by address, clusters side by side, and what is left of either. "The
//! host" is a network namespace of the test's own, so that tests neither see nor harm each other.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::home::{GONE, Home};
use crate::process::{FLEETBOX, Ran, has_tool, is_root, possible, signal, until};

/// Nobody on this host; a user needs no name.
const USER: u32 = 54_322;

/// A network namespace that stands for the host's.
struct Host {
    sleeper: Child,
}

impl Host {
    /// None, with the reason told, where there cannot be one.
    fn new() -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: only root has addresses that its host reaches");
            return None;
        }
        let tools = ["unshare", "nsenter", "ip"].into_iter().all(has_tool);
        if !tools || !possible("a network namespace", Command::new("unshare").args(["-n", "true"]))
        {
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["-n", "sleep", "1000"]).stdin(Stdio::null());
        let sleeper = command.spawn().unwrap();
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let pid = sleeper.id().to_string();
        until("a namespace", GONE, || {
            namespace(&pid).is_some_and(|its| Some(its) != namespace("self"))
        });
        let host = Self { sleeper };
        host.run(&Home::new(), &["ip", "link", "set", "lo", "up"]).ok();
        Some(host)
    }

    /// The words as a command there, for that state root.
    fn command(&self, home: &Home, words: &[&str]) -> Command {
        let mut command = home.program("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.sleeper.id())).args(words);
        command
    }

    fn run(&self, home: &Home, words: &[&str]) -> Ran {
        self.command(home, words).output().unwrap().into()
    }

    fn fleetbox(&self, home: &Home, words: &[&str]) -> Ran {
        self.run(home, &[&[FLEETBOX], words].concat())
    }

    /// Everything of it that a fault or a route might have changed.
    fn state(&self, home: &Home) -> String {
        let script = "ip -o link; ip -o addr; ip route show table all; ip rule; ip netns list; \
                      nft list ruleset 2>/dev/null; \
                      grep -r . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding \
                      /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/bridge 2>/dev/null; true";
        self.run(home, &["sh", "-c", script]).ok()
    }

    fn links(&self, home: &Home) -> String {
        self.run(home, &["ip", "-o", "link"]).ok()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.sleeper.kill());
        drop(self.sleeper.wait());
    }
}

/// The files of a state root, but what a guest or a log wrote.
fn files(home: &Home) -> Vec<String> {
    let listed = home.program("find").arg(home.path()).output().unwrap();
    let mut files: Vec<String> =
        String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    files.sort();
    files
}

fn holder(home: &Home, cluster: &str) -> u32 {
    let stream = UnixStream::connect(home.socket(cluster)).unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap();
    peer.pid.as_raw_nonzero().get().cast_unsigned()
}

fn host_addresses(ran: Ran) -> Vec<String> {
    let rows: Vec<serde_json::Value> = serde_json::from_str(&ran.ok()).unwrap();
    rows.iter().map(|row| row["host_address"].as_str().unwrap_or("none").to_owned()).collect()
}

/// Asks the echo at an address from the host.
fn echoes(host: &Host, home: &Home, address: &str) -> bool {
    let script = format!("exec 3<>/dev/tcp/{address}/7 && echo ping >&3 && head -n 1 <&3");
    let ran = host.run(home, &["timeout", "5", "bash", "-c", &script]);
    ran.stdout == "ping\n"
}

#[test]
fn a_host_reaches_members_by_address_until_the_last_has_ended() {
    let Some(host) = Host::new() else { return };
    let home = Home::new();
    let before = host.state(&home);
    host.fleetbox(&home, &["up", "plain", "--backend", "fake"]).ok();
    assert_eq!(host.state(&home), before, "without being asked nothing changes");
    let words = ["up", "node", "-n", "2", "--backend", "fake", "--host-routable", "-o", "json"];
    let addresses = host_addresses(host.fleetbox(&home, &words));
    assert_eq!(addresses.len(), 2);
    for address in &addresses {
        assert!(address.starts_with("198.19.") && echoes(&host, &home, address), "{address}");
    }
    // Asked again it is the same, and a member that joins later has one, too.
    assert_eq!(host_addresses(host.fleetbox(&home, &words)), addresses);
    host.fleetbox(&home, &["up", "node-1", "late", "--backend", "fake"]).ok();
    let listed = host_addresses(host.fleetbox(&home, &["ls", "late", "plain", "-o", "json"]));
    assert!(echoes(&host, &home, &listed[0]));
    assert_eq!(listed[1], "none");
    // The host's way survives a fault of the network.
    host.fleetbox(&home, &["net", "isolate", "node-1"]).ok();
    assert!(echoes(&host, &home, &addresses[0]));
    host.fleetbox(&home, &["down", "node"]).ok();
    home.run(["ls", "node"]).ok();
    until("an end of the link", GONE, || host.state(&home) == before);
}

#[test]
fn subnets_in_use_are_left_alone() {
    let Some(host) = Host::new() else { return };
    let home = Home::new();
    let words = ["up", "web", "--backend", "fake", "--host-routable", "-o", "json"];
    let first = host_addresses(host.fleetbox(&home, &words)).remove(0);
    host.fleetbox(&home, &["down", "web"]).ok();
    until("an end of the link", GONE, || !host.links(&home).contains("fbhost"));
    let subnet = format!("{}.0/25", first.rsplit_once('.').unwrap().0);
    host.run(&home, &["ip", "route", "add", &subnet, "dev", "lo"]).ok();
    let second = host_addresses(host.fleetbox(&home, &words)).remove(0);
    assert_ne!(first, second);
    assert!(echoes(&host, &home, &second));
    // Another state root on the same host.
    let other = Home::new();
    let third = host_addresses(host.fleetbox(&other, &words)).remove(0);
    assert_ne!(second, third);
    assert!(echoes(&host, &other, &third));
    // All that there are.
    host.run(&home, &["ip", "route", "add", "198.18.0.0/15", "dev", "lo"]).ok();
    let full = ["up", "full", "--backend", "fake", "--host-routable"];
    host.fleetbox(&home, &full).refused(3, &["198.19.0.0/16", "fleetbox port"]);
    assert_eq!(home.state("full"), None);
}

#[test]
fn a_holder_killed_with_every_fault_active_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let home = Home::new();
    let up = ["up", "node", "-n", "3", "--backend", "fake", "--host-routable"];
    let fleetbox = |words: &[&str]| host.fleetbox(&home, words).ok();
    // What stays of stopped machines is theirs.
    fleetbox(&up);
    fleetbox(&["down", "node"]);
    home.assert_no_process_within(GONE);
    let (files_before, before) = (files(&home), host.state(&home));

    fleetbox(&up);
    fleetbox(&["net", "partition", "node-1,node-2", "/", "node-3"]);
    fleetbox(&["net", "cut", "node-1", "node-2"]);
    fleetbox(&["net", "isolate", "node-3"]);
    fleetbox(&["net", "link", "node-1", "--latency", "10ms", "--loss", "5%"]);
    fleetbox(&["net", "link", "node-1", "node-2", "--bandwidth", "1mbit"]);
    fleetbox(&["net", "egress", "node", "deny"]);
    fleetbox(&["net", "egress", "node-2", "only", "192.0.2.1"]);
    fleetbox(&["port", "node-1", "7", "--publish", "127.0.0.1:0"]);
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("all.pcap");
    let words = [FLEETBOX, "net", "capture", "node", "-w", file.to_str().unwrap()];
    let mut capture = host.command(&home, &words).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(capture.stderr.take().unwrap()).lines();
    assert!(said.next().unwrap().unwrap().contains("Ctrl-C"));
    assert!(host.links(&home).contains("fbhost"));
    assert_ne!(host.state(&home), before);

    signal(holder(&home, "node"), Signal::KILL);
    // It goes on until it is told to end, and then says what became of it.
    signal(capture.id(), Signal::INT);
    let _ = said.by_ref().count();
    assert_ne!(capture.wait().unwrap().code(), Some(0), "it was cut off");
    home.assert_no_process_within(GONE);
    until("an end of the link", GONE, || host.state(&home) == before);
    assert_eq!(files(&home), files_before);
}

#[test]
fn a_socket_that_somebody_keeps_does_not_keep_the_link() {
    let Some(host) = Host::new() else { return };
    let home = Home::new();
    let up = ["up", "web", "--backend", "fake", "--host-routable"];
    host.fleetbox(&home, &up).ok();
    let words = [FLEETBOX, "ssh", "web", "--", "echo there; sleep 1000"];
    let mut owner = host.command(&home, &words).stdout(Stdio::piped()).spawn().unwrap();
    let mut there = [0; 6];
    owner.stdout.take().unwrap().read_exact(&mut there).unwrap();
    // It cannot close its socket, which keeps the cluster's network.
    signal(owner.id(), Signal::STOP);
    let killed = Instant::now();
    signal(holder(&home, "web"), Signal::KILL);
    until("an end of the link", GONE, || !host.links(&home).contains("fbhost"));
    eprintln!("the link was gone {:?} after kill -9", killed.elapsed());
    owner.kill().unwrap();
    owner.wait().unwrap();
    home.assert_no_process_within(GONE);
    host.fleetbox(&home, &up).ok();
}

/// Two clusters of two at once, by a command for each list of words.
fn apart(home: &Home, fleetbox: &dyn Fn(&[&str]) -> Ran) {
    for cluster in ["one", "two"] {
        fleetbox(&["up", cluster, "-n", "2", "--backend", "fake"]).ok();
    }
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(&fleetbox(&["ls", "-o", "json"]).ok()).unwrap();
    let address =
        |name: &str| rows.iter().find(|row| row["name"] == name).unwrap()["address"].clone();
    let member = |cluster: &str, number: u8| format!("{cluster}-{number}");
    for number in [1, 2] {
        assert_eq!(address(&member("one", number)), address(&member("two", number)));
        for cluster in ["one", "two"] {
            let name = member(cluster, number);
            assert_eq!(fleetbox(&["ssh", &name, "--", "hostname"]).ok(), format!("{name}\n"));
        }
    }
    let network = |cluster: &str| {
        let pid = holder(home, cluster);
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let networks: Vec<_> = tasks
            .filter(|task| {
                std::fs::read_to_string(task.path().join("comm"))
                    .is_ok_and(|name| name == "network\n")
            })
            .map(|task| std::fs::read_link(task.path().join("ns/net")).unwrap())
            .collect();
        assert_eq!(networks.len(), 1);
        networks[0].clone()
    };
    assert_ne!(network("one"), network("two"));
    // What listens at an address of the one does not answer in the other.
    fleetbox(&["net", "egress", "one", "deny"]).ok();
    fleetbox(&["down", "two-2"]).ok();
    assert_eq!(fleetbox(&["ssh", "one-2", "--", "hostname"]).ok(), "one-2\n");
    let port = fleetbox(&["port", "one-2", "7"]).ok();
    let mut stream = std::net::TcpStream::connect(port.trim()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    fleetbox(&["port", "two-2", "7"]).fails(1, &["not running"]);
    let faults: serde_json::Value =
        serde_json::from_str(&fleetbox(&["net", "show", "-o", "json"]).ok()).unwrap();
    assert_eq!(faults.as_array().unwrap().len(), 1);
    assert_eq!(faults[0]["cluster"], "one");
    // Whoever tidies up may be another user than theirs.
    fleetbox(&["rm", "-f", "one", "two"]).ok();
}

#[test]
fn two_clusters_with_equal_addresses_run_apart() {
    let home = Home::new();
    apart(&home, &|words| home.run(words));
}

/// The state root and the command of an ordinary user, from the point of view of root.
fn as_user(home: &Home) -> Option<(tempfile::TempDir, impl Fn(&[&str]) -> Ran + '_)> {
    if !is_root() {
        eprintln!("skipped: only root can be another user");
        return None;
    }
    chown(home.path(), Some(USER), Some(USER)).unwrap();
    let place = tempfile::Builder::new().prefix("fbt").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let fleetbox = place.path().join("fleetbox");
    std::fs::copy(FLEETBOX, &fleetbox).unwrap();
    let run = move |words: &[&str]| -> Ran {
        let mut command = home.program(&fleetbox);
        command.uid(USER).gid(USER).current_dir("/").args(words).output().unwrap().into()
    };
    Some((place, run))
}

#[test]
fn two_clusters_of_an_ordinary_user_run_apart() {
    let home = Home::new();
    let Some((_place, fleetbox)) = as_user(&home) else { return };
    let mut namespace = Command::new("unshare");
    namespace.uid(USER).gid(USER).current_dir("/").args(["-Ur", "true"]);
    if has_tool("unshare") && possible("a user namespace", &mut namespace) {
        apart(&home, &fleetbox);
    }
}

#[test]
fn an_ordinary_user_is_refused_before_any_work() {
    let home = Home::new();
    let words = ["up", "web", "--backend", "fake", "--host-routable"];
    match as_user(&home) {
        Some((_place, fleetbox)) => fleetbox(&words).refused(3, &["only root", "sudo"]),
        None => home.run(words).refused(3, &["only root", "sudo"]),
    };
    home.assert_untouched();
}
