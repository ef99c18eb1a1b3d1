//! Owns starting members together, all or none: who may boot when, and what is undone when one fails.
//! How one is started is `launch`'s.

use std::collections::VecDeque;

use tokio::task::JoinSet;

use super::admission::Room;
use super::builder;
use crate::control::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::launch::{self, Launched, Origin, Packed, StartRequest, Trail, admission};
use crate::net::plan::MEMBERS_MAX;
use crate::spec::Name;
use crate::store::paths::Paths;
use crate::store::{place, record};
use crate::vm::Vm;

/// Members to start, checked as far as that goes without looking at the host.
pub(super) struct Plan {
    pub cluster: Name,
    pub requests: Vec<StartRequest>,
    pub boots_at_once: Option<usize>,
}

/// Starts all or none; they come back in the order of the plan.
pub(super) async fn start(mut plan: Plan) -> Result<Vec<Vm>> {
    settle(&mut plan)?;
    let asked: Vec<Asked> = plan.requests.iter().map(Asked::of).collect();
    reserve(&mut plan).await?;
    let mut crew = Crew::new(&plan).await?;
    let started = match crew.start(plan.requests).await {
        Ok(()) => detach(&plan.cluster, &asked).await,
        failed => failed,
    };
    match started {
        Ok(()) => {
            crew.up.sort_by_key(|(place, _)| *place);
            Ok(crew.up.into_iter().map(|(_, vm)| vm).collect())
        }
        Err(error) => {
            crew.give_up().await;
            let mut undone = undo(&asked).await;
            // Until here, as what is not held any more does not stop politely.
            drop(crew);
            undone.retain(|error| error.kind() != ErrorKind::NotFound);
            Err(explain(error, &asked, &undone))
        }
    }
}

/// What is kept of a member's request until all are up.
struct Asked {
    name: Name,
    detached: bool,
    trail: Trail,
}

impl Asked {
    fn of(request: &StartRequest) -> Self {
        let StartRequest { name, detached, trail, .. } = request;
        Self { name: name.clone(), detached: *detached, trail: trail.clone() }
    }
}

/// Gives each member its cluster and, if it is new, its index; refuses names that are in another
/// cluster and more members than fit.
fn settle(plan: &mut Plan) -> Result<()> {
    let paths = Paths::from_env()?;
    let mut taken = record::indices(&paths.cluster(&plan.cluster))?;
    let queue = std::sync::Arc::default();
    let packed = Packed::default();
    let mut fresh = Vec::new();
    for request in &mut plan.requests {
        place::cluster_for(&paths, &request.name, Some(&plan.cluster))?;
        request.cluster = Some(plan.cluster.clone());
        request.queue = std::sync::Arc::clone(&queue);
        request.packed = packed.clone();
        if place::find(&paths, &request.name)?.is_none() {
            fresh.push(request);
        } else {
            // What is there boots its disk.
            request.origin = Origin::Boot;
        }
    }
    if taken.len() + fresh.len() > MEMBERS_MAX {
        return Err(builder::too_many(&plan.cluster, taken.len() + fresh.len()));
    }
    for request in fresh {
        let asked = request.index.filter(|index| !taken.contains(index));
        let index = asked.unwrap_or_else(|| record::lowest_free(&taken));
        taken.push(index);
        request.index = Some(index);
    }
    Ok(())
}

/// Gets the memory of all in one step: members that waited one by one could wait for those of another
/// cluster that wait for them.
async fn reserve(plan: &mut Plan) -> Result<()> {
    let paths = Paths::from_env()?;
    for request in &plan.requests {
        request.check(&paths).map_err(|e| e.vm(request.name.as_str()))?;
    }
    paths.prepare_root(&plan.cluster)?;
    admission::all(&paths, &mut plan.requests, &plan.cluster).await
}

/// Starts that are under way or done.
struct Crew {
    room: Room,
    /// Ran already when the start began, so that it takes no room.
    ran: Vec<Name>,
    starts: JoinSet<(usize, Result<Launched>)>,
    /// The places of those that boot.
    booting: Vec<usize>,
    up: Vec<(usize, Vm)>,
}

impl Crew {
    async fn new(plan: &Plan) -> Result<Self> {
        let cluster = Paths::from_env()?.cluster(&plan.cluster);
        let status = Client::new(cluster.socket()).find().await?;
        let members = status.into_iter().flat_map(|status| status.members);
        let ran = members.filter(|member| member.running).map(|member| member.vm).collect();
        let restored = plan.requests.iter().all(|request| request.origin != Origin::Boot);
        let room = Room::of(plan.boots_at_once, restored);
        let starts = JoinSet::new();
        Ok(Self { room, ran, starts, booting: Vec::new(), up: Vec::new() })
    }

