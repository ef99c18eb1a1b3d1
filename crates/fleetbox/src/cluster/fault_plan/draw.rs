//! Owns drawing a plan from a seed. What it draws never changes: recorded seeds are replayed. So it
//! counts in whole numbers only, and a new kind of fault must not change what the old ones draw.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{FaultPlan, PlanKind, PlanStep, PlannedFault, SPAN_MAX};
use crate::cluster::link::Impairment;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;

const OVER: Duration = Duration::from_mins(1);
const MEAN: Duration = Duration::from_secs(5);

/// A plan to be [drawn](FaultPlanBuilder::build), made by [`FaultPlan::builder`].
///
/// Faults begin one after the other, and may overlap; a member has one fault of its machine at a time.
/// All times are whole milliseconds.
///
/// ```
/// use std::time::Duration;
/// use fleetbox::{FaultPlan, PlanKind};
///
/// let plan = FaultPlan::builder(42)
///     .over(Duration::from_secs(30))
///     .members(["node-1", "node-2", "node-3"])
///     .kinds([PlanKind::Partition, PlanKind::PowerCut])
///     .build()?;
/// print!("{plan}");
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is drawn until it is built"]
pub struct FaultPlanBuilder {
    seed: u64,
    over: Duration,
    members: Vec<String>,
    kinds: Vec<PlanKind>,
    mean_gap: Duration,
    mean_length: Duration,
}

impl FaultPlanBuilder {
    pub(super) fn new(seed: u64) -> Self {
        let (members, kinds) = (Vec::new(), PlanKind::ALL.to_vec());
        Self { seed, over: OVER, members, kinds, mean_gap: MEAN, mean_length: MEAN }
    }

    /// All faults begin and end within this time. A week at most. Default: a minute.
    pub fn over(mut self, over: Duration) -> Self {
        self.over = over;
        self
    }

    /// The members that may suffer. Their order belongs to the settings. There is no default.
    pub fn members<I: IntoIterator<Item: Into<String>>>(mut self, members: I) -> Self {
        self.members = members.into_iter().map(Into::into).collect();
        self
    }

    /// The kinds of faults to draw from, all as likely; their order does not matter. One that needs two
    /// members is left out where there is one. Default: all.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = PlanKind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// The time from the beginning of one fault to that of the next, on average: evenly between a
    /// half and one and a half of it. A millisecond at least. Default: 5 s.
    pub fn mean_gap(mut self, gap: Duration) -> Self {
        self.mean_gap = gap;
        self
    }

    /// How long a fault lasts, on average, in the same way; one that would last beyond the end of all
    /// is cut short. A millisecond at least. Default: 5 s.
    pub fn mean_length(mut self, length: Duration) -> Self {
        self.mean_length = length;
        self
    }

    /// Draws it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] if there is no member or one twice, no kind that is possible, a time
    /// that is too short or too long, or if there would be more than 10,000 faults;
    /// [`ErrorKind::InvalidName`].
    pub fn build(self) -> Result<FaultPlan> {
        self.check()?;
        let kinds: Vec<PlanKind> =
            PlanKind::ALL.into_iter().filter(|kind| self.kinds.contains(kind)).collect();
        let mut draw = Draw {
            dice: Dice(self.seed),
            members: &self.members,
            busy_until: BTreeMap::new(),
            off_until: BTreeMap::new(),
        };
        let (over, gap, length) = (ms(self.over), ms(self.mean_gap), ms(self.mean_length));
        let mut steps = Vec::new();
        let mut at = draw.dice.around(gap);
        while at < over {
            let length = draw.dice.around(length).min(over - at);
            if let Some(fault) = draw.fault(&kinds, at) {
                draw.note(&fault, at + length);
                let (at, length) = (Duration::from_millis(at), Duration::from_millis(length));
                steps.push(PlanStep { at, length, fault });
            }
            at += draw.dice.around(gap);
        }
        let plan = FaultPlan::of(steps)?;
        Ok(FaultPlan { seed: Some(self.seed), ..plan })
    }

