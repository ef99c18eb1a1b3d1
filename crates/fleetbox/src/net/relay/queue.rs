//! Owns the frames under way in a relay, in the order they leave. Pure, on a clock that is handed
//! in: time is a `Duration` since the relay began.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use super::frame::{HostSide, Peer, Way, peer};
use super::stage::{Stage, StagePlan};

/// What one relay keeps at most; a guest that sends faster than its link loses the rest.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// What a frame takes besides its bytes, so that a flood of small ones counts, too.
const FRAME_OVERHEAD_BYTES: usize = 256;

#[derive(Debug)]
pub(super) struct Queue {
    host: HostSide,
    /// By id.
    stages: Vec<Stage>,
    frames: HashMap<u64, Frame>,
    /// When, in which order of those, which. An entry without its frame is an old one.
    due: BinaryHeap<Reverse<(Duration, u64, u64)>>,
    /// Those that wait to be overtaken.
    held: Vec<u64>,
    next: u64,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Frame {
    way: Way,
    peer: Peer,
    bytes: Vec<u8>,
    /// The last stage it went through.
    stage: u64,
    /// Of its entries in `due`, the one that counts.
    order: u64,
}

impl Queue {
    pub(super) fn new(host: HostSide, plans: Vec<StagePlan>) -> Self {
        let mut queue = Self {
            host,
            stages: Vec::new(),
            frames: HashMap::new(),
            due: BinaryHeap::new(),
            held: Vec::new(),
            next: 0,
            bytes: 0,
        };
        queue.set(plans);
        queue
    }

    /// Changes the stages. One that stays goes on as it was; a frame under way leaves the stage it
    /// is in when it would have.
    pub(super) fn set(&mut self, mut plans: Vec<StagePlan>) {
        plans.sort_by_key(|plan| plan.id);
        let mut old: HashMap<u64, Stage> =
            self.stages.drain(..).map(|stage| (stage.plan.id, stage)).collect();
        self.stages = plans
            .into_iter()
            .map(|plan| match old.remove(&plan.id) {
                Some(stage) if stage.plan == plan => stage,
                _ => Stage::new(plan),
            })
            .collect();
    }

    /// Takes a frame in; false if nothing applies to it and it may go at once.
    pub(super) fn take(&mut self, now: Duration, way: Way, bytes: &[u8]) -> bool {
        let peer = peer(bytes, way, self.host);
        if !self.stages.iter().any(|stage| stage.plan.applies(way, peer)) {
            return false;
        }
        if self.bytes + cost(bytes) <= BYTES_MAX {
            let bytes = bytes.to_vec();
            self.go_on(Frame { way, peer, bytes, stage: 0, order: 0 }, now);
        }
        true
    }

    /// When the next frame leaves a stage.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse((at, _, _))| *at)
    }

    /// The next frame that has left the last stage by `now`.
    pub(super) fn leave(&mut self, now: Duration) -> Option<(Way, Vec<u8>)> {
        while self.next_due().is_some_and(|at| at <= now) {
            let Reverse((at, order, id)) = self.due.pop()?;
            if self.frames.get(&id).is_none_or(|frame| frame.order != order) {
                continue;
            }
            let frame = self.frames.remove(&id)?;
            self.bytes -= cost(&frame.bytes);
            if self.next_stage(&frame).is_none() {
                return Some((frame.way, frame.bytes));
            }
            self.go_on(frame, at);
        }
        None
    }

    fn next_stage(&self, frame: &Frame) -> Option<usize> {
        self.stages.iter().position(|stage| {
            stage.plan.id > frame.stage && stage.plan.applies(frame.way, frame.peer)
        })
    }

    /// Through the next stage, which it reaches at `at`.
    fn go_on(&mut self, frame: Frame, at: Duration) {
        let Some(stage) = self.next_stage(&frame) else {
            self.insert(frame, at);
            return;
        };
        let stage = &mut self.stages[stage];
        let id = stage.plan.id;
        for leave in stage.fate(frame.way, frame.bytes.len(), at).into_iter().flatten() {
            let key = self.insert(Frame { stage: id, ..frame.clone() }, leave.at);
            if leave.held {
                self.held.push(key);
            } else {
                self.overtake(id, frame.way, leave.at);
            }
        }
    }

    /// Those held in a stage follow the frame that just overtook them.
    fn overtake(&mut self, stage: u64, way: Way, at: Duration) {
        let mut held = std::mem::take(&mut self.held);
        held.retain(|key| match self.frames.get_mut(key) {
            Some(frame) if (frame.stage, frame.way) == (stage, way) => {
                frame.order = self.next;
                self.due.push(Reverse((at, self.next, *key)));
                self.next += 1;
                false
            }
            frame => frame.is_some(),
        });
        self.held = held;
    }

    fn insert(&mut self, mut frame: Frame, at: Duration) -> u64 {
        let order = self.next;
        self.next += 1;
        frame.order = order;
        self.bytes += cost(&frame.bytes);
        self.frames.insert(order, frame);
        self.due.push(Reverse((at, order, order)));
        order
    }
}

