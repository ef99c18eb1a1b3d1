//! Owns the question whether machines may have their memory now, beside all others of the state root in
//! whatever process, and waiting until they may. What is promised is written down by `store::memory`. It
//! must not start anything.
//!
//! First come, first served. Members of a cluster that are started together get theirs together, so no two
//! clusters wait for each other half up.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::StartRequest;
use crate::backend::select::{self, Wanted};
use crate::backend::{BootPlan, Turns};
use crate::control::client::{Client, Hold};
use crate::env::{self, MemoryLimit};
use crate::error::Result;
use crate::images;
use crate::progress::ProgressSink;
use crate::spec::{Name, VmSpec};
use crate::store::memory::{Ledger, Promise, Reservation, Turn, Waiting};
use crate::store::paths::Paths;
use crate::store::record::VmRecord;
use crate::sys::memory;

const POLL_FIRST: Duration = Duration::from_millis(20);
const POLL_LAST: Duration = Duration::from_millis(500);

/// The memory a start was given, until the start is over; its machine's holder takes a share of its own.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    reservation: Arc<Reservation>,
    turns: Turns,
}

impl Granted {
    /// Writes down what the machine was given.
    pub(super) fn give(&self, plan: &mut BootPlan) {
        plan.memory = Some(self.reservation.path().to_owned());
        plan.turns = self.turns;
    }

    /// Tells where to see how much of it the machine has taken.
    pub(super) fn runs_under(&self, hold: &Hold) -> Result<()> {
        hold.holder_pid().map_or(Ok(()), |pid| self.reservation.runs_under(pid))
    }
}

/// A machine that is to be started, and the memory it will have.
#[derive(Debug, Clone)]
struct Ask {
    vm: Name,
    memory_mib: u32,
    cpus: u32,
    /// It needs no more than it has, even if nobody wrote that down.
    runs: bool,
}

/// Waits until the machine of a start may have its memory, unless it has it already.
pub(super) async fn one(
    paths: &Paths,
    request: &StartRequest,
    cluster: &Name,
) -> Result<Option<Granted>> {
    let asks = asks(paths, std::slice::from_ref(request), cluster).await?;
    Ok(admit(paths, cluster, &asks, &request.progress, false).await?.pop())
}

/// Waits until all of a cluster's starts may have their memory, and gives it to each.
pub(crate) async fn all(
    paths: &Paths,
    requests: &mut [StartRequest],
    cluster: &Name,
) -> Result<()> {
    let asks = asks(paths, requests, cluster).await?;
    let teller = requests.first().map(|request| request.progress.clone()).unwrap_or_default();
    let granted = admit(paths, cluster, &asks, &teller, true).await?;
    for (ask, granted) in asks.iter().zip(granted) {
        if let Some(request) = requests.iter_mut().find(|request| request.name == ask.vm) {
            request.memory = Some(granted);
        }
    }
    Ok(())
}

/// What there is to ask for. The fake backend's machines have no memory to speak of; they are asked for
/// where a limit is set, which tests it.
async fn asks(paths: &Paths, requests: &[StartRequest], cluster: &Name) -> Result<Vec<Ask>> {
    let is_limited = env::memory_limit()?.is_some();
    let cluster = paths.cluster(cluster);
    let mut asks = Vec::new();
    for request in requests {
        let known = VmRecord::read(&cluster.member(&request.name))?;
        let recorded = known.as_ref().and_then(|known| known.backend);
        let is_fake = select::is_fake(Wanted { recorded, asked: request.backend })?;
        if !is_fake && known.is_none() {
            // Not after a wait.
            images::check(paths, &request.spec.image, request.spec.arch)
                .map_err(|e| e.vm(request.name.as_str()))?;
        }
        if is_limited || !is_fake {
            let spec = known.as_ref().map_or(&request.spec, |known| &known.spec);
            let VmSpec { memory_mib, cpus, .. } = *spec;
            asks.push(Ask { vm: request.name.clone(), memory_mib, cpus, runs: false });
        }
    }
    if !asks.is_empty() {
        let status = Client::new(cluster.socket()).find().await?;
        for member in status.into_iter().flat_map(|status| status.members) {
            if let Some(ask) = asks.iter_mut().find(|ask| ask.vm == member.vm) {
                ask.runs = member.running;
            }
        }
    }
    Ok(asks)
}

