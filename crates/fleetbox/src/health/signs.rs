//! Owns what a line of a console or journal says of a machine's health. It must not read either.

use std::fmt;

/// What is wrong with a machine. `Display` says it in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Ailment {
    /// The kernel panicked.
    Panic,
    /// The kernel met a bad address or instruction of its own.
    Oops,
    /// A check of the kernel's own failed: `BUG`, `WARNING`.
    Bug,
    /// A processor did not get out of the kernel for too long.
    SoftLockup,
    /// A task stood still in the kernel for too long.
    HungTask,
    /// Memory ran out and a process was killed for it.
    OomKill,
    /// A process crashed.
    Segfault,
    /// A unit failed.
    FailedUnit,
    /// Units wait for one another in a circle, so one was left out.
    OrderingCycle,
    /// A disk did not read or write.
    IoError,
    /// A file system went read-only for an error.
    ReadOnly,
}

impl Ailment {
    /// One word of `kebab-case` for it, stable.
    ///
    /// ```
    /// assert_eq!(fleetbox::Ailment::OomKill.as_str(), "oom-kill");
    /// ```
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Oops => "oops",
            Self::Bug => "bug",
            Self::SoftLockup => "soft-lockup",
            Self::HungTask => "hung-task",
            Self::OomKill => "oom-kill",
            Self::Segfault => "segfault",
            Self::FailedUnit => "failed-unit",
            Self::OrderingCycle => "ordering-cycle",
            Self::IoError => "io-error",
            Self::ReadOnly => "read-only",
        }
    }
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panic => "kernel panic",
            Self::Oops => "kernel oops",
            Self::Bug => "a bug in the kernel",
            Self::SoftLockup => "a processor locked up",
            Self::HungTask => "a task hung in the kernel",
            Self::OomKill => "out of memory, a process was killed",
            Self::Segfault => "a process crashed",
            Self::FailedUnit => "a unit failed",
            Self::OrderingCycle => "an ordering cycle of units",
            Self::IoError => "an I/O error",
            Self::ReadOnly => "a file system went read-only",
        })
    }
}

/// All parts must be in the line. The first sign that fits counts. From the kernel (`kernel/panic.c`,
/// `kernel/watchdog.c`, `kernel/hung_task.c`, `mm/oom_kill.c`, `arch/*/mm/fault.c`, `block/blk-core.c`,
/// `fs/ext4/super.c`, `fs/xfs`, `fs/btrfs`) and systemd (`src/core/unit.c`, `transaction.c`).
const SIGNS: &[(Ailment, &[&str])] = &[
    (Ailment::Panic, &["Kernel panic - not syncing"]),
    (Ailment::SoftLockup, &["soft lockup - CPU#"]),
    (Ailment::SoftLockup, &["detected stalls on CPUs"]),
    (Ailment::SoftLockup, &["self-detected stall on CPU"]),
    (Ailment::SoftLockup, &["hard LOCKUP on cpu"]),
    (Ailment::Oops, &["BUG: unable to handle"]),
    (Ailment::Oops, &["BUG: kernel NULL pointer dereference"]),
    (Ailment::Oops, &["Unable to handle kernel"]),
    (Ailment::Oops, &["Oops: "]),
    (Ailment::Oops, &["general protection fault, "]),
    (Ailment::Oops, &["Internal error: Oops"]),
    (Ailment::Bug, &["kernel BUG at "]),
    (Ailment::Bug, &["BUG: "]),
    (Ailment::Bug, &["WARNING: CPU: ", " at "]),
    (Ailment::HungTask, &["INFO: task ", " blocked for more than "]),
    (Ailment::OomKill, &["Out of memory: Killed process"]),
    (Ailment::OomKill, &["Memory cgroup out of memory: Killed process"]),
    (Ailment::OomKill, &["A process of this unit has been killed by the OOM killer"]),
    (Ailment::Segfault, &["segfault at ", " ip ", " sp "]),
    (Ailment::Segfault, &["traps: ", " ip:", " sp:"]),
    (Ailment::Segfault, &["unhandled signal 11"]),
    (Ailment::OrderingCycle, &["Found ordering cycle on "]),
    (Ailment::OrderingCycle, &[" deleted to break ordering cycle"]),
    (Ailment::ReadOnly, &["Remounting filesystem read-only"]),
    (Ailment::ReadOnly, &["forced readonly"]),
    (Ailment::IoError, &["I/O error, dev "]),
    (Ailment::IoError, &["Buffer I/O error on dev"]),
    (Ailment::IoError, &["EXT4-fs error (device "]),
    (Ailment::IoError, &["XFS (", "metadata I/O error"]),
    (Ailment::IoError, &["BTRFS error (device "]),
    (Ailment::FailedUnit, &[": Failed with result '"]),
];

