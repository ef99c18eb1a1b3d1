//! The rule by which machines get their memory, and what is said of it.

use super::*;
use crate::store::memory::Entry;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Machines that are promised 1024 MiB each, one of each cluster, under a holder of that pid.
fn promises(clusters: &[(&str, Option<u32>)]) -> Vec<Promise> {
    let promise = |(cluster, holder): &(&str, Option<u32>)| {
        let entry = Entry { memory_mib: 1024, cpus: 2, holder: *holder };
        Promise { cluster: name(cluster), vm: name("vm"), entry }
    };
    clusters.iter().map(promise).collect()
}

/// One that wants 1000 MiB, of these that wait: each is number one and so on, and of a cluster that
/// grows or of none.
fn verdict(free_mib: u64, up: &[&str], queue: &[Option<&str>], own_number: u64) -> Verdict {
    let up: Vec<_> = up.iter().map(|cluster| (*cluster, None)).collect();
    let waiting =
        |(number, cluster): (u64, Option<&str>)| Waiting { number, cluster: cluster.map(name) };
    let case = Case {
        wanted_mib: 1000,
        machines: 1,
        limit: None,
        free_mib: Some(free_mib),
        promises: &promises(&up),
        queue: (1..).zip(queue.iter().copied()).map(waiting).collect(),
        own_number,
    };
    case.verdict()
}

#[test]
fn what_fits_starts_and_what_does_not_waits() {
    assert_eq!(verdict(1000, &["a"], &[None], 1), Verdict::Fits);
    assert_eq!(verdict(999, &["a"], &[None], 1), Verdict::Wait { ahead: 0 });
}

#[test]
fn whoever_came_first_is_served_first() {
    assert_eq!(verdict(1000, &["a"], &[None, None, None], 3), Verdict::Wait { ahead: 2 });
    assert_eq!(verdict(1000, &["a"], &[None, None, None], 1), Verdict::Fits);
    assert_eq!(verdict(1000, &[], &[None, None], 2), Verdict::Wait { ahead: 1 });
}

#[test]
fn one_alone_always_starts() {
    assert_eq!(verdict(0, &[], &[None], 1), Verdict::Anyway(Why::Alone));
    assert_eq!(verdict(0, &[], &[None, None], 2), Verdict::Wait { ahead: 1 });
}

#[test]
fn a_cluster_does_not_wait_for_itself() {
    let anyway = Verdict::Anyway(Why::AllWait);
    assert_eq!(verdict(0, &["a", "a"], &[Some("a")], 1), anyway);
    // Not even behind one that waits for it.
    assert_eq!(verdict(0, &["a", "a"], &[None, Some("b"), Some("a")], 3), anyway);
    assert_eq!(verdict(1000, &["a", "a"], &[None, Some("a")], 2), Verdict::Fits);
    let waits = |ahead| Verdict::Wait { ahead };
    assert_eq!(verdict(0, &["a", "a"], &[Some("b"), Some("a")], 1), waits(0));
    assert_eq!(verdict(0, &["a", "b"], &[Some("a")], 1), waits(0), "b may end");
    assert_eq!(verdict(0, &["a", "a"], &[None], 1), waits(0), "no cluster that grows");
}

#[test]
fn of_clusters_that_wait_for_each_other_the_first_goes_on() {
    let (up, queue) = (["a", "b"], [Some("c"), Some("b"), Some("a")]);
    assert_eq!(verdict(0, &up, &queue, 2), Verdict::Anyway(Why::AllWait));
    assert_eq!(verdict(0, &up, &queue, 3), Verdict::Wait { ahead: 2 });
    assert_eq!(verdict(0, &up, &queue, 1), Verdict::Wait { ahead: 0 });
}

