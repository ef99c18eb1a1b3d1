//! Owns the grammar of the command line. It must not act on it.

pub(crate) mod fault;
pub(crate) mod image;
pub(crate) mod machine;
pub(crate) mod net;
pub(crate) mod snapshot;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::engine::ArgValueCompleter;
use fleetbox::Arch;

use self::image::ImageBuild;
use self::machine::Machine;
use crate::complete;

/// Throw-away Linux machines: real kernels, booted from stock cloud images.
#[derive(Debug, Parser)]
#[command(name = "fleetbox", version, propagate_version = true, subcommand_required = true)]
#[command(
    after_help = "State lives in ~/.fleetbox, or in FLEETBOX_HOME. `fleetbox doctor` tells what this host can do."
)]
pub(crate) struct Args {
    /// Say more on standard error; repeat for still more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start VMs: create what is missing, boot what is stopped
    #[command(visible_alias = "start")]
    Up(Up),
    /// Stop VMs; their disks stay
    #[command(visible_aliases = ["stop", "halt"])]
    Down(Down),
    /// List VMs
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Run a command in a new VM that goes when the command ends
    Run(Run),
    /// Run a program of this host, such as a test binary, in a new VM: for cargo's `runner`
    Runner(Runner),
    /// Run a command in a VM, or open a shell
    #[command(visible_alias = "shell")]
    Ssh(Ssh),
    /// Run a command in a VM: `ssh NAME -- COMMAND`
    Exec(Exec),
    /// Copy a file or directory to or from a VM (one side is `NAME:/PATH`)
    Cp(Cp),
    /// Print an OpenSSH client configuration for VMs
    SshConfig(Names),
    /// Print what a VM wrote to its console
    Logs(Logs),
    /// Make a port of a VM reachable at a loopback address
    Port(Port),
    /// Break the network of running VMs, and mend it
    Net(net::Net),
    /// Break running VMs on purpose: power, reset, pause, memory, disk, clock
    Fault(fault::Fault),
    /// Delete VMs, disks and all
    #[command(visible_aliases = ["remove", "destroy", "delete"])]
    Rm(Rm),
    /// Remove what killed processes left, if anything; print what
    Prune(Output),
    /// Save running VMs, to make others of them in a moment
    Snapshot(snapshot::Snapshot),
    /// Manage images
    Image(Image),
    /// Tell what this host can do, and how to mend what it cannot
    Doctor(Output),
    /// Print the version
    Version(Output),
    /// Print the shell code that turns on completion
    Completion {
        /// The shell to print it for
        shell: CompletionShell,
    },
    /// Write manual pages
    #[command(hide = true)]
    Man {
        /// The directory to write them to
        directory: PathBuf,
    },
    /// Pass a connection to a VM's port over standard output, for OpenSSH's `ProxyUseFdpass`
    #[command(hide = true)]
    Proxy { name: String, port: u16 },
}

impl Command {
    /// Whether Ctrl-C is its ordinary end.
    pub(crate) fn ends_by_interrupt(&self) -> bool {
        matches!(self, Command::Net(net::Net { command: net::NetCommand::Capture { .. } }))
    }

