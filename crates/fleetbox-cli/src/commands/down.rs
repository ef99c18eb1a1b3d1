//! `down`: stops VMs side by side.

use super::each;
use crate::Outcome;
use crate::args::Down;

pub(super) async fn run(args: Down) -> Outcome {
    each(&args.names, move |vm| async move { vm.stop_within(args.grace).await }).await
}