    /// Until all are up or one failed.
    async fn start(&mut self, requests: Vec<StartRequest>) -> Result<()> {
        let mut waiting: VecDeque<_> = requests.into_iter().enumerate().collect();
        let mut told = None;
        while !waiting.is_empty() || !self.starts.is_empty() {
            while let Some((place, request)) = waiting.pop_front() {
                match self.admit(&request.name) {
                    Ok(()) => self.begin(place, request),
                    Err(wait) => {
                        // Once for each that waits, whatever comes free meanwhile.
                        if told.replace(place) != Some(place) {
                            request.progress.note(wait);
                        }
                        waiting.push_front((place, request));
                        break;
                    }
                }
            }
            self.next().await?;
        }
        Ok(())
    }

    fn admit(&self, vm: &Name) -> Result<(), String> {
        if self.ran.contains(vm) { Ok(()) } else { self.room.admit(self.booting.len()) }
    }

    fn begin(&mut self, place: usize, request: StartRequest) {
        if !self.ran.contains(&request.name) {
            self.booting.push(place);
        }
        // Detached only when all are up: a start that is dropped leaves nothing running.
        let request = StartRequest { detached: false, ..request };
        self.starts.spawn(async move { (place, launch::start(request).await) });
    }

    async fn next(&mut self) -> Result<()> {
        match self.starts.join_next().await {
            Some(Ok((place, launched))) => {
                self.booting.retain(|booting| *booting != place);
                self.up.push((place, Vm::launched(launched?)?));
                Ok(())
            }
            Some(Err(e)) => Err(Error::new(ErrorKind::Internal, "start a member").source(e)),
            None => Ok(()),
        }
    }

    /// Ends what is still under way; what is up stays for now.
    async fn give_up(&mut self) {
        self.starts.abort_all();
        while let Some(joined) = self.starts.join_next().await {
            // It may have come up just before.
            if let Ok((place, Ok(launched))) = joined
                && let Ok(vm) = Vm::launched(launched)
            {
                self.up.push((place, vm));
            }
        }
    }
}

async fn detach(cluster: &Name, asked: &[Asked]) -> Result<()> {
    let client = Client::new(Paths::from_env()?.cluster(cluster).socket());
    for member in asked.iter().filter(|member| member.detached) {
        client.detach(&member.name).await.map_err(|e| e.vm(member.name.as_str()))?;
    }
    Ok(())
}

/// Destroys what was created and stops what was booted, side by side; what could not be undone comes
/// back.
async fn undo(asked: &[Asked]) -> Vec<Error> {
    let mut undoing = JoinSet::new();
    for Asked { name, trail, .. } in asked {
        let (name, trail) = (name.clone(), trail.clone());
        undoing.spawn(async move {
            if trail.created() {
                Vm::find(name.as_str())?.destroy().await
            } else if trail.booted() {
                // Politely if it is up; one that is not ended with its start.
                Vm::find(name.as_str())?.stop().await
            } else {
                Ok(())
            }
        });
    }
    let mut errors = Vec::new();
    while let Some(joined) = undoing.join_next().await {
        match joined {
            Ok(Ok(())) => {}
            Ok(Err(error)) => errors.push(error),
            Err(e) => errors.push(Error::new(ErrorKind::Internal, "undo a start").source(e)),
        }
    }
    errors
}

/// The failed member's error, for a machine that may not be there any more, with what could not be
/// undone.
fn explain(mut error: Error, asked: &[Asked], failed: &[Error]) -> Error {
    let member = asked.iter().find(|member| error.vm_name() == Some(member.name.as_str()));
    if let Some(Asked { name, .. }) = member.filter(|member| member.trail.created())
        && error.kind() == ErrorKind::BootFailed
    {
        error = error.hint(format!(
            "its console is gone with it, as a cluster comes up whole or not at all; `fleetbox up {name}` starts it alone and keeps it"
        ));
    }
    if failed.is_empty() {
        return error;
    }
    let shown: Vec<&str> = error.detail_text().into_iter().collect();
    let left: Vec<String> =
        failed.iter().map(|e| format!("could not be undone: {}", e.report())).collect();
    let detail = [shown.join("\n"), left.join("\n")].join("\n");
    error.detail(detail.trim_start().to_owned())
}
