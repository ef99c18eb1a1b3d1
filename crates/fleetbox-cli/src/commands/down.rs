//! `down`: stops VMs side by side.

use tokio::task::JoinSet;

use super::resolve_all;
use crate::args::Down;
use crate::{Outcome, render};

pub(super) async fn run(args: Down) -> Outcome {
    let mut stops = JoinSet::new();
    for vm in resolve_all(&args.names)? {
        stops.spawn(async move { vm.stop_within(args.grace).await });
    }
    let mut worst = 0;
    while let Some(joined) = stops.join_next().await {
        match joined {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                render::complain(&error);
                worst = worst.max(crate::code_of(&error));
            }
            Err(_) => worst = 70,
        }
    }
    Ok(worst)
}