async fn admit(
    paths: &Paths,
    cluster: &Name,
    asks: &[Ask],
    progress: &ProgressSink,
    grows: bool,
) -> Result<Vec<Granted>> {
    if asks.is_empty() {
        return Ok(Vec::new());
    }
    let limit = env::memory_limit()?;
    let mut turn: Option<Turn> = None;
    let mut pause = POLL_FIRST;
    loop {
        {
            let ledger = Ledger::open(paths)?;
            let case = Case::of(&ledger, cluster, asks, limit, turn.as_ref(), grows);
            let verdict = case.verdict();
            if let Some(why) = verdict.note(&case, turn.is_some()) {
                progress.note(why);
            }
            match (verdict, &turn) {
                (Verdict::Wait { .. }, Some(_)) => {}
                (Verdict::Wait { .. }, None) => {
                    turn = Some(ledger.queue_up(grows.then_some(cluster))?);
                }
                (Verdict::Fits | Verdict::Anyway(_), _) => {
                    let new = asks.iter().filter(|ask| !ledger.has(cluster, &ask.vm));
                    let all = cpus(&ledger) + new.map(|ask| u64::from(ask.cpus)).sum::<u64>();
                    let reserve = |ask: &Ask| {
                        let reserved =
                            ledger.reserve(cluster, &ask.vm, ask.memory_mib, ask.cpus)?;
                        let turns = turns_of(cores(), ask.cpus.into(), all);
                        Ok(Granted { reservation: Arc::new(reserved), turns })
                    };
                    return asks.iter().map(reserve).collect();
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_LAST);
    }
}

/// Everything the decision is made of.
struct Case<'a> {
    wanted_mib: u64,
    machines: usize,
    limit: Option<MemoryLimit>,
    /// Where the system tells.
    free_mib: Option<u64>,
    promises: &'a [Promise],
    /// Those who wait, the one it is about among them.
    queue: Vec<Waiting>,
    own_number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fits,
    /// It does not, and waiting would not help.
    Anyway(Why),
    Wait {
        ahead: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// No other machine has memory that it could give back.
    Alone,
    /// Whose machines have memory waits for more.
    AllWait,
}

impl<'a> Case<'a> {
    fn of(
        ledger: &'a Ledger,
        cluster: &Name,
        asks: &[Ask],
        limit: Option<MemoryLimit>,
        turn: Option<&Turn>,
        grows: bool,
    ) -> Self {
        // What a sibling start of the same machine got counts once.
        let new = || asks.iter().filter(|ask| !ask.runs && !ledger.has(cluster, &ask.vm));
        let mut queue = ledger.queue.clone();
        let own_number = turn.map_or(u64::MAX, |turn| turn.number);
        if turn.is_none() {
            let cluster = grows.then(|| cluster.clone());
            queue.push(Waiting { number: own_number, cluster });
        }
        Self {
            wanted_mib: new().map(|ask| u64::from(ask.memory_mib)).sum(),
            machines: new().count(),
            limit,
            free_mib: match limit {
                Some(MemoryLimit::Unlimited) => None,
                Some(MemoryLimit::Mib(mib)) => Some(mib.saturating_sub(promised(&ledger.promises))),
                None => memory::available_mib()
                    .map(|mib| free_of(mib, &ledger.promises, memory::children_resident_mib)),
            },
            promises: &ledger.promises,
            queue,
            own_number,
        }
    }

    fn verdict(&self) -> Verdict {
        let unlimited = self.limit == Some(MemoryLimit::Unlimited);
        if self.machines == 0 || unlimited {
            return Verdict::Fits;
        }
        let fits = self.free_mib.is_none_or(|free_mib| free_mib >= self.wanted_mib);
        let ahead = self.queue.iter().filter(|waiting| waiting.number < self.own_number).count();
        match self.hopeless(ahead) {
            _ if fits && ahead == 0 => Verdict::Fits,
            Some(_) if fits => Verdict::Fits,
            Some(why) => Verdict::Anyway(why),
            None => Verdict::Wait { ahead },
        }
    }

    /// Whether waiting would not help, and it is this one's place to go on all the same.
    fn hopeless(&self, ahead: usize) -> Option<Why> {
        if self.promises.is_empty() {
            return (ahead == 0).then_some(Why::Alone);
        }
        let has = |waiting: &Waiting, promise: &Promise| {
            waiting.cluster.as_ref() == Some(&promise.cluster)
        };
        let all_wait =
            self.promises.iter().all(|promise| self.queue.iter().any(|w| has(w, promise)));
        let mut owners = self.queue.iter().filter(|w| self.promises.iter().any(|p| has(w, p)));
        let first = owners.next().map(|waiting| waiting.number);
        (all_wait && first == Some(self.own_number)).then_some(Why::AllWait)
    }

    fn free(&self) -> String {
        match (self.limit, self.free_mib) {
            (Some(MemoryLimit::Mib(mib)), Some(free_mib)) => {
                format!("{free_mib} of the {mib} MiB that {} allows are free", env::MEMORY_MIB)
            }
            (_, free_mib) => format!(
                "{} MiB of the host's are free beside what running machines may still take",
                free_mib.unwrap_or_default()
            ),
        }
    }
}

impl Verdict {
    /// What the user should hear of it, once.
    fn note(self, case: &Case<'_>, waited: bool) -> Option<String> {
        let wanted = Wanting(case);
        let free = case.free();
        match self {
            Verdict::Fits => None,
            Verdict::Anyway(why) => Some(format!("starts although {wanted}, {free}: {why}")),
            Verdict::Wait { .. } if waited => None,
            Verdict::Wait { ahead } => {
                let behind = match ahead {
                    0 => String::new(),
                    1 => ", and one start is before it".to_owned(),
                    ahead => format!(", and {ahead} starts are before it"),
                };
                Some(format!(
                    "waits for memory: {wanted}, {free}{behind}; set {} to change what may be used",
                    env::MEMORY_MIB
                ))
            }
        }
    }
}

struct Wanting<'a>(&'a Case<'a>);

impl fmt::Display for Wanting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB wanted", self.0.wanted_mib)?;
        match self.0.machines {
            1 => Ok(()),
            machines => write!(f, " for {machines} machines"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Alone => "no other machine runs that could end, and guests often need less",
            Why::AllWait => "those that run wait for it, and guests often need less",
        })
    }
}