    fn check(&self) -> Result<()> {
        let refused = |what: String, hint: &str| {
            Err(Error::new(ErrorKind::InvalidSpec, format!("draw a fault plan: {what}")).hint(hint))
        };
        for (place, member) in self.members.iter().enumerate() {
            Name::new(member)?;
            if self.members[..place].contains(member) {
                return refused(format!("{member} is named twice"), "name each member once");
            }
        }
        if self.members.is_empty() {
            return refused("there is no member".into(), "name the members that may suffer");
        }
        let needs_two = |kind: &PlanKind| matches!(kind, PlanKind::Cut | PlanKind::Partition);
        if self.kinds.iter().all(|kind| self.members.len() < 2 && needs_two(kind)) {
            return refused("there is no kind that is possible".into(), "name more kinds");
        }
        if self.over > SPAN_MAX {
            return refused("it is over more than a week".into(), "plan a week at most");
        }
        for (what, time) in
            [("span", self.over), ("mean gap", self.mean_gap), ("mean length", self.mean_length)]
        {
            if time < Duration::from_millis(1) {
                return refused(
                    format!("a {what} of {}", humantime::format_duration(time)),
                    "use a millisecond at least",
                );
            }
        }
        // Gaps are half of it at least.
        if ms(self.over) / (ms(self.mean_gap) / 2).max(1) > super::STEPS_MAX as u64 {
            return refused(
                format!("there may be more than {} faults", super::STEPS_MAX),
                "use a longer gap or a shorter span",
            );
        }
        Ok(())
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What is drawn so far.
struct Draw<'a> {
    dice: Dice,
    members: &'a [String],
    /// When the last fault of each machine ends.
    busy_until: BTreeMap<String, u64>,
    /// When each that is off boots.
    off_until: BTreeMap<String, u64>,
}

impl Draw<'_> {
    /// One of a kind that is possible then, if any is.
    fn fault(&mut self, kinds: &[PlanKind], at: u64) -> Option<PlannedFault> {
        let first = self.dice.below(kinds.len() as u64) as usize;
        (0..kinds.len()).find_map(|turn| self.of_kind(kinds[(first + turn) % kinds.len()], at))
    }

    fn of_kind(&mut self, kind: PlanKind, at: u64) -> Option<PlannedFault> {
        let taken = if kind.is_of_machine() { &self.busy_until } else { &self.off_until };
        let is_free = |vm: &&String| taken.get(*vm).is_none_or(|until| *until <= at);
        let mut free: Vec<String> = self.members.iter().filter(is_free).cloned().collect();
        let few = matches!(kind, PlanKind::Cut | PlanKind::Partition);
        if free.len() < if few { 2 } else { 1 } {
            return None;
        }
        Some(match kind {
            PlanKind::Partition => {
                self.dice.shuffle(&mut free);
                let at = 1 + self.dice.below(free.len() as u64 - 1) as usize;
                let other = free.split_off(at);
                PlannedFault::Partition { groups: vec![free, other] }
            }
            PlanKind::Cut => {
                let (from, to) = (self.dice.take(&mut free), self.dice.take(&mut free));
                PlannedFault::Cut { from, to }
            }
            PlanKind::Isolate => PlannedFault::Isolate { vm: self.dice.take(&mut free) },
            PlanKind::Link => self.link(free),
            PlanKind::PowerCut => PlannedFault::PowerCut { vm: self.dice.take(&mut free) },
            PlanKind::Pause => PlannedFault::Pause { vm: self.dice.take(&mut free) },
            PlanKind::ClockJump => {
                let vm = self.dice.take(&mut free);
                // From a second to an hour.
                let by_ms = (1 + self.dice.below(3600)).cast_signed() * 1000;
                let by_ms = if self.dice.below(2) == 0 { by_ms } else { -by_ms };
                PlannedFault::ClockJump { vm, by_ms }
            }
        })
    }

    /// Late, lossy or narrow, of a member or between two.
    fn link(&mut self, mut free: Vec<String>) -> PlannedFault {
        let vm = self.dice.take(&mut free);
        let pair = self.dice.below(2) == 0 && !free.is_empty();
        let peer = pair.then(|| self.dice.take(&mut free));
        let mut impairment = Impairment::default();
        match self.dice.below(3) {
            0 => {
                let latency_ms = 10 * (1 + self.dice.below(50));
                impairment.latency = Duration::from_millis(latency_ms);
                impairment.jitter = Duration::from_millis(latency_ms / 5);
            }
            1 => impairment.loss = f64::from(1 + self.dice.below(30) as u32) / 100.0,
            _ => impairment.bandwidth_kbit_per_s = Some(100 * (1 + self.dice.below(100))),
        }
        // Of a length that is read out at ease.
        let seed = Some(self.dice.below(1 << 32));
        PlannedFault::Link { vm, peer, impairment, seed }
    }

