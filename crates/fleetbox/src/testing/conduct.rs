//! Owns the run of a test: its machines, its time, its verdict, its end. What a failed one leaves is
//! `bundle`'s. It must not know how a test is described.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use regex_lite::Regex;
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinSet;

use super::end::{Watch, destroy};
use super::machines::{CLUSTER_VMS, Count, Fleet, Machines};
use super::name::vm_name;
use super::{Outcome, Required, Requirement, Test, notes};
use crate::blocking;
use crate::bundle::{self, Story};
use crate::cluster::Cluster;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::health::{Finding, HealthMark};
use crate::ssh::Transcript;
use crate::vm::Vm;

/// Destroying a VM is a kill and the removal of a directory.
const DESTROY_WAIT: Duration = Duration::from_mins(1);

/// What drives the machines of a test.
enum Driver {
    /// The test's own thread, while it waits.
    Own(Runtime),
    /// The thread behind blocking calls, at any time.
    Shared(&'static Handle),
}

impl Driver {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Own(runtime) => runtime.block_on(future),
            Self::Shared(handle) => handle.block_on(future),
        }
    }
}

pub(super) fn run<M, T, F>(test: Test, body: impl FnOnce(M) -> F) -> T
where
    M: Machines,
    T: Outcome,
    F: Future<Output = T>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|e| panic!("failed to start a runtime for the test: {e}"));
    begin::<M, T>(test, Driver::Own(runtime), |driver, timeout, machines| {
        driver.block_on(async {
            // Within the runtime, and within what a panic of it is caught by.
            let body = body(machines);
            match timeout {
                Some(timeout) => tokio::time::timeout(timeout, body).await.map_err(|_| timeout),
                None => Ok(body.await),
            }
        })
    })
}

pub(super) fn run_blocking<M, T>(test: Test, body: impl FnOnce(M) -> T) -> T
where
    M: Machines,
    T: Outcome,
{
    begin::<M, T>(test, Driver::Shared(blocking::runtime()), |_, timeout, machines| {
        let began = Instant::now();
        let outcome = body(machines);
        match timeout {
            Some(timeout) if began.elapsed() > timeout => Err(timeout),
            _ => Ok(outcome),
        }
    })
}

/// Starts the machines, and goes through with the test unless they cannot be had.
fn begin<M: Machines, T: Outcome>(
    test: Test,
    driver: Driver,
    body: impl FnOnce(&Driver, Option<Duration>, M) -> Result<T, Duration>,
) -> T {
    let name = test.name.clone();
    let plan = Plan::of(test, M::COUNT).unwrap_or_else(|e| panic!("{name}: {}", e.report()));
    if let Some((requirement, why)) = plan.lacking() {
        assert!(
            !plan.required.requirements.contains(&requirement),
            "{requirement} is required: {why}"
        );
        return skip(&name, &why);
    }
    let mut story = Story::new(&name);
    let Plan { start, required, timeout, allowed, keep, .. } = plan;
    let fleet = match driver.block_on(start.fleet()) {
        Ok(fleet) => fleet,
        Err(error) if host_cannot(&error) && !required.machines() => {
            return skip(&name, &format!("this host cannot boot a VM: {}", error.report()));
        }
        Err(error) => {
            let failure = format!("failed to start the test's machines: {}", error.report());
            story.boot_failed(error);
            leave_bundle(&driver, &story, &failure);
            panic!("{failure}");
        }
    };
    let conduct = Conduct { driver, fleet, story, allowed, keep };
    conduct.through(timeout, body)
}

/// What is known before any work.
struct Plan {
    start: Start,
    requires: Vec<Requirement>,
    required: Required,
    timeout: Option<Duration>,
    allowed: Vec<Regex>,
    keep: bool,
}

