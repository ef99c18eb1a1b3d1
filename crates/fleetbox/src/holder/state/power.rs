//! Owns a machine's buttons: stop, kill, reset, pause, resume, balloon. It must not know how they
//! work; the backend does.

use std::sync::Arc;
use std::time::Duration;

use super::{Phase, State};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;
use crate::store::timeline::What;

/// A guest early in its boot does not hear the power button, so it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(3);

/// The right to pause, resume or reset one machine.
type Turn = Arc<tokio::sync::Mutex<()>>;

impl State {
    /// Presses the power button until the machine ends or the grace time is over, then cuts it off.
    /// A paused machine runs on first: standing still, it hears no button.
    pub(in crate::holder) async fn stop(&self, vm: &Name, grace: Duration) -> Result<()> {
        let machine = match self.machine(vm) {
            Err(e) if e.kind() == ErrorKind::NotRunning => return Ok(()),
            found => found?,
        };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.note(Some(vm), What::StopAsked { grace_ms });
        let mut ended = machine.ended();
        let polite = async {
            loop {
                // Each time: it may be paused meanwhile.
                self.run_on(vm).await?;
                machine.power_button().await?;
                let waited =
                    tokio::time::timeout(PRESS_AGAIN, ended.wait_for(Option::is_some)).await;
                if waited.is_ok() {
                    return Ok::<(), Error>(());
                }
            }
        };
        match tokio::time::timeout(grace, polite).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                log::warn!("{vm} cannot be asked to stop: {}", e.report());
                machine.kill().await?;
            }
            Err(_) => {
                log::warn!("{vm} did not stop within {grace:?}");
                machine.kill().await?;
            }
        }
        self.settled(vm).await;
        Ok(())
    }

    pub(in crate::holder) async fn kill(&self, vm: &Name) -> Result<()> {
        match self.machine(vm) {
            Err(e) if e.kind() == ErrorKind::NotRunning => Ok(()),
            found => {
                let machine = found?;
                self.note(Some(vm), What::PowerCut);
                machine.kill().await?;
                self.settled(vm).await;
                Ok(())
            }
        }
    }

    /// Waits until the end is on the books, so that whoever asked sees it in the next status.
    async fn settled(&self, vm: &Name) {
        let mut life = self.life();
        drop(life.wait_for(|_| self.machine(vm).is_err()).await);
    }

    /// Presses the reset button; a paused machine boots too.
    pub(in crate::holder) async fn reset(&self, vm: &Name) -> Result<()> {
        let machine = self.machine(vm)?;
        let turn = self.pausing_turn(vm)?;
        let _turn = turn.lock().await;
        machine.reset().await?;
        self.note(Some(vm), What::Reset);
        self.note_paused(vm, &turn, false)
    }

    pub(in crate::holder) async fn pause(&self, vm: &Name) -> Result<()> {
        self.set_paused(vm, true).await
    }

    pub(in crate::holder) async fn resume(&self, vm: &Name) -> Result<()> {
        self.set_paused(vm, false).await
    }

    pub(in crate::holder) async fn set_balloon(&self, vm: &Name, mib: u32) -> Result<()> {
        self.machine(vm)?.set_balloon(mib).await?;
        self.note(Some(vm), What::Balloon { mib });
        Ok(())
    }

    /// Asks nothing of a machine that is as it shall be: some monitors refuse that.
    async fn set_paused(&self, vm: &Name, paused: bool) -> Result<()> {
        let machine = self.machine(vm)?;
        let turn = self.pausing_turn(vm)?;
        let _turn = turn.lock().await;
        match (self.is_paused(vm), paused) {
            (false, true) => {
                machine.pause().await?;
                self.note(Some(vm), What::Pause);
            }
            (true, false) => {
                machine.resume().await?;
                self.note(Some(vm), What::Resume);
            }
            (true, true) | (false, false) => {}
        }
        self.note_paused(vm, &turn, paused)
    }

    pub(super) fn is_paused(&self, vm: &Name) -> bool {
        self.lock().members.get(vm).is_some_and(|member| member.paused)
    }

    pub(super) fn pausing_turn(&self, vm: &Name) -> Result<Turn> {
        let turn = self.lock().members.get(vm).map(|member| member.pausing.clone());
        turn.ok_or_else(|| Error::not_running(vm.as_str()))
    }

    /// Writes down what was done in that turn. If the machine ended meanwhile, that is the answer.
    fn note_paused(&self, vm: &Name, turn: &Turn, paused: bool) -> Result<()> {
        if let Some(member) = self.lock().members.get_mut(vm)
            // Not one that was booted anew meanwhile.
            && Arc::ptr_eq(&member.pausing, turn)
        {
            member.paused = paused;
        }
        self.machine(vm).map(drop)
    }

    /// Resumes it if it is paused; nothing to do for one that has ended.
    pub(super) async fn run_on(&self, vm: &Name) -> Result<()> {
        match self.resume(vm).await {
            Err(e) if e.kind() == ErrorKind::NotRunning => Ok(()),
            resumed => resumed,
        }
    }

    /// Cuts off every machine, side by side.
    pub(in crate::holder) async fn kill_all(&self) {
        let machines: Vec<_> = self
            .lock()
            .members
            .values()
            .filter_map(|m| match &m.phase {
                Phase::Running(machine) => Some(machine.clone()),
                _ => None,
            })
            .collect();
        let mut kills = tokio::task::JoinSet::new();
        for machine in machines {
            kills.spawn(async move { machine.kill().await });
        }
        while kills.join_next().await.is_some() {}
    }
}
