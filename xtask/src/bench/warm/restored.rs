//! Owns the peer of a warm start: bare QEMU that restores the same golden machine, on a tap made by `ip`,
//! asked for its first output by OpenSSH. The guest stays who it was: nobody tells it anything.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fleetbox::Vm;
use serde_json::{Value, json};

use super::super::bare::{Kept, Monitor};
use super::super::net::hand::Bridge;
use super::super::stage::{Image, Stage};
use crate::failure::{Failure, Outcome};

pub(super) struct Restored {
    kept: Kept,
    device: PathBuf,
    bridge: Bridge,
}

impl Restored {
    /// From a machine of ours that came from the golden one and runs.
    pub(super) fn of(stage: &Stage, vm: &Vm) -> Outcome<Self> {
        let bridge = Bridge::make()?;
        let log = vm.console_path().with_file_name("vmm.log");
        let text = std::fs::read_to_string(&log).map_err(Failure::io("read", &log))?;
        let memory = text
            .split_once("mem-path=")
            .and_then(|(_, rest)| rest.split(',').next())
            .map(PathBuf::from)
            .ok_or_else(|| Failure::new("the machine was not restored"))?;
        let golden = memory.parent().unwrap_or(Path::new("/")).to_owned();
        let member = log.parent().unwrap_or(Path::new("/")).display().to_string();
        let kept = Kept::on_tap(stage, vm, &bridge.taps[0])?.with_arguments(|argument| {
            Some(match argument {
                "-S" | "-incoming" | "defer" | "-sandbox" => return None,
                _ if argument.starts_with("on,obsolete=") => return None,
                // Our VM's own names of the golden machine's files go with it.
                _ if argument.contains("node-name=layer") => {
                    argument.replace(&member, &golden.display().to_string())
                }
                _ => argument.to_owned(),
            })
        });
        kept.expects(stage, &host_key(&golden)?)?;
        Ok(Self { kept, device: golden.join("device"), bridge })
    }

    /// Restores it and waits for its first output.
    pub(super) fn start(&self, stage: &Stage, image: &Image) -> Outcome<Duration> {
        let mut qemu = self.kept.qemu(image)?;
        qemu.args(["-qmp", "stdio", "-incoming", "defer"]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        let began = Instant::now();
        let child = qemu.spawn().map_err(|e| Failure::new(format!("failed to run QEMU: {e}")))?;
        let mut monitor = Monitor(child);
        restore(stage, &mut monitor, &self.device)?;
        self.kept.wait(stage, &mut monitor)?;
        Ok(began.elapsed())
    }

    pub(super) fn close(self) -> Outcome<()> {
        self.bridge.close()
    }
}

/// What the golden machine's sshd shows.
fn host_key(golden: &Path) -> Outcome<String> {
    let record = golden.with_file_name("snapshot.json");
    let text = std::fs::read_to_string(&record).map_err(Failure::io("read", &record))?;
    let record: Value = serde_json::from_str(&text)
        .map_err(|e| Failure::new(format!("failed to understand a snapshot's record: {e}")))?;
    let key = record["members"][0]["record"]["host_key"].as_str().unwrap_or_default();
    Ok(key.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

/// Has the machine come in and lets it run: it was saved standing still.
fn restore(stage: &Stage, monitor: &mut Monitor, device: &Path) -> Outcome<()> {
    let failed = || Failure::new("QEMU's monitor fell silent");
    let (Some(mut asks), Some(answers)) = (monitor.0.stdin.take(), monitor.0.stdout.take()) else {
        return Err(failed());
    };
    let mut lines = BufReader::new(answers).lines();
    let mut ask = |command: &str, arguments: Value| -> Outcome<Value> {
        let question = json!({ "execute": command, "arguments": arguments });
        writeln!(asks, "{question}").map_err(|_| failed())?;
        loop {
            let line = lines.next().ok_or_else(failed)?.map_err(|_| failed())?;
            let mut said: Value = serde_json::from_str(&line).map_err(|_| failed())?;
            if said.get("return").is_some() {
                return Ok(said["return"].take());
            }
        }
    };
    ask("qmp_capabilities", json!({}))?;
    let without_memory = json!({ "capability": "x-ignore-shared", "state": true });
    ask("migrate-set-capabilities", json!({ "capabilities": [without_memory] }))?;
    ask("migrate-incoming", json!({ "uri": format!("exec:cat {}", device.display()) }))?;
    while ask("query-status", json!({}))?["status"] == "inmigrate" {
        stage.pause(Duration::from_millis(1))?;
    }
    ask("cont", json!({}))?;
    // Stays open for as long as it runs.
    monitor.0.stdin = Some(asks);
    Ok(())
}