impl Plan {
    fn of(test: Test, count: Count) -> Result<Self> {
        let Test { name, options, names, vms, timeout, requires, allowed } = test;
        let allowed =
            allowed.iter().map(|pattern| allowed_pattern(pattern)).collect::<Result<_>>()?;
        let timeout = match timeout {
            Some(timeout) => Some(timeout),
            None => env::test_timeout()?,
        };
        let count = match (count, vms) {
            (Count::Any, vms) => Count::Several(vms.unwrap_or(CLUSTER_VMS)),
            (Count::One, None | Some(1)) => Count::One,
            (Count::Several(count), Some(vms)) if count != vms => {
                return Err(miscounted(count, vms));
            }
            (Count::One, Some(vms)) => return Err(miscounted(1, vms)),
            (count, _) => count,
        };
        let nested = requires.contains(&Requirement::Nested);
        let start = Start { name: vm_name(&name), test: name, count, options, names, nested };
        let (required, keep) = (Required::from_env()?, env::keep_failed()?);
        Ok(Self { start, requires, required, timeout, allowed, keep })
    }

    fn lacking(&self) -> Option<(Requirement, String)> {
        self.requires.iter().find_map(|requirement| Some((*requirement, requirement.lacking()?)))
    }
}

fn miscounted(takes: usize, vms: usize) -> Error {
    let message = format!("run the test: it takes {takes} machines and says that there are {vms}");
    Error::new(ErrorKind::InvalidSpec, message).hint("`vms` is for tests that take a Cluster")
}

fn allowed_pattern(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| {
        let message = format!("understand allow_health = \"{}\"", pattern.escape_debug());
        Error::new(ErrorKind::InvalidSpec, message).source(e).hint("it is a regular expression")
    })
}

/// Nor does it have an image that it is told not to fetch.
fn host_cannot(error: &Error) -> bool {
    use ErrorKind as K;
    matches!(error.kind(), K::HostUnsupported | K::BackendUnavailable | K::Offline)
}

/// Machines to start.
struct Start {
    name: String,
    test: String,
    count: Count,
    options: Vec<super::Options>,
    names: Vec<String>,
    nested: bool,
}

impl Start {
    async fn fleet(self) -> Result<Fleet> {
        let Self { name, test, count, options, names, nested } = self;
        let every = |builder: crate::VmBuilder| {
            let builder = builder.ephemeral(true).warm(true).on_progress(notes::of(&test));
            let builder = if nested { builder.nested_virt(true) } else { builder };
            options.into_iter().fold(builder, |builder, option| option(builder))
        };
        let size = match count {
            Count::Several(size) => size,
            Count::One | Count::Any => {
                return every(Vm::builder(name)).start().await.map(Fleet::Vm);
            }
        };
        let mut cluster = Cluster::builder(&name).size(size).every(every);
        for (place, alias) in names.into_iter().enumerate().take(size) {
            let member = format!("{name}-{}", place + 1);
            cluster = cluster.member(member, move |vm| vm.alias(&alias));
        }
        cluster.start().await.map(Fleet::Cluster)
    }
}

/// A test whose machines run.
struct Conduct {
    driver: Driver,
    fleet: Fleet,
    story: Story,
    allowed: Vec<Regex>,
    keep: bool,
}

/// How a body ended.
enum Ending<T> {
    Returned(T),
    Panicked(Box<dyn Any + Send>),
    Late(Duration),
}

