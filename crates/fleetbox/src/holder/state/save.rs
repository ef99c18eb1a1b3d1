//! Owns saving members as they are at one instant, and telling a restored one who it is. What is saved,
//! and what is told, is the plan's; how, the backend's.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::State;
use super::clock::Setting;
use crate::backend::{BootPlan, Identity, Mount, Restore, SavePlan, Together};
use crate::error::{Error, ErrorKind, Result};
use crate::images::hex;
use crate::net::Line;
use crate::net::plan;
use crate::spec::Name;
use crate::store::timeline::What;
use crate::sys::random;

/// It takes an emulated guest some 20 ms to become somebody else; the rest is for a busy host.
const BECOME_WAIT: Duration = Duration::from_mins(1);
/// Who does not say by then that it goes on as it is, is not waiting.
const STAY_WAIT: Duration = Duration::from_secs(20);
/// A host too busy for that gets what it can.
const CLOCK_TRIES: u32 = 8;
/// As much as the kernel's generator takes in (random(4)), twice.
const ENTROPY_BYTES: usize = 64;

impl State {
    /// Saves the members, all as they are at one instant. Returns for how long the one stood still that
    /// did so the longest, and what runs.
    pub(in crate::holder) async fn save(
        self: &Arc<Self>,
        plans: Vec<SavePlan>,
    ) -> Result<(Duration, Vec<BootPlan>)> {
        let running =
            plans.iter().map(|plan| self.plan_of(&plan.vm)).collect::<Result<Vec<_>>>()?;
        let together = Arc::new(Together::of(plans.len()));
        let mut saves = tokio::task::JoinSet::new();
        for plan in plans {
            let (state, together) = (self.clone(), together.clone());
            saves.spawn(async move {
                let saved = state.save_one(&plan, &together).await;
                if saved.is_err() {
                    together.fail();
                }
                state.stay(&plan).await;
                saved
            });
        }
        let (mut longest, mut failed) = (Duration::ZERO, None);
        while let Some(joined) = saves.join_next().await {
            let internal = |e| Error::new(ErrorKind::Internal, "save a member").source(e);
            match joined.map_err(internal).and_then(|saved| saved) {
                Ok(paused) => longest = longest.max(paused),
                // The others only say that they did not go on without it.
                Err(e) => failed = Some(failed.unwrap_or(e)),
            }
        }
        failed.map_or(Ok((longest, running)), Err)
    }

    async fn save_one(&self, plan: &SavePlan, together: &Together) -> Result<Duration> {
        let machine = self.machine(&plan.vm)?;
        let turn = self.pausing_turn(&plan.vm)?;
        let _turn = turn.lock().await;
        let spare = plan::tap_name(self.new_tap());
        let tap = self.network.tap_apart(spare).await?;
        let paused = self.is_paused(&plan.vm);
        let saved = machine.save(plan, paused, tap, together).await?;
        self.note(Some(&plan.vm), What::Save { paused_us: micros(saved.paused) });
        Ok(saved.paused)
    }

    /// Copies a member's own disk as it is at one instant.
    pub(in crate::holder) async fn copy_disk(&self, vm: &Name, target: &Path) -> Result<()> {
        let machine = self.machine(vm)?;
        // One at a time, and not while it is saved.
        let turn = self.pausing_turn(vm)?;
        let _turn = turn.lock().await;
        machine.copy_disk(target).await
    }

    /// Ends what waits in a guest to be told who it is: it was saved, and stays who it is.
    async fn stay(&self, plan: &SavePlan) {
        // Of a backend without guests nobody waits.
        let Some(tap) = self.tap_of(&plan.vm).filter(|_| !plan.token.is_empty()) else { return };
        let told = async {
            let mut line = Line::open(&self.network, tap, &plan.token).await?;
            line.ask(&json!({ "what": "stay" }), STAY_WAIT).await
        };
        if let Err(e) = told.await {
            // It ends by itself later, or with its machine.
            log::warn!("{} was not told that it was saved: {e}", plan.vm);
        }
    }

