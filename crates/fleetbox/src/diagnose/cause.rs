//! Owns the likely cause of a boot that does not come up, judged by what the guest wrote to its console.
//! It must not wait or read files; who does hands it lines.

use std::fmt;

/// How much of a line is shown.
const LINE_CHARS: usize = 300;

/// Why a boot does not come up, as far as it can be told from outside. `Display` says it in a phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BootCause {
    /// The kernel or its initrd does not find the file system that its command line calls root.
    NoRootDevice,
    /// The kernel panicked.
    Panic,
    /// There was not enough memory for the system.
    OutOfMemory,
    /// The system stands in an emergency or rescue shell.
    EmergencyShell,
    /// cloud-init failed, so the user, keys or network it makes are missing.
    CloudInit,
    /// The guest has no address in its cluster's network, or does not answer there.
    NoAddress,
    /// The guest has its address, but no sshd that lets us in.
    SshDown,
    /// The guest wrote nothing at all.
    Silent,
}

impl BootCause {
    /// The cause in one word of `kebab-case`, stable.
    ///
    /// ```
    /// assert_eq!(fleetbox::BootCause::NoRootDevice.as_str(), "no-root-device");
    /// ```
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRootDevice => "no-root-device",
            Self::Panic => "panic",
            Self::OutOfMemory => "out-of-memory",
            Self::EmergencyShell => "emergency-shell",
            Self::CloudInit => "cloud-init",
            Self::NoAddress => "no-address",
            Self::SshDown => "ssh-down",
            Self::Silent => "silent",
        }
    }

    /// What to do about it.
    pub(crate) fn hint(self, vm: &str) -> String {
        match self {
            Self::NoRootDevice => "the image's kernel looks for its root elsewhere: check `root=` in its boot loader's configuration and its fstab, and that its initrd has virtio_blk".to_owned(),
            Self::Panic => format!("read the lines before the panic in `fleetbox logs {vm}`; more memory, another kernel or image may help"),
            Self::OutOfMemory => "give it more memory: memory_mib, or `--memory`".to_owned(),
            Self::EmergencyShell => format!("a mount or unit that the system cannot do without failed: look for \"Failed\" and \"Dependency failed\" in `fleetbox logs {vm}`; a bad line in the image's fstab is the usual reason"),
            Self::CloudInit => format!("look for cloud-init's lines in `fleetbox logs {vm}`; the image needs cloud-init with the NoCloud data source"),
            Self::NoAddress => format!("the image must take its network from cloud-init (netplan, systemd-networkd or ifupdown) and have virtio_net: see `fleetbox logs {vm}`"),
            Self::SshDown => format!("see whether sshd starts in `fleetbox logs {vm}`; the image needs openssh-server, enabled"),
            Self::Silent => "the kernel needs console=ttyS0 (ttyAMA0 on aarch64) on its command line to be heard".to_owned(),
        }
    }
}

impl fmt::Display for BootCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRootDevice => "its root file system was not found",
            Self::Panic => "its kernel panicked",
            Self::OutOfMemory => "it ran out of memory",
            Self::EmergencyShell => "it stands in an emergency shell",
            Self::CloudInit => "cloud-init failed",
            Self::NoAddress => "it has no address in its network",
            Self::SshDown => "its sshd does not answer",
            Self::Silent => "it wrote nothing to its console",
        })
    }
}

/// What shows a cause; of the causes in a console the first in this order is told. From the kernel
/// (`init/do_mounts.c`, `mm/oom_kill.c`, `kernel/panic.c`), initramfs-tools' `scripts/local`, dracut,
/// systemd's units and cloud-init's log lines.
const SIGNS: &[(BootCause, &[&[&str]])] = &[
    (
        BootCause::NoRootDevice,
        &[
            &["VFS: Unable to mount root fs"],
            &["VFS: Cannot open root device"],
            &["Gave up waiting for root"],
            &["ALERT!", "does not exist"],
            &["dracut", "Could not boot"],
        ],
    ),
    (
        BootCause::OutOfMemory,
        &[
            &["System is deadlocked on memory"],
            &["Out of memory and no killable processes"],
            &["Out of memory: Killed process"],
            &["Memory cgroup out of memory"],
            &["Initramfs unpacking failed: write error"],
        ],
    ),
    (BootCause::Panic, &[&["Kernel panic - not syncing"]]),
    (
        BootCause::EmergencyShell,
        &[
            &["You are in emergency mode"],
            &["You are in rescue mode"],
            &["Entering emergency mode"],
            &["Cannot open access to console, the root account is locked"],
            &["(initramfs)"],
        ],
    ),
    (
        BootCause::CloudInit,
        &[
            &["Failed to start", "cloud-init"],
            &["Failed to start", "cloud-config"],
            &["Failed to start", "cloud-final"],
            &["cloud-init[", "Traceback"],
            &["cloud-init[", "[ERROR]"],
            &["cloud-init[", "CRITICAL"],
            &["cloud-init[", "[WARNING]: Failed"],
            &["cloud-init[", "failed to parse"],
        ],
    ),
    (
        BootCause::NoAddress,
        &[
            &["Failed to start", "systemd-networkd"],
            &["Failed to start", "networking.service"],
            &["Failed to start", "NetworkManager"],
            &["systemd-networkd-wait-online", "Timeout occurred"],
        ],
    ),
    (
        BootCause::SshDown,
        &[
            &["Failed to start", "ssh.service"],
            &["Failed to start", "sshd.service"],
            &["Failed to start", "OpenBSD Secure Shell"],
            &["Failed to start", "OpenSSH server"],
        ],
    ),
];

