//! Owns the checks of a command and the shell text it becomes.

use tokio::time::Instant;

use super::{Command, Program, Stdin, Stdio};
use crate::error::{Error, ErrorKind, Result};
use crate::ssh::end::Mark;
use crate::ssh::input::Input;
use crate::ssh::running::Request;
use crate::ssh::sink::Sink;
use crate::ssh::{output, quote};

/// The longest single argument Linux takes (`MAX_ARG_STRLEN`), less its NUL: sshd hands the whole
/// text to the user's shell as one.
const TEXT_BYTES_MAX: usize = 128 * 1024 - 1;
/// Characters of a command shown in messages.
const LABEL_CHARS: usize = 120;

impl Command {
    /// Checks everything and writes the shell text. `piped` says that somebody will write to
    /// standard input.
    pub(in crate::ssh) fn request(
        &self,
        stdout: Sink,
        stderr: Sink,
        piped: bool,
    ) -> Result<Request> {
        let bad = |what: &str, hint: &str| {
            Err(Error::new(ErrorKind::InvalidSpec, format!("run `{}`: {what}", self.label()))
                .vm(self.session.vm())
                .hint(hint))
        };
        if let Some((name, _)) = self.env.iter().find(|(name, _)| !is_variable(name)) {
            return bad(
                &format!("\"{}\" cannot name an environment variable", output::label(name, 40)),
                "use letters, digits and underscores, no digit first",
            );
        }
        if let Some(dir) = self.current_dir.as_ref().filter(|dir| !dir.starts_with(b"/")) {
            let text = format!("enter {}: the path is not absolute", output::label(dir, 80));
            return Err(Error::new(ErrorKind::InvalidPath, text)
                .vm(self.session.vm())
                .hint("give the directory from the guest's root on, such as /tmp"));
        }
        if let Program::Exec(words) = &self.program
            && (words[0].is_empty() || words[0].starts_with(b"-"))
        {
            return bad("the program has no name, or one that looks like an option", "use a path");
        }
        let mark = Mark::new();
        let input = match &self.stdin {
            Some(Stdin::Bytes(bytes)) => Input::bytes(bytes.clone()),
            // `spawn` puts its pipe here.
            _ => Input::None,
        };
        let text = self.text(&mark, piped);
        if text.contains(&0) {
            return bad("NUL cannot be part of a command", "pass such bytes on standard input");
        }
        if text.len() > TEXT_BYTES_MAX {
            return bad(
                "it is longer than the 128 KiB a guest accepts",
                "pass the data on standard input, or copy a file",
            );
        }
        Ok(Request {
            text,
            mark,
            label: self.label(),
            terminal: self.terminal.clone(),
            input,
            stdout,
            stderr,
            deadline: self.timeout.map(|timeout| (Instant::now() + timeout, timeout)),
            alone: false,
            unwritten: self.unwritten,
        })
    }

    /// `export …; cd …; exec program args <redirections`. The mark must be in the environment at an
    /// `exec`: what a shell exports to itself does not show in `/proc/PID/environ`.
    fn text(&self, mark: &Mark, piped: bool) -> Vec<u8> {
        let mut text = Vec::new();
        mark.export(&mut text);
        for (name, value) in &self.env {
            text.extend_from_slice(b"export ");
            text.extend_from_slice(name);
            text.push(b'=');
            quote::word(&mut text, value);
            text.push(b'\n');
        }
        if let Some(dir) = &self.current_dir {
            text.extend_from_slice(b"cd ");
            quote::word(&mut text, dir);
            text.extend_from_slice(b" || exit 1\n");
        }
        match &self.program {
            Program::Exec(words) => {
                text.extend_from_slice(b"exec");
                quote::words(&mut text, words.iter().map(Vec::as_slice));
            }
            Program::Shell(shell) => {
                // The shell that reads this is the user's own, and has read its start-up file.
                text.extend_from_slice(
                    b"case ${SHELL-} in */bash) set -- \"$SHELL\" --norc;; \
                      *) set -- \"${SHELL:-/bin/sh}\";; esac\nexec \"$@\" -c",
                );
                quote::words(&mut text, [shell.as_slice()]);
            }
        }
        if self.sudo {
            let inner = std::mem::take(&mut text);
            mark.export(&mut text);
            text.extend_from_slice(b"exec sudo -n -- sh -c");
            quote::words(&mut text, [inner.as_slice()]);
        }
        if !piped && !matches!(self.stdin, Some(Stdin::Bytes(_))) {
            text.extend_from_slice(b" </dev/null");
        }
        if self.stdout == Some(Stdio::Null) {
            text.extend_from_slice(b" >/dev/null");
        }
        if self.stderr == Some(Stdio::Null) {
            text.extend_from_slice(b" 2>/dev/null");
        }
        text
    }

    pub(super) fn label(&self) -> String {
        let mut text = Vec::new();
        match &self.program {
            Program::Exec(words) => {
                quote::words(&mut text, words.iter().map(Vec::as_slice));
                text.remove(0);
            }
            Program::Shell(shell) => text.extend_from_slice(shell),
        }
        if self.sudo {
            text.splice(0..0, *b"sudo ");
        }
        output::label(&text, LABEL_CHARS)
    }
}

fn is_variable(name: &[u8]) -> bool {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    name.first().is_some_and(|b| !b.is_ascii_digit()) && name.iter().all(word)
}
