//! Owns running one of the build's tools: its last words are kept, and it ends when the build is
//! cancelled. It must not know what the tools do.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::super::work::Cancel;
use crate::error::{Error, ErrorKind, Result};

const TAIL_LINES: usize = 40;
const LINE_BYTES_MAX: u64 = 4096;
/// mmdebstrap removes its temporary root when it is asked to end; then it is made to.
const CLEANUP_TIME: Duration = Duration::from_secs(15);

/// Runs `command` to its end. `line` sees each line of its stderr; `output` gets its stdout when
/// that was set to be piped.
pub(super) fn run(
    mut command: Command,
    what: &str,
    cancel: &Cancel,
    line: &(dyn Fn(&str) + Sync),
    output: impl FnOnce(Option<ChildStdout>) -> Result<()>,
) -> Result<()> {
    // A group of its own: ending the build must reach apt and dpkg below mmdebstrap too.
    let mut child = command.process_group(0).stderr(Stdio::piped()).spawn().map_err(|e| {
        Error::new(ErrorKind::HostUnsupported, format!("{what}: start {}", name(&command)))
            .source(e)
    })?;
    let stderr = child.stderr.take();
    let stdout = child.stdout.take();
    let group = Pid::from_child(&child);
    let ended = AtomicBool::new(false);
    let (output_result, status, tail) = std::thread::scope(|scope| {
        let words = scope.spawn(move || stderr.map(|pipe| tail(pipe, line)).unwrap_or_default());
        scope.spawn(|| {
            if cancel.raised_before(&ended) {
                // Gone already is as good.
                let _ = kill_process_group(group, Signal::TERM);
                if !cancel.ended_within(&ended, CLEANUP_TIME) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
            }
        });
        let output_result = output(stdout);
        if output_result.is_err() {
            let _ = kill_process_group(group, Signal::TERM);
        }
        let status = wait(&mut child, what);
        ended.store(true, Ordering::Relaxed);
        cancel.wake();
        (output_result, status, words.join().unwrap_or_default())
    });
    cancel.check()?;
    let status = status?;
    // A tool's own complaint explains more than the pipe that broke because of it.
    if !status.success() {
        return Err(Error::new(
            ErrorKind::HostUnsupported,
            format!("{what}: {} ended with {status}", name(&command)),
        )
        .detail(tail)
        .hint(
            "the lines above are its own; is the Debian mirror reachable and the disk not full?",
        ));
    }
    output_result
}

fn wait(child: &mut Child, what: &str) -> Result<std::process::ExitStatus> {
    child.wait().map_err(|e| Error::new(ErrorKind::Io, format!("{what}: wait")).source(e))
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Reads lines until the end and keeps the last ones, without the bytes that move a cursor.
fn tail(pipe: impl Read, line: &dyn Fn(&str)) -> String {
    let mut reader = BufReader::new(pipe);
    let mut last = VecDeque::new();
    loop {
        let mut bytes = Vec::new();
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let text: String =
            text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        line(&text);
        last.push_back(text);
        if last.len() > TAIL_LINES {
            last.pop_front();
        }
    }
    Vec::from(last).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    #[test]
    fn a_failing_tool_leaves_its_last_words() {
        let cancel = Cancel::default();
        let script = "for i in $(seq 100); do echo line $i >&2; done; exit 3";
        let error = run(sh(script), "try", &cancel, &|_| {}, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnsupported);
        let detail = error.detail_text().unwrap();
        assert!(detail.ends_with("line 100") && !detail.contains("line 50\n"), "{detail}");
    }

    #[test]
    fn a_cancelled_tool_is_ended_with_all_below_it() {
        let cancel = Cancel::default();
        let error =
            run(sh("sleep 600 & echo up >&2; wait"), "try", &cancel, &|_| cancel.raise(), |_| {
                Ok(())
            })
            .unwrap_err();
        assert!(error.message().contains("cancelled"));
    }
}
