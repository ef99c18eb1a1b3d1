//! Owns how a command is described, in the manner of `std::process::Command`, and the shell text it
//! becomes. It must not talk to the guest.

mod text;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::child::Child;
use super::output::{self, ExitStatus, Output};
use super::quote;
use super::running::Running;
use super::session::Session;
use super::sink::Sink;
use crate::error::Result;

const DEFAULT_OUTPUT_LIMIT_BYTES: u64 = 256 * 1024 * 1024;

/// What becomes of one of a command's standard streams. `Stdio::Null` is `/dev/null` in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stdio {
    /// Nothing to read, or written to nowhere.
    Null,
    /// Connected to this process.
    Piped,
}

/// A signal to send to a command in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// The terminal went away; daemons reload.
    Hup,
    /// As by Ctrl-C.
    Int,
    /// As by Ctrl-\.
    Quit,
    /// End, politely.
    Term,
    /// End, at once.
    Kill,
    /// For the program to define.
    Usr1,
    /// For the program to define.
    Usr2,
    /// Stand still.
    Stop,
    /// Go on.
    Cont,
}

impl Signal {
    /// The name without `SIG`.
    ///
    /// ```
    /// assert_eq!(fleetbox::Signal::Term.as_str(), "TERM");
    /// ```
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Signal::Hup => "HUP",
            Signal::Int => "INT",
            Signal::Quit => "QUIT",
            Signal::Term => "TERM",
            Signal::Kill => "KILL",
            Signal::Usr1 => "USR1",
            Signal::Usr2 => "USR2",
            Signal::Stop => "STOP",
            Signal::Cont => "CONT",
        }
    }
}

/// A terminal for a command to run in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// The kind, as in `$TERM`: `xterm-256color`, …
    pub term: String,
    /// Width in characters.
    pub columns: u32,
    /// Height in lines.
    pub rows: u32,
}

/// A command to run in a guest, in the manner of [`std::process::Command`]: a program with
/// arguments that no shell touches, run as the guest's user, in that user's home directory.
///
/// A program that does not exist is not an error of its own: the guest's shell says so and ends
/// with code 127.
///
/// **Cancelling.** Dropping the future of [`output`](Command::output), [`run`](Command::run) or
/// [`status`](Command::status), or a [`Child`], ends the command in the guest: it and everything it
/// started get `TERM`, and `KILL` after 2 s. A task of the runtime does that, so it needs the
/// runtime to live a little longer. To know that it has ended, use a timeout or [`Child::kill`].
/// To find what belongs to a command, each carries `FLEETBOX_COMMAND=<a unique word>` in its
/// environment.
///
/// ```no_run
/// # async fn example(mut command: fleetbox::Command) -> fleetbox::Result<()> {
/// # use std::time::Duration;
/// let output = command
///     .args(["-l", "/etc"])
///     .env("LC_ALL", "C")
///     .timeout(Duration::from_secs(5))
///     .run()
///     .await?;
/// assert!(output.stdout_text().contains("passwd"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Command {
    session: Session,
    program: Program,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    current_dir: Option<Vec<u8>>,
    sudo: bool,
    stdin: Option<Stdin>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    timeout: Option<Duration>,
    output_limit_bytes: u64,
    terminal: Option<Terminal>,
    unwritten: bool,
}

#[derive(Debug, Clone)]
enum Program {
    Exec(Vec<Vec<u8>>),
    Shell(Vec<u8>),
}

#[derive(Debug, Clone)]
enum Stdin {
    Stdio(Stdio),
    Bytes(Vec<u8>),
}

impl Command {
    pub(crate) fn new(session: Session, program: impl AsRef<OsStr>) -> Self {
        Self::with(session, Program::Exec(vec![bytes(program)]))
    }

    /// `text` is run by the login shell of the guest's user, as `ssh host text` does.
    pub(crate) fn shell(session: Session, text: impl AsRef<OsStr>) -> Self {
        Self::with(session, Program::Shell(bytes(text)))
    }

    fn with(session: Session, program: Program) -> Self {
        Self {
            session,
            program,
            env: Vec::new(),
            current_dir: None,
            sudo: false,
            stdin: None,
            stdout: None,
            stderr: None,
            timeout: None,
            output_limit_bytes: DEFAULT_OUTPUT_LIMIT_BYTES,
            terminal: None,
            unwritten: false,
        }
    }