/// How the processors of a machine that has its memory are to run.
pub(super) fn turns(paths: &Paths, spec: &VmSpec) -> Result<Turns> {
    Ok(turns_of(cores(), spec.cpus.into(), cpus(&Ledger::open(paths)?)))
}

/// Of all machines that run or start.
fn cpus(ledger: &Ledger) -> u64 {
    ledger.promises.iter().map(|promise| promise.entry.cpus).sum()
}

fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// In turn, where a machine's part of the host's cores is nearer to one than to two if all processors have
/// work: one that waits for another, which has no core, makes work of that.
fn turns_of(cores: u64, cpus: u64, all_cpus: u64) -> Turns {
    if 2 * cores * cpus < 3 * all_cpus { Turns::InTurn } else { Turns::SideBySide }
}

fn promised(promises: &[Promise]) -> u64 {
    promises.iter().map(|promise| promise.entry.memory_mib).sum()
}

/// What of the host's memory is available when running machines have taken all that was promised to them.
/// What a holder's machines have taken is known for all of them together.
fn free_of(
    available_mib: u64,
    promises: &[Promise],
    resident_mib: impl FnOnce() -> HashMap<u32, u64>,
) -> u64 {
    let mut by_holder: HashMap<Option<u32>, u64> = HashMap::new();
    for Promise { entry, .. } in promises {
        *by_holder.entry(entry.holder).or_default() += entry.memory_mib;
    }
    let taken_mib =
        if by_holder.keys().any(Option::is_some) { resident_mib() } else { HashMap::new() };
    let taken = |holder: Option<u32>| holder.and_then(|pid| taken_mib.get(&pid)).copied();
    let left: u64 = by_holder
        .iter()
        .map(|(holder, mib)| mib.saturating_sub(taken(*holder).unwrap_or_default()))
        .sum();
    available_mib.saturating_sub(left)
}

#[cfg(test)]
mod tests;
