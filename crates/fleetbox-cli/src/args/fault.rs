//! Owns the grammar of `fault`. It must not act on it.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args as ClapArgs, Subcommand, ValueHint};
use clap_complete::ArgValueCompleter;
use fleetbox::PlanKind;

use super::Output;
use crate::complete;

#[derive(Debug, ClapArgs)]
pub(crate) struct Fault {
    #[command(subcommand)]
    pub command: FaultCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FaultCommand {
    /// Pull the plug: what was not synced may be lost; `up` boots the disk that is left
    PowerCut(Machines),
    /// Press the reset button and wait until the VM answers again
    Reset(Machines),
    /// Let the processors stand still; `ssh` waits until they go on
    Pause(Machines),
    /// Let paused processors go on
    Resume(Machines),
    /// Take memory from the guest, as by a balloon in it; 0 gives all back
    Memory {
        #[command(flatten)]
        machines: Machines,
        /// How much, in MiB
        #[arg(long, value_name = "MIB")]
        take_mib: u32,
    },
    /// Make the disk slow or failing, or fill it: `fault disk web --iops 20 --write-errors`
    Disk(Disk),
    /// Let the guest's wall clock jump: `fault clock web --by=-1h`
    Clock {
        #[command(flatten)]
        machines: Machines,
        /// How far: `90s`, `1h 30m`; back with a minus sign before it
        #[arg(long, value_name = "TIME", value_parser = jump, allow_hyphen_values = true)]
        by: i64,
    },
    /// Break a cluster by a schedule drawn from a seed: print it, carry it out, heal everything
    Plan(Plan),
    /// Carry out a schedule of faults as `fault plan` prints it
    Replay {
        /// Name of the cluster, or of a VM in it
        #[arg(value_name = "CLUSTER", add = ArgValueCompleter::new(complete::names))]
        name: String,
        /// The schedule; `-` is standard input
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Print what was done to a cluster: faults, heals, boots, ends, power cuts, pauses, …
    Timeline {
        /// Name of the cluster, or of a VM in it
        #[arg(value_name = "CLUSTER", add = ArgValueCompleter::new(complete::names))]
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, ClapArgs)]
#[group(id = "done", required = true, multiple = true)]
#[command(mut_group("done", |g| g.args(["iops", "kib_per_s", "read_errors", "write_errors", "leave_mib", "heal"])))]
pub(crate) struct Disk {
    #[command(flatten)]
    pub machines: Machines,
    /// Requests it takes in a second, at most
    #[arg(long, value_name = "NUMBER")]
    pub iops: Option<u64>,
    /// KiB it reads and writes in a second, at most
    #[arg(long, value_name = "KIB")]
    pub kib_per_s: Option<u64>,
    /// Let every read fail
    #[arg(long)]
    pub read_errors: bool,
    /// Let every write fail
    #[arg(long)]
    pub write_errors: bool,
    /// Fill the root file system until so much is left; 0 leaves none
    #[arg(long, value_name = "MIB")]
    pub leave_mib: Option<u32>,
    /// Make it good again
    #[arg(long, conflicts_with_all = ["iops", "kib_per_s", "read_errors", "write_errors", "leave_mib"])]
    pub heal: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Plan {
    /// Name of the cluster, or of a VM in it
    #[arg(value_name = "CLUSTER", add = ArgValueCompleter::new(complete::names))]
    pub name: String,
    /// What it is drawn from: the same seed and settings are the same schedule [default: drawn]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub seed: Option<u64>,
    /// How long all of it takes: 90s, 5m
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = super::net::time)]
    pub over: Duration,
    /// Kinds of faults, separated by commas [default: all that the VMs' backends can have]
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kinds())]
    pub kinds: Option<Vec<PlanKind>>,
    /// Time from one fault to the next, on average
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = super::net::time)]
    pub mean_gap: Duration,
    /// How long a fault lasts, on average
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = super::net::time)]
    pub mean_length: Duration,
    /// Print it only
    #[arg(long)]
    pub dry_run: bool,
}

/// The words of kinds, for help and completion too.
fn kinds() -> impl TypedValueParser<Value = PlanKind> {
    PossibleValuesParser::new(PlanKind::ALL.map(PlanKind::as_str))
        .try_map(|word| word.parse::<PlanKind>())
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Machines {
    /// Names of VMs, or of clusters for all their VMs
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::names))]
    pub names: Vec<String>,
}

/// Milliseconds, with a sign.
fn jump(text: &str) -> Result<i64, String> {
    let (sign, length) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let length = humantime::parse_duration(length).map_err(|e| e.to_string())?;
    let ms = i64::try_from(length.as_millis()).map_err(|_| "it is too far".to_owned())?;
    Ok(sign * ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_have_a_sign_and_a_unit() {
        assert_eq!(jump("90s"), Ok(90_000));
        assert_eq!(jump("+1h 30m"), Ok(5_400_000));
        assert_eq!(jump("-250ms"), Ok(-250));
        assert!(jump("90").is_err() && jump("").is_err() && jump("--1s").is_err());
        assert!(jump("900000000000000years").is_err());
    }
}