impl Conduct {
    fn through<M: Machines, T: Outcome>(
        mut self,
        timeout: Option<Duration>,
        body: impl FnOnce(&Driver, Option<Duration>, M) -> Result<T, Duration>,
    ) -> T {
        let transcript = Transcript::default();
        for vm in self.fleet.vms() {
            vm.write_down(&transcript);
        }
        self.story.transcript = transcript;
        let marks = self.driver.block_on(mark(self.fleet.vms()));
        let (ending, marks) = match marks {
            Ok(marks) => (self.body(timeout, body), marks),
            Err(e) => {
                let text = format!("failed to look at the test's machines: {}", e.report());
                (Ending::Panicked(Box::new(text)), Vec::new())
            }
        };
        let examined = self.driver.block_on(examine(&marks));
        let failure = self.judge(&ending, examined);
        let kept = match &failure {
            Some(failure) => {
                self.story.members = self.members();
                leave_bundle(&self.driver, &self.story, failure);
                self.keep()
            }
            None => false,
        };
        let destroyed = if kept { Ok(()) } else { self.destroy() };
        match (ending, failure) {
            (Ending::Panicked(panic), _) => resume_unwind(panic),
            // Its own words are the test's.
            (Ending::Returned(outcome), Some(_)) if outcome.failure().is_some() => outcome,
            (_, Some(failure)) => panic!("{failure}"),
            (Ending::Returned(outcome), None) => {
                destroyed.unwrap_or_else(|e| panic!("failed to destroy the test's machines: {e}"));
                outcome
            }
            (Ending::Late(_), None) => unreachable!("being late is a failure"),
        }
    }

    fn body<M: Machines, T>(
        &self,
        timeout: Option<Duration>,
        body: impl FnOnce(&Driver, Option<Duration>, M) -> Result<T, Duration>,
    ) -> Ending<T> {
        let machines = M::take(self.fleet.clone());
        let _watch = timeout.map(|timeout| Watch::over(self.fleet.clone(), timeout));
        match catch_unwind(AssertUnwindSafe(|| body(&self.driver, timeout, machines))) {
            Ok(Ok(outcome)) => Ending::Returned(outcome),
            Ok(Err(timeout)) => Ending::Late(timeout),
            Err(panic) => Ending::Panicked(panic),
        }
    }

    /// Why the test failed, if it did.
    fn judge<T: Outcome>(
        &mut self,
        ending: &Ending<T>,
        examined: Result<Vec<Finding>>,
    ) -> Option<String> {
        let (findings, unread) = match examined {
            Ok(findings) => (findings, None),
            Err(e) => (Vec::new(), Some(e.report())),
        };
        let ill: Vec<String> = findings
            .iter()
            .map(ToString::to_string)
            .filter(|line| !self.allowed.iter().any(|allowed| allowed.is_match(line)))
            .collect();
        self.story.findings = findings;
        let of_body = match ending {
            Ending::Returned(outcome) => outcome.failure(),
            Ending::Panicked(panic) => Some(words(panic.as_ref())),
            Ending::Late(timeout) => Some(format!(
                "the test did not end within {}",
                humantime::format_duration(*timeout)
            )),
        };
        of_body
            .or_else(|| unread.map(|e| format!("failed to look at the machines' health: {e}")))
            .or_else(|| {
                let hint = "if that belongs to the test, allow it: allow_health = \"…\"";
                (!ill.is_empty()).then(|| {
                    format!("the machines are not well:\n  {}\nhint: {hint}", ill.join("\n  "))
                })
            })
    }

    /// Those it began with, and those the body added behind its back.
    fn members(&self) -> Vec<Vm> {
        let mut members = self.fleet.vms();
        let all = self.fleet.cluster().and_then(|cluster| Cluster::find(cluster.name()).ok());
        for vm in all.iter().flat_map(Cluster::vms) {
            // Its own handles know how they started, and have a connection.
            if members.iter().all(|known| known.name() != vm.name()) {
                members.push(vm);
            }
        }
        members
    }

    /// Leaves the machines running if that is wanted, and says how to look into them.
    #[expect(clippy::print_stderr, reason = "a failed test has no other voice")]
    fn keep(&self) -> bool {
        if !self.keep {
            return false;
        }
        let mut kept = Vec::new();
        for vm in self.members() {
            match self.driver.block_on(vm.detach()) {
                Ok(()) => kept.push(vm.name().to_owned()),
                Err(e) => eprintln!("{} is not kept: {}", vm.name(), e.report()),
            }
        }
        for name in &kept {
            eprintln!("{name} is kept: fleetbox ssh {name}");
        }
        if !kept.is_empty() {
            eprintln!("remove what is kept by: fleetbox rm -f {}", kept.join(" "));
        }
        !kept.is_empty()
    }

