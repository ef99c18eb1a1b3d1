//! Owns the grammar of building images. It must not act on it.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueHint};
use fleetbox::Arch;

use super::machine::{disk_gib, memory_mib};

#[derive(Debug, ClapArgs)]
#[command(group = clap::ArgGroup::new("what").args(["alias", "file"]).required(true))]
pub(crate) struct ImageBuild {
    /// debian-12 or debian-13
    pub alias: Option<String>,
    /// Make it from another image by the steps in FILE: lines such as `from debian-12`,
    /// `run apt-get install -y nginx`, `copy site /var/www/html`, `env NAME=VALUE` and `# comments`; `\` at
    /// the end of a line goes on. Steps that were run before are not run again
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// The name to keep it under, needed with --include [default: what is built; with -f a number]
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,
    /// Architecture [default: the host's]
    #[arg(long)]
    pub arch: Option<Arch>,
    /// More packages to put in, separated by commas
    #[arg(
        long = "include",
        alias = "package",
        value_name = "PACKAGE",
        value_delimiter = ',',
        conflicts_with = "file"
    )]
    pub packages: Vec<String>,
    /// Debian mirror to take all packages from [default: the host's own sources]
    #[arg(long, value_name = "URL", conflicts_with = "file")]
    pub mirror: Option<String>,
    /// With -f: virtual CPUs of the VM that runs the steps [default: 2]
    #[arg(long, conflicts_with = "alias")]
    pub cpus: Option<u32>,
    /// With -f: memory of the VM that runs the steps, in MiB or with a unit [default: 4096]
    #[arg(long, value_name = "MIB", value_parser = memory_mib, conflicts_with = "alias")]
    pub memory: Option<u32>,
    /// With -f: its disk size in GiB, which no VM made of the image can go below [default: 20]
    #[arg(long, value_name = "GIB", value_parser = disk_gib, conflicts_with = "alias")]
    pub disk: Option<u32>,
}
