//! Owns members that are away for a while, paused or off, and how they come back when whoever caused
//! that is gone. It must not make or change a member: what boots again is what ran.

use std::sync::Arc;

use super::{Holding, Phase, State, reservation};
use crate::backend::BootPlan;
use crate::control::message::Outage;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;
use crate::store::lock;
use crate::store::memory::Reservation;

/// A member that is away.
pub(in crate::holder) enum Away {
    Paused,
    Off {
        plan: Box<BootPlan>,
        detached: bool,
        /// Nobody else gets it meanwhile.
        memory: Option<Reservation>,
        /// A holder without machines would end.
        holding: Holding,
    },
}

impl State {
    /// Pauses the member or cuts its power.
    pub(in crate::holder) async fn begin_outage(
        self: &Arc<Self>,
        vm: &Name,
        outage: Outage,
    ) -> Result<Away> {
        self.machine(vm)?;
        match outage {
            Outage::Paused if self.is_paused(vm) => {
                Err(Error::new(ErrorKind::Conflict, "pause: it is paused already")
                    .vm(vm.as_str())
                    .hint(format!("let it go on: `fleetbox fault resume {vm}`")))
            }
            Outage::Paused => {
                self.pause(vm).await?;
                Ok(Away::Paused)
            }
            Outage::Off => {
                let away = self.away(vm)?;
                self.kill(vm).await?;
                Ok(away)
            }
        }
    }

    fn away(self: &Arc<Self>, vm: &Name) -> Result<Away> {
        let (plan, detached) = match self.lock().members.get(vm) {
            Some(member) if matches!(member.phase, Phase::Running(_)) => {
                (Box::new(member.plan.clone()), member.detached)
            }
            _ => return Err(Error::not_running(vm.as_str())),
        };
        let memory = reservation(&plan)?;
        let holding = self.hold(None).ok_or_else(|| Error::not_running(vm.as_str()))?;
        Ok(Away::Off { plan, detached, memory, holding })
    }

    /// Lets the member run again, unless it does or nobody wants it any more.
    pub(in crate::holder) async fn end_outage(
        self: &Arc<Self>,
        vm: &Name,
        away: Away,
    ) -> Result<()> {
        let (plan, detached, kept) = match away {
            Away::Paused => return self.run_on(vm).await,
            Away::Off { plan, detached, memory, holding } => (plan, detached, (memory, holding)),
        };
        let back = self.boot_again(vm, *plan, detached).await;
        drop(kept);
        back
    }

    async fn boot_again(self: &Arc<Self>, vm: &Name, plan: BootPlan, detached: bool) -> Result<()> {
        // Whoever removes it has this lock, and is not to find it running again.
        let _starter = lock::lock(&self.dir.lock(), || ()).await?;
        if !self.dir.member(vm).config().exists() {
            return Ok(());
        }
        let held = self.lock().holds.get(vm).is_some_and(|holds| *holds > 0);
        if self.life.borrow().closing || !(held || detached) {
            return Ok(());
        }
        if self.machine(vm).is_err() {
            self.boot(plan).await?;
        }
        if detached { self.detach(vm) } else { Ok(()) }
    }
}
