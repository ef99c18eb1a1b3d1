//! Owns the conditions that are seen from outside the guest: ports, HTTP, the console. It must not run
//! anything in the guest.

use std::io;
use std::time::Duration;

use regex_lite::Regex;

use super::{Http, Seen};
use crate::console::{self, uncoloured};
use crate::error::{Error, ErrorKind, Result};
use crate::http::Request;
use crate::vm::Vm;

const POLL_FIRST: Duration = Duration::from_millis(20);
pub(super) const POLL_LAST: Duration = Duration::from_millis(500);
/// A server that accepts and says nothing is asked again.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// What is read of a console in one go.
const READ_BYTES_MAX: u64 = 1024 * 1024;
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Short, growing pauses.
pub(super) struct Pause(Duration);

impl Pause {
    pub(super) fn new() -> Self {
        Self(POLL_FIRST)
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(POLL_LAST);
    }

    /// Something moved: look again soon.
    pub(super) fn reset(&mut self) {
        self.0 = POLL_FIRST;
    }
}

pub(super) async fn port(vm: &Vm, port: u16, seen: &Seen) -> Result<()> {
    let mut pause = Pause::new();
    loop {
        match vm.connect(port).await {
            Ok(_) => return Ok(()),
            Err(e) => passing(e, seen)?,
        }
        pause.pause().await;
    }
}

/// Errors that time may mend are noted; the others end the wait.
pub(super) fn passing(error: Error, seen: &Seen) -> Result<()> {
    use ErrorKind as K;
    match error.kind() {
        K::Connect | K::ConnectionLost | K::TimedOut => {
            seen.set(&error.report());
            Ok(())
        }
        _ => Err(error),
    }
}

pub(super) fn check(http: &Http) -> Result<()> {
    let visible = http.path.bytes().all(|b| (0x21..=0x7e).contains(&b));
    if http.port > 0 && http.path.starts_with('/') && visible && (100..600).contains(&http.status) {
        return Ok(());
    }
    let what = format!(
        "wait for status {} of port {} {}",
        http.status,
        http.port,
        http.path.escape_debug()
    );
    Err(Error::new(ErrorKind::InvalidSpec, what)
        .hint("give a port, a path that begins with a slash and has no spaces, and a status from 100 to 599"))
}

pub(super) async fn http(vm: &Vm, wanted: &Http, seen: &Seen) -> Result<()> {
    let mut pause = Pause::new();
    loop {
        match tokio::time::timeout(ANSWER_WAIT, ask(vm, wanted)).await {
            Ok(Ok(status)) if status == wanted.status => return Ok(()),
            Ok(Ok(status)) => seen.set(&format!("status {status}")),
            Ok(Err(Unanswered::Machine(e))) => passing(e, seen)?,
            Ok(Err(Unanswered::Http(e))) => seen.set(&format!("no HTTP answer: {e}")),
            Err(_) => seen.set("a connection, but no answer"),
        }
        pause.pause().await;
    }
}

enum Unanswered {
    Machine(Error),
    Http(io::Error),
}

async fn ask(vm: &Vm, wanted: &Http) -> Result<u16, Unanswered> {
    let stream = vm.connect(wanted.port).await.map_err(Unanswered::Machine)?;
    let request = Request::get(format!("http://{}:{}{}", vm.address(), wanted.port, wanted.path))
        .header("user-agent", "fleetbox")
        .body(())
        .map_err(|e| {
            Unanswered::Machine(Error::new(ErrorKind::InvalidSpec, "write the request").source(e))
        })?;
    let answer = crate::http::ask(stream, request, &[]).await.map_err(Unanswered::Http)?;
    Ok(answer.status())
}

pub(super) async fn console(vm: &Vm, pattern: &Regex, seen: &Seen) -> Result<()> {
    let mut pause = Pause::new();
    let mut reader = Lines::default();
    loop {
        let path = vm.console_path();
        let more = reader
            .read(&path, |line| pattern.is_match(line))
            .map_err(|e| Error::io("read", &path, e))?;
        match more {
            Read::Found => return Ok(()),
            Read::Some(last) => {
                seen.set(&last);
                pause.reset();
            }
            Read::None => {
                // A machine that ended says nothing more.
                if vm.state().await? == crate::State::Stopped {
                    return Err(super::never(
                        "the machine does not run, and its console has no such line",
                    ));
                }
                pause.pause().await;
            }
        }
    }
}

/// A console's lines, the unfinished last one included.
#[derive(Default)]
struct Lines {
    offset: u64,
    rest: Vec<u8>,
}

enum Read {
    Found,
    /// The last line of what was read.
    Some(String),
    None,
}

impl Lines {
    fn read(&mut self, path: &std::path::Path, fits: impl Fn(&str) -> bool) -> io::Result<Read> {
        let bytes = console::from(path, &mut self.offset, READ_BYTES_MAX)?;
        if bytes.is_empty() {
            return Ok(Read::None);
        }
        let mut last = String::new();
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(self.rest.len());
            self.rest.extend_from_slice(&line[..line.len().min(room)]);
            let text = String::from_utf8_lossy(&self.rest);
            let text = text.trim_end_matches(['\r', '\n']);
            if fits(&uncoloured(text)) {
                return Ok(Read::Found);
            }
            text.clone_into(&mut last);
            if line.ends_with(b"\n") {
                self.rest.clear();
            }
        }
        Ok(Read::Some(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_come_in_pieces_and_a_prompt_counts() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut lines = Lines::default();
        let mut read = |file: &tempfile::NamedTempFile| {
            lines.read(file.path(), |line| line.ends_with("login:")).unwrap()
        };
        assert!(matches!(read(&file), Read::None));
        file.write_all(b"Debian\r\nweb log").unwrap();
        assert!(matches!(read(&file), Read::Some(last) if last == "web log"));
        file.write_all(b"in:").unwrap();
        assert!(matches!(read(&file), Read::Found));
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![b'x'; 1 << 20]).unwrap();
        let mut lines = Lines::default();
        lines.read(file.path(), |_| false).unwrap();
        assert!(lines.rest.len() <= LINE_BYTES_MAX);
    }
}