    /// Whether the exit code is the guest's.
    pub(crate) fn has_guest_code(&self) -> bool {
        matches!(self, Command::Run(_) | Command::Runner(_) | Command::Ssh(_) | Command::Exec(_))
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CompletionShell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Output {
    /// How to print the result
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: Format,
}

#[derive(Debug, ClapArgs)]
#[expect(clippy::struct_excessive_bools, reason = "independent flags")]
pub(crate) struct Up {
    /// Names of VMs, or with -n the prefix of their names. Several are one cluster: they reach each
    /// other by name, and come up all or none
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::names))]
    pub names: Vec<String>,
    /// Start the cluster NAME with the members NAME-1 to NAME-COUNT
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = count)]
    pub count: Option<usize>,
    /// How many may boot at once [default: as many as there are cores, at least 2]
    #[arg(long, value_name = "COUNT", value_parser = count)]
    pub at_once: Option<usize>,
    #[command(flatten)]
    pub machine: Machine,
    /// Restore a machine that was booted once for all of its kind, instead of booting each
    #[arg(long, conflicts_with = "from")]
    pub warm: bool,
    /// Make it of a snapshot: a VM, or a cluster if the snapshot has several machines
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "count", add = ArgValueCompleter::new(complete::snapshots))]
    pub from: Option<String>,
    /// Lose at a power cut what the guest did not flush, and nothing else
    #[arg(long)]
    pub durable: bool,
    /// Tell on standard error how long each stage of the start took, and what the guest says of its boot
    #[arg(long)]
    pub timings: bool,
    /// Give the host a route to the VMs of the cluster until the last has ended; only for root
    #[arg(long)]
    pub host_routable: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Run {
    #[command(flatten)]
    pub machine: Machine,
    /// Boot it, instead of restoring one that was booted once for all of its kind
    #[arg(long)]
    pub cold: bool,
    /// Run in a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Do not tell how far the start is
    #[arg(short, long)]
    pub quiet: bool,
    /// The command, its words as they are, or one word that is a line of shell; without one, a shell
    #[arg(trailing_var_arg = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Runner {
    #[command(flatten)]
    pub machine: Machine,
    /// Boot it, instead of restoring one that was booted once for all of its kind
    #[arg(long)]
    pub cold: bool,
    /// Run the program as root
    #[arg(long)]
    pub sudo: bool,
    /// Hand on this environment variable, too; repeat for more. Those of Rust, cargo and nextest are
    #[arg(long, value_name = "NAME")]
    pub env: Vec<String>,
    /// Do not tell how far the start is
    #[arg(short, long)]
    pub quiet: bool,
    /// The program
    #[arg(value_hint = ValueHint::ExecutablePath)]
    pub program: PathBuf,
    /// Its arguments. With `--list` among them it runs on this host
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    pub arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Down {
    /// Names of VMs or clusters
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::names))]
    pub names: Vec<String>,
    /// How long a guest may take to shut down before it is cut off; 0 cuts it off at once
    #[arg(long, value_name = "TIME", default_value = "60", value_parser = duration_or_zero)]
    pub grace: Duration,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Ls {
    /// Names of VMs or clusters; all VMs without one
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::names))]
    pub names: Vec<String>,
    /// Print names only
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Ssh {
    /// Name of the VM
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub name: String,
    /// Run in a terminal, also with a command
    #[arg(short, long)]
    pub tty: bool,
    /// The command; without one, a shell
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Exec {
    /// Name of the VM
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub name: String,
    /// Run in a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// The command
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Cp {
    /// A path of this host, or `NAME:/PATH`
    #[arg(value_hint = ValueHint::AnyPath, add = ArgValueCompleter::new(complete::sides))]
    pub from: String,
    /// A path of this host, or `NAME:/PATH`; an existing directory takes the copy in
    #[arg(value_hint = ValueHint::AnyPath, add = ArgValueCompleter::new(complete::sides))]
    pub to: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Names {
    /// Names of VMs or clusters; all VMs without one
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::names))]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Logs {
    /// Name of the VM
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub name: String,
    /// Go on printing what is added
    #[arg(short, long)]
    pub follow: bool,
    /// Print only the last LINES lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Port {
    /// Name of the VM
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub name: String,
    /// TCP port of the VM
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Loopback address to listen at; port 0 is any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Listen at any address of this host instead: whoever reaches it reaches the VM's port
    #[arg(long, value_name = "ADDRESS", conflicts_with = "listen")]
    pub publish: Option<SocketAddr>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rm {
    /// Names of VMs or clusters
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::names))]
    pub names: Vec<String>,
    /// Do not ask, and do not mind what is not there
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Image {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images: those here, and those that would be fetched
    #[command(visible_alias = "list")]
    Ls(Output),
    /// Fetch an image
    Pull {
        /// An alias or a URL, which `#sha256=…` pins
        #[arg(add = ArgValueCompleter::new(complete::images))]
        image: String,
        /// Architecture [default: the host's]
        #[arg(long)]
        arch: Option<Arch>,
    },
    /// Delete an image
    #[command(visible_alias = "remove")]
    Rm {
        /// Images to delete
        #[arg(required = true, value_name = "IMAGE", add = ArgValueCompleter::new(complete::images))]
        images: Vec<String>,
        /// Also when a VM's disk lies on it, which can never start again, or an image, which goes too
        #[arg(short, long)]
        force: bool,
    },
    /// Take a disk file in under a name
    Import {
        /// A raw or qcow2 disk
        #[arg(value_hint = ValueHint::FilePath)]
        path: PathBuf,
        /// The name
        alias: String,
        /// Architecture [default: the host's]
        #[arg(long)]
        arch: Option<Arch>,
    },
    /// Build debian-12 or debian-13 from this host's Debian packages, or with -f an image from another
    Build(ImageBuild),
}

/// As many as a cluster has members at most.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=240) => Ok(count),
        _ => Err(format!("\"{text}\" is no number of VMs; give 1 to 240")),
    }
}

fn size(text: &str, units: &[(&str, u32)]) -> Option<u32> {
    let (digits, unit) = split(text);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.to_ascii_uppercase())?;
    digits.parse::<u32>().ok()?.checked_mul(*factor)
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(format!("\"{text}\" is no time; give seconds, or a unit such as 90s or 5m")),
    }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let seconds = size(text, &[("", 1), ("S", 1), ("M", 60), ("H", 3600)]).ok_or_else(|| {
        format!("\"{text}\" is no time; give seconds, or a unit such as 90s or 5m")
    })?;
    Ok(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_take_units() {
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(duration_or_zero("0"), Ok(Duration::ZERO));
        assert!(duration("0").is_err());
    }

    #[test]
    fn aliases_are_the_ones_people_type() {
        for words in [
            ["fleetbox", "start", "a"],
            ["fleetbox", "stop", "a"],
            ["fleetbox", "halt", "a"],
            ["fleetbox", "shell", "a"],
            ["fleetbox", "remove", "a"],
            ["fleetbox", "destroy", "a"],
            ["fleetbox", "delete", "a"],
        ] {
            assert!(Args::try_parse_from(words).is_ok(), "{words:?}");
        }
        assert!(Args::try_parse_from(["fleetbox", "list"]).is_ok());
    }

    #[test]
    fn a_command_after_the_dashes_keeps_its_own_flags() {
        let args = Args::try_parse_from(["fleetbox", "ssh", "web", "--", "ls", "-la"]).unwrap();
        assert!(
            matches!(args.command, Command::Ssh(Ssh { command, .. }) if command == ["ls", "-la"])
        );
        let args = Args::try_parse_from(["fleetbox", "exec", "web", "ls", "-la"]).unwrap();
        assert!(
            matches!(args.command, Command::Exec(Exec { command, .. }) if command == ["ls", "-la"])
        );
        let args = Args::try_parse_from(["fleetbox", "exec", "web", "--", "ls", "-la"]).unwrap();
        assert!(
            matches!(args.command, Command::Exec(Exec { command, .. }) if command == ["ls", "-la"])
        );
    }
}