    /// Makes the restored guest behind that tap who it is to be, and lets it into the network.
    pub(super) async fn become_itself(&self, vm: &Name, tap: u32, restore: &Restore) -> Result<()> {
        let failed = |what: &str| {
            Error::new(ErrorKind::BootFailed, format!("make a restored guest another: {what}"))
                .vm(vm.as_str())
        };
        let unheard = |e| failed("it does not answer").source(e);
        let began = Instant::now();
        let Identity { token, .. } = &restore.identity;
        let mut line = Line::open(&self.network, tap, token).await.map_err(unheard)?;
        let question = become_question(&restore.identity)?;
        let answer = line.ask(&question, BECOME_WAIT).await.map_err(unheard)?;
        let steps = answer["failed"].as_object().ok_or_else(|| failed("its answer is odd"))?;
        for (step, why) in steps {
            let why = crate::console::harmless(why.as_str().unwrap_or_default().as_bytes());
            // Whatever holds a dead connection sees so when it next uses it.
            if step == "connections" {
                log::warn!("{vm} keeps connections to peers that are gone: {why}");
                continue;
            }
            return Err(failed(&format!("{}: {why}", step.escape_debug())));
        }
        for Mount { serial, path } in &restore.mounts {
            let question =
                json!({ "what": "mount", "serial": serial, "path": hex(path.as_bytes()) });
            let answer = line.ask(&question, BECOME_WAIT).await.map_err(unheard)?;
            if let Some(why) = answer["failed"].as_str() {
                let why = crate::console::harmless(why.as_bytes());
                return Err(failed(&format!("mount a fixture at {}: {why}", path.escape_debug())));
            }
        }
        let became = began.elapsed();
        self.set_clock(vm, &mut line).await.map_err(unheard)?;
        log::info!("{vm} is itself after {became:?}, its clock right after {:?}", began.elapsed());
        self.network.join(tap).await.map_err(|e| failed("join the network").source(e))?;
        // It has all it needs; that it tidies up is nothing to wait for.
        tokio::spawn(async move { line.ask(&json!({ "what": "end" }), STAY_WAIT).await });
        Ok(())
    }

    async fn set_clock(&self, vm: &Name, line: &mut Line) -> std::io::Result<()> {
        let mut setting = Setting::default();
        for _ in 0..CLOCK_TRIES {
            let sent = since_1970();
            let question = json!({ "what": "clock", "now_ns": nanos(setting.told(sent)) });
            let answer = line.ask(&question, BECOME_WAIT).await?;
            let there = Duration::from_nanos(answer["now_ns"].as_u64().unwrap_or(0));
            if setting.is_right(sent, there, since_1970()) {
                return Ok(());
            }
        }
        log::warn!("the clock of {vm} may be off: the host is too busy to set it exactly");
        Ok(())
    }

    fn plan_of(&self, vm: &Name) -> Result<BootPlan> {
        self.machine(vm)?;
        let plan = self.lock().members.get(vm).map(|member| member.plan.clone());
        plan.ok_or_else(|| Error::not_running(vm.as_str()))
    }

    fn new_tap(&self) -> u32 {
        let mut inner = self.lock();
        inner.next_tap += 1;
        inner.next_tap
    }

    fn tap_of(&self, vm: &Name) -> Option<u32> {
        self.lock().members.get(vm).map(|member| member.tap)
    }
}

fn become_question(identity: &Identity) -> Result<Value> {
    Ok(json!({
        "what": "become",
        "entropy": random::hex::<ENTROPY_BYTES>()?,
        "hostname": identity.hostname,
        "fqdn": identity.fqdn,
        "machine_id": identity.machine_id,
        "host_key_private": identity.host_key_private_openssh,
        "host_key_public": identity.host_key_public,
        "mac": identity.mac,
        "address": identity.address,
        "prefix_length": identity.prefix_length,
        "gateway": identity.gateway,
        "saved_mac": identity.saved_mac,
        "saved_address": identity.saved_address,
        "fellows": identity.fellows,
    }))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
