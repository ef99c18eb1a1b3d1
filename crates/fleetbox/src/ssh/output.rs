//! Owns what a finished command left: its status, its output, and how both are shown to a person.
//! It must not run anything.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// Lines of stderr shown with a failure.
const TAIL_LINES: usize = 12;
/// Bytes of stderr shown with a failure.
const TAIL_BYTES: usize = 2048;

/// What a command wrote and how it ended.
///
/// ```no_run
/// # async fn example(mut command: fleetbox::Command) -> fleetbox::Result<()> {
/// let output = command.output().await?;
/// if output.status.success() {
///     assert_eq!(output.stdout_text(), "hello");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to its standard output, unless that was redirected.
    pub stdout: Vec<u8>,
    /// Everything it wrote to its standard error, unless that was redirected.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text without white space at its end; bytes that are not UTF-8 become
    /// U+FFFD.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        text(&self.stdout)
    }

    /// Standard error as text without white space at its end; bytes that are not UTF-8 become
    /// U+FFFD.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        text(&self.stderr)
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("status", &self.status)
            .field("stdout", &String::from_utf8_lossy(&self.stdout))
            .field("stderr", &String::from_utf8_lossy(&self.stderr))
            .finish()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// How a command ended: by an exit code or by a signal, never by neither. A connection that was
/// lost before either was known is an error instead.
///
/// ```no_run
/// # async fn example(mut command: fleetbox::Command) -> fleetbox::Result<()> {
/// let status = command.status().await?;
/// assert!(status.success() || status.code() == Some(3) || status.signal() == Some("KILL"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitStatus(Ending);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    Code(i32),
    Signal(String),
}

impl ExitStatus {
    pub(super) fn from_code(code: u32) -> Self {
        // An exit code has 8 bits; a guest that claims more gets the largest, not a wrapped zero.
        Self(Ending::Code(i32::try_from(code).unwrap_or(i32::MAX)))
    }

    /// The name comes from the guest: anything but a short word is cut away.
    pub(super) fn from_signal(name: &str) -> Self {
        let word = |c: &char| c.is_ascii_alphanumeric() || "+-@._".contains(*c);
        Self(Ending::Signal(name.chars().filter(word).take(32).collect()))
    }

    /// Whether the exit code was 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.0 == Ending::Code(0)
    }

    /// The exit code, or `None` if a signal ended the command. A shell that outlives a signalled
    /// child reports 128 + the signal's number as its own code.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self.0 {
            Ending::Code(code) => Some(code),
            Ending::Signal(_) => None,
        }
    }

    /// The name of the signal that ended the command, without `SIG`: `"TERM"`, `"KILL"`, …
    #[must_use]
    pub fn signal(&self) -> Option<&str> {
        match &self.0 {
            Ending::Code(_) => None,
            Ending::Signal(name) => Some(name),
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ending::Code(code) => write!(f, "exit code {code}"),
            Ending::Signal(name) => write!(f, "signal {name}"),
        }
    }
}

/// The error of a command that did not succeed; `label` is the command as [`harmless`] shows it.
pub(super) fn failure(label: &str, output: Output) -> Error {
    let tail = tail(&output.stderr);
    let mut message = format!("run `{label}`: {}", output.status);
    if let Some(last) = tail.lines().rfind(|line| !line.trim().is_empty()) {
        message.push_str(": ");
        message.push_str(last.trim());
    }
    let mut error = Error::new(ErrorKind::CommandFailed, message);
    if tail.lines().count() > 1 {
        error = error.detail(&*tail);
    }
    error.with_output(output)
}

/// The last lines of what a guest wrote, made harmless.
pub(super) fn tail(bytes: &[u8]) -> String {
    let cut = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
    let text = harmless(cut);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Text a terminal can show: control bytes a guest may have sent are escaped, newlines and tabs
/// stay.
pub(super) fn harmless(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).replace("\r\n", "\n").chars() {
        // The bidirectional controls would let a guest reorder what a person reads.
        let hidden =
            c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if hidden && c != '\n' && c != '\t' {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// One harmless line of at most `chars` characters.
pub(super) fn label(bytes: &[u8], chars: usize) -> String {
    let text = harmless(bytes).replace(['\n', '\t'], " ");
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stderr: &[u8]) -> Error {
        let status = ExitStatus::from_code(3);
        failure("x", Output { status, stdout: Vec::new(), stderr: stderr.to_vec() })
    }

    #[test]
    fn a_failure_names_command_status_and_the_last_line() {
        let error = failed(b"one\ntwo\n");
        assert_eq!(error.to_string(), "run `x`: exit code 3: two");
        assert_eq!(error.detail_text(), Some("one\ntwo"));
        assert_eq!(error.output().unwrap().stderr, b"one\ntwo\n");
        assert_eq!(failed(b"").to_string(), "run `x`: exit code 3");
    }

    #[test]
    fn a_guest_cannot_reach_the_terminal() {
        let error = failed(b"\x1b]0;title\x07\x1b[31mred\xff\n");
        assert!(!error.report().chars().any(|c| c.is_control() && c != '\n'));
        assert!(!harmless("\u{202e}x\u{9b}".as_bytes()).contains(['\u{202e}', '\u{9b}']));
        assert_eq!(ExitStatus::from_signal("KILL\x1b[0m\n").signal(), Some("KILL0m"));
    }

    #[test]
    fn a_long_tail_is_cut_from_the_front() {
        let many: Vec<u8> = (0..1000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let shown = tail(&many);
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.ends_with("line 999"));
    }

    #[test]
    fn an_absurd_code_is_no_success() {
        assert!(!ExitStatus::from_code(u32::MAX).success());
        assert!(!ExitStatus::from_code(256).success());
        assert!(ExitStatus::from_code(0).success());
    }
}
