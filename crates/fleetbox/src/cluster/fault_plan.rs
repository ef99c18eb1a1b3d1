//! Owns [`FaultPlan`], a schedule of faults, and whether it makes sense by itself. `draw` makes one from
//! a seed, `text` writes and reads it, `run` carries it out on a cluster, `suffer` does one step.

mod draw;
mod run;
mod suffer;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

pub use self::draw::FaultPlanBuilder;
pub use self::run::{PlanEvent, PlanOutcome, PlanReport};
use super::link::{self, Impairment};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;
use crate::vm::JUMP_MS_MAX;

/// Nobody waits longer for a plan's end.
const SPAN_MAX: Duration = Duration::from_hours(7 * 24);
const STEPS_MAX: usize = 10_000;

/// A schedule of faults, to be carried out by [`Cluster::run_plan`](crate::Cluster::run_plan): drawn from
/// a seed ([`FaultPlan::builder`]), written by hand ([`FaultPlan::of`]), or read from text.
///
/// `Display` writes it as text, a fault a line: when it begins, how long it lasts, what it is. `FromStr`
/// reads that again, to an equal plan; empty lines and those that begin with `#` are passed over. The
/// seed of a drawn plan is in the first line, a comment.
///
/// ```
/// use fleetbox::FaultPlan;
///
/// let plan: FaultPlan = "
///     ## Split, and one of them is slow; then a power cut.
///     1.200s +3.400s partition node-1 / node-2,node-3
///     2s     +1s     link node-3 --latency 300ms --loss 5% --seed 7
///     5s     +2s     isolate node-2
///     6s     +500ms  pause node-1
///     8s     +10s    power-cut node-3
///     8s     +1m     clock node-1 --by=-1h
///     9s     +1s     cut node-1 node-2
/// "
/// .parse()?;
/// assert_eq!(plan.steps().len(), 7);
/// assert_eq!(plan.to_string().parse::<FaultPlan>()?, plan);
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct FaultPlan {
    seed: Option<u64>,
    /// In the order of their beginnings.
    steps: Vec<PlanStep>,
}

/// A fault of a plan, and when it is there.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlanStep {
    /// When it begins, from the plan's start.
    pub at: Duration,
    /// How long it lasts.
    pub length: Duration,
    /// What it is.
    pub fault: PlannedFault,
}

impl PlanStep {
    /// A fault that begins `at` after the plan's start and lasts for `length`.
    #[must_use]
    pub fn new(at: Duration, length: Duration, fault: PlannedFault) -> Self {
        Self { at, length, fault }
    }
}

/// What a plan can do to a cluster.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PlannedFault {
    /// [`Cluster::cut`](crate::Cluster::cut).
    Cut {
        /// The member whose frames do not arrive.
        from: String,
        /// The member at which they do not.
        to: String,
    },
    /// [`Cluster::partition`](crate::Cluster::partition).
    Partition {
        /// The members that still reach one another.
        groups: Vec<Vec<String>>,
    },
    /// [`Cluster::isolate`](crate::Cluster::isolate).
    Isolate {
        /// The member that is alone.
        vm: String,
    },
    /// [`Cluster::link`](crate::Cluster::link), or with a peer
    /// [`Cluster::link_between`](crate::Cluster::link_between).
    Link {
        /// The member.
        vm: String,
        /// The member at the other end, else everything but the host.
        peer: Option<String>,
        /// What the link does.
        impairment: Impairment,
        /// What its dice are seeded with; drawn when it is applied if there is none.
        seed: Option<u64>,
    },
    /// [`Vm::power_cut`](crate::Vm::power_cut) at the beginning, a start at the end.
    PowerCut {
        /// The member.
        vm: String,
    },
    /// [`Vm::pause`](crate::Vm::pause) at the beginning, [`Vm::resume`](crate::Vm::resume) at the end.
    Pause {
        /// The member.
        vm: String,
    },
    /// [`Vm::clock_jump`](crate::Vm::clock_jump) at the beginning, and as far back at the end.
    ClockJump {
        /// The member.
        vm: String,
        /// How many milliseconds, back if negative.
        by_ms: i64,
    },
}

/// A kind of [`PlannedFault`]. `Display` and `FromStr` have it as the word of a plan's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PlanKind {
    /// `cut`; needs two members.
    Cut,
    /// `partition`; needs two members.
    Partition,
    /// `isolate`.
    Isolate,
    /// `link`.
    Link,
    /// `power-cut`.
    PowerCut,
    /// `pause`; needs [`Capabilities::pause`](crate::Capabilities::pause).
    Pause,
    /// `clock`; needs [`Capabilities::clock`](crate::Capabilities::clock).
    ClockJump,
}

impl PlanKind {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::Cut,
        Self::Partition,
        Self::Isolate,
        Self::Link,
        Self::PowerCut,
        Self::Pause,
        Self::ClockJump,
    ];

    /// The word of a plan's text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Partition => "partition",
            Self::Isolate => "isolate",
            Self::Link => "link",
            Self::PowerCut => "power-cut",
            Self::Pause => "pause",
            Self::ClockJump => "clock",
        }
    }

    /// It is done to a machine, not to the network: a member has one of these at a time.
    fn is_of_machine(self) -> bool {
        matches!(self, Self::PowerCut | Self::Pause | Self::ClockJump)
    }
}

