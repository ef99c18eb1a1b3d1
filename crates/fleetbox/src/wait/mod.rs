//! Owns waiting for something to come true in a guest: [`Condition`], in words such as [`unit()`], [`port()`] and
//! [`journal()`], and [`Wait`]. How each is seen is in `guest` and `outside`. It must not change anything in
//! the guest.
//!
//! ```no_run
//! # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
//! use std::time::Duration;
//! use fleetbox::wait::{any, console, file, http, port, unit};
//!
//! vm.wait(unit("nginx").active()).await?;
//! vm.wait(http(80, "/health").status(204)).within(Duration::from_secs(30)).await?;
//! vm.wait(any([port(5432), file("/run/failed"), console("panic|BUG")?])).await?;
//! # Ok(())
//! # }
//! ```

mod guest;
mod outside;

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use regex_lite::Regex;
use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::vm::Vm;

/// What a wait takes by default before it is given up.
const LIMIT: Duration = Duration::from_mins(2);
/// How much of what was seen last an error tells.
const SEEN_CHARS: usize = 2000;

/// Something that may come true in a guest. `Display` says it in words.
#[derive(Debug, Clone)]
#[must_use = "nothing is waited for until `Vm::wait`"]
pub struct Condition(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Unit { name: String, state: UnitState },
    Port(u16),
    Socket(String),
    File(String),
    Http(Http),
    Command(String),
    Console(Regex),
    Journal(Regex),
    BootFinished,
    All(Vec<Condition>),
    Any(Vec<Condition>),
}

/// A state of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnitState {
    Active,
    Inactive,
}

/// A unit of the guest's systemd, from [`unit()`].
#[derive(Debug, Clone)]
#[must_use = "say which state is waited for"]
pub struct Unit(String);

/// A unit of the guest's systemd: `nginx` is `nginx.service`. Say which state is waited for.
pub fn unit(name: impl Into<String>) -> Unit {
    Unit(name.into())
}

impl Unit {
    /// It is up. The wait fails at once if the unit has failed, and shows its last lines.
    pub fn active(self) -> Condition {
        Condition(Kind::Unit { name: self.0, state: UnitState::Active })
    }

    /// It is down, without having failed: then the wait fails at once.
    pub fn inactive(self) -> Condition {
        Condition(Kind::Unit { name: self.0, state: UnitState::Inactive })
    }
}

/// Something listens on that TCP port, at the guest's own address.
pub fn port(port: u16) -> Condition {
    Condition(Kind::Port(port))
}

/// There is a unix socket at that path.
pub fn socket(path: impl Into<String>) -> Condition {
    Condition(Kind::Socket(path.into()))
}

/// There is a file, of whatever kind, at that path.
pub fn file(path: impl Into<String>) -> Condition {
    Condition(Kind::File(path.into()))
}

/// What an HTTP server of the guest answers, from [`http()`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "nothing is waited for until `Vm::wait`"]
pub struct Http {
    port: u16,
    path: String,
    status: u16,
}

/// An HTTP server on that port answers `GET path` with 200, or another [status](Http::status).
pub fn http(port: u16, path: impl Into<String>) -> Http {
    Http { port, path: path.into(), status: 200 }
}

