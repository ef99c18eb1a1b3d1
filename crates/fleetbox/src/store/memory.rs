//! Owns what the state root knows of its machines' memory and processors: a reservation for each that runs
//! or is about to, and the queue of those who wait for one. Each is a file that counts for as long as a
//! process has a share in it, so whoever dies, in whatever way, gives back what they had. It must not decide
//! who gets what.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::lock::{self, Lock, Share};
use super::paths::{self, Paths};
use crate::error::{Error, Result};
use crate::spec::Name;

/// The memory promised to one machine. The start has a share in it until it is over, the holder while the
/// machine runs.
#[derive(Debug)]
pub(crate) struct Reservation {
    share: Share,
}

impl Reservation {
    pub(crate) fn path(&self) -> &Path {
        self.share.path()
    }

    /// Writes down whose child the machine's monitor is.
    pub(crate) fn runs_under(&self, holder: u32) -> Result<()> {
        let entry = Entry { holder: Some(holder), ..Entry::read(self.path()) };
        write(&self.share, &entry.text())
    }
}

/// Takes a share in a reservation that is there, or makes it.
pub(crate) fn hold(path: &Path, memory_mib: u32, cpus: u32) -> Result<Reservation> {
    let share = lock::share(path)?;
    let length = share.file().metadata().map_err(|e| Error::io("look at", path, e))?.len();
    if length == 0 {
        let entry = Entry { memory_mib: memory_mib.into(), cpus: cpus.into(), holder: None };
        write(&share, &entry.text())?;
    }
    Ok(Reservation { share })
}

/// Read by whoever looks at the same time, so what was there is never gone in between.
fn write(share: &Share, text: &str) -> Result<()> {
    let written = share.file().write_all_at(text.as_bytes(), 0);
    written
        .and_then(|()| share.file().set_len(text.len() as u64))
        .map_err(|e| Error::io("write", share.path(), e))
}

/// What is known of a reservation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub memory_mib: u64,
    pub cpus: u64,
    /// The process whose child the machine's monitor is, once there is one.
    pub holder: Option<u32>,
}

impl Entry {
    fn text(self) -> String {
        let holder = self.holder.map(|pid| format!("holder={pid}\n"));
        format!("mib={}\ncpus={}\n{}", self.memory_mib, self.cpus, holder.unwrap_or_default())
    }

    /// Of one that cannot be read, or is just being made, no more is known than that it is there.
    fn read(path: &Path) -> Self {
        let number = |key| value(path, key)?.parse::<u64>().ok();
        Self {
            memory_mib: number("mib=").unwrap_or_default(),
            cpus: number("cpus=").unwrap_or_default(),
            holder: number("holder=").and_then(|pid| pid.try_into().ok()),
        }
    }
}

fn value(path: &Path, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned)
}

/// A place in the queue, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    pub number: u64,
    _share: Share,
}

/// One who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub number: u64,
    /// The cluster that wants to grow, if one does: its machines will not end for it.
    pub cluster: Option<Name>,
}

/// A reservation somebody has a share in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Promise {
    pub cluster: Name,
    pub vm: Name,
    pub entry: Entry,
}

/// All of it, for as long as nobody else may change it.
pub(crate) struct Ledger {
    paths: Paths,
    pub promises: Vec<Promise>,
    /// First come, first in it.
    pub queue: Vec<Waiting>,
    _lock: Lock,
}

