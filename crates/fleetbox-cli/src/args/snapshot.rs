//! Owns the grammar of `snapshot`. It must not act on it.

use clap::{Args as ClapArgs, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use super::Output;
use crate::complete;

#[derive(Debug, ClapArgs)]
pub(crate) struct Snapshot {
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Save a running VM, or all members of a cluster at one instant; `up NAME --from` makes others of it
    Save {
        /// A VM, or a cluster
        #[arg(value_name = "VM|CLUSTER", add = ArgValueCompleter::new(complete::names))]
        source: String,
        /// What to call the snapshot
        name: String,
    },
    /// Take running VMs back to when they were last saved, or to what they were made of
    Revert {
        /// Names of VMs or clusters
        #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::names))]
        names: Vec<String>,
    },
    /// List snapshots, and the golden machines that warm starts made for themselves
    #[command(visible_alias = "list")]
    Ls(Output),
    /// Delete snapshots; machines that were made of them and have been started since do not need them
    #[command(visible_alias = "remove")]
    Rm {
        /// Snapshots to delete; a golden machine goes by its number
        #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::snapshots))]
        names: Vec<String>,
    },
}