impl Http {
    /// The status that is waited for instead of 200.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}

impl From<Http> for Condition {
    fn from(http: Http) -> Self {
        Self(Kind::Http(http))
    }
}

/// A line of shell, from [`command()`].
#[derive(Debug, Clone)]
#[must_use = "say what is waited for"]
pub struct Line(String);

/// A line of shell, run again and again as the guest's user.
pub fn command(line: impl Into<String>) -> Line {
    Line(line.into())
}

impl Line {
    /// It ends with exit code 0.
    pub fn succeeds(self) -> Condition {
        Condition(Kind::Command(self.0))
    }
}

/// A line of the console, without its colours, matches the regular expression, at any time since the machine
/// was started.
///
/// # Errors
/// [`ErrorKind::InvalidSpec`] if it is none.
pub fn console(pattern: &str) -> Result<Condition> {
    Ok(Condition(Kind::Console(regex(pattern)?)))
}

/// A line of the journal of this boot matches the regular expression, in the form `journalctl -o short` gives it.
///
/// # Errors
/// [`ErrorKind::InvalidSpec`] if it is none.
pub fn journal(pattern: &str) -> Result<Condition> {
    Ok(Condition(Kind::Journal(regex(pattern)?)))
}

/// systemd has started everything there is to start, and cloud-init has ended, be it with failures.
pub fn boot_finished() -> Condition {
    Condition(Kind::BootFinished)
}

/// All of them hold, each at some time.
pub fn all<C: Into<Condition>>(conditions: impl IntoIterator<Item = C>) -> Condition {
    Condition(Kind::All(conditions.into_iter().map(Into::into).collect()))
}

/// One of them holds. It fails when none can any more.
pub fn any<C: Into<Condition>>(conditions: impl IntoIterator<Item = C>) -> Condition {
    Condition(Kind::Any(conditions.into_iter().map(Into::into).collect()))
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| {
        let message = format!("understand the pattern \"{}\"", pattern.escape_debug());
        Error::new(ErrorKind::InvalidSpec, message).source(e).hint("it is a regular expression")
    })
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, all: &[Condition], word| {
            let words: Vec<String> = all.iter().map(ToString::to_string).collect();
            f.write_str(&words.join(word))
        };
        match &self.0 {
            Kind::Unit { name, state: UnitState::Active } => {
                write!(f, "unit {} active", name.escape_debug())
            }
            Kind::Unit { name, state: UnitState::Inactive } => {
                write!(f, "unit {} inactive", name.escape_debug())
            }
            Kind::Port(port) => write!(f, "port {port}"),
            Kind::Socket(path) => write!(f, "socket {}", path.escape_debug()),
            Kind::File(path) => write!(f, "file {}", path.escape_debug()),
            Kind::Http(http) => write!(
                f,
                "status {} of http port {} {}",
                http.status,
                http.port,
                http.path.escape_debug()
            ),
            Kind::Command(line) => write!(f, "success of `{}`", line.escape_debug()),
            Kind::Console(pattern) => write!(f, "\"{pattern}\" on the console"),
            Kind::Journal(pattern) => write!(f, "\"{pattern}\" in the journal"),
            Kind::BootFinished => f.write_str("the end of the boot"),
            Kind::All(all) => joined(f, all, " and "),
            Kind::Any(any) => joined(f, any, " or "),
        }
    }
}

/// A wait for a [`Condition`], from [`Vm::wait`]: await it, perhaps with another [limit](Wait::within).
#[derive(Debug)]
#[must_use = "it waits when it is awaited"]
pub struct Wait {
    vm: Vm,
    condition: Condition,
    limit: Duration,
}

impl Vm {
    /// Waits until the condition holds; by default for two minutes at most. Where the guest can tell that
    /// something happened it is asked to, elsewhere it is looked at again after short, growing pauses.
    ///
    /// # Errors
    /// Of the awaited wait: [`ErrorKind::TimedOut`] with what was seen last;
    /// [`ErrorKind::WaitFailed`] as soon as the condition cannot come true any more;
    /// [`ErrorKind::InvalidSpec`] before any work if the condition cannot be;
    /// [`ErrorKind::NotRunning`] if the machine has ended.
    ///
    /// Dropping it ends what it has running in the guest.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// use fleetbox::wait;
    /// vm.ssh("sudo systemctl start --no-block nginx").await?;
    /// vm.wait(wait::unit("nginx").active()).await?;
    /// vm.wait(wait::command("curl -sf localhost").succeeds()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(&self, condition: impl Into<Condition>) -> Wait {
        Wait { vm: self.clone(), condition: condition.into(), limit: LIMIT }
    }
}

impl Wait {
    /// How long to wait at most.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    async fn run(self) -> Result<()> {
        let Self { vm, condition, limit } = self;
        condition.check().map_err(|e| e.vm(vm.name()))?;
        let place = vm.note_wait(&format!("wait for {condition}"));
        let seen = Seen::default();
        let waited = match tokio::time::timeout(limit, condition.holds(&vm, &seen)).await {
            Ok(waited) => waited.map_err(|e| e.within(&format!("wait for {condition}"))),
            Err(_) => Err(late(&condition, limit, &seen)),
        };
        let waited = waited.map_err(|e| e.vm(vm.name()));
        if let Some(place) = place {
            place.finish(waited.as_ref().err().map(Error::report));
        }
        waited
    }
}

impl IntoFuture for Wait {
    type Output = Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

fn late(condition: &Condition, limit: Duration, seen: &Seen) -> Error {
    let limit = humantime::format_duration(limit);
    let error =
        Error::new(ErrorKind::TimedOut, format!("wait for {condition}: not within {limit}"))
            .hint("if it takes longer on this host, say so: `.within(…)`");
    match seen.last() {
        Some(last) => error.detail(format!("seen last: {last}")),
        None => error,
    }
}

/// What was seen last, harmless.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<Option<String>>>);

impl Seen {
    fn set(&self, text: &str) {
        let text = crate::console::harmless(text.trim().as_bytes());
        let from = text.char_indices().rev().nth(SEEN_CHARS).map_or(0, |(at, _)| at);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text[from..].to_owned());
    }

    fn last(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .filter(|text| !text.is_empty())
    }
}

/// It will not come true any more.
fn never(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::WaitFailed, why)
}

