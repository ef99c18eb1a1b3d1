//! Owns asking a guest's systemd when its stages began and which units took longest. It must not fail a
//! caller for want of a systemd: there is then nothing to tell.

use std::time::Duration;

use super::{BootStage, BootUnit};
use crate::console::harmless;
use crate::error::Result;
use crate::progress::Stage;
use crate::vm::Vm;

const ANSWER_WAIT: Duration = Duration::from_secs(30);
const UNITS_SHOWN: usize = 8;
/// The system's own times, a blank line, then every unit's: systemd's D-Bus properties by
/// `org.freedesktop.systemd1(5)`, all in microseconds of the guest's monotonic clock.
const ASK: &str = "systemctl show -p UserspaceTimestampMonotonic && echo && systemctl show";
const PROPERTIES: &str = "-p Id -p InactiveExitTimestampMonotonic -p ActiveEnterTimestampMonotonic";
const ALL: &str = "'*.service' '*.mount' '*.socket' '*.target'";

/// Whose times are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Units {
    /// Every unit's: some hundred answers, which take an emulated guest seconds.
    All,
    /// Those whose start is a stage.
    Stages,
}

/// Units whose start is a stage.
const STAGES: &[(&str, Stage)] = &[
    ("cloud-init-local.service", Stage::CloudInitLocal),
    ("network.target", Stage::Network),
    ("cloud-init.service", Stage::CloudInit),
    // Its name since 24.3.
    ("cloud-init-network.service", Stage::CloudInit),
    ("ssh.service", Stage::Ssh),
    ("sshd.service", Stage::Ssh),
    ("ssh.socket", Stage::Ssh),
];

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub stages: Vec<BootStage>,
    pub units: Vec<BootUnit>,
}

/// One command.
pub(super) async fn ask(vm: &Vm, units: Units) -> Result<Asked> {
    let stages = || STAGES.iter().map(|(unit, _)| *unit).collect::<Vec<_>>().join(" ");
    let names = if units == Units::All { ALL.to_owned() } else { stages() };
    let mut ask = vm.shell(format!("{ASK} {names} {PROPERTIES}"));
    ask.unwritten().timeout(ANSWER_WAIT).output_limit_bytes(4 << 20);
    let output = ask.run().await?;
    Ok(parse(&output.stdout_text()))
}

fn parse(text: &str) -> Asked {
    let mut asked = Asked::default();
    let mut times: Vec<BootUnit> = Vec::new();
    for block in text.split("\n\n") {
        let value =
            |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let time = |name: &str| {
            let us = value(name)?.parse().ok().filter(|us: &u64| *us > 0)?;
            Some(Duration::from_micros(us))
        };
        if let Some(userspace) = time("UserspaceTimestampMonotonic") {
            asked.stages.push(at(Stage::Init, userspace));
        }
        let (Some(id), Some(began)) = (value("Id"), time("InactiveExitTimestampMonotonic")) else {
            continue;
        };
        if let Some((_, stage)) = STAGES.iter().find(|(unit, _)| *unit == id)
            && asked.stages.iter().all(|known| known.stage != *stage)
        {
            asked.stages.push(at(*stage, began));
        }
        let took = time("ActiveEnterTimestampMonotonic").and_then(|end| end.checked_sub(began));
        if let Some(took) = took.filter(|took| !took.is_zero()) {
            times.push(BootUnit { name: harmless(id.as_bytes()), took });
        }
    }
    times.sort_by_key(|unit| std::cmp::Reverse(unit.took));
    times.truncate(UNITS_SHOWN);
    asked.units = times;
    asked
}

fn at(stage: Stage, guest_clock: Duration) -> BootStage {
    BootStage { stage, guest_clock: Some(guest_clock), since_power_on: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_become_stages_and_slow_units() {
        let text = "UserspaceTimestampMonotonic=4000000\n\nId=ssh.service\nInactiveExitTimestampMonotonic=9000000\nActiveEnterTimestampMonotonic=9500000\n\nId=cloud-init.service\nActiveEnterTimestampMonotonic=8000000\nInactiveExitTimestampMonotonic=5000000\n\nId=never.service\nInactiveExitTimestampMonotonic=0\nActiveEnterTimestampMonotonic=0\n\nId=basic.target\nInactiveExitTimestampMonotonic=7\nActiveEnterTimestampMonotonic=7";
        let asked = parse(text);
        let stages: Vec<Stage> = asked.stages.iter().map(|stage| stage.stage).collect();
        assert_eq!(stages, [Stage::Init, Stage::Ssh, Stage::CloudInit]);
        let units: Vec<&str> = asked.units.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(units, ["cloud-init.service", "ssh.service"]);
        assert_eq!(asked.units[0].took, Duration::from_secs(3));
        assert_eq!(parse("nonsense"), Asked::default());
    }
}
