//! `fault plan` and `fault replay` as their users have them, and what is left when they are killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::home::{GONE, Home};
use crate::process::{run, signal, until};

fn three() -> Home {
    let home = Home::new();
    home.ok(["up", "node", "-n", "3", "--backend", "fake"]);
    home
}

fn plan(home: &Home, words: &str) -> String {
    home.run(["fault", "plan", "node"].into_iter().chain(words.split_whitespace())).ok()
}

fn is_whole(home: &Home) -> bool {
    let rows = home.rows();
    rows.len() == 3
        && rows.iter().all(|row| row["state"] == "running")
        && home.ok(["net", "show", "-o", "json"]).trim() == "[]"
}

#[test]
fn a_seed_is_a_plan_and_a_printed_plan_is_replayed() {
    let home = three();
    let settings = "--seed 7 --over 1s --mean-gap 100ms --mean-length 150ms";
    let printed = plan(&home, &format!("{settings} --dry-run"));
    assert!(printed.starts_with("# fleetbox fault plan, seed 7\n"), "{printed}");
    assert!(printed.lines().count() > 4, "{printed}");
    assert_eq!(printed, plan(&home, &format!("{settings} --dry-run")));
    assert_ne!(printed, plan(&home, &settings.replace('7', "8")));
    assert!(is_whole(&home));
    let ran = run(&mut home.command(["fault", "replay", "node-1", "-"]), printed.as_bytes());
    let steps = printed.lines().count() - 1;
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains(&format!("done: {steps} faults, all healed")), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 2 * steps + 1, "{ran:?}");
    assert!(is_whole(&home));
    // They are detached as before.
    for vm in ["node-1", "node-2", "node-3"] {
        assert_eq!(home.ok(["ssh", vm, "--", "hostname"]), format!("{vm}\n"));
    }
}

#[test]
fn kinds_are_chosen_and_without_a_seed_one_is_drawn() {
    let home = three();
    let printed = plan(&home, "--kinds isolate,pause --over 10m --dry-run");
    let kinds: Vec<&str> =
        printed.lines().skip(1).map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert!(kinds.iter().all(|kind| ["isolate", "pause"].contains(kind)), "{printed}");
    assert_ne!(printed, plan(&home, "--kinds isolate,pause --over 10m --dry-run"));
    let all = plan(&home, "--seed 1 --over 1h --dry-run");
    assert!(all.contains(" power-cut ") && !all.contains(" clock "), "what the fake can have");
}

/// Starts a plan that would take an hour, and waits until all of its faults are there.
fn start(home: &Home) -> Child {
    let file = home.path().join("plan.txt");
    let text = "0s +1h isolate node-1\n0s +1h pause node-2\n0s +1h power-cut node-3\n";
    std::fs::write(&file, text).unwrap();
    let mut command = home.command(["fault", "replay", "node"]);
    let mut child = command.arg(&file).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(lines.map_while(Result::ok).take(3).count(), 3);
    assert_eq!(home.state("node-2").unwrap(), "paused");
    assert_eq!(home.state("node-3").unwrap(), "stopped");
    child
}

#[test]
fn a_killed_plan_is_healed() {
    let home = three();
    for by in [Signal::KILL, Signal::INT, Signal::TERM] {
        let mut child = start(&home);
        signal(child.id(), by);
        let code = child.wait().unwrap().code();
        assert_eq!(code, if by == Signal::KILL { None } else { Some(130) });
        until("all healed", Duration::from_secs(20), || is_whole(&home));
        // The machines are nobody's but their own again.
        for vm in ["node-2", "node-3"] {
            assert_eq!(home.ok(["ssh", vm, "--", "hostname"]), format!("{vm}\n"));
        }
    }
    home.ok(["down", "node"]);
    home.assert_no_process_within(GONE);
}

#[test]
fn what_is_no_plan_is_refused() {
    let home = three();
    let before = home.ok(["fault", "timeline", "node"]);
    let refused = |code: i32, words: &str, said: &[&str]| {
        home.run(["fault"].into_iter().chain(words.split_whitespace())).fails(code, said);
    };
    refused(2, "plan node --over 0s", &["millisecond"]);
    refused(2, "plan node --over 8days", &["a week"]);
    refused(2, "plan node --over soon", &["no time"]);
    refused(2, "plan node --seed -1", &["--seed"]);
    refused(2, "plan node --kinds fire", &["possible values", "power-cut"]);
    refused(2, "plan node --mean-gap 1ms --over 1h", &["more than 10000 faults"]);
    refused(1, "plan nobody", &["nobody"]);
    refused(2, "replay node /no/such/file", &["/no/such/file"]);
    let replay = |text: &str, code: i32, said: &[&str]| {
        run(&mut home.command(["fault", "replay", "node", "-"]), text.as_bytes())
            .refused(code, said);
    };
    replay("1s +1s isolate node-1\nhello", 2, &["line 2", "no time"]);
    replay("1s +1s isolate node-9", 1, &["node-9", "did you mean"]);
    replay("1s +1s clock node-1 --by=-1h", 3, &["cannot"]);
    assert_eq!(home.ok(["fault", "timeline", "node"]), before);
    home.ok(["down", "node-2"]);
    replay("1s +1s isolate node-2", 1, &["not running"]);
}

#[test]
fn help_and_completion_know_plans() {
    let home = Home::new();
    let help = home.ok(["fault", "--help"]);
    for word in ["plan", "replay", "timeline", "disk"] {
        assert!(help.contains(word), "{help}");
    }
    let help = home.ok(["fault", "plan", "--help"]);
    for word in ["--seed", "--over", "--kinds", "power-cut", "--dry-run", "--mean-gap"] {
        assert!(help.contains(word), "{help}");
    }
}
