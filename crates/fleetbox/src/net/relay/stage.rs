//! Owns what one link fault does to each frame: lost, doubled, late, held back. Pure, on a clock
//! that is handed in; the same seed gives the n-th frame of a way the same fate.

use std::time::Duration;

use super::frame::{Mac, Peer, Way};

/// The queue before a slow link, in time: what would wait longer is dropped, as a router does.
const BACKLOG_MAX: Duration = Duration::from_millis(200);
/// A frame that is to be overtaken goes after this long if none comes.
pub(super) const OVERTAKEN_WITHIN: Duration = Duration::from_millis(100);

/// What a link does to frames. The default does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Impairment {
    pub latency: Duration,
    /// Up to this much more or less than `latency`, evenly spread. It does not reorder.
    pub jitter: Duration,
    /// From 0 to 1, like the next two.
    pub loss: f64,
    pub duplicate: f64,
    pub reorder: f64,
    pub bits_per_s: Option<u64>,
}

/// One link fault, at one end of the link.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StagePlan {
    /// Frames pass the stages in this order.
    pub id: u64,
    /// Only frames this member sends to the guest; else every frame of the guest but the host's.
    pub from: Option<Mac>,
    pub impairment: Impairment,
    pub seed: u64,
}

impl StagePlan {
    pub(super) fn applies(&self, way: Way, peer: Peer) -> bool {
        match (self.from, peer) {
            (_, Peer::Host) | (Some(_), Peer::World) => false,
            (None, _) => true,
            (Some(from), Peer::Member(mac)) => way == Way::ToGuest && mac == from,
        }
    }
}

/// When a copy of a frame leaves the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leave {
    pub at: Duration,
    /// It is to be overtaken by the next one.
    pub held: bool,
}

/// A stage at work.
#[derive(Debug)]
pub(super) struct Stage {
    pub plan: StagePlan,
    ways: [WayState; 2],
}

#[derive(Debug, Default)]
struct WayState {
    frames: u64,
    /// Until when the slow link is busy.
    busy_until: Duration,
    /// When the latest frame leaves: jitter lets none overtake another.
    last: Duration,
}

#[derive(Clone, Copy)]
enum Dice {
    Loss = 1,
    Duplicate = 2,
    Jitter = 3,
    Reorder = 4,
}

impl Stage {
    pub(super) fn new(plan: StagePlan) -> Self {
        Self { plan, ways: Default::default() }
    }

    /// The fate of a frame that comes at `now`: when each copy of it leaves; none if it is lost.
    pub(super) fn fate(&mut self, way: Way, bytes: usize, now: Duration) -> [Option<Leave>; 2] {
        let plan = &self.plan;
        let state = &mut self.ways[way as usize];
        let number = state.frames;
        state.frames += 1;
        let dice = |dice| roll(plan.seed, way, number, dice);
        if dice(Dice::Loss) < plan.impairment.loss {
            return [None, None];
        }
        let held = dice(Dice::Reorder) < plan.impairment.reorder;
        let spread = 2.0 * dice(Dice::Jitter) - 1.0;
        let first = leave(&plan.impairment, state, bytes, now, spread, held);
        if first.is_some() && dice(Dice::Duplicate) < plan.impairment.duplicate {
            return [first, leave(&plan.impairment, state, bytes, now, spread, held)];
        }
        [first, None]
    }
}

