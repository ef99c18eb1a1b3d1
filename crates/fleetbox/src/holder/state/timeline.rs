//! Owns what the holder tells the cluster's timeline. It must not fail what is told: the machines
//! matter more.

use std::sync::PoisonError;

use super::State;
use crate::FaultKind;
use crate::control::message::{Fault, Note};
use crate::error::Result;
use crate::spec::Name;
use crate::store::timeline::What;

impl State {
    /// Writes down what was just done.
    pub(in crate::holder) fn note(&self, vm: Option<&Name>, what: What) {
        let mut timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = timeline.append(vm, what) {
            log::warn!("write the timeline: {e}");
        }
    }

    /// Writes down what a caller did to a member.
    pub(in crate::holder) fn note_for(&self, vm: &Name, note: &Note) -> Result<()> {
        self.machine(vm)?;
        match *note {
            Note::ClockJump { by_ms } => self.note(Some(vm), What::ClockJump { by_ms }),
        }
        Ok(())
    }

    pub(super) fn note_fault(&self, id: u64, fault: &Fault) {
        let text = FaultKind::from(fault.clone()).to_string();
        self.note(only(fault).as_ref(), What::Fault { id, fault: text });
    }

    pub(super) fn note_heal(&self, id: u64, fault: &Fault, lasted: std::time::Duration) {
        let text = FaultKind::from(fault.clone()).to_string();
        let lasted_us = u64::try_from(lasted.as_micros()).unwrap_or(u64::MAX);
        self.note(only(fault).as_ref(), What::Heal { id, fault: text, lasted_us });
    }
}

/// The member a fault is about, if it is one.
fn only(fault: &Fault) -> Option<Name> {
    match super::faults::named(fault)[..] {
        [vm] => Some(vm.clone()),
        _ => None,
    }
}
