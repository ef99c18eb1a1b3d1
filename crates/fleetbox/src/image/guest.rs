//! Owns what is done in the building VM's guest: running a step with its output told, copying as root, and
//! making its disk nobody's own while its layer is taken. It must not know of keys and layers.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::console::harmless;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Progress, ProgressSink};
use crate::ssh::{self, Output};
use crate::vm::Vm;

/// Lines of both streams shown with a failure.
const TAIL_LINES: usize = 20;
/// Bytes of each stream that an error carries.
const TAIL_BYTES: usize = 64 * 1024;
/// A line that is longer is told in parts.
const LINE_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 16 * 1024;
/// A system that is not up by then is used as it is.
const SETTLE_WAIT: Duration = Duration::from_mins(5);

/// Empties what says who the machine is (machine-id(5), `hosts(5)`), keeps it aside, and lets all be on
/// the disk. Host keys are the seed's, which replaces them. A seed of randomness is not for two machines;
/// its service would write it again at the end. Prints what /boot is like, in one line.
const FORGET: &str = r#"
set -e
aside=/run/fleetbox-image
rm -rf $aside
mkdir -m 700 $aside
for file in /etc/machine-id /etc/hostname /etc/hosts; do
    [ ! -f $file ] || cp -a $file $aside/
done
[ ! -e $aside/machine-id ] || : > /etc/machine-id
if [ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ]; then
    cp -a /var/lib/dbus/machine-id $aside/dbus
    rm /var/lib/dbus/machine-id
fi
[ ! -e $aside/hosts ] || grep -vwF -- "$(uname -n)" $aside/hosts > /etc/hosts || :
[ ! -e $aside/hostname ] || echo localhost > /etc/hostname
systemctl stop systemd-random-seed.service 2>/dev/null || :
rm -f /var/lib/systemd/random-seed
sync
"#;

/// Puts it back: the machine goes on as who it was.
const REMEMBER: &str = r"
aside=/run/fleetbox-image
for file in machine-id hostname hosts; do
    [ ! -e $aside/$file ] || cat $aside/$file > /etc/$file
done
[ ! -e $aside/dbus ] || cp -a $aside/dbus /var/lib/dbus/machine-id
rm -rf $aside
";

/// What the kernel is taken by, and how it is booted. The time of a change cannot be set by programs.
const BOOT: &str = r"
find /boot /vmlinuz /initrd.img /etc/fstab -printf '%p %l %s %i %C@\n' 2>/dev/null | sort | cksum
";

/// Waits for the end of the boot.
pub(super) async fn settle(vm: &Vm) -> Result<()> {
    if !vm.backend().has_guest() {
        return Ok(());
    }
    let mut up = vm.shell("systemctl is-system-running --wait");
    match up.timeout(SETTLE_WAIT).output().await {
        Err(e) if e.kind() == ErrorKind::TimedOut => {
            log::warn!("a building machine does not settle; it is used as it is");
            Ok(())
        }
        settled => settled.map(drop),
    }
}

/// What /boot is like: it is as it was while this stays the same.
pub(super) async fn boot_files(vm: &Vm) -> Result<String> {
    as_root(vm, BOOT).await
}

/// Makes the disk nobody's own, all of it written.
pub(super) async fn forget(vm: &Vm) -> Result<()> {
    as_root(vm, FORGET).await.map(drop)
}

/// The end of that.
pub(super) async fn remember(vm: &Vm) -> Result<()> {
    as_root(vm, REMEMBER).await.map(drop)
}

/// Not on a fake machine: its commands are the host's.
async fn as_root(vm: &Vm, script: &str) -> Result<String> {
    if !vm.backend().has_guest() {
        return Ok(String::new());
    }
    let output = vm.command("sh").args(["-c", script]).sudo().run().await?;
    Ok(output.stdout_text())
}

/// Copies a file or directory of the host, owned by root.
pub(super) async fn copy(vm: &Vm, host: &Path, guest: &str) -> Result<()> {
    ssh::copy::copy_to_as_root(vm.session(), host, guest).await
}

