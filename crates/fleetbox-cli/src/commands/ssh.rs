//! `ssh`, `exec`, `run`'s command and the proxy for OpenSSH: a guest's command with this process's own standard
//! streams, and its exit code.

use std::io;

use fleetbox::{Child, Command, Signal, Stdio, Vm};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};

use crate::args::Ssh;
use crate::terminal::{self, Raw};
use crate::{Outcome, render};

/// A shell's code for a command ended by a signal is 128 and the signal's number.
const SIGNALS: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
];

pub(super) async fn run(args: Ssh) -> Outcome {
    let vm = Vm::find(&args.name)?;
    // As ssh(1) does: one word may be a whole line of shell, several are joined to one.
    let command = (!args.command.is_empty()).then(|| vm.shell(args.command.join(" ")));
    in_vm(&vm, args.tty, command).await
}

/// Without a command it is a shell. Ends with the command's own code.
pub(super) async fn in_vm(vm: &Vm, tty: bool, command: Option<Command>) -> Outcome {
    let in_terminal = (tty || command.is_none()) && terminal::is_interactive();
    let mut command = command.unwrap_or_else(|| vm.shell("exec \"${SHELL:-/bin/sh}\" -l"));
    command.stdin(Stdio::Piped);
    if in_terminal {
        command.tty(terminal::describe());
        interactive(&mut command).await
    } else {
        piped(&mut command).await
    }
}

async fn interactive(command: &mut Command) -> Outcome {
    let mut child = command.spawn().await?;
    let raw = Raw::enter().map_err(|e| render::complain_io("use the terminal", &e)).ok();
    let code = converse(&mut child).await;
    drop(raw);
    code
}

/// With this process's streams, whatever they are.
pub(super) async fn piped(command: &mut Command) -> Outcome {
    let mut child = command.spawn().await?;
    converse(&mut child).await
}

/// Carries bytes both ways until the command ends and all it wrote is out.
async fn converse(child: &mut Child) -> Outcome {
    if let Some(guest) = child.stdin.take() {
        // It may wait for a key for ever; the process's end ends it.
        tokio::spawn(pump(tokio::io::stdin(), guest, false));
    }
    let out = child.stdout.take().map(|s| tokio::spawn(pump(s, tokio::io::stdout(), true)));
    let err = child.stderr.take().map(|s| tokio::spawn(pump(s, tokio::io::stderr(), true)));
    let mut signals = Signals::listen()?;
    let mut interrupted = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            told = signals.next() => match told {
                Told::Resized => {
                    let (columns, rows) = terminal::size();
                    child.resize(columns, rows);
                }
                // The first asks the command, as a terminal would; the second does not ask.
                Told::End if interrupted => break child.kill().await?,
                Told::End => {
                    interrupted = true;
                    child.signal(Signal::Int).await?;
                }
            },
        }
    };
    for stream in [out, err].into_iter().flatten() {
        // The pump's own errors mean that nobody reads here any more.
        drop(stream.await);
    }
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(255),
        (None, Some(name)) => {
            SIGNALS.iter().find(|(known, _)| *known == name).map_or(255, |(_, number)| 128 + number)
        }
        (None, None) => 255,
    })
}

/// What this process was told from outside while a command ran.
enum Told {
    Resized,
    End,
}

struct Signals {
    resized: UnixSignal,
    interrupt: UnixSignal,
    terminate: UnixSignal,
}

impl Signals {
    fn listen() -> Result<Self, fleetbox::Error> {
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.resized.recv() => Told::Resized,
            _ = self.interrupt.recv() => Told::End,
            _ = self.terminate.recv() => Told::End,
        }
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    flush: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        if flush {
            to.flush().await?;
        }
    }
}

/// Hands a connected socket to the OpenSSH client over our standard output (`ssh_config(5)`,
/// `ProxyUseFdpass`).
pub(super) async fn proxy(name: &str, port: u16) -> Outcome {
    let stream = Vm::find(name)?.connect(port).await?;
    match fleetbox::pass_connection(io::stdout(), &stream) {
        Ok(()) => Ok(0),
        Err(e) => {
            render::complain_io("pass the connection on; this is for OpenSSH's ProxyUseFdpass", &e);
            Ok(1)
        }
    }
}
