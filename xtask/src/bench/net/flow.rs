//! Owns the figure of how fast two real guests talk: in a cluster of ours, and on a bridge made by
//! hand, by turns in one run.

use super::super::report::{Bound, Row};
use super::super::sample::side_by_side;
use super::super::stage::Stage;
use super::hand::ByHand;
use super::numbers;
use crate::failure::Outcome;

const POUR_S: u32 = 8;

pub(in crate::bench) fn throughput(stage: &Stage) -> Outcome<Vec<Row>> {
    let pair = stage.pair()?;
    let hand = ByHand::start(stage, pair)?;
    let to = pair.b.address().to_string();
    let ours = |_| {
        let run = |vm: &fleetbox::Vm, line: &str| stage.wait(async { Ok(vm.ssh(line).await?) });
        pour(POUR_S, &to, |line| run(&pair.a, line), |line| run(&pair.b, line))
    };
    let peer = |_| pour(POUR_S, &to, |line| hand.ssh(0, line), |line| hand.ssh(1, line));
    ours(0)?;
    peer(0)?;
    let runs = stage.runs();
    let (ours, peer) = side_by_side(runs, ours, peer)?;
    hand.close()?;
    let note = format!(
        "payload of one TCP connection over {POUR_S} s; peer: two guests of the same image, kernel, \
         seed and QEMU arguments (vhost off) with taps on a bridge made by ip as root; all four run, \
         each pair is measured by turns"
    );
    let bound = Bound::ShareOf(0.9);
    Ok(vec![Row::new("net-throughput", (ours, Some(peer)), "Mbit/s", bound, runs, note)])
}

/// Megabits a second of payload from one guest to the other, both given as a way to run a line there.
pub(super) fn pour(
    seconds: u32,
    to: &str,
    from: impl Fn(&str) -> Outcome<String>,
    sink: impl Fn(&str) -> Outcome<String>,
) -> Outcome<f64> {
    sink("sudo rm -f /tmp/sink")?;
    from(&format!("python3 /tmp/pour.py {to} {seconds}"))?;
    let said = sink("while ! test -s /tmp/sink; do sleep 0.2; done; cat /tmp/sink")?;
    let [bytes, took] = numbers(&said)?;
    Ok(bytes * 8.0 / took / 1e6)
}
