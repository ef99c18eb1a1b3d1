//! `image build -f` over the fake backend: which steps are run, what is kept of a build that failed, two
//! builds at once, and one that is killed.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::home::{GONE, Home};
use crate::process::{Ran, until};

const SOON: Duration = Duration::from_secs(20);

/// A state root, and a directory of the host that the steps of its images write to.
struct Bench {
    home: Home,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { home: Home::new(), dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A step that adds a line to a file in the guest, and to one on the host that tells how often it ran.
    fn step(&self, word: &str) -> String {
        format!("run echo {word} >> $HOME/lines; echo {word} >> {}", self.path("ran").display())
    }

    fn ran(&self) -> String {
        let text = std::fs::read_to_string(self.path("ran")).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn file(&self, lines: &[&str]) -> PathBuf {
        let file = self.path("image");
        std::fs::write(&file, lines.join("\n")).unwrap();
        file
    }

    fn fake(&self, words: &[&str]) -> Command {
        let mut command = self.home.command(words);
        command.env("FLEETBOX_BACKEND", "fake");
        command
    }

    fn command(&self, name: &str, lines: &[&str]) -> Command {
        let file = self.file(lines);
        self.fake(&["image", "build", "-f", file.to_str().unwrap(), "--as", name])
    }

    fn build(&self, name: &str, lines: &[&str]) -> Ran {
        self.command(name, lines).output().unwrap().into()
    }

    /// What a new machine of the image has in its file.
    #[track_caller]
    fn lines(&self, image: &str) -> String {
        let words = ["run", "-q", "--image", image, "--", "cat", "lines"];
        let ran: Ran = self.fake(&words).output().unwrap().into();
        ran.ok().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// State, image it was made from and reference of each derived image.
    #[track_caller]
    fn derived(&self) -> Vec<(String, String)> {
        let listed = self.home.ok(["image", "ls", "-o", "json"]);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let derived = rows.iter().filter(|row| row["state"] == "derived");
        derived.map(|row| (text(&row["reference"]), text(&row["from"]))).collect()
    }
}

#[test]
fn a_step_is_run_once_and_those_after_a_changed_one_again() {
    let bench = Bench::new();
    let (a, b, c) = (bench.step("a"), bench.step("b"), bench.step("c"));
    let built = bench.build("web", &["from debian-12", &a, &b]);
    assert!(built.stderr.contains("web: step 1/2: run echo a"), "{}", built.stderr);
    assert!(built.ok().starts_with("web /"));
    assert_eq!(bench.ran(), "a b");
    assert_eq!(bench.lines("web"), "a b");

    let again = bench.build("web", &["from debian-12", &a, &b]);
    assert!(again.stderr.contains("step 2/2: run echo b") && again.stderr.contains("(cached)"));
    assert!(!again.stderr.contains("prepare"), "no machine was started: {}", again.stderr);
    again.ok();
    bench.build("other", &["# the same begin", "from debian-12", &a, &c]).ok();
    assert_eq!(bench.ran(), "a b c");
    assert_eq!(bench.lines("other"), "a c");
    bench.build("above", &["from web", &c]).ok();
    assert_eq!(bench.ran(), "a b c c", "it is another step after another");
    assert_eq!(bench.lines("above"), "a b c");
    let named = |name: &str, from: &str| (name.to_owned(), from.to_owned());
    let expected = [named("above", "web"), named("other", "debian-12"), named("web", "debian-12")];
    assert_eq!(bench.derived(), expected);

    bench.home.ok(["image", "rm", "web"]);
    assert_eq!(bench.lines("above"), "a b c", "it has all it needs");
    bench.home.run(["image", "rm", "web"]).fails(1, &["web", "not in the cache"]);
}

#[test]
fn a_copy_is_made_again_when_what_is_copied_changes() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("site")).unwrap();
    std::fs::write(bench.path("site/index"), "one").unwrap();
    std::fs::create_dir(bench.path("srv")).unwrap();
    // A fake machine's files are the host's.
    let copy = format!("copy site {}", bench.path("srv").display());
    let build = || {
        let ran = bench.build("web", &["from debian-12", &copy, &bench.step("a")]);
        ran.ok();
        std::fs::read_to_string(bench.path("srv/site/index")).unwrap()
    };
    assert_eq!(build(), "one");
    assert_eq!(build(), "one");
    assert_eq!(bench.ran(), "a");
    std::fs::write(bench.path("site/index"), "two").unwrap();
    assert_eq!(build(), "two");
    assert_eq!(bench.ran(), "a a", "what follows is run again");
}

#[test]
fn a_step_that_fails_is_told_and_those_before_it_are_kept() {
    let bench = Bench::new();
    let a = bench.step("a");
    let bad = "run echo said; echo why >&2; false; echo not reached";
    let failed = bench.build("web", &["from debian-12", &a, bad]);
    let words = ["build the image web: step 2 of 2, `run echo said;", "exit code 1", "why", "said"];
    let said = failed.fails(4, &words);
    assert!(said.contains("web: | said") && !said.contains("| not reached"), "{said}");
    bench.home.assert_untouched();
    let [(reference, _)] = &bench.derived()[..] else { panic!("{:?}", bench.derived()) };
    assert_eq!(bench.lines(reference), "a", "as far as it came");
    let b = bench.step("b");
    bench.build("web", &["from debian-12", &a, &b]).ok();
    assert_eq!(bench.ran(), "a b");
    assert_eq!(bench.lines("web"), "a b");
}

#[test]
fn of_two_builds_of_the_same_one_waits_and_finds_all_done() {
    let bench = Bench::new();
    let gate = bench.path("gate");
    let wait = format!("run until [ -e {} ]; do sleep 0.05; done", gate.display());
    let a = bench.step("a");
    let lines = ["from debian-12", &a, &wait, &bench.step("b")];
    let begin = |command: &mut Command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let one = begin(&mut bench.command("web", &lines));
    until("the first step", SOON, || bench.ran() == "a");
    let mut two = begin(&mut bench.command("web", &lines));
    let mut said = BufReader::new(two.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("waiting for another process that builds the same")));
    std::fs::write(&gate, "").unwrap();
    let rest: Vec<String> = said.collect();
    assert!(
        rest.iter().any(|line| line.contains("step 3/3") && line.contains("(cached)")),
        "{rest:?}"
    );
    assert!(two.wait().unwrap().success());
    Ran::from(one.wait_with_output().unwrap()).ok();
    assert_eq!(bench.ran(), "a b");
}

