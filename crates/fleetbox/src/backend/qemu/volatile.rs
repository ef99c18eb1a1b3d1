//! Owns a disk file with a write cache in front of it that does not survive a power cut: what the
//! monitor wrote since its last flush is in memory, and gone with the monitor unless that says
//! goodbye. It must not know what is in the file.
//!
//! The monitor reaches it as a client of the network block device protocol, over an inherited socket.

mod cache;
mod protocol;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use self::cache::Cache;

/// What the file may come to have beside the guest's data: tables of one part in 4096 and a reserve
/// (qcow2, "Cluster mapping": 8 bytes of tables and 2 of counts for each 64 KiB).
const TABLES_SHARE: u64 = 4096;
const TABLES_RESERVE_BYTES: u64 = 64 << 20;
const EXPORT_ALIGNMENT_BYTES: u64 = 64 << 10;
/// What the end of the one before may take: it has at most a full cache to write.
const LOCK_WAIT: Duration = Duration::from_secs(20);
const LOCK_POLL_FIRST: Duration = Duration::from_millis(1);
const LOCK_POLL_LAST: Duration = Duration::from_millis(200);

/// Serves the qcow2 file at `path`, whose guest sees `disk_bytes`, on a thread until the other end of
/// the returned socket is closed. If another thread serves the file still, it waits for its end first:
/// what that one has to write comes before.
pub(super) async fn serve(path: &Path, disk_bytes: u64) -> io::Result<UnixStream> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    lock(&file).await?;
    let (ours, theirs) = UnixStream::pair()?;
    let size_bytes = export_bytes(disk_bytes);
    let name = path.display().to_string();
    thread::Builder::new().name("disk".into()).spawn(move || {
        if let Err(e) = run(file, size_bytes, &ours) {
            log::warn!("serve {name}: {e}");
        }
    })?;
    Ok(theirs)
}

async fn lock(file: &File) -> io::Result<()> {
    let began = Instant::now();
    let mut pause = LOCK_POLL_FIRST;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if began.elapsed() < LOCK_WAIT => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOCK_POLL_LAST);
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::other("another process uses the VM's disk"));
            }
            locked => return Ok(locked?),
        }
    }
}

/// The monitor cannot make the file grow beyond what it was told at first.
fn export_bytes(disk_bytes: u64) -> u64 {
    let tables = disk_bytes / TABLES_SHARE + TABLES_RESERVE_BYTES;
    (disk_bytes + tables).next_multiple_of(EXPORT_ALIGNMENT_BYTES)
}

fn run(file: File, size_bytes: u64, socket: &UnixStream) -> io::Result<()> {
    let mut cache = Cache::new(file, size_bytes);
    match protocol::serve(socket, &mut cache)? {
        protocol::End::Goodbye => cache.flush(),
        protocol::End::Lost => {
            if cache.unflushed_bytes() > 0 {
                log::info!("{} bytes were not flushed and are lost", cache.unflushed_bytes());
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
