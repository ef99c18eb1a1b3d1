//! Owns the figure of a cluster's network: how long a holder takes to make it, against `ip`.

use std::cell::RefCell;
use std::time::Instant;

use tempfile::TempDir;

use super::super::report::{Bound, Row};
use super::super::sample::{ms, side_by_side};
use super::super::stage::Stage;
use crate::failure::{Failure, Outcome};
use crate::process;

const RUNS: usize = 7;
const CLUSTER: &str = "net";
/// Our own address plan.
const GATEWAY: &str = "10.213.77.1/24";

pub(in crate::bench) fn ready(stage: &Stage) -> Outcome<Vec<Row>> {
    let cli = stage.build_cli("fleetbox-fake", &["unstable-fake"])?;
    let mut rows = Vec::new();
    for (name, taps, most) in [("net-ready", 3, 30.0), ("net-ready/32", 32, 100.0)] {
        let bridge_ms = RefCell::new(0.0);
        let ours = |_| {
            let (bridge, taps) = one_cluster(&cli, taps)?;
            *bridge_ms.borrow_mut() = bridge;
            Ok(bridge + taps)
        };
        let peer = |_| by_hand(stage, taps);
        let runs = stage.runs_or(RUNS);
        let (ours, peer) = side_by_side(runs, ours, peer)?;
        let note = format!(
            "what the holder of {taps} fake machines logs: from its first step (pid and network \
             namespace, fork, runtime, locks, bridge, name server's sockets, redirection; in the \
             last run {:.1} ms) until the network is there, and the making of {taps} taps on the \
             bridge; peer: unshare and one ip -batch, their processes included, with namespace, \
             bridge and persistent taps alone",
            bridge_ms.borrow(),
        );
        let pair = (ours, Some(peer));
        rows.push(Row::new(name, pair, "ms", Bound::AtMost(most), runs, note));
    }
    Ok(rows)
}

/// Milliseconds until the network was there, and those that its taps took together.
fn one_cluster(cli: &std::path::Path, taps: usize) -> Outcome<(f64, f64)> {
    let home = home()?;
    let command = |words: &[&str]| {
        let mut command = process::command(cli);
        command.env("FLEETBOX_HOME", home.path()).args(words);
        command
    };
    let count = taps.to_string();
    let up = process::run(&mut command(&["up", CLUSTER, "-n", &count, "--backend", "fake"]));
    let log = home.path().join("clusters").join(CLUSTER).join("holder.log");
    let text = std::fs::read_to_string(&log).map_err(Failure::io("read", &log));
    // Whatever came of it: it ends when its members do, and its directory goes with it.
    process::run(&mut command(&["rm", "--force", CLUSTER]))?;
    up?;
    let text = text?;
    let told = |what: &str| -> Vec<f64> {
        let lines = text.lines().filter_map(|line| line.split_once(what));
        let after = lines.filter_map(|(_, rest)| rest.split_once("is there after "));
        after.filter_map(|(_, us)| us.strip_suffix(" us")?.parse::<f64>().ok()).collect()
    };
    let (network, each) = (told("the network "), told("the tap "));
    match network.as_slice() {
        [network] if each.len() == taps => Ok((network / 1e3, each.iter().sum::<f64>() / 1e3)),
        _ => Err(Failure::new(format!(
            "the holder's log tells of {} networks and {} taps instead of 1 and {taps}",
            network.len(),
            each.len()
        ))),
    }
}

/// A short path, as sockets have to fit.
fn home() -> Outcome<TempDir> {
    let temporary = std::env::temp_dir();
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir()
        .map_err(Failure::io("make a directory in", &temporary))
}

/// The same network by `ip`, in a namespace that goes with its last process.
fn by_hand(stage: &Stage, taps: usize) -> Outcome<f64> {
    let bridge = format!(
        "link set lo up\nlink add br0 type bridge\naddr add {GATEWAY} dev br0\nlink set br0 up\n"
    );
    let taps = (1..=taps).map(|tap| {
        format!("tuntap add tap{tap} mode tap vnet_hdr\nlink set tap{tap} master br0 up\n")
    });
    let text: String = std::iter::once(bridge).chain(taps).collect();
    let batch = stage.file("ip-batch");
    std::fs::write(&batch, text).map_err(Failure::io("write", &batch))?;
    let mut unshare = process::command("unshare");
    unshare.args(["--pid", "--fork", "--net", "ip", "-batch"]).arg(&batch);
    let began = Instant::now();
    process::run(&mut unshare)?;
    Ok(ms(began.elapsed()))
}
