//! Owns how a command in the guest is signalled and ended, together with all it has started. It
//! must not touch a process that does not belong to the command.
//!
//! sshd's own signal request is no way: it reaches neither the commands of root nor what sudo runs,
//! and says nothing when it refuses. So every command carries a mark in its environment, and a
//! second command signals who has it.

use std::fmt::Write;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use russh::ChannelMsg;

use super::command::Signal;
use super::quote;
use super::session::{Session, Use};
use crate::error::{Error, ErrorKind, Result};

/// The time ending may take in the guest: an emulated one is slow to look at its processes.
const END_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Finds and signals. Arguments: the mark, then the signals; after each but a single one it waits
/// up to 2 s for all to be gone. Exit code 0: gone or signalled; 3: some are left.
///
/// What belongs to a command: who has the mark in the environment it was started with, who shares a
/// session with one of those (sudo starts its child without the mark), and their descendants (a
/// terminal's jobs, a sudo with a session of its own). sudo itself is left out except for KILL,
/// since it passes on what it gets and its child would see it twice.
const SCRIPT: &str = r#"
mark=$1; shift; once=; [ $# -eq 1 ] && once=1
[ -r /proc/self/stat ] || exit 3
sessions=' '
read -r line </proc/$$/stat; set -- "$@" -- ${line##*) }; own=
signals=; while [ "$1" != -- ]; do signals="$signals $1"; shift; done; own=$5
look() {
  marked=' '; found=' '; polite=' '
  for file in $(grep -lszxF "FLEETBOX_COMMAND=$mark" /proc/[0-9]*/environ); do
    file=${file#/proc/}; marked="$marked${file%/environ} "
  done
  again=1
  while [ "$again" ]; do
    again=
    for file in /proc/[0-9]*/stat; do
      pid=${file#/proc/}; pid=${pid%/stat}
      case $found in *" $pid "*) continue;; esac
      { read -r line <"$file"; } 2>/dev/null || continue
      set -- ${line##*) }
      [ $# -ge 4 ] && [ "$1" != Z ] && [ "$4" != "$own" ] && [ "$pid" != 1 ] || continue
      case $marked in
        *" $pid "*) case $sessions in *" $4 "*) ;; *) [ "$4" = 0 ] || sessions="$sessions$4 ";; esac;;
        *) case $sessions in *" $4 "*) ;; *) case $found in *" $2 "*) ;; *) continue;; esac;; esac;;
      esac
      found="$found$pid "; again=1
      case $line in "$pid (sudo) "*) ;; *) polite="$polite$pid ";; esac
    done
  done
}
tries=0
look
# A command that has only just begun may not show its mark yet.
while [ "$found" = ' ' ] && [ $tries -lt 5 ]; do sleep 0.1 || sleep 1; tries=$((tries+1)); look; done
for signal in $signals; do
  case $signal in KILL) targets=$found;; *) targets=$polite;; esac
  for pid in $targets; do kill -s "$signal" "$pid"; done 2>/dev/null
  [ "$once" ] && exit 0
  tries=0
  while look; [ "$found" != ' ' ]; do
    tries=$((tries+1)); [ $tries -gt 20 ] && break
    [ "$signal" = KILL ] && { for pid in $found; do kill -s KILL "$pid"; done; } 2>/dev/null
    sleep 0.1 || sleep 1
  done
  [ "$found" = ' ' ] && exit 0
done
exit 3
"#;

/// What tells one command's processes from all others in the guest. Unique, not secret.
#[derive(Debug, Clone)]
pub(super) struct Mark(String);

impl Mark {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // The standard library seeds its hashers from the operating system's randomness.
        let seeds = std::hash::RandomState::new();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut word = String::new();
        for salt in [count, !count] {
            let mut hasher = seeds.build_hasher();
            hasher.write_u64(salt);
            let _ = write!(word, "{:016x}", hasher.finish());
        }
        Self(word)
    }

    pub(super) fn export(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(format!("export FLEETBOX_COMMAND={}\n", self.0).as_bytes());
    }
}

/// Sends one signal to all of the command.
pub(super) async fn signal(session: &Session, mark: &Mark, signal: Signal) -> Result<()> {
    script(session, mark, &[signal]).await
}

/// Ends all of the command: TERM, 2 s later KILL, and returns when it is gone.
pub(super) async fn terminate(session: &Session, mark: &Mark) -> Result<()> {
    script(session, mark, &[Signal::Term, Signal::Kill]).await
}

/// Ends all of the command at once and returns when it is gone.
pub(super) async fn kill(session: &Session, mark: &Mark) -> Result<()> {
    script(session, mark, &[Signal::Kill, Signal::Kill]).await
}

async fn script(session: &Session, mark: &Mark, signals: &[Signal]) -> Result<()> {
    let mut words = vec![SCRIPT.as_bytes(), b"sh", mark.0.as_bytes()];
    words.extend(signals.iter().map(|signal| signal.as_str().as_bytes()));
    let mut tail = Vec::new();
    quote::words(&mut tail, words);
    // As root where that is allowed: sudo's children are root's.
    let mut text = b"if [ \"$(id -u)\" != 0 ] && sudo -n true; then exec sudo -n sh -c".to_vec();
    text.extend_from_slice(&tail);
    text.extend_from_slice(b"; else exec sh -c");
    text.extend_from_slice(&tail);
    text.extend_from_slice(b"; fi </dev/null >/dev/null 2>&1");
    let failed = |what: String| {
        Error::new(ErrorKind::ConnectionLost, format!("end a command: {what}")).vm(session.vm())
    };
    let opened = match session.open(Use::Reserve).await {
        // An sshd with few sessions to a connection: this must get through all the same.
        Err(e) if e.kind() == ErrorKind::Connect => session.open(Use::Lone).await?,
        opened => opened?,
    };
    let Some((mut channel, mut lease)) = opened.take() else {
        return Err(Error::new(ErrorKind::Internal, "the channel was taken twice"));
    };
    let work = async {
        channel.exec(false, text).await.map_err(|e| failed(e.to_string()))?;
        let mut code = None;
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
                ChannelMsg::Close => lease.clean(),
                _ => {}
            }
        }
        match code {
            Some(0) => Ok(()),
            Some(code) => Err(failed(format!("some of its processes are left (code {code})"))),
            None => Err(failed(lease.connection.loss().to_owned())),
        }
    };
    if let Ok(result) = tokio::time::timeout(END_TIMEOUT, work).await {
        return result;
    }
    // Or the channel would keep its place for ever.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, channel.close()).await;
    Err(failed(format!("the guest took longer than {END_TIMEOUT:?}")))
}
