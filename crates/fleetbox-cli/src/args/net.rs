//! Owns the grammar of `net`. It must not act on it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand, ValueEnum, ValueHint};
use clap_complete::ArgValueCompleter;

use super::Output;
use crate::complete;

#[derive(Debug, ClapArgs)]
pub(crate) struct Net {
    #[command(subcommand)]
    pub command: NetCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetCommand {
    /// Cut a VM off from all others and from the world; `ssh` still reaches it
    Isolate {
        /// Name of the VM
        #[arg(add = ArgValueCompleter::new(complete::vms))]
        vm: String,
    },
    /// Let nothing through between groups: `net partition a,b / c`
    Partition {
        /// Names of VMs, groups separated by `/`; without one, each word is a group
        #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(complete::vms))]
        groups: Vec<String>,
    },
    /// Let nothing through from one VM to another; the way back stays
    Cut {
        /// The VM whose frames shall not arrive
        #[arg(add = ArgValueCompleter::new(complete::vms))]
        from: String,
        /// The VM at which they shall not
        #[arg(add = ArgValueCompleter::new(complete::vms))]
        to: String,
    },
    /// Make the link of a VM bad, or the one between two: `net link a b --latency 50ms --loss 10%`
    Link(Link),
    /// Set what VMs may reach outside: `net egress node only deb.debian.org:80`
    Egress(Egress),
    /// Write packets to a file for Wireshark and tcpdump, until Ctrl-C
    Capture {
        /// Name of a VM, or of a cluster for all between its VMs
        #[arg(add = ArgValueCompleter::new(complete::vms))]
        name: String,
        /// The pcap file, made anew; `-` is standard output
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        write: PathBuf,
    },
    /// Mend everything in a cluster's network
    Heal {
        /// Name of the cluster, or of a VM in it
        #[arg(value_name = "CLUSTER", add = ArgValueCompleter::new(complete::vms))]
        name: String,
    },
    /// List what is broken now
    Show {
        /// Names of clusters, or of VMs in them; all without one
        #[arg(value_name = "CLUSTER", add = ArgValueCompleter::new(complete::vms))]
        names: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Link {
    /// The VM
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub vm: String,
    /// The VM at the other end [default: everybody else and the world]
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub peer: Option<String>,
    /// How much later frames arrive, each way: 50ms, 1s
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub latency: Option<Duration>,
    /// How much more or less than the latency at most
    #[arg(long, value_name = "TIME", value_parser = time, requires = "latency")]
    pub jitter: Option<Duration>,
    /// The share of frames that are lost: 10%, 0.1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub loss: Option<f64>,
    /// The share of frames that arrive twice
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub duplicate: Option<f64>,
    /// The share of frames that the next one overtakes
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub reorder: Option<f64>,
    /// What the link carries a second: 512kbit, 10mbit, 1gbit
    #[arg(long, value_name = "RATE", value_parser = kbit_per_s)]
    pub bandwidth: Option<u64>,
    /// Throw the dice as another time [default: drawn]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Egress {
    /// Name of a VM, or of a cluster for all in it
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub name: String,
    /// What is allowed
    pub policy: PolicyWord,
    /// With `only`: hosts (example.org), all below one (*.example.org), addresses, networks
    /// (10.0.0.0/8), each with or without a port (:443)
    #[arg(value_name = "DESTINATION", required_if_eq("policy", "only"))]
    pub destinations: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyWord {
    /// Everything the host reaches
    Allow,
    /// Nothing
    Deny,
    /// The destinations that follow
    Only,
}

/// `50ms`, `1s`; a number alone would be a riddle.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("\"{text}\" is no time; give a number and a unit: 50ms, 1s"))
}

/// `10%`, `0.1`. Whether there can be that much is the library's to say.
fn share(text: &str) -> Result<f64, String> {
    let refused = || format!("\"{text}\" is no share; give 10% or 0.1");
    let (number, whole) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let number: f64 = number.trim().parse().map_err(|_| refused())?;
    if (0.0..=whole).contains(&number) { Ok(number / whole) } else { Err(refused()) }
}

/// `512kbit`, `10mbit`, `1gbit`, in thousands as links are sold.
fn kbit_per_s(text: &str) -> Result<u64, String> {
    let refused = || format!("\"{text}\" is no bandwidth; give 512kbit, 10mbit or 1gbit");
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix("/s").unwrap_or(&lower);
    let (digits, unit) = super::split(lower);
    let factor = match unit.trim() {
        "kbit" => 1,
        "mbit" => 1000,
        "gbit" => 1_000_000,
        _ => return Err(refused()),
    };
    let number: u64 = digits.parse().map_err(|_| refused())?;
    number.checked_mul(factor).filter(|kbit| *kbit > 0).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_shares_and_rates_take_units() {
        assert_eq!(time("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(share("10%"), Ok(0.1));
        assert_eq!(share("0.1"), Ok(0.1));
        assert_eq!(share("1"), Ok(1.0));
        assert_eq!(kbit_per_s("10mbit"), Ok(10_000));
        assert_eq!(kbit_per_s("10Mbit/s"), Ok(10_000));
        for bad in ["", "5", "-5ms", "x"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        for bad in ["", "%", "101%", "-1%", "1.5", "nan", "inf"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        for bad in ["", "10", "0mbit", "-1mbit", "10mb", "99999999999999gbit"] {
            assert!(kbit_per_s(bad).is_err(), "{bad}");
        }
    }
}
