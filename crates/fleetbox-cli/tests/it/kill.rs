//! What is left when a process is killed at any moment: nothing that runs.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::home::{GONE, Home};
use crate::process::{self, Ran, alive, parent, signal, until};

/// What the re-executed test binary shall start: a name, one with `!` for an ephemeral VM, or several
/// with commas for a cluster called like the first.
const VICTIM: &str = "FLEETBOX_TEST_VICTIM";

/// The program that is killed: a user's, which holds a bound VM, or a cluster. The tests below start it.
#[test]
#[ignore = "the other tests of this file start it as a process of its own"]
fn victim() {
    let Ok(name) = std::env::var(VICTIM) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        if name.contains(',') {
            let cluster = fleetbox::Cluster::of(name.split(',')).unwrap();
            let cluster = cluster.backend(fleetbox::Backend::Fake).start().await.unwrap();
            println!("\nholds {}", cluster.len());
            return std::future::pending::<()>().await;
        }
        let vm = fleetbox::Vm::builder(name.trim_end_matches('!'))
            .backend(fleetbox::Backend::Fake)
            .ephemeral(name.ends_with('!'))
            .start()
            .await
            .unwrap();
        println!("\nholds {}", vm.ssh("hostname").await.unwrap());
        std::future::pending::<()>().await;
    });
}

/// Starts it and waits until its VM answers.
fn start_victim(home: &Home, name: &str) -> Child {
    let mut command = home.program(std::env::current_exe().unwrap());
    command.args(["--exact", "kill::victim", "--ignored", "--nocapture"]).env(VICTIM, name);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("holds "));
    assert!(found, "the program ended before it held a VM");
    child
}

/// The holder behind a socket, as the kernel knows it.
pub(crate) fn holder(home: &Home, cluster: &str) -> u32 {
    let stream = UnixStream::connect(home.socket(cluster)).unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap();
    peer.pid.as_raw_nonzero().get().cast_unsigned()
}

#[test]
fn a_program_that_is_killed_leaves_neither_process_nor_socket() {
    let home = Home::new();
    let mut child = start_victim(&home, "web");
    // The program, its warden, its holder and the monitor.
    assert!(home.processes().len() >= 4, "{}", process::describe(&home.processes()));
    child.kill().unwrap();
    child.wait().unwrap();
    home.assert_no_process_within(GONE);
    assert!(!home.socket("web").exists());
    assert_eq!(home.state("web").as_deref(), Some("stopped"), "its disk stays");
    home.up("web");
}

#[test]
fn a_killed_programs_throw_away_machine_goes_with_its_disk() {
    let home = Home::new();
    let mut child = start_victim(&home, "web!");
    assert_eq!(home.state("web").as_deref(), Some("running"));
    child.kill().unwrap();
    child.wait().unwrap();
    home.assert_no_process_within(GONE);
    home.assert_no_cluster_within(GONE);
}

#[test]
fn a_killed_program_takes_its_cluster_along() {
    let home = Home::new();
    let mut child = start_victim(&home, "node-1,db,web");
    // The program, its warden, its holder and three monitors.
    assert!(home.processes().len() >= 6, "{}", process::describe(&home.processes()));
    let addresses = |home: &Home| -> Vec<String> {
        home.rows().iter().map(|row| row["address"].to_string()).collect()
    };
    let before = addresses(&home);
    child.kill().unwrap();
    child.wait().unwrap();
    home.assert_no_process_within(GONE);
    assert!(!home.socket("node").exists());
    for vm in ["node-1", "db", "web"] {
        assert_eq!(home.state(vm).as_deref(), Some("stopped"), "its disk stays");
    }
    home.ok(["up", "web", "db", "--backend", "fake"]);
    assert_eq!(addresses(&home), before);
}

#[test]
fn a_killed_holder_takes_its_machines_along() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    home.ok(["ssh", "node-1", "--", "echo kept > kept; sleep 1000 >/dev/null 2>&1 &"]);
    signal(holder(&home, "node"), Signal::KILL);
    home.assert_no_process_within(GONE);
    assert!(!home.socket("node").exists(), "the warden removes it");
    assert_eq!(home.state("node-1").as_deref(), Some("stopped"));
    assert_eq!(home.state("node-2").as_deref(), Some("stopped"));
    home.run(["ssh", "node-1", "--", "true"]).refused(255, &["not running"]);
    home.up("node-1");
    assert_eq!(home.ok(["ssh", "node-1", "--", "cat kept"]), "kept\n");
}

#[test]
fn a_holder_told_to_end_ends_with_all_it_holds() {
    let home = Home::new();
    home.up("web");
    signal(holder(&home, "web"), Signal::TERM);
    home.assert_no_process_within(GONE);
    assert!(!home.socket("web").exists());
}

