//! Owns the peer of a start on KVM: cloud-hypervisor alone, with the very arguments and files of one
//! of our machines, except that its tap is made by hand in a namespace of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fleetbox::Vm;

use super::stage::{Image, Stage};
use crate::failure::{Failure, Outcome};
use crate::process;

/// Makes the tap, runs what it is given on it, and waits for the first output of the guest. `$1` is
/// the client's configuration, `$2` the guest's name there.
const SCRIPT: &str = "
config=$1 guest=$2; shift 2
ip tuntap add dev bare0 mode tap && ip address add 10.213.77.1/24 dev bare0 && ip link set bare0 up || exit 1
\"$@\" </dev/null >/dev/null &
until ssh -o BatchMode=yes -o ConnectTimeout=1 -F \"$config\" \"$guest\" uname >/dev/null 2>&1; do
    kill -0 $! || exit 2
    sleep 0.1
done
echo up
kill -9 $!
";
const TAP: &str = "bare0";

/// What is kept of a machine of ours to boot it again without us.
pub(super) struct Kept {
    arguments: Vec<String>,
    seed: PathBuf,
    config: PathBuf,
    host: String,
}

impl Kept {
    /// Takes what the machine was made of, while it runs.
    pub(super) fn of(stage: &Stage, vm: &Vm) -> Outcome<Self> {
        let console = vm.console_path();
        let member = console.parent().unwrap_or(&console);
        let log = member.join("vmm.log");
        let text = std::fs::read_to_string(&log).map_err(Failure::io("read", &log))?;
        let kept = |name: &str| -> Outcome<PathBuf> {
            let to = stage.file(name);
            std::fs::copy(member.join(name), &to).map_err(Failure::io("copy", &to))?;
            Ok(to)
        };
        let (seed, known_hosts) = (kept("seed.img")?, kept("known_hosts")?);
        let config = stage.file("bare_kvm_config");
        let address = vm.address().to_string();
        let text_of = direct(&vm.ssh_config(Path::new("fleetbox"))?, &known_hosts, &address);
        std::fs::write(&config, text_of).map_err(Failure::io("write", &config))?;
        let arguments = split(text.lines().next().unwrap_or_default());
        Ok(Self { arguments, seed, config, host: vm.name().to_owned() })
    }

    /// Boots it on a new disk and waits for the first output.
    pub(super) fn boot(&self, stage: &Stage, image: &Image) -> Outcome<Duration> {
        let (disk, console) = (stage.file("bare_kvm.qcow2"), stage.file("bare_kvm.log"));
        let mut create = process::command("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        process::run(create.args([&image.path, &disk]).arg("20G"))?;
        let mut alone = process::command("unshare");
        alone.args(["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]);
        alone.args(["sh", "-c", SCRIPT, "sh"]).arg(&self.config).arg(&self.host);
        alone.args(redirected(&self.arguments, &disk, &self.seed, &console));
        let began = Instant::now();
        let output = alone
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| Failure::new(format!("failed to run unshare: {e}")))?;
        let took = began.elapsed();
        if output.stdout.starts_with(b"up") {
            return Ok(took);
        }
        Err(Failure::new(format!("bare cloud-hypervisor ended with {}", output.status)))
    }
}

/// The arguments of a line joined by spaces: the value of `--cmdline` is one, every other has none
/// in it.
fn split(line: &str) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut in_cmdline = false;
    for word in line.split(' ') {
        if word.starts_with("--") {
            in_cmdline = word == "--cmdline";
            arguments.push(word.to_owned());
            if in_cmdline {
                arguments.push(String::new());
            }
        } else if in_cmdline && let Some(cmdline) = arguments.last_mut() {
            if !cmdline.is_empty() {
                cmdline.push(' ');
            }
            cmdline.push_str(word);
        } else {
            arguments.push(word.to_owned());
        }
    }
    arguments
}

/// With our files and fds replaced, and without what only we can ask.
fn redirected(arguments: &[String], disk: &Path, seed: &Path, console: &Path) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let file = |path: &Path| {
            let rest = word.find(',').map_or("", |at| &word[at..]);
            format!("path={}{rest}", path.display())
        };
        match word.as_str() {
            "--api-socket" | "--event-monitor" => drop(words.next()),
            _ if word.contains("id=disk0") => kept.push(file(disk)),
            _ if word.contains("id=seed0") => kept.push(file(seed)),
            _ if word.starts_with("fd=[") => {
                let rest = word.find(',').map_or("", |at| &word[at..]);
                kept.push(format!("tap={TAP}{rest}"));
            }
            _ if word.starts_with("file=") => kept.push(format!("file={}", console.display())),
            _ => kept.push(word.clone()),
        }
    }
    kept
}

/// The client's configuration with a plain connection to the guest's address.
fn direct(config: &str, known_hosts: &Path, address: &str) -> String {
    let mut text = String::new();
    for line in config.lines() {
        let replaced = match line.split_whitespace().next() {
            Some("ProxyCommand" | "ProxyUseFdpass") => continue,
            Some("HostName") => format!("  HostName {address}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_files_and_fds_are_replaced_and_the_machine_is_not() {
        let line = "/bin/ch --api-socket fd=11 --event-monitor fd=12 --kernel /k --cmdline console=ttyS0 root=/dev/vda1 \
                    --cpus boot=2,nested=off --disk path=/x/disk.qcow2,image_type=qcow2,id=disk0 path=/x/seed.img,readonly=on,id=seed0 \
                    --net fd=[10],mac=52:54:00:00:00:01,id=net0 --serial file=/x/c.log --console off";
        let words =
            redirected(&split(line), Path::new("/d"), Path::new("/s"), Path::new("/c")).join("|");
        assert_eq!(
            words,
            "/bin/ch|--kernel|/k|--cmdline|console=ttyS0 root=/dev/vda1|--cpus|boot=2,nested=off|--disk|\
             path=/d,image_type=qcow2,id=disk0|path=/s,readonly=on,id=seed0|--net|\
             tap=bare0,mac=52:54:00:00:00:01,id=net0|--serial|file=/c|--console|off"
        );
    }
}