fn cost(frame: &[u8]) -> usize {
    frame.len() + FRAME_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::frame::Mac;
    use super::super::stage::{Impairment, OVERTAKEN_WITHIN};
    use super::*;

    const HOST: HostSide = HostSide { mac: [2; 6], address: Ipv4Addr::new(10, 0, 0, 1) };
    const PEER: Mac = [6; 6];

    fn plan(id: u64, impairment: Impairment) -> StagePlan {
        StagePlan { id, from: None, impairment, seed: 3 }
    }

    fn late(by: Duration) -> Impairment {
        Impairment { latency: by, ..Impairment::default() }
    }

    fn frame_from(from: Mac, number: u8) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[6..12].copy_from_slice(&from);
        frame[59] = number;
        frame
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// All that leaves, each with the time it does.
    fn drain(queue: &mut Queue) -> Vec<(Duration, u8)> {
        let mut left = Vec::new();
        while let Some(at) = queue.next_due() {
            if let Some((_, bytes)) = queue.leave(at) {
                left.push((at, bytes[59]));
            }
        }
        assert_eq!((queue.bytes, queue.frames.len()), (0, 0));
        left
    }

    #[test]
    fn delays_of_several_faults_add_up() {
        let mut queue = Queue::new(HOST, vec![plan(2, late(ms(20))), plan(1, late(ms(30)))]);
        assert!(queue.take(ms(5), Way::ToGuest, &frame_from(PEER, 1)));
        assert!(queue.leave(ms(54)).is_none());
        assert!(queue.leave(ms(55)).is_some());
    }

    #[test]
    fn the_hosts_frames_and_those_of_other_pairs_go_at_once() {
        let only = StagePlan { from: Some(PEER), ..plan(1, late(ms(10))) };
        let mut queue = Queue::new(HOST, vec![only]);
        assert!(!queue.take(ms(0), Way::ToGuest, &frame_from(HOST.mac, 1)));
        assert!(!queue.take(ms(0), Way::ToGuest, &frame_from([8; 6], 1)));
        assert!(queue.take(ms(0), Way::ToGuest, &frame_from(PEER, 1)));
        assert!(!queue.take(ms(0), Way::FromGuest, &frame_from(PEER, 1)));
    }

    #[test]
    fn a_fault_that_ends_delivers_what_is_under_way() {
        let mut queue = Queue::new(HOST, vec![plan(1, late(ms(30))), plan(2, late(ms(500)))]);
        queue.take(ms(0), Way::ToGuest, &frame_from(PEER, 1));
        queue.set(vec![]);
        assert_eq!(drain(&mut queue), [(ms(30), 1)]);
    }

    #[test]
    fn a_fault_that_stays_goes_on_with_its_dice() {
        let lossy = plan(1, Impairment { loss: 0.5, ..Impairment::default() });
        let survivors = |disturb: bool| {
            let mut queue = Queue::new(HOST, vec![lossy.clone()]);
            for n in 0..100 {
                if disturb && n == 50 {
                    queue.set(vec![lossy.clone(), plan(2, Impairment::default())]);
                }
                queue.take(ms(u64::from(n)), Way::ToGuest, &frame_from(PEER, n));
            }
            drain(&mut queue).into_iter().map(|(_, n)| n).collect::<Vec<_>>()
        };
        assert_eq!(survivors(false), survivors(true));
    }

    #[test]
    fn a_reordered_frame_is_overtaken_by_the_next_or_goes_late() {
        let reorder = plan(1, Impairment { reorder: 0.3, ..late(ms(5)) });
        let mut queue = Queue::new(HOST, vec![reorder]);
        for n in 0..100 {
            queue.take(ms(u64::from(n)), Way::ToGuest, &frame_from(PEER, n));
        }
        let left = drain(&mut queue);
        assert_eq!(left.len(), 100);
        let overtaken = left.windows(2).filter(|pair| pair[0].1 > pair[1].1).count();
        assert!((10..=40).contains(&overtaken), "{overtaken}");
        assert!(left.iter().all(|(at, n)| *at <= ms(u64::from(*n) + 5) + OVERTAKEN_WITHIN));
    }

    #[test]
    fn duplicates_are_there_twice() {
        let twice = plan(1, Impairment { duplicate: 1.0, ..Impairment::default() });
        let mut queue = Queue::new(HOST, vec![twice]);
        queue.take(ms(0), Way::FromGuest, &frame_from(PEER, 1));
        assert_eq!(drain(&mut queue), [(ms(0), 1), (ms(0), 1)]);
    }

    #[test]
    fn a_flood_does_not_take_all_memory() {
        let mut queue = Queue::new(HOST, vec![plan(1, late(ms(3_600_000)))]);
        let frame = vec![0; 1_000_000];
        for _ in 0..100 {
            queue.take(ms(0), Way::FromGuest, &frame);
        }
        assert!(queue.bytes <= BYTES_MAX);
    }
}
