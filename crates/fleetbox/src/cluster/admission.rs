//! Owns the question whether one more member may begin to boot: as cores and memory go round. Pure but
//! for reading what the host has. It must not start anything.

use std::fmt;

/// Linux's own estimate of what can be had without swapping (`proc_meminfo(5)`).
const MEMINFO: &str = "/proc/meminfo";
/// Two side by side are faster than one after the other even on one core: a boot waits for its disk
/// and clocks, too.
const BOOTS_MIN: usize = 2;

/// What the host has for boots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    boots: usize,
    /// Whether memory counts.
    memory: bool,
}

/// Why a member has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Cores { boots: usize },
    Memory { wanted_mib: u32, available_mib: u64 },
}

impl Room {
    /// As the caller says, else as the host is.
    pub(super) fn of(boots_at_once: Option<usize>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        match boots_at_once {
            Some(boots) => Self { boots, memory: false },
            None => Self { boots: cores().max(BOOTS_MIN), memory: true },
        }
    }

    /// Whether a guest of that size may boot beside those that do. What they have touched of their
    /// memory is not available any more; that they will touch the rest is assumed. One always may:
    /// guests often need less than they have.
    pub(super) fn admit(
        self,
        memory_mib: u32,
        booting_mib: &[u32],
        available_mib: Option<u64>,
    ) -> Result<(), Wait> {
        if booting_mib.is_empty() {
            return Ok(());
        }
        if booting_mib.len() >= self.boots {
            return Err(Wait::Cores { boots: self.boots });
        }
        let Some(available_mib) = available_mib.filter(|_| self.memory) else { return Ok(()) };
        let promised_mib: u64 = booting_mib.iter().copied().map(u64::from).sum();
        if promised_mib + u64::from(memory_mib) > available_mib {
            return Err(Wait::Memory { wanted_mib: memory_mib, available_mib });
        }
        Ok(())
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Cores { boots } => {
                write!(f, "waiting for another member: {boots} boot at once")
            }
            Wait::Memory { wanted_mib, available_mib } => write!(
                f,
                "waiting for another member: {available_mib} MiB of the host's memory are available, {wanted_mib} MiB are wanted besides"
            ),
        }
    }
}

/// What of the host's memory is available in MiB, where the system tells.
pub(super) fn available_mib() -> Option<u64> {
    available_of(&std::fs::read_to_string(MEMINFO).ok()?)
}

fn available_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Room = Room { boots: 3, memory: true };

    #[test]
    fn one_always_boots() {
        assert_eq!(HOST.admit(4096, &[], Some(10)), Ok(()));
        assert_eq!(Room::of(Some(1)).admit(4096, &[], None), Ok(()));
    }

    #[test]
    fn cores_limit_how_many_boot_at_once() {
        assert_eq!(HOST.admit(1, &[1, 1], Some(1000)), Ok(()));
        assert_eq!(HOST.admit(1, &[1, 1, 1], Some(1000)), Err(Wait::Cores { boots: 3 }));
        assert!(Room::of(None).admit(1, &[1], Some(1000)).is_ok());
    }

    #[test]
    fn memory_is_shared_with_those_that_boot() {
        assert_eq!(HOST.admit(500, &[500], Some(1000)), Ok(()));
        let short = Wait::Memory { wanted_mib: 501, available_mib: 1000 };
        assert_eq!(HOST.admit(501, &[500], Some(1000)), Err(short));
        assert_eq!(HOST.admit(501, &[500], None), Ok(()), "unknown memory does not hold up");
        assert!(HOST.admit(u32::MAX, &[u32::MAX], Some(u64::from(u32::MAX) * 2)).is_ok());
    }

    #[test]
    fn the_callers_word_comes_first() {
        let said = Room::of(Some(2));
        assert_eq!(said.admit(4096, &[4096], Some(10)), Ok(()));
        assert_eq!(said.admit(1, &[1, 1], Some(10)), Err(Wait::Cores { boots: 2 }));
    }

    #[test]
    fn available_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       16316412 kB\nMemFree:  1 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_of(text), Some(2048));
        assert_eq!(available_of("MemTotal: 1 kB\n"), None);
        assert_eq!(available_of("MemAvailable: much\n"), None);
        #[cfg(target_os = "linux")]
        assert!(available_mib().unwrap() > 0);
    }
}