impl Condition {
    /// Refuses what cannot be, before any work.
    fn check(&self) -> Result<()> {
        let bad =
            |what: String, hint: &str| Err(Error::new(ErrorKind::InvalidSpec, what).hint(hint));
        match &self.0 {
            Kind::Unit { name, .. }
                if name.is_empty() || name.starts_with('-') || name.contains('\0') =>
            {
                bad(
                    format!("wait for the unit \"{}\"", name.escape_debug()),
                    "give a unit's name, such as nginx",
                )
            }
            Kind::Socket(path) | Kind::File(path)
                if !path.starts_with('/') || path.contains('\0') =>
            {
                bad(
                    format!("wait for the path \"{}\"", path.escape_debug()),
                    "give an absolute path",
                )
            }
            Kind::Port(0) => bad("wait for port 0".to_owned(), "give a port from 1 to 65535"),
            Kind::Http(http) => outside::check(http),
            Kind::All(all) | Kind::Any(all) if all.is_empty() => {
                bad("wait for none of no conditions".to_owned(), "give one or more")
            }
            Kind::All(all) | Kind::Any(all) => all.iter().try_for_each(Condition::check),
            _ => Ok(()),
        }
    }

    /// Returns when it holds, or cannot any more.
    fn holds<'a>(
        &'a self,
        vm: &'a Vm,
        seen: &'a Seen,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        Box::pin(async move {
            match &self.0 {
                Kind::Unit { name, state } => guest::unit(vm, name, *state, seen).await,
                Kind::Port(port) => outside::port(vm, *port, seen).await,
                Kind::Socket(path) => guest::path(vm, "-S", path, seen).await,
                Kind::File(path) => guest::path(vm, "-e", path, seen).await,
                Kind::Http(http) => outside::http(vm, http, seen).await,
                Kind::Command(line) => guest::command(vm, line, seen).await,
                Kind::Console(pattern) => outside::console(vm, pattern, seen).await,
                Kind::Journal(pattern) => guest::journal(vm, pattern, seen).await,
                Kind::BootFinished => guest::boot_finished(vm, seen).await,
                Kind::All(all) => join(all, vm, seen, true).await,
                Kind::Any(any) => join(any, vm, seen, false).await,
            }
        })
    }
}

/// Waits for all side by side, or for the first that holds.
async fn join(conditions: &[Condition], vm: &Vm, seen: &Seen, all: bool) -> Result<()> {
    let own: Vec<Seen> = conditions.iter().map(|_| Seen::default()).collect();
    let mut waits = JoinSet::new();
    for (condition, own) in conditions.iter().cloned().zip(own.iter().cloned()) {
        let vm = vm.clone();
        waits.spawn(async move {
            let held = condition.holds(&vm, &own).await;
            held.map_err(|e| e.within(&condition.to_string()))
        });
    }
    let mut failed = None;
    let mut tell = tokio::time::interval(outside::POLL_LAST);
    loop {
        tokio::select! {
            next = waits.join_next() => match next {
                None => return failed.map_or(Ok(()), Err),
                Some(Err(e)) => return Err(Error::new(ErrorKind::Internal, "wait").source(e)),
                Some(Ok(Ok(()))) if !all => return Ok(()),
                Some(Ok(Err(e))) if all => return Err(e),
                Some(Ok(held)) => failed = held.err().or(failed),
            },
            _ = tell.tick() => {
                let words: Vec<String> = conditions.iter().zip(&own)
                    .filter_map(|(condition, own)| Some(format!("{condition}: {}", own.last()?)))
                    .collect();
                seen.set(&words.join("; "));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_themselves_in_words() {
        let all = all([unit("nginx").active(), port(80), http(80, "/x").status(204).into()]);
        assert_eq!(
            all.to_string(),
            "unit nginx active and port 80 and status 204 of http port 80 /x"
        );
        assert_eq!(any([file("/a"), socket("/b")]).to_string(), "file /a or socket /b");
        assert_eq!(command("a\nb").succeeds().to_string(), "success of `a\\nb`");
    }

    #[test]
    fn what_cannot_be_is_refused_before_any_work() {
        let none: [Condition; 0] = [];
        for condition in [
            unit("").active(),
            unit("-x").active(),
            port(0),
            file("relative"),
            socket("x\0"),
            all(none.clone()),
            any([port(1), all(none)]),
            http(80, "no-slash").into(),
            http(80, "/a b\r\nX: y").into(),
            http(0, "/").into(),
        ] {
            let error = condition.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{condition}");
            assert!(error.hint_text().is_some());
        }
        assert_eq!(console("(").unwrap_err().kind(), ErrorKind::InvalidSpec);
    }

    #[test]
    fn what_was_seen_last_is_bounded_and_harmless() {
        let seen = Seen::default();
        assert_eq!(seen.last(), None);
        seen.set(&format!("{}\x1b[2J", "ä".repeat(10_000)));
        let last = seen.last().unwrap();
        assert!(last.chars().count() <= SEEN_CHARS + 1 && last.ends_with("^[[2J"));
    }
}
