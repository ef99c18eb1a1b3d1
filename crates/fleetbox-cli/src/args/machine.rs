//! Owns the grammar of what a new VM shall be. It must not act on it.

use std::time::Duration;

use clap::{Args as ClapArgs, ValueHint};
use clap_complete::engine::ArgValueCompleter;
use fleetbox::{Arch, Backend, Fixture};

use super::{duration, size};
use crate::complete;

/// Options of a VM to start.
#[derive(Debug, ClapArgs)]
pub(crate) struct Machine {
    /// Image: an alias, a URL or a path [default: debian-12]
    #[arg(long, add = ArgValueCompleter::new(complete::images))]
    pub image: Option<String>,
    /// Virtual CPUs [default: 2]
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory in MiB, or with a unit: 512M, 2G [default: 4096]
    #[arg(long, value_name = "MIB", value_parser = memory_mib)]
    pub memory: Option<u32>,
    /// Disk size in GiB [default: 20]
    #[arg(long, value_name = "GIB", value_parser = disk_gib)]
    pub disk: Option<u32>,
    /// Architecture of the guest: `x86_64` or `aarch64` [default: the host's]
    #[arg(long)]
    pub arch: Option<Arch>,
    /// Give the guest a directory of this host, read-only: `HOST:GUEST`, or `HOST:GUEST:modes` to keep
    /// permission bits; repeat for more
    #[arg(long, value_name = "HOST:GUEST", value_parser = fixture, value_hint = ValueHint::DirPath)]
    pub fixture: Vec<Fixture>,
    /// Let KVM work inside the guest
    #[arg(long)]
    pub nested: bool,
    /// Backend to run it with
    #[arg(long)]
    pub backend: Option<Backend>,
    /// How long the guest may take, in seconds or with a unit: 90, 5m
    #[arg(long, value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// `./site:/srv/site`, `./tools:/opt/tools:modes`.
fn fixture(text: &str) -> Result<Fixture, String> {
    text.parse()
        .map_err(|_| format!("\"{text}\" is no fixture; give HOST:GUEST such as ./site:/srv/site"))
}

/// `2048`, `512M`, `2G`, `2GiB`.
pub(super) fn memory_mib(text: &str) -> Result<u32, String> {
    size(text, &[("", 1), ("M", 1), ("MIB", 1), ("G", 1024), ("GIB", 1024)])
        .ok_or_else(|| format!("\"{text}\" is no memory size; give MiB such as 2048, or 2G"))
}

/// `20`, `20G`, `1T`.
pub(super) fn disk_gib(text: &str) -> Result<u32, String> {
    size(text, &[("", 1), ("G", 1), ("GIB", 1), ("T", 1024), ("TIB", 1024)])
        .ok_or_else(|| format!("\"{text}\" is no disk size; give GiB such as 20, or 1T"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units() {
        assert_eq!(memory_mib("2048"), Ok(2048));
        assert_eq!(memory_mib("2g"), Ok(2048));
        assert_eq!(disk_gib("1T"), Ok(1024));
        for bad in ["", "G", "-1", "1.5G", "2K", "99999999999G"] {
            assert!(memory_mib(bad).is_err(), "{bad}");
        }
    }
}