/// After these nothing comes any more, however long one waits.
const LAST_WORDS: &[&str] = &[
    "Kernel panic - not syncing",
    "You are in emergency mode",
    "You are in rescue mode",
    "Cannot open access to console, the root account is locked",
    "(initramfs)",
    "Dropping to a shell!",
    "Entering emergency mode",
];

/// A cause and the line that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub cause: BootCause,
    pub line: String,
}

/// What the line shows.
fn sign(line: &str) -> Option<BootCause> {
    let has =
        |signs: &&[&[&str]]| signs.iter().any(|all| all.iter().all(|part| line.contains(part)));
    SIGNS.iter().find(|(_, signs)| has(signs)).map(|(cause, _)| *cause)
}

/// Keeps the most telling of what was shown.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    shown: Option<Shown>,
    is_over: bool,
}

impl Suspicion {
    pub(super) fn look(&mut self, line: &str) {
        self.is_over |= LAST_WORDS.iter().any(|words| line.contains(words));
        let Some(cause) = sign(line) else { return };
        let rank = |cause: BootCause| SIGNS.iter().position(|(known, _)| *known == cause);
        if self.shown.as_ref().is_none_or(|known| rank(cause) < rank(known.cause)) {
            let line = line.trim().chars().take(LINE_CHARS).collect();
            self.shown = Some(Shown { cause, line });
        }
    }

    pub(super) fn shown(&self) -> Option<&Shown> {
        self.shown.as_ref()
    }

    /// Whether the boot cannot come up any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(lines: &[&str]) -> Option<BootCause> {
        let mut suspicion = Suspicion::default();
        for line in lines {
            suspicion.look(line);
        }
        suspicion.shown().map(|shown| shown.cause)
    }

    #[test]
    fn lines_show_causes() {
        for (line, expected) in [
            ("[ 3.1] VFS: Unable to mount root fs on unknown-block(0,0)", BootCause::NoRootDevice),
            ("ALERT!  LABEL=nope does not exist.  Dropping to a shell!", BootCause::NoRootDevice),
            ("[ 3.1] Kernel panic - not syncing: Attempted to kill init!", BootCause::Panic),
            ("You are in emergency mode. After logging in, type", BootCause::EmergencyShell),
            ("[ 9.9] Out of memory: Killed process 99 (systemd)", BootCause::OutOfMemory),
            ("[FAILED] Failed to start cloud-init.service - Initial", BootCause::CloudInit),
            ("[FAILED] Failed to start ssh.service - OpenBSD", BootCause::SshDown),
            ("[FAILED] Failed to start systemd-networkd-wait-online.service", BootCause::NoAddress),
        ] {
            assert_eq!(cause(&[line]), Some(expected), "{line}");
        }
        assert_eq!(cause(&["[  OK  ] Started ssh.service", "Linux version 6"]), None);
    }

    #[test]
    fn the_root_cause_comes_before_what_follows_from_it() {
        let panic =
            "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";
        assert_eq!(cause(&[panic]), Some(BootCause::NoRootDevice));
        let failed = "[FAILED] Failed to start ssh.service";
        assert_eq!(cause(&[failed, "You are in emergency mode"]), Some(BootCause::EmergencyShell));
        assert_eq!(cause(&["You are in emergency mode", failed]), Some(BootCause::EmergencyShell));
    }

    #[test]
    fn only_what_cannot_mend_itself_ends_a_boot() {
        let is_over = |line: &str| {
            let mut suspicion = Suspicion::default();
            suspicion.look(line);
            suspicion.is_over()
        };
        assert!(is_over("Kernel panic - not syncing: System is deadlocked on memory"));
        assert!(is_over("(initramfs) "));
        assert!(!is_over("[FAILED] Failed to start cloud-init.service"));
        assert!(!is_over("[ 9.9] Out of memory: Killed process 99 (dpkg)"));
    }
}