    fn destroy(&self) -> Result<(), String> {
        self.driver.block_on(async {
            let destroy = destroy(self.members());
            match tokio::time::timeout(DESTROY_WAIT, destroy).await {
                Ok(destroyed) => destroyed.map_err(|e| e.report()),
                Err(_) => Err(format!("they are there after {DESTROY_WAIT:?}")),
            }
        })
    }
}

/// Where the machines' consoles and journals are now.
async fn mark(vms: Vec<Vm>) -> Result<Vec<(Vm, HealthMark)>> {
    let mut marks = JoinSet::new();
    for vm in vms {
        marks.spawn(async move { vm.health_mark().await.map(|mark| (vm, mark)) });
    }
    joined(marks).await
}

/// What is wrong with them since.
async fn examine(marks: &[(Vm, HealthMark)]) -> Result<Vec<Finding>> {
    let mut looks = JoinSet::new();
    for (vm, mark) in marks {
        let (vm, mark) = (vm.clone(), mark.clone());
        looks.spawn(async move { vm.health(&mark).await });
    }
    Ok(joined(looks).await?.into_iter().flatten().collect())
}

async fn joined<T: 'static>(mut tasks: JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut done = Vec::new();
    while let Some(task) = tasks.join_next().await {
        done.push(task.map_err(|e| Error::new(ErrorKind::Internal, "act on a VM").source(e))??);
    }
    Ok(done)
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the test panicked".to_owned())
}

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "a failed test has no other voice")]
fn leave_bundle(driver: &Driver, story: &Story, failure: &str) {
    match driver.block_on(bundle::write(story, failure)) {
        Ok(path) => {
            eprintln!("what is known of the failure: {}", path.join(bundle::PAGE).display());
            if env::under_nextest() {
                // A report in JUnit's form has a test's output in it, and Jenkins, GitLab and Azure attach
                // what is named there in this way: not each of them if it is in the test's standard error.
                println!(
                    "[[ATTACHMENT|{}]]",
                    attached(&path.join(bundle::PAGE), env::path(env::CI_PROJECT_DIR).as_deref())
                        .display()
                );
            }
        }
        Err(e) => eprintln!("failed to write down what is known of the failure: {}", e.report()),
    }
}

/// GitLab wants it as from its project's directory.
fn attached<'a>(page: &'a Path, project: Option<&Path>) -> &'a Path {
    project.and_then(|project| page.strip_prefix(project).ok()).unwrap_or(page)
}

/// Past the harness's capture, so that a skipped test is seen.
fn skip<T: Outcome>(test: &str, why: &str) -> T {
    use std::io::Write;
    // Without a standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{test} skipped: {why}");
    T::skipped()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_attached_as_from_the_project() {
        let page = Path::new("/builds/me/target/fleetbox/t/index.html");
        let relative = Path::new("target/fleetbox/t/index.html");
        assert_eq!(attached(page, Some(Path::new("/builds/me"))), relative);
        assert_eq!(attached(page, Some(Path::new("/builds/m"))), page);
        assert_eq!(attached(page, None), page);
    }

    #[test]
    fn counts_and_patterns_that_cannot_be_are_refused_before_any_work() {
        let refused = |test: Test, count| {
            let error = Plan::of(test, count).err().expect("it is refused");
            assert_eq!(error.kind(), ErrorKind::InvalidSpec);
            assert!(error.hint_text().is_some());
        };
        refused(Test::new("x").vms(2), Count::One);
        refused(Test::new("x").vms(2), Count::Several(3));
        refused(Test::new("x").allow_health("("), Count::One);
        let plan = |test: Test, count| Plan::of(test, count).unwrap().start.count;
        assert_eq!(plan(Test::new("x"), Count::Any), Count::Several(CLUSTER_VMS));
        assert_eq!(plan(Test::new("x").vms(5), Count::Any), Count::Several(5));
        assert_eq!(plan(Test::new("x").vms(1), Count::One), Count::One);
    }
}
