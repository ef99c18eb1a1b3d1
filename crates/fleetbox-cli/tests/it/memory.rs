//! Machines of many processes beside each other: no more at once than memory holds, whoever dies.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::home::{GONE, Home};
use crate::process::{self, parent, signal, until};

const LIMIT: &str = "FLEETBOX_MEMORY_MIB";
const WAITS: &str = "waits for memory: ";
/// A busy host takes its time over eight processes.
const SOON: Duration = Duration::from_mins(1);

/// A state root, and a place outside of it where machines leave marks.
struct Lab {
    home: Home,
    marks: tempfile::TempDir,
}

/// A command that works on a machine, and what it says.
struct Job {
    child: Child,
    said: PathBuf,
}

impl Lab {
    fn new() -> Self {
        Self { home: Home::new(), marks: tempfile::tempdir().unwrap() }
    }

    fn command(&self, limit: &str, words: &[&str]) -> Command {
        let mut command = self.home.command(words);
        command.env(LIMIT, limit);
        command
    }

    fn start(&self, name: &str, command: &mut Command) -> Job {
        let said = self.marks.path().join(format!("said-{name}"));
        let stderr = File::create(&said).unwrap();
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Job { child, said }
    }

    /// A machine of 1024 MiB that leaves a mark for as long as it has work, until it may end.
    fn run(&self, limit: &str, name: &str) -> Job {
        let marks = self.marks.path().display();
        let work = format!(
            "cd {marks} && touch up-{name} && until [ -e go-{name} ] || [ -e go ]; do sleep 0.02; done; rm up-{name}"
        );
        let words = ["run", "--backend", "fake", "--memory", "1024", "--", &work];
        self.start(name, &mut self.command(limit, &words))
    }

    fn go(&self, name: &str) {
        std::fs::write(self.marks.path().join(name), "").unwrap();
    }

    fn is_up(&self, name: &str) -> bool {
        self.marks.path().join(format!("up-{name}")).exists()
    }

    /// How many work at this moment.
    fn up(&self) -> usize {
        let entries = std::fs::read_dir(self.marks.path()).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("up-")).count()
    }

    /// What is reserved, and who waits.
    fn reserved(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.home.path().join("memory")).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[track_caller]
    fn nothing_is_reserved(&self) {
        until("an end of all reservations", GONE, || self.reserved().is_empty());
    }

    #[track_caller]
    fn up_ok(&self, limit: &str, words: &[&str]) -> String {
        let ran = process::Ran::from(self.command(limit, words).output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stderr
    }
}

