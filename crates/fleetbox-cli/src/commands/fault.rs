//! `fault`: breaks running machines on purpose, several side by side.

use super::each;
use crate::Outcome;
use crate::args::fault::{Fault, FaultCommand};

pub(super) async fn run(args: Fault) -> Outcome {
    match args.command {
        FaultCommand::PowerCut(on) => {
            each(&on.names, |vm| async move { vm.power_cut().await }).await
        }
        FaultCommand::Reset(on) => each(&on.names, |vm| async move { vm.reset().await }).await,
        FaultCommand::Pause(on) => each(&on.names, |vm| async move { vm.pause().await }).await,
        FaultCommand::Resume(on) => each(&on.names, |vm| async move { vm.resume().await }).await,
        FaultCommand::Memory { machines: on, take_mib } => {
            each(&on.names, move |vm| async move { vm.set_balloon_mib(take_mib).await }).await
        }
        FaultCommand::Clock { machines: on, by } => {
            each(&on.names, move |vm| async move { vm.clock_jump(by).await }).await
        }
    }
}
