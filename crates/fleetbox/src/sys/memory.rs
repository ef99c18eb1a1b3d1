//! Owns what the host says of its memory, and of what processes have of it. It must not decide who may
//! have more.

use std::collections::HashMap;

/// Where Linux tells (`proc_meminfo(5)`).
const MEMINFO: &str = "/proc/meminfo";

/// What of the host's memory can be had without swapping, by the system's own estimate, in MiB; where it
/// tells.
pub(crate) fn available_mib() -> Option<u64> {
    available_of(&std::fs::read_to_string(MEMINFO).ok()?)
}

fn available_of(meminfo: &str) -> Option<u64> {
    Some(kib(meminfo, "MemAvailable:")? / 1024)
}

/// What the children of each process have touched of memory that is their own or shared, in MiB by the
/// parent's pid. Files they mapped are not in it: those pages the kernel can have back. Processes that
/// cannot be read are left out, as all are where there is no `/proc`.
pub(crate) fn children_resident_mib() -> HashMap<u32, u64> {
    let mut kib_by_parent: HashMap<u32, u64> = HashMap::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let is_process = process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if is_process
            && let Ok(status) = std::fs::read_to_string(process.path().join("status"))
            && let Some((parent, kib)) = resident_of(&status)
        {
            *kib_by_parent.entry(parent).or_default() += kib;
        }
    }
    kib_by_parent.into_iter().map(|(parent, kib)| (parent, kib / 1024)).collect()
}

/// The parent's pid and KiB, of `proc_pid_status(5)`. A zombie has none.
fn resident_of(status: &str) -> Option<(u32, u64)> {
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    Some((parent, kib(status, "RssAnon:")? + kib(status, "RssShmem:")?))
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       16316416 kB\nMemFree:  1 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_of(text), Some(2048));
        assert_eq!(available_of("MemTotal: 1 kB\n"), None);
        assert_eq!(available_of("MemAvailable: much\n"), None);
        #[cfg(target_os = "linux")]
        assert!(available_mib().unwrap() > 0);
    }

    #[test]
    fn what_a_process_has_is_counted_without_its_files() {
        let status = "Name:\tqemu\nPPid:\t7\nVmRSS:\t   9999 kB\nRssAnon:\t    2048 kB\n\
                      RssFile:\t    5000 kB\nRssShmem:\t    1024 kB\n";
        assert_eq!(resident_of(status), Some((7, 3072)));
        assert_eq!(resident_of("Name:\tzombie\nPPid:\t7\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_counts_for_its_parent() {
        // Touched, so that it is there.
        let held = std::hint::black_box(vec![1_u8; 8 << 20]);
        let parent = std::os::unix::process::parent_id();
        assert!(children_resident_mib()[&parent] >= 8, "{}", held.len());
    }
}
