//! Owns the peer of a cold boot: QEMU alone, with the very arguments and files of one of our
//! machines, except that its network is QEMU's own, since ours needs a holder.

use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fleetbox::Vm;

use super::stage::{Image, Stage};
use crate::failure::{Failure, Outcome};
use crate::process;

/// As the library waits between two tries to log in.
const POLL_FIRST: Duration = Duration::from_millis(20);
const POLL_LAST: Duration = Duration::from_millis(250);
const GREETING_WAIT: Duration = Duration::from_secs(2);
/// No emulated guest takes as long.
const BOOT_LIMIT: Duration = Duration::from_mins(10);
/// Where the seed says the guest is, and the network around it.
const GATEWAY: &str = "10.213.77.1";
const NETWORK: &str = "10.213.77.0/24";
const LEASES_FROM: &str = "10.213.77.100";
const SSH_PORT: u16 = 22;

/// What is kept of a machine of ours to boot it again without us.
pub(super) struct Kept {
    arguments: Vec<String>,
    seed: PathBuf,
    disk: PathBuf,
    console: PathBuf,
    config: PathBuf,
    host: String,
    /// Where its sshd is reached.
    at: (String, u16),
    /// Its `-netdev`.
    network: String,
}

/// A monitor that ends with the value.
pub(super) struct Monitor(pub(super) Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Kept {
    /// Takes what the machine was made of, while it runs, for a network of QEMU's own.
    pub(super) fn of(stage: &Stage, vm: &Vm) -> Outcome<Self> {
        let port = free_port()?;
        let network = format!(
            "user,id=net0,net={NETWORK},host={GATEWAY},dhcpstart={LEASES_FROM},\
             hostfwd=tcp:127.0.0.1:{port}-{}:22",
            "10.213.77.10"
        );
        Self::with(stage, vm, ("127.0.0.1".to_owned(), port), network)
    }

    /// The same on a tap that is there already and leads to the machine's own address.
    pub(super) fn on_tap(stage: &Stage, vm: &Vm, tap: &str) -> Outcome<Self> {
        let network = format!("tap,id=net0,ifname={tap},script=no,downscript=no,vhost=off");
        Self::with(stage, vm, (vm.address().to_string(), SSH_PORT), network)
    }

    fn with(stage: &Stage, vm: &Vm, at: (String, u16), network: String) -> Outcome<Self> {
        let console = vm.console_path();
        let member = console.parent().unwrap_or(&console);
        let log = member.join("vmm.log");
        let text = std::fs::read_to_string(&log).map_err(Failure::io("read", &log))?;
        let arguments = split(text.lines().next().unwrap_or_default());
        let file = |what: &str| stage.file(&format!("bare-{}-{what}", vm.name()));
        let kept = |name: &str| -> Outcome<PathBuf> {
            let to = file(name);
            std::fs::copy(member.join(name), &to).map_err(Failure::io("copy", &to))?;
            Ok(to)
        };
        let (seed, known_hosts) = (kept("seed.img")?, kept("known_hosts")?);
        let config = file("ssh_config");
        let text = direct(&vm.ssh_config(Path::new("fleetbox"))?, &known_hosts, &at.0, at.1);
        std::fs::write(&config, text).map_err(Failure::io("write", &config))?;
        let (disk, console) = (file("disk.qcow2"), file("console.log"));
        Ok(Self { arguments, seed, disk, console, config, host: vm.name().to_owned(), at, network })
    }

    /// Boots it on a new disk and waits for the first output.
    pub(super) fn boot(&self, stage: &Stage, image: &Image) -> Outcome<Duration> {
        let mut qemu = self.command(image)?;
        let began = Instant::now();
        let mut monitor = spawn(&mut qemu)?;
        self.wait(stage, &mut monitor)?;
        Ok(began.elapsed())
    }

    /// Changes its arguments; none leaves the option out.
    pub(super) fn with_arguments(mut self, change: impl Fn(&str) -> Option<String>) -> Self {
        self.arguments = self.arguments.iter().filter_map(|argument| change(argument)).collect();
        self
    }

    /// The same machine with another seed.
    pub(super) fn with_seed(self, seed: PathBuf) -> Self {
        Self { seed, ..self }
    }

    /// What it is expected to show its sshd's key as.
    pub(super) fn expects(&self, stage: &Stage, host_key: &str) -> Outcome<()> {
        let known_hosts = stage.file(&format!("bare-{}-known_hosts", self.host));
        std::fs::write(&known_hosts, format!("{} {host_key}\n", self.host))
            .map_err(Failure::io("write", &known_hosts))
    }

    /// Whatever key its sshd has made for itself will do.
    pub(super) fn trusts_any(&self) -> Outcome<()> {
        let text =
            std::fs::read_to_string(&self.config).map_err(Failure::io("read", &self.config))?;
        let kept =
            |line: &&str| !["StrictHostKeyChecking", "KnownHosts"].iter().any(|w| line.contains(w));
        let text = text.lines().filter(kept).collect::<Vec<_>>().join("\n");
        let any =
            "\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n";
        std::fs::write(&self.config, text + any).map_err(Failure::io("write", &self.config))
    }

    /// QEMU as it would be run, on a new disk.
    pub(super) fn qemu(&self, image: &Image) -> Outcome<Command> {
        self.command(image)
    }

    /// Boots it on a new disk.
    pub(super) fn start(&self, image: &Image) -> Outcome<Monitor> {
        spawn(&mut self.command(image)?)
    }

    /// Waits for its first output.
    pub(super) fn wait(&self, stage: &Stage, monitor: &mut Monitor) -> Outcome<()> {
        let began = Instant::now();
        let mut pause = POLL_FIRST;
        loop {
            if self.greets() && process::run(&mut self.ssh("uname")).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = monitor.0.try_wait() {
                return Err(Failure::new(format!("bare QEMU ended with {status}")));
            }
            if began.elapsed() > BOOT_LIMIT {
                return Err(Failure::new("the guest of bare QEMU did not come up"));
            }
            stage.pause(pause)?;
            pause = (pause * 2).min(POLL_LAST);
        }
    }

    /// Whether the guest's sshd says its first word. QEMU's network accepts before the guest does,
    /// and then waits longer and longer between its tries to reach it: short looks are faster.
    fn greets(&self) -> bool {
        let look = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect((self.at.0.as_str(), self.at.1))?;
            stream.set_read_timeout(Some(GREETING_WAIT))?;
            let mut word = [0; 4];
            stream.read_exact(&mut word)?;
            Ok(&word == b"SSH-")
        };
        look().unwrap_or(false)
    }

    /// A line run in the guest. Without a limit of its own: a slow login must not have to begin again.
    pub(super) fn ssh(&self, line: &str) -> Command {
        let mut ssh = process::command("ssh");
        ssh.args(["-o", "BatchMode=yes", "-F"]);
        ssh.arg(&self.config).arg(&self.host).arg(line);
        ssh
    }

    fn command(&self, image: &Image) -> Outcome<Command> {
        let Some((program, arguments)) = self.arguments.split_first() else {
            return Err(Failure::new("the monitor's log does not begin with its command line"));
        };
        let mut create = process::command("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        process::run(create.args([&image.path, &self.disk]).arg("20G"))?;
        let mut qemu = process::command(program);
        for pair in arguments.chunk_by(|_, next| !next.starts_with('-')) {
            let [option, value @ ..] = pair else { continue };
            let Some(value) = value.first() else {
                qemu.arg(option);
                continue;
            };
            match redirect(value, &self.disk, &self.seed, &self.console, &self.network) {
                Some(value) => qemu.arg(option).arg(value),
                None => continue,
            };
        }
        qemu.stdout(Stdio::null()).stderr(Stdio::inherit());
        Ok(qemu)
    }
}

fn spawn(qemu: &mut Command) -> Outcome<Monitor> {
    qemu.spawn().map(Monitor).map_err(|e| Failure::new(format!("failed to run QEMU: {e}")))
}

/// The value of an option with our files and fds replaced; none if the option is about one we do
/// without.
fn redirect(
    value: &str,
    disk: &Path,
    seed: &Path,
    console: &Path,
    network: &str,
) -> Option<String> {
    let file = |key: &str, path: &Path| {
        let begin = value.find(key).map_or(0, |at| at + key.len());
        let end = value[begin..].find(',').map_or(value.len(), |at| begin + at);
        format!("{}{}{}", &value[..begin], path.display(), &value[end..])
    };
    Some(match value {
        _ if value.contains("node-name=file0,") => file("filename=", disk),
        _ if value.contains("node-name=seed0,") => file("filename=", seed),
        _ if value.contains("id=console0,") => file("path=", console),
        _ if value.starts_with("tap,") => network.to_owned(),
        _ if value.contains("qmp0") => return None,
        _ => value.to_owned(),
    })
}

/// The arguments of a line joined by spaces. Each option has one value at most, so whatever does
/// not look like an option belongs to the value before it.
fn split(line: &str) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut in_value = false;
    for word in line.split(' ') {
        let option = word.starts_with('-');
        match arguments.last_mut() {
            Some(value) if in_value && !option => {
                value.push(' ');
                value.push_str(word);
            }
            last => {
                in_value = last.is_some() && !option;
                arguments.push(word.to_owned());
            }
        }
    }
    arguments
}