impl Ledger {
    /// Waits for an instant; what the dead left goes.
    pub(crate) fn open(paths: &Paths) -> Result<Self> {
        let lock = lock::lock_briefly(&paths.memory_lock())?;
        let (mut promises, mut queue) = (Vec::new(), Vec::new());
        for path in files(paths)? {
            if !lock::is_shared(&path)? {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(number) = paths::memory_turn_number(&name) {
                let cluster = value(&path, "cluster=").and_then(|name| Name::new(&name).ok());
                queue.push(Waiting { number, cluster });
            } else if let Some((cluster, vm)) = paths::memory_names(&name) {
                promises.push(Promise { cluster, vm, entry: Entry::read(&path) });
            }
        }
        queue.sort_by_key(|waiting| waiting.number);
        Ok(Self { paths: paths.clone(), promises, queue, _lock: lock })
    }

    /// Whether that machine has its memory already.
    pub(crate) fn has(&self, cluster: &Name, vm: &Name) -> bool {
        self.promises.iter().any(|promise| (&promise.cluster, &promise.vm) == (cluster, vm))
    }

    pub(crate) fn reserve(
        &self,
        cluster: &Name,
        vm: &Name,
        memory_mib: u32,
        cpus: u32,
    ) -> Result<Reservation> {
        hold(&self.paths.memory_of(cluster, vm), memory_mib, cpus)
    }

    /// The last place in the queue, for a machine or for a cluster that wants to grow.
    pub(crate) fn queue_up(&self, cluster: Option<&Name>) -> Result<Turn> {
        let number = self.queue.last().map_or(1, |last| last.number + 1);
        let share = lock::share(&self.paths.memory_turn(number))?;
        let cluster = cluster.map(|cluster| format!("cluster={cluster}\n"));
        write(&share, &cluster.unwrap_or_default())?;
        Ok(Turn { number, _share: share })
    }
}

/// Removes what the dead left, and tells what it was.
pub(crate) fn sweep(paths: &Paths) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in files(paths)? {
        if !lock::is_shared(&path)? {
            removed.push(path);
        }
    }
    Ok(removed)
}

fn files(paths: &Paths) -> Result<Vec<PathBuf>> {
    let dir = paths.memory();
    let read = match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|e| Error::io("list", &dir, e))?,
    };
    let entries = read.collect::<std::io::Result<Vec<_>>>();
    let entries = entries.map_err(|e| Error::io("list", &dir, e))?;
    Ok(entries.into_iter().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn root() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::at(dir.path()).unwrap();
        (dir, paths)
    }

    #[test]
    fn a_reservation_is_there_until_the_last_share_goes() {
        let (_dir, paths) = root();
        let (web, cluster) = (name("web"), name("shop"));
        let start = Ledger::open(&paths).unwrap().reserve(&cluster, &web, 1024, 2).unwrap();
        let holder = hold(start.path(), 1024, 2).unwrap();
        start.runs_under(7).unwrap();
        drop(start);
        let ledger = Ledger::open(&paths).unwrap();
        assert!(ledger.has(&cluster, &web) && !ledger.has(&web, &cluster));
        assert_eq!(ledger.promises[0].entry, Entry { memory_mib: 1024, cpus: 2, holder: Some(7) });
        drop(ledger);
        drop(holder);
        assert!(Ledger::open(&paths).unwrap().promises.is_empty());
        assert_eq!(files(&paths).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_holder_takes_it_anew_if_it_is_gone() {
        let (_dir, paths) = root();
        let held = hold(&paths.memory_of(&name("web"), &name("web")), 512, 1).unwrap();
        assert_eq!(Ledger::open(&paths).unwrap().promises[0].entry.memory_mib, 512);
        drop(held);
    }

    #[test]
    fn the_queue_is_in_the_order_of_coming_and_what_the_dead_left_is_not_in_it() {
        let (_dir, paths) = root();
        let queue_up = |who: Option<&Name>| Ledger::open(&paths).unwrap().queue_up(who).unwrap();
        let node = name("node");
        let turns: Vec<Turn> = (0..11).map(|at| queue_up((at == 3).then_some(&node))).collect();
        let queue = Ledger::open(&paths).unwrap().queue;
        let expected: Vec<Waiting> = (1..=11)
            .map(|number| Waiting { number, cluster: (number == 4).then(|| node.clone()) })
            .collect();
        assert_eq!(queue, expected);
        drop(turns);
        std::fs::write(paths.memory_turn(3), "").unwrap();
        std::fs::write(paths.memory_of(&name("a"), &name("b")), "mib=4096\n").unwrap();
        let ledger = Ledger::open(&paths).unwrap();
        assert!(ledger.queue.is_empty() && ledger.promises.is_empty());
        assert_eq!(files(&paths).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_sweep_leaves_what_is_held() {
        let (_dir, paths) = root();
        let held = hold(&paths.memory_of(&name("a"), &name("a")), 512, 1).unwrap();
        let left = paths.memory_of(&name("b"), &name("b"));
        std::fs::write(&left, "mib=512\n").unwrap();
        assert_eq!(sweep(&paths).unwrap(), [left]);
        assert!(held.path().exists());
    }
}