fn leave(
    impairment: &Impairment,
    state: &mut WayState,
    bytes: usize,
    now: Duration,
    spread: f64,
    held: bool,
) -> Option<Leave> {
    let mut at = now;
    if let Some(bits_per_s) = impairment.bits_per_s {
        let begins = state.busy_until.max(now);
        if begins.saturating_sub(now) > BACKLOG_MAX {
            return None;
        }
        let bits = 8 * u128::from(u64::try_from(bytes).unwrap_or(u64::MAX));
        let nanoseconds = bits * 1_000_000_000 / u128::from(bits_per_s.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        state.busy_until = begins.saturating_add(takes);
        at = state.busy_until;
    }
    let jitter = impairment.jitter.mul_f64(spread.abs());
    let delay = if spread < 0.0 {
        impairment.latency.saturating_sub(jitter)
    } else {
        impairment.latency + jitter
    };
    at = at.saturating_add(delay).max(state.last);
    if held {
        return Some(Leave { at: at.saturating_add(OVERTAKEN_WITHIN), held });
    }
    state.last = at;
    Some(Leave { at, held })
}

/// A number from 0 up to 1 that depends on nothing but its arguments, for ever: recorded seeds are
/// replayed. The finalizer of `SplitMix64` (Steele, Lea, Flood 2014).
fn roll(seed: u64, way: Way, number: u64, dice: Dice) -> f64 {
    let stream = (way as u64) << 8 | dice as u64;
    let mut mixed = seed;
    for word in [stream, number] {
        mixed = mixed.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a double has")]
    let unit = (mixed >> 11) as f64 / (1u64 << 53) as f64;
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(impairment: Impairment) -> Stage {
        Stage::new(StagePlan { id: 1, from: None, impairment, seed: 7 })
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn dice_are_even_and_never_change() {
        let count = 10_000;
        let sum: f64 = (0..count).map(|n| roll(1, Way::ToGuest, n, Dice::Loss)).sum();
        assert!((sum / 10_000.0 - 0.5).abs() < 0.01, "{sum}");
        // Recorded once: a seed means the same for ever.
        assert_eq!(roll(42, Way::FromGuest, 0, Dice::Loss).to_bits(), 0x3fef_9323_7943_4354);
    }

    #[test]
    fn loss_is_as_asked_and_repeats_with_the_seed() {
        let lost = |seed| -> Vec<u64> {
            let mut stage = stage(Impairment { loss: 0.1, ..Impairment::default() });
            stage.plan.seed = seed;
            (0..5000).filter(|_| stage.fate(Way::ToGuest, 100, ms(0)) == [None, None]).collect()
        };
        let first = lost(1);
        assert!((425..=575).contains(&first.len()), "{}", first.len());
        assert_eq!(first, lost(1));
        assert_ne!(first, lost(2));
    }

    #[test]
    fn one_way_does_not_change_the_other() {
        let plan = Impairment { loss: 0.5, ..Impairment::default() };
        let (mut quiet, mut busy) = (stage(plan), stage(plan));
        for _ in 0..100 {
            busy.fate(Way::FromGuest, 100, ms(0));
            assert_eq!(quiet.fate(Way::ToGuest, 100, ms(0)), busy.fate(Way::ToGuest, 100, ms(0)));
        }
    }

    #[test]
    fn jitter_stays_within_bounds_and_overtakes_nothing() {
        let mut stage =
            stage(Impairment { latency: ms(50), jitter: ms(10), ..Impairment::default() });
        let mut last = Duration::ZERO;
        let mut seen = Vec::new();
        for n in 0..1000 {
            let now = ms(30 * n);
            let [Some(leave), None] = stage.fate(Way::ToGuest, 100, now) else { panic!() };
            assert!(leave.at >= last && leave.at >= now + ms(40) && leave.at <= now + ms(60));
            last = leave.at;
            seen.push(leave.at.saturating_sub(now));
        }
        let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
        assert!(*least < ms(42) && *most > ms(58), "{least:?} {most:?}");
    }

    #[test]
    fn a_slow_link_spaces_frames_and_its_queue_is_finite() {
        let mut stage = stage(Impairment { bits_per_s: Some(10_000_000), ..Impairment::default() });
        let leaves: Vec<_> = (0..500)
            .filter_map(|_| stage.fate(Way::ToGuest, 1250, ms(0))[0])
            .map(|leave| leave.at)
            .collect();
        // A millisecond each; the queue holds 200 of them, and one is on the wire.
        assert_eq!(leaves.len(), 201);
        assert_eq!(leaves[0], ms(1));
        assert_eq!(leaves[200], ms(201));
    }
}
