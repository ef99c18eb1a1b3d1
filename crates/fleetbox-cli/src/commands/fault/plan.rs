//! `fault plan` and `fault replay`: a schedule of faults, printed so that it can be replayed, and
//! carried out. Standard output has the schedule alone, standard error what is done.

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use fleetbox::{Cluster, FaultPlan, PlanEvent};

use crate::args::fault::Plan;
use crate::commands::{net, printed};
use crate::{Outcome, render};

/// A schedule that is read is no longer than this: far above the longest there can be.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

pub(super) async fn run(args: Plan) -> Outcome {
    let cluster = net::clusters(&args.name).await?;
    let members = cluster.iter().map(|vm| vm.name().to_owned());
    // One that can be told in a word or two.
    let drawn = || RandomState::new().hash_one(0) >> 32;
    let plan = FaultPlan::builder(args.seed.unwrap_or_else(drawn))
        .members(members)
        .over(args.over)
        .kinds(args.kinds.unwrap_or_else(|| cluster.plan_kinds()))
        .mean_gap(args.mean_gap)
        .mean_length(args.mean_length)
        .build()?;
    let code = printed(write!(std::io::stdout(), "{plan}"))?;
    if args.dry_run || code != 0 {
        return Ok(code);
    }
    carry_out(&cluster, &plan).await
}

pub(super) async fn replay(name: &str, file: &Path) -> Outcome {
    let from = file.to_owned();
    // A terminal may never end it, and Ctrl-C must.
    let read = tokio::task::spawn_blocking(move || read(&from)).await;
    let text = match read.map_err(std::io::Error::other).flatten() {
        Ok(text) => text,
        Err(e) => {
            render::complain_io(&format!("read the plan {}", file.display()), &e);
            return Ok(2);
        }
    };
    let plan: FaultPlan = text.parse()?;
    carry_out(&net::clusters(name).await?, &plan).await
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let bytes = if file.as_os_str() == "-" {
        std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?
    } else {
        std::fs::File::open(file)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?
    };
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other("it is too long"));
    }
    Ok(text)
}

async fn carry_out(cluster: &Cluster, plan: &FaultPlan) -> Outcome {
    let report = cluster.run_plan_with(plan, tell).await?;
    let count = report.outcomes.len();
    say(&format!("{}  done: {count} faults, all healed", time(report.took)));
    Ok(0)
}

fn tell(event: &PlanEvent) {
    match event {
        PlanEvent::Began { step, at, .. } => say(&format!("{}  {}", time(*at), step.fault)),
        PlanEvent::Healed { step, at, .. } => {
            say(&format!("{}  healed: {}", time(*at), step.fault));
        }
        _ => {}
    }
}

fn time(at: Duration) -> String {
    format!("{:>9.3} s", at.as_secs_f64())
}

fn say(text: &str) {
    // Nobody reads standard error any more: the work itself goes on.
    drop(writeln!(std::io::stderr(), "{text}"));
}