    fn note(&mut self, fault: &PlannedFault, end: u64) {
        let kind = fault.kind();
        if kind.is_of_machine() {
            let ends = fault.members().into_iter().map(|vm| (vm.to_owned(), end));
            if kind == PlanKind::PowerCut {
                self.off_until.extend(ends.clone());
            }
            self.busy_until.extend(ends);
        }
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): a number after the other, all of 64 bits.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to `count`, which is not 0. The upper half of the product (Lemire 2019), without its
    /// correction: the numbers here are small.
    fn below(&mut self, count: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(count)) >> 64) as u64
    }

    /// Evenly from a half to one and a half of it, 1 at least.
    fn around(&mut self, mean: u64) -> u64 {
        (mean / 2 + self.below(mean + 1)).max(1)
    }

    fn take(&mut self, from: &mut Vec<String>) -> String {
        let at = self.below(from.len() as u64) as usize;
        from.remove(at)
    }

    fn shuffle(&mut self, all: &mut [String]) {
        for last in (1..all.len()).rev() {
            let with = self.below(last as u64 + 1) as usize;
            all.swap(last, with);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(seed: u64) -> FaultPlanBuilder {
        FaultPlan::builder(seed).members(["node-1", "node-2", "node-3"])
    }

    /// Numbers of the paper's reference program for the seed 1234567.
    #[test]
    fn the_dice_are_those_of_the_paper() {
        let mut dice = Dice(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| dice.next()).collect();
        assert_eq!(
            drawn,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    /// Recorded once: a seed means the same for ever.
    #[test]
    fn a_seed_draws_the_same_plan_for_ever() {
        let plan = three(42).over(Duration::from_secs(150)).build().unwrap();
        assert_eq!(plan.to_string(), include_str!("draw/seed-42.txt"));
    }

    #[test]
    fn every_seed_gives_a_plan_that_makes_sense() {
        let s = Duration::from_secs;
        for seed in 0..300 {
            let members = ["a", "b", "c", "d"].into_iter().take(1 + (seed % 4) as usize);
            let plan = FaultPlan::builder(seed)
                .members(members)
                .over(s(120))
                .mean_gap(s(1))
                .mean_length(s(6))
                .build()
                .unwrap();
            assert!(plan.span() <= s(120));
            // One that is alone is often off, and then nothing more is drawn.
            let least = if seed % 4 == 0 { 20 } else { 60 };
            assert!((least..=240).contains(&plan.steps().len()), "{}", plan.steps().len());
            assert_eq!(plan.to_string().parse::<FaultPlan>().unwrap(), plan);
        }
    }

    #[test]
    fn only_what_was_asked_for_is_drawn_and_times_are_as_asked() {
        let kinds = [PlanKind::Pause, PlanKind::Link];
        let s = Duration::from_secs;
        let plan = three(5).kinds(kinds).over(s(2000)).mean_gap(s(10)).mean_length(s(2)).build();
        let plan = plan.unwrap();
        assert!(plan.steps().iter().all(|step| kinds.contains(&step.fault.kind())));
        assert!(kinds.iter().all(|kind| plan.steps().iter().any(|s| s.fault.kind() == *kind)));
        assert!((170..=230).contains(&plan.steps().len()), "{}", plan.steps().len());
        assert!(plan.steps().iter().all(|step| step.length >= s(1) && step.length <= s(3)));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let zero = Duration::ZERO;
        for bad in [
            FaultPlan::builder(1),
            three(1).members(["a", "a"]),
            three(1).kinds([]),
            three(1).members(["a"]).kinds([PlanKind::Cut, PlanKind::Partition]),
            three(1).over(zero),
            three(1).mean_gap(zero),
            three(1).mean_length(zero),
            three(1).over(SPAN_MAX + Duration::from_secs(1)),
            three(1).mean_gap(Duration::from_millis(1)),
        ] {
            let error = bad.build().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec);
            assert!(error.hint_text().is_some(), "{}", error.report());
        }
        assert_eq!(three(1).members(["../x"]).build().unwrap_err().kind(), ErrorKind::InvalidName);
    }
}
