//! Owns carrying a plan out: what is checked before, when each step begins and ends, what waits for
//! what, and that all is healed in the end. How a fault is caused is `suffer`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{
    Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::suffer;
use super::{FaultPlan, PlanKind, PlanStep, PlannedFault};
use crate::cluster::Cluster;
use crate::control::client::Hold;
use crate::control::message::MemberStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::vm::Vm;

/// What a plan that was carried out has done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlanReport {
    /// Each of its faults, in the order of the plan.
    pub outcomes: Vec<PlanOutcome>,
    /// How long all of it took.
    pub took: Duration,
}

/// When a fault of a plan was there.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlanOutcome {
    /// What was planned.
    pub step: PlanStep,
    /// When it was there, from the start of the run.
    pub began: Duration,
    /// When it was healed; after a power cut, when the member answered again.
    pub healed: Duration,
}

/// What [`Cluster::run_plan_with`] tells while it goes on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PlanEvent {
    /// A fault is there.
    #[non_exhaustive]
    Began {
        /// What was planned.
        step: PlanStep,
        /// When, from the start of the run.
        at: Duration,
    },
    /// It is healed.
    #[non_exhaustive]
    Healed {
        /// What was planned.
        step: PlanStep,
        /// When, from the start of the run.
        at: Duration,
    },
}

impl Cluster {
    /// Carries a plan out: causes each fault when it is due, heals it when its time is over, and
    /// returns when all are healed: then every member that was off or paused runs and answers. All of it
    /// is on the [timeline](Cluster::timeline).
    ///
    /// A member that was off may take longer to boot than the plan thought. Then faults that need it
    /// wait until it answers, and last as long as planned from then on; the report says when each
    /// was there. This handle holds the members it started again, as [`Cluster::add`] does; take
    /// [`Cluster::vm`] anew to talk to them. Several plans may run at once, if they do not have the
    /// same members off or paused.
    ///
    /// If a step fails, the rest is not begun, all there is is healed, and the error is the step's.
    /// Dropped, or with its process killed by `kill -9`, it heals too, a little later: the holder mends the
    /// network, lets paused members go on and boots those that are off, if anybody else holds them or
    /// they are detached. Only a clock that was moved is set right by the guest's next boot if the
    /// process is killed.
    ///
    /// # Errors
    /// Before any work: [`ErrorKind::NotFound`] with the nearest name for an unknown member,
    /// [`ErrorKind::NotRunning`] for one that does not run, [`ErrorKind::Conflict`] for one that is paused,
    /// [`ErrorKind::Unsupported`] for a fault its backend cannot have. Later, what each fault's own
    /// call fails with, and [`ErrorKind::HolderDied`].
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// use fleetbox::FaultPlan;
    ///
    /// let members = cluster.iter().map(|vm| vm.name().to_owned());
    /// let plan = FaultPlan::builder(42).members(members).build()?;
    /// println!("{plan}"); // parses back, to be run again
    /// let report = cluster.run_plan(&plan).await?;
    /// assert_eq!(report.outcomes.len(), plan.steps().len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run_plan(&self, plan: &FaultPlan) -> Result<PlanReport> {
        self.run_plan_with(plan, |_| ()).await
    }

    /// [`Cluster::run_plan`] that tells when a fault is there and when it is healed.
    ///
    /// # Errors
    /// As [`Cluster::run_plan`].
    pub async fn run_plan_with(
        &self,
        plan: &FaultPlan,
        on_event: impl Fn(&PlanEvent) + Send + Sync + 'static,
    ) -> Result<PlanReport> {
        self.check_plan(plan).await?;
        if plan.steps.is_empty() {
            return Ok(PlanReport { outcomes: Vec::new(), took: Duration::ZERO });
        }
        // With all members off it would end.
        let mut hold = self.client()?.hold_alone().await?;
        let (stop, stopping) = watch::channel(false);
        let run = Run {
            cluster: self.clone(),
            gates: Arc::new(gates(plan)),
            start: Instant::now(),
            stopping,
            told: Arc::new(on_event),
        };
        let start = run.start;
        let mut steps = JoinSet::new();
        for (place, step) in plan.steps.iter().cloned().enumerate() {
            let run = run.clone();
            steps.spawn(async move { (place, run.step(step).await) });
        }
        let mut outcomes = Vec::new();
        let mut failed = None;
        loop {
            let failure = tokio::select! {
                joined = steps.join_next() => match joined {
                    None => break,
                    Some(Ok((place, Ok(outcome)))) => {
                        outcomes.extend(outcome.map(|outcome| (place, outcome)));
                        continue;
                    }
                    Some(Ok((_, Err(error)))) => error,
                    Some(Err(e)) => Error::new(ErrorKind::Internal, "carry out a step").source(e),
                },
                error = lost(&mut hold), if failed.is_none() => error,
            };
            stop.send_replace(true);
            failed.get_or_insert(failure);
        }
        outcomes.sort_by_key(|(place, _)| *place);
        let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
        failed.map_or(Ok(PlanReport { outcomes, took: start.elapsed() }), Err)
    }

    /// The kinds of faults that every member can suffer, by its backend.
    #[must_use]
    pub fn plan_kinds(&self) -> Vec<PlanKind> {
        let vms = self.vms();
        let can = |kind: &PlanKind| vms.iter().all(|vm| able(vm, *kind).is_ok());
        PlanKind::ALL.into_iter().filter(can).collect()
    }

    /// Whether every member the plan names is there, runs, and can suffer what is planned.
    async fn check_plan(&self, plan: &FaultPlan) -> Result<()> {
        let mut vms: BTreeMap<&str, Vm> = BTreeMap::new();
        for step in &plan.steps {
            for name in step.fault.members() {
                let vm = self.vm(name)?;
                able(&vm, step.fault.kind())?;
                vms.insert(name, vm);
            }
        }
        if vms.is_empty() {
            return Ok(());
        }
        let members = match self.client()?.status().await {
            Err(e) if matches!(e.kind(), ErrorKind::NotRunning | ErrorKind::HolderDied) => {
                Vec::new()
            }
            status => status?.members,
        };
        for name in vms.keys() {
            let member = members.iter().find(|member| member.vm.as_str() == *name);
            match member {
                Some(MemberStatus { running: true, paused: false, .. }) => {}
                Some(MemberStatus { running: true, .. }) => {
                    return Err(Error::new(ErrorKind::Conflict, "plan faults: it is paused")
                        .vm(*name)
                        .hint(format!("let it go on: `fleetbox fault resume {name}`")));
                }
                _ => return Err(Error::not_running(name)),
            }
        }
        Ok(())
    }
}