/// The client's configuration with a plain connection to an address and port.
pub(super) fn direct(config: &str, known_hosts: &Path, address: &str, port: u16) -> String {
    let mut text = String::new();
    for line in config.lines() {
        let replaced = match line.split_whitespace().next() {
            Some("ProxyCommand" | "ProxyUseFdpass") => continue,
            Some("HostName") => format!("  HostName {address}\n  Port {port}"),
            Some("UserKnownHostsFile") => {
                format!("  UserKnownHostsFile \"{}\"", known_hosts.display())
            }
            _ => line.to_owned(),
        };
        text.push_str(&replaced);
        text.push('\n');
    }
    text
}

/// One that was free a moment ago.
fn free_port() -> Outcome<u16> {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| Failure::new(format!("failed to find a free port: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_spaces_stay_whole() {
        let line = "/usr/bin/qemu -nodefaults -append root=/dev/vda1 console=ttyS0 quiet -m 1024M";
        let expected = [
            "/usr/bin/qemu",
            "-nodefaults",
            "-append",
            "root=/dev/vda1 console=ttyS0 quiet",
            "-m",
            "1024M",
        ];
        assert_eq!(split(line), expected);
    }

    #[test]
    fn our_files_and_fds_are_replaced_and_the_machine_is_not() {
        let redirected = |value| {
            redirect(value, Path::new("/d"), Path::new("/s"), Path::new("/c"), "user,id=net0")
        };
        let disk = redirected("driver=file,filename=/x/disk.qcow2,node-name=file0,discard=unmap");
        assert_eq!(disk.unwrap(), "driver=file,filename=/d,node-name=file0,discard=unmap");
        let above = "driver=qcow2,node-name=disk0,file=file0,discard=unmap";
        assert_eq!(redirected(above).unwrap(), above);
        assert_eq!(
            redirected("file,id=console0,path=/x/c.log").unwrap(),
            "file,id=console0,path=/c"
        );
        assert_eq!(redirected("tap,id=net0,fd=10,vhost=off").unwrap(), "user,id=net0");
        assert_eq!(redirected("socket,id=qmp0,fd=11"), None);
        assert_eq!(redirected("q35,hpet=off").unwrap(), "q35,hpet=off");
    }

    #[test]
    fn the_configuration_goes_to_the_forwarded_port() {
        let config = "Host web\n  HostName web\n  User f\n  UserKnownHostsFile \"/x\"\n  ProxyCommand fleetbox proxy web %p\n  ProxyUseFdpass yes\n";
        let expected =
            "Host web\n  HostName 127.0.0.1\n  Port 2222\n  User f\n  UserKnownHostsFile \"/k\"\n";
        assert_eq!(direct(config, Path::new("/k"), "127.0.0.1", 2222), expected);
    }
}