    /// Adds an argument: any bytes but NUL, passed on exactly. For a command of shell text, a word
    /// after the text.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        match &mut self.program {
            Program::Exec(words) => words.push(bytes(arg)),
            Program::Shell(text) => quote::words(text, [arg.as_ref().as_bytes()]),
        }
        self
    }

    /// Adds arguments, see [`Command::arg`].
    pub fn args<A: AsRef<OsStr>>(&mut self, args: impl IntoIterator<Item = A>) -> &mut Self {
        for arg in args {
            self.arg(arg);
        }
        self
    }

    /// Sets an environment variable. The name must be one a shell knows: letters, digits and
    /// underscores, no digit first.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.push((bytes(name), bytes(value)));
        self
    }

    /// Sets environment variables, see [`Command::env`].
    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(
        &mut self,
        vars: impl IntoIterator<Item = (N, V)>,
    ) -> &mut Self {
        for (name, value) in vars {
            self.env(name, value);
        }
        self
    }

    /// The directory to run in, an absolute path in the guest; default the user's home. With
    /// [`Command::sudo`] it is entered as root.
    pub fn current_dir(&mut self, dir: impl AsRef<OsStr>) -> &mut Self {
        self.current_dir = Some(bytes(dir));
        self
    }

    /// Runs the command as root, through `sudo -n`. The variables of [`Command::env`] are kept.
    pub fn sudo(&mut self) -> &mut Self {
        self.sudo = true;
        self
    }

    /// Where standard input comes from; default [`Stdio::Null`], for a terminal's
    /// [`Command::spawn`] [`Stdio::Piped`]. Only `spawn` can use a pipe.
    pub fn stdin(&mut self, stdin: Stdio) -> &mut Self {
        self.stdin = Some(Stdin::Stdio(stdin));
        self
    }

    /// Gives the command these bytes to read, then the end of its input.
    pub fn stdin_bytes(&mut self, bytes: impl Into<Vec<u8>>) -> &mut Self {
        self.stdin = Some(Stdin::Bytes(bytes.into()));
        self
    }

    /// Where standard output goes; default [`Stdio::Piped`].
    pub fn stdout(&mut self, stdout: Stdio) -> &mut Self {
        self.stdout = Some(stdout);
        self
    }

    /// Where standard error goes; default [`Stdio::Piped`].
    pub fn stderr(&mut self, stderr: Stdio) -> &mut Self {
        self.stderr = Some(stderr);
        self
    }

    /// Ends the command after this time, counted from the call that starts it and with the time to
    /// connect: [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut), returned when the command has ended. Default: none.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = Some(timeout);
        self
    }

    /// The most that is collected of each of standard output and error; default 256 MiB. A command
    /// that writes more is ended and fails.
    pub fn output_limit_bytes(&mut self, bytes: u64) -> &mut Self {
        self.output_limit_bytes = bytes;
        self
    }

    /// Runs the command in a terminal. It then writes everything to standard output.
    pub fn tty(&mut self, terminal: Terminal) -> &mut Self {
        self.terminal = Some(terminal);
        self
    }

    /// Runs the command to its end and collects what it writes. As with the standard library, a
    /// command that fails is no error of this call; see [`Command::run`] for that.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec), [`ErrorKind::InvalidPath`](crate::ErrorKind::InvalidPath) before any work: NUL in an argument,
    ///   a bad variable name, a relative directory, more than 128 KiB of text.
    /// - [`ErrorKind::Connect`](crate::ErrorKind::Connect) and its kin: nothing was run.
    /// - [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost): how the command ended is not known. It is never run again.
    /// - [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut); [`ErrorKind::CommandFailed`](crate::ErrorKind::CommandFailed) for too much output.
    ///
    /// Dropping the future ends the command. May be called again to run it again.
    ///
    /// ```no_run
    /// # async fn example(mut command: fleetbox::Command) -> fleetbox::Result<()> {
    /// let output = command.arg("/etc/os-release").output().await?;
    /// println!("{}: {}", output.status, output.stdout_text());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn output(&mut self) -> Result<Output> {
        let limit = self.output_limit_bytes;
        let collect = |stdio: Option<Stdio>| match stdio {
            Some(Stdio::Null) => Sink::Discard,
            _ => Sink::Collect { bytes: Vec::new(), limit },
        };
        let request = self.request(collect(self.stdout), collect(self.stderr), false)?;
        let ended = Running::start(self.session.clone(), request).ended().await?;
        Ok(Output { status: ended.status, stdout: ended.stdout, stderr: ended.stderr })
    }

    /// [`Command::output`], and a command that fails is [`ErrorKind::CommandFailed`](crate::ErrorKind::CommandFailed), which carries
    /// the output ([`Error::output`](crate::Error::output)) and quotes the last lines of standard error.
    ///
    /// ```no_run
    /// # async fn example(mut command: fleetbox::Command) -> fleetbox::Result<()> {
    /// match command.arg("--frobnicate").run().await {
    ///     Ok(output) => println!("{}", output.stdout_text()),
    ///     Err(e) if e.output().is_some() => eprintln!("it said: {}", e.report()),
    ///     Err(e) => return Err(e),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run(&mut self) -> Result<Output> {
        let output = self.output().await?;
        if output.status.success() {
            return Ok(output);
        }
        Err(output::failure(&self.label(), output).vm(self.session.vm()))
    }

    /// Runs the command to its end with its output discarded, unless that is set to
    /// [`Stdio::Piped`], when it is read and dropped. Errors as [`Command::output`].
    pub async fn status(&mut self) -> Result<ExitStatus> {
        let null = |stdio: Option<Stdio>| Some(stdio.unwrap_or(Stdio::Null));
        let mut quiet = self.clone();
        (quiet.stdout, quiet.stderr) = (null(self.stdout), null(self.stderr));
        let request = quiet.request(Sink::Discard, Sink::Discard, false)?;
        Ok(Running::start(self.session.clone(), request).ended().await?.status)
    }

    /// Starts the command. Its piped streams are read and written through the [`Child`]; a pipe
    /// that is not read makes the command wait, so read both standard output and error or set one
    /// to [`Stdio::Null`].
    ///
    /// A command with piped output has an SSH connection of its own, so that a slow reader holds up
    /// nothing else; finished ones leave theirs to the next.
    ///
    /// # Errors
    /// As [`Command::output`], for the start alone.
    ///
    /// ```no_run
    /// # async fn example(mut command: fleetbox::Command) -> fleetbox::Result<()> {
    /// use fleetbox::Stdio;
    /// use tokio::io::{AsyncBufReadExt, BufReader};
    ///
    /// let mut child = command.args(["-f", "/var/log/syslog"]).stderr(Stdio::Null).spawn().await?;
    /// let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    /// while let Ok(Some(line)) = lines.next_line().await {
    ///     if line.contains("ready") {
    ///         break;
    ///     }
    /// }
    /// child.kill().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn spawn(&mut self) -> Result<Child> {
        Child::spawn(self).await
    }

    /// Keeps it out of the transcript: it is not the caller's.
    pub(crate) fn unwritten(&mut self) -> &mut Self {
        self.unwritten = true;
        self
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.output_limit_bytes
    }

    /// Which of standard input, output and error [`Command::spawn`] connects.
    pub(super) fn pipes(&self) -> (bool, bool, bool) {
        let piped = |stdio: Option<Stdio>| stdio != Some(Stdio::Null);
        let stdin = match &self.stdin {
            Some(Stdin::Stdio(stdio)) => *stdio == Stdio::Piped,
            Some(Stdin::Bytes(_)) => false,
            None => self.terminal.is_some(),
        };
        (stdin, piped(self.stdout), piped(self.stderr) && self.terminal.is_none())
    }
}

/// Runs shell text and returns what it wrote to standard output; failure is
/// [`ErrorKind::CommandFailed`](crate::ErrorKind::CommandFailed) with the output.
pub(crate) async fn ssh(session: &Session, text: &str) -> Result<String> {
    Ok(Command::shell(session.clone(), text).run().await?.stdout_text())
}

fn bytes(text: impl AsRef<OsStr>) -> Vec<u8> {
    text.as_ref().as_bytes().to_vec()
}