#[test]
fn what_machines_may_still_take_is_not_free() {
    let nobody = || -> HashMap<u32, u64> { panic!("nobody to look at") };
    assert_eq!(free_of(8000, &promises(&[]), nobody), 8000);
    assert_eq!(free_of(8000, &promises(&[("a", None), ("b", None)]), nobody), 5952);
    // Of 2048 MiB under 7 it has 600, of 1024 under 8 more than all.
    let up = promises(&[("a", Some(7)), ("a", Some(7)), ("b", Some(8)), ("c", Some(9))]);
    let resident = || HashMap::from([(7, 600), (8, 1500)]);
    assert_eq!(free_of(8000, &up, resident), 8000 - 1448 - 1024);
    assert_eq!(free_of(100, &up, resident), 0);
}

#[test]
fn a_limit_counts_promises_and_none_lets_all_go() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::at(dir.path()).unwrap();
    let held = Ledger::open(&paths).unwrap().reserve(&name("a"), &name("a"), 1024, 2).unwrap();
    let ask = |vm: &str, memory_mib| Ask { vm: name(vm), memory_mib, cpus: 2, runs: false };
    let verdict = |limit, asks: &[Ask]| {
        let ledger = Ledger::open(&paths).unwrap();
        Case::of(&ledger, &name("a"), asks, Some(limit), None, false).verdict()
    };
    let (limit, waits) = (MemoryLimit::Mib(3000), Verdict::Wait { ahead: 0 });
    assert_eq!(verdict(limit, &[ask("b", 1976)]), Verdict::Fits);
    assert_eq!(verdict(limit, &[ask("b", 1977)]), waits);
    assert_eq!(verdict(limit, &[ask("b", 1000), ask("c", 1000)]), waits, "together");
    assert_eq!(verdict(limit, &[ask("a", 9999)]), Verdict::Fits, "it has it already");
    assert_eq!(verdict(MemoryLimit::Unlimited, &[ask("b", 9999)]), Verdict::Fits);
    drop(held);
    assert_eq!(verdict(limit, &[ask("b", 3001)]), Verdict::Anyway(Why::Alone));
}

#[test]
fn a_note_says_what_is_wanted_what_is_there_and_what_to_set() {
    let up = promises(&[("a", None)]);
    let mut case = Case {
        wanted_mib: 4096,
        machines: 1,
        limit: None,
        free_mib: Some(2100),
        promises: &up,
        queue: Vec::new(),
        own_number: 1,
    };
    let waits = Verdict::Wait { ahead: 0 };
    assert_eq!(
        waits.note(&case, false).unwrap(),
        "waits for memory: 4096 MiB wanted, 2100 MiB of the host's are free beside what running \
         machines may still take; set FLEETBOX_MEMORY_MIB to change what may be used"
    );
    assert_eq!(waits.note(&case, true), None, "once");
    assert_eq!(Verdict::Fits.note(&case, true), None);
    (case.machines, case.limit) = (3, Some(MemoryLimit::Mib(5500)));
    let note = Verdict::Wait { ahead: 2 }.note(&case, false).unwrap();
    let words = ["for 3 machines", "2100 of the 5500 MiB", ", and 2 starts are before it;"];
    for word in words {
        assert!(note.contains(word), "no {word:?} in {note}");
    }
    let note = Verdict::Anyway(Why::Alone).note(&case, true).unwrap();
    assert!(note.starts_with("starts although 4096 MiB wanted"), "{note}");
}

#[test]
fn processors_take_turns_where_their_machine_has_one_core_to_itself() {
    let turns = |cores, cpus, all| turns_of(cores, cpus, all) == Turns::InTurn;
    // Alone on two cores; one of two; one of three that start together.
    assert!(!turns(2, 2, 2) && turns(2, 2, 4) && turns(2, 2, 6));
    // One core has no room for two anyway; many have for all.
    assert!(turns(1, 2, 2) && !turns(8, 2, 10));
    // Large ones are not made small by a small one.
    assert!(!turns(8, 8, 10) && turns(2, 3, 5));
}
