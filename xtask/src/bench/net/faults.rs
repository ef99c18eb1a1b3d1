//! Owns the figures of faults: what a link between two real guests was asked for, and what it did as
//! measured from inside them.

use std::time::Duration;

use fleetbox::{NetworkFault, Vm};

use super::super::report::{Bound, Row};
use super::super::stage::Stage;
use super::{Pair, flow, numbers};
use crate::failure::{Failure, Outcome};

/// Datagrams for the figures of loss, and as many a second as an emulated guest sends evenly.
const PACKETS: u32 = 5000;
const PACKETS_PER_S: u32 = 300;
const TRIPS: u32 = 200;
const TRIPS_PER_S: u32 = 20;
const POUR_S: u32 = 15;
/// A full frame, and what of it is payload.
const FRAME: f64 = 1514.0;
const PAYLOAD: f64 = 1448.0;

pub(in crate::bench) fn faults(stage: &Stage) -> Outcome<Vec<Row>> {
    let pair = stage.pair()?;
    let Pair { cluster, a, b } = pair;
    let (healthy, _) = ask(stage, pair, PACKETS, PACKETS_PER_S)?;
    let (_, trip_ms) = ask(stage, pair, TRIPS, TRIPS_PER_S)?;
    let mut rows = Vec::new();

    let loss = cluster.link(b.name()).loss(0.1).seed(1);
    let (came, _) = under(stage, loss.apply(), || ask(stage, pair, PACKETS, PACKETS_PER_S))?;
    // What leaves and what comes is lost alike, so that of a round trip 0.9 × 0.9 are left.
    let lost = 100.0 * (1.0 - (came / f64::from(PACKETS)).sqrt());
    let note = format!(
        "each way, of {PACKETS} datagrams that the other guest echoes: {came} came back; without a fault {healthy}"
    );
    rows.push(Row::new("net-loss", (lost, None), "%", Bound::Asked(10.0, 1.5), 1, note));

    let late = cluster.link_between(a.name(), b.name()).latency(Duration::from_millis(50));
    let (came, late_ms) = under(stage, late.apply(), || ask(stage, pair, TRIPS, TRIPS_PER_S))?;
    let note = format!(
        "each way: half of what the median round trip of {came} datagrams took more than the {trip_ms:.2} ms without a fault"
    );
    let each_way = (late_ms - trip_ms) / 2.0;
    rows.push(Row::new("net-latency", (each_way, None), "ms", Bound::Asked(50.0, 3.0), 1, note));

    let narrow = cluster.link(a.name()).bandwidth_kbit_per_s(10_000);
    let run = |vm: &Vm, line: &str| stage.wait(async { Ok(vm.ssh(line).await?) });
    let to = b.address().to_string();
    let payload = under(stage, narrow.apply(), || {
        flow::pour(POUR_S, &to, |line| run(a, line), |line| run(b, line))
    })?;
    let note = format!("frames as TCP filled them for {POUR_S} s: {payload:.2} Mbit/s of payload");
    let measured = payload * FRAME / PAYLOAD;
    let bound = Bound::Asked(10.0, 1.0);
    rows.push(Row::new("net-bandwidth", (measured, None), "Mbit/s", bound, 1, note));

    let split = cluster.partition([[a.name()], [b.name()]]);
    let (came, _) = under(stage, split, || ask(stage, pair, PACKETS, PACKETS_PER_S))?;
    let lost = 100.0 * (1.0 - came / f64::from(PACKETS));
    let note = format!("of {PACKETS} datagrams to the other group");
    rows.push(Row::new("net-partition", (lost, None), "%", Bound::Asked(100.0, 0.0), 1, note));

    let (came, _) = ask(stage, pair, TRIPS, TRIPS_PER_S)?;
    if came < f64::from(TRIPS) {
        return Err(Failure::new(format!("healed, {came} of {TRIPS} datagrams come back")));
    }
    Ok(rows)
}

/// Measures while the network is broken.
fn under<T>(
    stage: &Stage,
    fault: impl Future<Output = fleetbox::Result<NetworkFault>>,
    measure: impl FnOnce() -> Outcome<T>,
) -> Outcome<T> {
    let fault = stage.wait(async { Ok(fault.await?) })?;
    let measured = measure();
    stage.wait(async { Ok(fault.heal().await?) })?;
    measured
}

/// How many of so many datagrams came back, and the median round trip in milliseconds.
fn ask(stage: &Stage, pair: &Pair, count: u32, per_s: u32) -> Outcome<(f64, f64)> {
    let line = format!("python3 /tmp/ask.py {} {count} {per_s}", pair.b.address());
    let said = stage.wait(async { Ok(pair.a.ssh(&line).await?) })?;
    let [came, trip_ms] = numbers(&said)?;
    Ok((came, trip_ms))
}