/// The texts by which journalctl's lines are chosen in the guest, for `grep -F`.
pub(super) fn needles() -> Vec<&'static str> {
    SIGNS
        .iter()
        .filter_map(|(_, parts)| parts.iter().max_by_key(|part| part.len()).copied())
        .collect()
}

/// What the line says, and the part of it that is the same wherever it is written down.
pub(super) fn sign(line: &str) -> Option<(Ailment, &str)> {
    let fits = |parts: &[&str]| parts.iter().all(|part| line.contains(part));
    let (ailment, _) = SIGNS.iter().find(|(_, parts)| fits(parts))?;
    Some((*ailment, essence(line)))
}

/// The line without what a console or journal puts before it: times, `kernel:`, `systemd[1]:`.
fn essence(line: &str) -> &str {
    let mut rest = line.trim();
    if let Some(inner) = rest.strip_prefix('[')
        && let Some((time, after)) = inner.split_once(']')
        && time.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        rest = after.trim_start();
    }
    for tag in ["kernel: ", "systemd[1]: "] {
        if let Some((before, after)) = rest.split_once(tag)
            && before.len() < 40
        {
            rest = after;
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_by_what_they_say() {
        for (line, ailment) in [
            ("[  12.3] Kernel panic - not syncing: sysrq triggered crash", Ailment::Panic),
            ("BUG: kernel NULL pointer dereference, address: 0000000000000000", Ailment::Oops),
            ("[ 1.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [x:1]", Ailment::SoftLockup),
            ("INFO: task dd:99 blocked for more than 120 seconds.", Ailment::HungTask),
            ("Out of memory: Killed process 77 (stress) total-vm:1kB", Ailment::OomKill),
            (
                "crash[812]: segfault at 0 ip 0000 sp 0000 error 6 in crash[5000+1000]",
                Ailment::Segfault,
            ),
            ("WARNING: CPU: 0 PID: 1 at kernel/x.c:1 y+0x1/0x2", Ailment::Bug),
            ("web.service: Failed with result 'exit-code'.", Ailment::FailedUnit),
            ("a.service: Found ordering cycle on b.service/start", Ailment::OrderingCycle),
            ("I/O error, dev vda, sector 2048 op 0x1:(WRITE)", Ailment::IoError),
            ("EXT4-fs (vda1): Remounting filesystem read-only", Ailment::ReadOnly),
        ] {
            assert_eq!(sign(line).map(|(ailment, _)| ailment), Some(ailment), "{line}");
            assert!(needles().iter().any(|needle| line.contains(needle)), "{line}");
        }
        for line in ["EXT4-fs (vda1): mounted filesystem", "Started web.service", "debugging"] {
            assert_eq!(sign(line), None, "{line}");
        }
    }

    #[test]
    fn console_and_journal_agree_on_the_same_line() {
        let line = "EXT4-fs (vda1): Remounting filesystem read-only";
        for whole in [
            format!("[   12.345678] {line}\r"),
            format!("1700000000.123 kernel: {line}"),
            format!("[12345.000001] kernel: {line}"),
        ] {
            assert_eq!(sign(&whole).unwrap().1, line);
        }
        assert_eq!(
            sign("[ 5.0] systemd[1]: x.service: Failed with result 'signal'.").unwrap().1,
            "x.service: Failed with result 'signal'."
        );
    }
}
