//! Owns the events of a failed test in the order in which they came: commands, what was done to machines
//! and network, findings. It must not ask anybody.

use std::time::{Duration, SystemTime};

use super::Story;
use super::gather::Evidence;
use crate::cluster::Cluster;
use crate::console::harmless;
use crate::ssh::End;
use crate::timeline::TimelineEvent;
use crate::vm::Vm;

/// What kind an event is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Command,
    Machine,
    Fault,
    Heal,
    Finding,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Machine => "machine",
            Self::Fault => "fault",
            Self::Heal => "heal",
            Self::Finding => "finding",
        }
    }
}

/// Something that happened. All text is harmless.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub at: SystemTime,
    /// The member, if it was one's alone.
    pub vm: Option<String>,
    pub kind: Kind,
    pub text: String,
    pub took: Option<Duration>,
    /// How a command ended.
    pub end: Option<String>,
    pub failed: bool,
    pub stdout: String,
    pub stderr: String,
}

/// All of them, the oldest first.
pub(super) fn all(story: &Story, evidence: &[Evidence]) -> Vec<Event> {
    let mut events: Vec<Event> = story.transcript.commands().into_iter().map(command).collect();
    events.extend(done(story));
    events.sort_by_key(|event| event.at);
    // Findings have the guest's times at best, so they come where the test ended.
    let now = SystemTime::now();
    events.extend(story.findings.iter().map(|finding| Event {
        text: format!("{}: {}", finding.ailment, finding.line),
        failed: true,
        ..Event::new(now, Some(finding.vm.clone()), Kind::Finding)
    }));
    events.extend(evidence.iter().filter_map(|member| {
        let cause = member.boot.as_ref()?.cause?;
        let text = format!("the boot failed: {cause}");
        Some(Event {
            text,
            failed: true,
            ..Event::new(now, Some(member.vm.clone()), Kind::Finding)
        })
    }));
    events
}

impl Event {
    fn new(at: SystemTime, vm: Option<String>, kind: Kind) -> Self {
        Self {
            at,
            vm,
            kind,
            text: String::new(),
            took: None,
            end: None,
            failed: false,
            stdout: String::new(),
            stderr: String::new(),
        }
    }
}

fn command(spoken: crate::ssh::Spoken) -> Event {
    let (end, failed) = match &spoken.end {
        End::None => ("it runs".to_owned(), false),
        End::Done => ("done".to_owned(), false),
        End::Status(status) => (status.to_string(), !status.success()),
        End::Error(error) => (error.clone(), true),
    };
    Event {
        text: harmless(spoken.label.as_bytes()),
        took: spoken.took,
        end: Some(end),
        failed,
        stdout: harmless(&spoken.stdout),
        stderr: harmless(&spoken.stderr),
        ..Event::new(spoken.began, Some(spoken.vm), Kind::Command)
    }
}

/// What the clusters' timelines tell since the test began.
fn done(story: &Story) -> Vec<Event> {
    let mut clusters: Vec<&str> = story.members.iter().map(Vm::cluster_name).collect();
    clusters.dedup();
    let mut events = Vec::new();
    for name in clusters {
        let entries = match Cluster::find(name).and_then(|cluster| cluster.timeline()) {
            Ok(entries) => entries,
            Err(e) => {
                log::debug!("no timeline of {name}: {}", e.report());
                continue;
            }
        };
        for entry in entries.into_iter().filter(|entry| entry.at >= story.began) {
            let kind = match &entry.event {
                TimelineEvent::Fault { .. } => Kind::Fault,
                TimelineEvent::Heal { .. } => Kind::Heal,
                _ => Kind::Machine,
            };
            let text = harmless(entry.event.to_string().as_bytes());
            events.push(Event { text, ..Event::new(entry.at, entry.vm, kind) });
        }
    }
    events
}