/// Runs a line of shell as root and tells what it writes, line by line.
pub(super) async fn run(
    vm: &Vm,
    line: &str,
    env: &[(String, String)],
    progress: &ProgressSink,
) -> Result<()> {
    let mut command = vm.command("sh");
    command.args(["-e", "-c", line]).envs(env.iter().cloned()).sudo();
    if vm.backend().has_guest() {
        command.current_dir("/");
    }
    let mut child = command.spawn().await?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let last = Last { lines: Mutex::default(), progress };
    let (status, stdout, stderr) =
        tokio::join!(child.wait(), last.follow(stdout), last.follow(stderr));
    let (status, stdout, stderr) = (status?, stdout?, stderr?);
    if status.success() {
        return Ok(());
    }
    let lines = last.lines.into_inner().unwrap_or_else(PoisonError::into_inner);
    let error = Error::new(ErrorKind::CommandFailed, status.to_string()).with_output(Output {
        status,
        stdout,
        stderr,
    });
    if lines.is_empty() {
        return Err(error);
    }
    Err(error.detail(Vec::from(lines).join("\n")))
}

/// The last lines of both streams, in the order they came.
struct Last<'a> {
    lines: Mutex<VecDeque<String>>,
    progress: &'a ProgressSink,
}

impl Last<'_> {
    /// Tells each line of a stream. Returns the end of it all.
    async fn follow(&self, stream: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>> {
        let (mut end, mut line) = (Vec::new(), Vec::new());
        let Some(mut stream) = stream else { return Ok(end) };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let length = stream.read(&mut chunk).await.map_err(|e| {
                Error::new(ErrorKind::ConnectionLost, "read what a step writes").source(e)
            })?;
            let bytes = &chunk[..length];
            end.extend_from_slice(bytes);
            end.drain(..end.len().saturating_sub(TAIL_BYTES));
            for byte in bytes {
                if *byte == b'\n' || line.len() >= LINE_BYTES {
                    self.tell(&std::mem::take(&mut line));
                }
                if *byte != b'\n' {
                    line.push(*byte);
                }
            }
            if length == 0 {
                if !line.is_empty() {
                    self.tell(&line);
                }
                return Ok(end);
            }
        }
    }

    fn tell(&self, line: &[u8]) {
        // Of a line that was redrawn, the last state.
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = line.rsplit(|byte| *byte == b'\r').next().unwrap_or_default();
        let text = harmless(line);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(text.clone());
        drop(lines);
        self.progress.send(Progress::Output(text));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn told(stream: &[u8]) -> (Vec<String>, Vec<u8>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let progress = ProgressSink::new(move |event| {
            if let Progress::Output(line) = event {
                sink.lock().unwrap().push(line);
            }
        });
        let last = Last { lines: Mutex::default(), progress: &progress };
        let end = last.follow(Some(stream)).await.unwrap();
        let told = told.lock().unwrap().clone();
        (told, end)
    }

    #[tokio::test]
    async fn output_is_told_by_lines_and_cannot_reach_a_terminal_or_fill_memory() {
        let (lines, end) = told(b"one\r\n10%\r100%\r\n\x1b[2Jtwo\nrest").await;
        assert_eq!(lines[..2], ["one", "100%"]);
        assert!(lines[2].ends_with("two") && !lines[2].contains('\x1b'), "{lines:?}");
        assert_eq!(lines[3], "rest");
        assert!(end.starts_with(b"one") && end.ends_with(b"rest"));
        let (lines, end) = told(&vec![b'x'; 100_000]).await;
        assert!(lines.len() > 20 && lines.iter().all(|line| line.len() <= LINE_BYTES));
        assert_eq!(lines.iter().map(String::len).sum::<usize>(), 100_000, "nothing is lost");
        assert_eq!(end.len(), TAIL_BYTES);
    }
}