fn able(vm: &Vm, kind: PlanKind) -> Result<()> {
    match kind {
        PlanKind::Pause => vm.able("pause", |can| can.pause),
        PlanKind::ClockJump => vm.able("let the clock jump", |can| can.clock),
        _ => Ok(()),
    }
}

/// Waits until the holder is gone.
async fn lost(hold: &mut Hold) -> Error {
    loop {
        if let Err(error) = hold.next().await {
            return error;
        }
    }
}

/// What a member's faults wait for.
#[derive(Default)]
struct Gate {
    /// One fault of the machine at a time, in the order of the plan.
    turn: Arc<Mutex<()>>,
    /// Written while it is off, read by whoever needs it to be on.
    on: Arc<RwLock<()>>,
}

fn gates(plan: &FaultPlan) -> BTreeMap<String, Gate> {
    let names = plan.steps.iter().flat_map(|step| step.fault.members());
    names.map(|name| (name.to_owned(), Gate::default())).collect()
}

/// What a fault has while it is there: nobody else's machine fault comes between.
type Machine = (OwnedMutexGuard<()>, Option<OwnedRwLockWriteGuard<()>>);

/// A plan that is carried out, as each of its steps sees it.
#[derive(Clone)]
struct Run {
    cluster: Cluster,
    gates: Arc<BTreeMap<String, Gate>>,
    start: Instant,
    stopping: watch::Receiver<bool>,
    told: Arc<dyn Fn(&PlanEvent) + Send + Sync>,
}

impl Run {
    /// One fault from its time to its heal; nothing if all is stopped before.
    async fn step(self, step: PlanStep) -> Result<Option<PlanOutcome>> {
        if self.wait_until(self.start + step.at).await {
            return Ok(None);
        }
        let explain = |error: Error| explained(error, &step);
        let passed = tokio::select! {
            biased;
            () = self.stopped() => return Ok(None),
            passed = self.pass(&step.fault) => passed,
        };
        let (machine, needed_on) = passed;
        let suffering = suffer::begin(&self.cluster, &step.fault).await.map_err(explain)?;
        drop(needed_on);
        let began = self.start.elapsed();
        (self.told)(&PlanEvent::Began { step: step.clone(), at: began });
        self.wait_until(self.start + began + step.length).await;
        suffering.heal(&self.cluster).await.map_err(explain)?;
        drop(machine);
        let healed = self.start.elapsed();
        (self.told)(&PlanEvent::Healed { step: step.clone(), at: healed });
        Ok(Some(PlanOutcome { step, began, healed }))
    }

    /// Waits until no other fault of the plan is in this one's way.
    async fn pass(&self, fault: &PlannedFault) -> (Option<Machine>, Vec<OwnedRwLockReadGuard<()>>) {
        let mut machine = None;
        let mut on = Vec::new();
        for gate in fault.members().into_iter().filter_map(|name| self.gates.get(name)) {
            if fault.kind().is_of_machine() {
                let turn = gate.turn.clone().lock_owned().await;
                let off = match fault.kind() {
                    PlanKind::PowerCut => Some(gate.on.clone().write_owned().await),
                    _ => None,
                };
                machine = Some((turn, off));
            } else {
                on.push(gate.on.clone().read_owned().await);
            }
        }
        (machine, on)
    }

    /// Whether all was stopped before.
    async fn wait_until(&self, at: Instant) -> bool {
        tokio::select! {
            biased;
            () = self.stopped() => true,
            () = sleep_until(at) => false,
        }
    }

    async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        // Without a sender the run is dropped, and this with it.
        if stopping.wait_for(|stopping| *stopping).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn explained(error: Error, step: &PlanStep) -> Error {
    let line = format!("this came of the plan's `{step}`");
    let detail = match error.detail_text() {
        Some(detail) => format!("{}\n{line}", detail.trim_end()),
        None => line,
    };
    error.detail(detail)
}
