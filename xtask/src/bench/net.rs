//! Owns the two guests on one network that figures about networks are measured between, and the
//! programs that run in them. What is measured is in the figures' own files.

pub(super) mod faults;
pub(super) mod flow;
pub(super) mod hand;
pub(super) mod ready;

use fleetbox::{Cluster, Vm};

use super::report;
use super::stage::{IMAGE, Stage, machine_name};
use crate::failure::{Failure, Outcome};

const MEMORY_MIB: u32 = 768;
/// What runs in the guests: those the conformance tests use, too.
const PROGRAMS: [(&str, &str); 4] = [
    ("ask", include_str!("../../../crates/fleetbox/tests/it/guest/ask.py")),
    ("echo", include_str!("../../../crates/fleetbox/tests/it/guest/echo.py")),
    ("sink", include_str!("../../../crates/fleetbox/tests/it/guest/sink.py")),
    ("pour", include_str!("../../../crates/fleetbox/tests/it/guest/pour.py")),
];
/// Those of them that run all the time.
const SERVICES: [&str; 2] = ["echo", "sink"];

/// Two real guests in one cluster of ours.
pub(super) struct Pair {
    pub cluster: Cluster,
    pub a: Vm,
    pub b: Vm,
}

impl Pair {
    pub(super) fn start(stage: &Stage) -> Outcome<Self> {
        stage.image()?;
        report::progress("booting two guests");
        let name = machine_name("pair");
        let cluster = Cluster::builder(&name).size(2).image(IMAGE).memory_mib(MEMORY_MIB).cpus(1);
        stage.wait(async {
            let cluster = cluster.ephemeral(true).start().await?;
            let (a, b) = (cluster.vm(&format!("{name}-1"))?, cluster.vm(&format!("{name}-2"))?);
            for vm in [&a, &b] {
                vm.ssh("systemctl is-system-running --wait || true").await?;
                vm.ssh(&prepare()).await?;
            }
            Ok(Self { cluster, a, b })
        })
    }
}

/// A line for a guest's shell that puts the programs there and starts the services.
fn prepare() -> String {
    let files = PROGRAMS.map(|(name, text)| format!("cat > {name}.py <<'END'\n{text}\nEND\n"));
    let services = SERVICES
        .map(|name| format!("sudo systemd-run --quiet --unit {name} python3 /tmp/{name}.py\n"));
    format!("set -e; cd /tmp\n{}{}", files.concat(), services.concat())
}

/// The numbers that a program in a guest printed.
fn numbers<const N: usize>(said: &str) -> Outcome<[f64; N]> {
    let numbers: Vec<f64> = said.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let not = |_| Failure::new(format!("a guest said {said:?} instead of {N} numbers"));
    numbers.try_into().map_err(not)
}