impl PlannedFault {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> PlanKind {
        match self {
            Self::Cut { .. } => PlanKind::Cut,
            Self::Partition { .. } => PlanKind::Partition,
            Self::Isolate { .. } => PlanKind::Isolate,
            Self::Link { .. } => PlanKind::Link,
            Self::PowerCut { .. } => PlanKind::PowerCut,
            Self::Pause { .. } => PlanKind::Pause,
            Self::ClockJump { .. } => PlanKind::ClockJump,
        }
    }

    /// The members it names.
    #[must_use]
    pub fn members(&self) -> Vec<&str> {
        match self {
            Self::Cut { from, to } => vec![from, to],
            Self::Partition { groups } => groups.iter().flatten().map(String::as_str).collect(),
            Self::Link { vm, peer, .. } => {
                std::iter::once(vm).chain(peer).map(String::as_str).collect()
            }
            Self::Isolate { vm }
            | Self::PowerCut { vm }
            | Self::Pause { vm }
            | Self::ClockJump { vm, .. } => vec![vm],
        }
    }

    /// Why there can be no such fault, and what to do.
    fn nonsense(&self) -> Option<(String, &'static str)> {
        let mut names = self.members();
        names.sort_unstable();
        let mut pairs = names.iter().zip(names.iter().skip(1));
        if let Some((name, _)) = pairs.find(|(one, other)| one == other) {
            return Some((format!("{name} is named twice"), "name each member once"));
        }
        match self {
            Self::Partition { groups } if groups.len() < 2 || groups.iter().any(Vec::is_empty) => {
                Some((
                    "it has not two groups with members".to_owned(),
                    "separate groups by `/` and their members by `,`",
                ))
            }
            Self::ClockJump { by_ms, .. } if *by_ms == 0 || by_ms.unsigned_abs() > JUMP_MS_MAX => {
                Some((
                    format!("a jump by {by_ms} ms"),
                    "let it jump by a millisecond at least and a hundred years at most",
                ))
            }
            _ => None,
        }
    }
}

impl FaultPlan {
    /// Starts describing a plan to be drawn. The same seed with the same settings is the same plan, in
    /// every release and on every host.
    pub fn builder(seed: u64) -> FaultPlanBuilder {
        FaultPlanBuilder::new(seed)
    }

    /// A plan of steps in any order.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] if it is not one that can be carried out: a step that lasts no time,
    /// ends after more than a week, or is no fault there can be; more than 10,000 of them; a member
    /// with two faults of the machine (power cut, pause, clock) at a time; a fault of the network
    /// that begins while the plan has one of its members off. [`ErrorKind::InvalidName`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use fleetbox::{FaultPlan, PlanStep, PlannedFault};
    ///
    /// let isolate = PlannedFault::Isolate { vm: "node-2".into() };
    /// let (at, length) = (Duration::from_millis(1200), Duration::from_secs(3));
    /// let plan = FaultPlan::of([PlanStep::new(at, length, isolate)])?;
    /// assert_eq!(plan.to_string(), "# fleetbox fault plan\n1.200s +3.000s isolate node-2\n");
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    pub fn of(steps: impl IntoIterator<Item = PlanStep>) -> Result<Self> {
        let mut steps: Vec<PlanStep> = steps.into_iter().take(STEPS_MAX + 1).collect();
        if steps.len() > STEPS_MAX {
            let message = format!("plan more than {STEPS_MAX} faults");
            return Err(Error::new(ErrorKind::InvalidSpec, message).hint("plan fewer"));
        }
        steps.sort_by_key(|step| step.at);
        for step in &steps {
            check(step)?;
        }
        check_together(&steps)?;
        Ok(Self { seed: None, steps })
    }

    /// What it was drawn from, if it was.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// Its faults, in the order in which they begin.
    #[must_use]
    pub fn steps(&self) -> &[PlanStep] {
        &self.steps
    }

    /// When the last of its faults ends, from the plan's start.
    #[must_use]
    pub fn span(&self) -> Duration {
        self.steps.iter().map(PlanStep::end).max().unwrap_or_default()
    }
}

impl PlanStep {
    fn end(&self) -> Duration {
        self.at.saturating_add(self.length)
    }
}

/// Whether the step can be one at all.
fn check(step: &PlanStep) -> Result<()> {
    for name in step.fault.members() {
        Name::new(name)?;
    }
    if step.length.is_zero() {
        return Err(refused(step, "it lasts no time", "let it last a while"));
    }
    if step.end() > SPAN_MAX {
        return Err(refused(step, "it ends after more than a week", "plan a week at most"));
    }
    if let Some((what, hint)) = step.fault.nonsense() {
        return Err(refused(step, &what, hint));
    }
    match &step.fault {
        PlannedFault::Link { impairment, .. } => link::check(impairment),
        _ => Ok(()),
    }
}

/// Whether the steps, in their order, get along.
fn check_together(steps: &[PlanStep]) -> Result<()> {
    let mut busy: BTreeMap<&str, &PlanStep> = BTreeMap::new();
    for step in steps {
        let of_machine = step.fault.kind().is_of_machine();
        for vm in step.fault.members() {
            let Some(earlier) = busy.get(vm).filter(|earlier| earlier.end() > step.at) else {
                continue;
            };
            if of_machine || earlier.fault.kind() == PlanKind::PowerCut {
                return Err(refused(
                    step,
                    &format!("{vm} still suffers `{earlier}` then"),
                    "let one end before the other begins",
                ));
            }
        }
        if of_machine {
            busy.extend(step.fault.members().into_iter().map(|vm| (vm, step)));
        }
    }
    Ok(())
}

fn refused(step: &PlanStep, what: &str, hint: &str) -> Error {
    Error::new(ErrorKind::InvalidSpec, format!("plan `{step}`: {what}")).hint(hint)
}