#[test]
fn a_killed_warden_is_not_missed() {
    let home = Home::new();
    home.up("web");
    let holder = holder(&home, "web");
    let warden = parent(holder);
    assert!(home.processes().contains(&warden), "{}", process::describe(&home.processes()));
    signal(warden, Signal::KILL);
    until("the warden's end", GONE, || !alive(warden));
    assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
    home.ok(["down", "web"]);
    home.assert_no_process_within(GONE);
    assert!(!home.socket("web").exists());

    // Both at once leave a stale socket, which disturbs nobody.
    home.up("web");
    let holder = self::holder(&home, "web");
    signal(parent(holder), Signal::KILL);
    signal(holder, Signal::KILL);
    home.assert_no_process_within(GONE);
    assert!(home.socket("web").exists(), "who removed it?");
    assert_eq!(home.state("web").as_deref(), Some("stopped"));
    home.up("web");
    assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
}

#[test]
fn a_monitor_that_is_killed_is_a_machine_that_stopped() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    let holder = holder(&home, "node");
    let monitors: Vec<u32> =
        home.processes().into_iter().filter(|pid| parent(*pid) == holder).collect();
    assert_eq!(monitors.len(), 2, "{}", process::describe(&home.processes()));
    signal(monitors[0], Signal::KILL);
    let running = || home.rows().iter().filter(|row| row["state"] == "running").count();
    until("one machine less", GONE, || running() == 1);
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    assert_eq!(running(), 2);
}

#[test]
fn an_up_that_is_killed_leaves_a_running_machine_or_none() {
    let mut running = 0;
    let mut seen_none = 0;
    for delay_ms in (0..60).step_by(4) {
        let home = Home::new();
        let mut child = home.command(["up", "web", "--backend", "fake"]).spawn_quietly();
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        settle(&home, "web");
        if home.state("web").as_deref() == Some("running") {
            running += 1;
            assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n", "after {delay_ms} ms");
        } else {
            seen_none += 1;
            assert!(!home.socket("web").exists(), "after {delay_ms} ms");
        }
        // Whatever was left, the next start mends it.
        home.up("web");
    }
    assert!(seen_none > 0, "every moment was too late: {running}");
}

/// Waits until a state root either has no process or a machine that is running.
#[track_caller]
fn settle(home: &Home, name: &str) {
    until("an end or a machine", GONE, || {
        home.processes().is_empty() || home.state(name).as_deref() == Some("running")
    });
    // What runs for a moment because its holder has not yet heard of the end is not what counts.
    if home.state(name).as_deref() != Some("running") {
        home.assert_no_process_within(GONE);
    }
}

#[test]
fn interrupting_an_up_ends_with_130_and_leaves_nothing_running() {
    let mut interrupted = 0;
    for delay_ms in (10..60).step_by(10) {
        let home = Home::new();
        let mut child = home.command(["up", "web", "--backend", "fake"]).spawn_quietly();
        std::thread::sleep(Duration::from_millis(delay_ms));
        signal(child.id(), Signal::INT);
        let ran: Ran = collect(&mut child);
        match ran.code {
            // In the instant between the machine's being let go and its being told of.
            130 if home.state("web").as_deref() == Some("running") => {}
            130 if ran.stdout.is_empty() => {
                interrupted += 1;
                home.assert_no_process_within(GONE);
                assert!(!home.socket("web").exists());
            }
            0 => assert_eq!(home.state("web").as_deref(), Some("running")),
            code => panic!("ended with {code} after {delay_ms} ms: {ran:?}"),
        }
    }
    assert!(interrupted > 0, "no interrupt came in time");
}

#[test]
fn a_holder_killed_in_the_middle_of_a_boot_is_a_typed_error() {
    let mut failed = 0;
    for _ in 0..10 {
        let home = Home::new();
        let mut child = home.command(["up", "web", "--backend", "fake"]).spawn_quietly();
        // The socket is there before the machine is.
        until("a holder", Duration::from_secs(20), || home.socket("web").exists());
        // Bound it is a moment before it listens.
        until("a holder that listens", GONE, || UnixStream::connect(home.socket("web")).is_ok());
        signal(holder(&home, "web"), Signal::KILL);
        let ran = collect(&mut child);
        home.assert_no_process_within(GONE);
        assert!(!home.socket("web").exists());
        // After that the boot is over, and what is lost is a machine that ran.
        if ran.code != 0 && !ran.stderr.contains("ready after") {
            failed += 1;
            ran.refused(3, &["web: ", "holder"]);
            home.up("web");
        }
    }
    assert!(failed > 0, "the holder was never killed in time");
}

fn collect(child: &mut Child) -> Ran {
    let mut stdout = String::new();
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut stdout).unwrap();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    let status = child.wait().unwrap();
    let mut ran =
        Ran::from(std::process::Output { status, stdout: Vec::new(), stderr: Vec::new() });
    (ran.stdout, ran.stderr) = (stdout, stderr);
    ran
}

trait SpawnQuietly {
    fn spawn_quietly(&mut self) -> Child;
}

impl SpawnQuietly for std::process::Command {
    fn spawn_quietly(&mut self) -> Child {
        self.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}