#[test]
fn a_build_that_is_killed_leaves_nothing_and_the_next_goes_on_from_its_layers() {
    let bench = Bench::new();
    let a = bench.step("a");
    let file = bench.path("begun");
    let hang = format!(
        "run echo > {}; [ -e {} ] || sleep 1000",
        file.display(),
        bench.path("gate").display()
    );
    let lines = ["from debian-12", &a, &hang, &bench.step("b")];
    let mut child = bench.command("web", &lines).stderr(Stdio::null()).spawn().unwrap();
    until("the second step", SOON, || file.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    bench.home.assert_no_process_within(GONE);
    bench.home.assert_no_cluster_within(GONE);
    // As if it had been killed in the middle of taking a layer.
    let layers = bench.home.path().join("cache/layers");
    let half_made = layers.join(format!(".new-{}", "a".repeat(64)));
    std::fs::create_dir(&half_made).unwrap();
    std::fs::write(bench.path("gate"), "").unwrap();
    bench.build("web", &lines).ok();
    assert_eq!(bench.ran(), "a b");
    assert_eq!(bench.lines("web"), "a b");
    assert!(!half_made.exists(), "the next build sweeps");
    std::fs::create_dir(&half_made).unwrap();
    assert!(bench.home.ok(["prune"]).contains(".new-aaaa"));
}

#[test]
fn what_is_wrong_in_a_file_is_refused_before_any_work() {
    let bench = Bench::new();
    let refused = |lines: &[&str], words: &[&str]| {
        bench.build("web", lines).refused(2, words);
    };
    refused(&["from debian-12", "", "RUN true"], &["image: line 3", "RUN", "lowercase"]);
    refused(&["from debian-12"], &["no step"]);
    refused(&["from debian-12", "copy absent /x"], &["absent", "must exist"]);
    let file = bench.file(&["from debian-12", "run true"]);
    let file = file.to_str().unwrap();
    for (name, code, word) in [("../x", 2, "alias"), ("debian-12", 2, "published")] {
        let ran = bench.fake(&["image", "build", "-f", file, "--as", name]);
        Ran::from({ ran }.output().unwrap()).refused(code, &[word]);
    }
    let both = bench.home.run(["image", "build", "debian-12", "-f", file]);
    both.fails(2, &["cannot be used with"]);
    bench.home.run(["image", "build"]).fails(2, &["required"]);
    bench.home.run(["image", "build", "-f", "/nowhere"]).refused(2, &["/nowhere"]);
    // What a fake machine made has no disk for another.
    bench.build("web", &["from debian-12", "run true"]).ok();
    let up = bench.home.run(["up", "real", "--image", "web", "--backend", "qemu"]);
    up.refused(3, &["built by the fake backend"]);
    bench.home.assert_untouched();
}