impl Job {
    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    fn waits(&self) -> bool {
        self.said().contains(WAITS)
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    #[track_caller]
    fn ends(&mut self, code: i32) {
        until("an end", SOON, || self.has_ended());
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{status}: {}", self.said());
    }

    /// Ends it without a chance to tidy up.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn of_eight_processes_as_many_run_as_memory_holds_and_all_succeed() {
    let lab = Lab::new();
    let mut jobs: Vec<Job> = (0..8).map(|n| lab.run("5500", &n.to_string())).collect();
    until("five machines", SOON, || lab.up() == 5);
    let waiting = |jobs: &[Job]| jobs.iter().filter(|job| job.waits()).count();
    until("three that wait", SOON, || waiting(&jobs) >= 3);
    assert_eq!(lab.reserved().len(), 8, "five and three: {:?}", lab.reserved());
    // One by one, so that those that follow are seen beside those that are left.
    for n in 0..8 {
        let place = jobs.iter().position(|job| !job.waits() || lab.is_up(&job_name(job)));
        let name = place.map(|place| job_name(&jobs[place])).expect("one is up");
        until("it is up", SOON, || lab.is_up(&name));
        lab.go(&format!("go-{name}"));
        let mut job = jobs.remove(place.unwrap());
        until("its end", SOON, || {
            assert!(lab.up() <= 5, "{} are up", lab.up());
            job.has_ended()
        });
        job.ends(0);
        let left = 7 - n;
        until("those that are left", SOON, || {
            assert!(lab.up() <= 5, "{} are up", lab.up());
            lab.up() == left.min(5)
        });
    }
    lab.nothing_is_reserved();
    lab.home.assert_untouched();
}

fn job_name(job: &Job) -> String {
    let file = job.said.file_name().unwrap().to_string_lossy().into_owned();
    file.trim_start_matches("said-").to_owned()
}

#[test]
fn a_killed_run_lets_the_next_in() {
    let lab = Lab::new();
    let mut first = lab.run("1500", "first");
    until("the first", SOON, || lab.is_up("first"));
    let mut second = lab.run("1500", "second");
    until("a note", SOON, || second.waits());
    assert!(second.said().contains("1024 MiB wanted, 476 of the 1500 MiB"), "{}", second.said());
    assert!(second.said().contains(LIMIT), "{}", second.said());
    assert!(!lab.is_up("second"));
    first.kill();
    until("the second", SOON, || lab.is_up("second"));
    lab.go("go");
    second.ends(0);
    lab.nothing_is_reserved();
}

#[test]
fn a_killed_holder_gives_back_what_it_had() {
    let lab = Lab::new();
    lab.up_ok("1500", &["up", "web", "--backend", "fake", "--memory", "1024"]);
    assert_eq!(lab.reserved(), ["web.web"]);
    let holder = crate::kill::holder(&lab.home, "web");
    signal(parent(holder), Signal::KILL);
    signal(holder, Signal::KILL);
    let said = lab.up_ok("1500", &["up", "next", "--backend", "fake", "--memory", "1024"]);
    assert!(!said.contains("starts although"), "{said}");
    assert_eq!(lab.reserved(), ["next.next"]);
    lab.home.ok(["down", "next"]);
    lab.nothing_is_reserved();
}

#[test]
fn a_start_that_is_interrupted_while_it_waits_leaves_nothing() {
    let lab = Lab::new();
    lab.up_ok("1500", &["up", "web", "--backend", "fake", "--memory", "1024"]);
    let words = ["up", "late", "--backend", "fake", "--memory", "1024"];
    let mut late = lab.start("late", &mut lab.command("1500", &words));
    until("a note", SOON, || late.waits());
    assert_eq!(lab.reserved().len(), 2, "{:?}", lab.reserved());
    signal(late.child.id(), Signal::INT);
    late.ends(130);
    assert_eq!(lab.reserved(), ["web.web"]);
    assert!(!lab.home.cluster("late").exists());
}

#[test]
fn a_start_that_is_killed_while_it_waits_holds_up_nobody() {
    let lab = Lab::new();
    lab.up_ok("1500", &["up", "web", "--backend", "fake", "--memory", "1024"]);
    let mut dead = lab.run("1500", "dead");
    until("a note", SOON, || dead.waits());
    let mut next = lab.run("1500", "next");
    until("a note", SOON, || next.waits());
    assert!(next.said().contains("one start is before it"), "{}", next.said());
    dead.kill();
    lab.home.ok(["rm", "-f", "web"]);
    lab.go("go");
    next.ends(0);
    lab.nothing_is_reserved();
}

#[test]
fn a_machine_that_is_off_for_a_while_keeps_its_memory() {
    let lab = Lab::new();
    lab.up_ok("1500", &["up", "web", "--backend", "fake", "--memory", "1024"]);
    let plan = lab.marks.path().join("plan.txt");
    std::fs::write(&plan, "0s +1h power-cut web\n").unwrap();
    let words = ["fault", "replay", "web", plan.to_str().unwrap()];
    let mut fault = lab.start("fault", &mut lab.command("1500", &words));
    let runs = || lab.home.state("web").as_deref() == Some("running");
    until("the power cut", SOON, || !runs());
    assert_eq!(lab.reserved(), ["web.web"]);
    let mut next = lab.run("1500", "next");
    until("a note", SOON, || next.waits());
    signal(fault.child.id(), Signal::INT);
    fault.ends(130);
    until("web again", SOON, runs);
    assert!(lab.reserved().contains(&"web.web".to_owned()) && !lab.is_up("next"));
    lab.home.ok(["rm", "-f", "web"]);
    lab.go("go");
    next.ends(0);
    lab.nothing_is_reserved();
}

#[test]
fn what_the_dead_left_is_swept_by_the_next_start_and_by_prune() {
    let lab = Lab::new();
    let leave = || {
        let memory = lab.home.path().join("memory");
        std::fs::create_dir_all(&memory).unwrap();
        std::fs::write(memory.join("gone.gone"), "mib=4096\n").unwrap();
        std::fs::write(memory.join(".turn-00000000000000000001"), "").unwrap();
    };
    leave();
    let said = lab.up_ok("1500", &["up", "web", "--backend", "fake", "--memory", "1024"]);
    assert!(!said.contains("memory"), "{said}");
    assert_eq!(lab.reserved(), ["web.web"]);
    leave();
    let pruned = lab.home.ok(["prune"]);
    assert!(pruned.contains("gone.gone"), "{pruned}");
    assert_eq!(lab.reserved(), ["web.web"]);
}

#[test]
fn two_starts_of_one_name_need_its_memory_once() {
    let lab = Lab::new();
    let words = ["up", "web", "--backend", "fake", "--memory", "1024"];
    let starts = ["one", "two"].map(|name| lab.start(name, &mut lab.command("1500", &words)));
    for mut start in starts {
        start.ends(0);
        assert!(!start.waits(), "{}", start.said());
    }
    assert!(!lab.up_ok("1500", &words).contains(WAITS), "it runs");
}

#[test]
fn of_two_clusters_started_at_once_one_is_whole_and_the_other_waits() {
    let lab = Lab::new();
    let up = |name: &str| {
        let words = ["up", name, "-n", "3", "--backend", "fake", "--memory", "1024"];
        lab.start(name, &mut lab.command("3500", &words))
    };
    let mut starts = [("a", up("a")), ("b", up("b"))];
    until("one of both", SOON, || starts.iter_mut().any(|(_, start)| start.has_ended()));
    let first = starts.iter_mut().position(|(_, start)| start.has_ended()).unwrap();
    let (whole, _) = starts[first];
    let (_, other) = &mut starts[1 - first];
    until("a note", SOON, || other.waits());
    assert!(other.said().contains("3072 MiB wanted for 3 machines"), "{}", other.said());
    assert!(!other.has_ended());
    // What is up may be removed while another waits, also of the same cluster.
    for n in 1..=3 {
        lab.home.ok(["rm", "-f", &format!("{whole}-{n}")]);
    }
    for (_, start) in &mut starts {
        start.ends(0);
    }
    assert_eq!(lab.reserved().len(), 3, "{:?}", lab.reserved());
}

#[test]
fn a_cluster_that_never_fits_starts_and_grows_where_nothing_else_runs() {
    let lab = Lab::new();
    let up = |count| ["up", "node", "-n", count, "--backend", "fake", "--memory", "1024"];
    let said = lab.up_ok("2000", &up("3"));
    assert!(said.contains("starts although 3072 MiB wanted for 3 machines"), "{said}");
    let mut other = lab.run("2000", "other");
    until("a note", SOON, || other.waits());
    let said = lab.up_ok("2000", &up("4"));
    assert!(said.contains("starts although 1024 MiB wanted"), "{said}");
    assert!(!other.has_ended() && !lab.is_up("other"));
    other.kill();
}

#[test]
fn without_a_limit_nobody_waits_and_all_are_counted() {
    let lab = Lab::new();
    for name in ["a", "b"] {
        let words = ["up", name, "--backend", "fake", "--memory", "1000000"];
        assert_eq!(lab.up_ok("unlimited", &words).matches("memory").count(), 0);
    }
    assert_eq!(lab.reserved(), ["a.a", "b.b"]);
    let mut waits = lab.run("1500000", "waits");
    until("a note", SOON, || waits.waits());
    lab.home.ok(["rm", "-f", "a", "b"]);
    lab.go("go");
    waits.ends(0);
}

#[test]
fn machines_without_memory_are_not_asked_about_it() {
    let lab = Lab::new();
    lab.home.up("web");
    assert_eq!(lab.reserved(), Vec::<String>::new());
    assert!(!lab.home.path().join("memory.lock").exists());
}

#[test]
fn an_image_nobody_knows_is_refused_without_a_wait() {
    let lab = Lab::new();
    lab.up_ok("1500", &["up", "web", "--backend", "fake", "--memory", "1024"]);
    let words = ["up", "typo", "--backend", "qemu", "--image", "debain-12"];
    let ran = process::Ran::from(lab.command("1500", &words).output().unwrap());
    let said = ran.refused(2, &["typo: ", "debain-12"]);
    assert!(!said.contains(WAITS), "{said}");
}

#[test]
fn a_limit_that_is_none_is_refused_before_any_work() {
    let lab = Lab::new();
    for bad in ["0", "-1", "5G", "much", "1.5"] {
        for words in
            [&["up", "web", "--backend", "fake"][..], &["up", "a", "b", "--backend", "fake"]]
        {
            let ran = process::Ran::from(lab.command(bad, words).output().unwrap());
            ran.refused(2, &[LIMIT, bad]);
        }
    }
    let left: Vec<_> = std::fs::read_dir(lab.home.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
