//! `fault timeline`: what was done to a cluster. It must not ask the cluster's holder.

use std::time::{Duration, SystemTime};

use fleetbox::{TimelineEntry, TimelineEvent};
use serde::Serialize;

use crate::args::{Format, Output};
use crate::commands::{net, printed};
use crate::{Outcome, render};

/// A row of `fault timeline -o json`. What an event does not have is left out.
#[derive(Debug, Default, Serialize)]
struct Row {
    /// RFC 3339 in UTC.
    at: String,
    since_start_us: u64,
    holder_started: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<String>,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lasted_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grace_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balloon_mib: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// In a line.
    summary: String,
}

impl Row {
    fn new(entry: TimelineEntry) -> Self {
        let row = Self {
            at: wall(entry.at),
            since_start_us: us(entry.since_start),
            holder_started: wall(entry.holder_started),
            vm: entry.vm,
            event: entry.event.word(),
            summary: entry.event.to_string(),
            ..Self::default()
        };
        match entry.event {
            TimelineEvent::HolderStarted { version, .. } => Self { version: Some(version), ..row },
            TimelineEvent::End { why, .. } => Self { why: Some(why), ..row },
            TimelineEvent::StopAsked { grace, .. } => {
                let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                Self { grace_ms: Some(grace_ms), ..row }
            }
            TimelineEvent::Balloon { mib, .. } => Self { balloon_mib: Some(mib), ..row },
            TimelineEvent::ClockJump { by_ms, .. } => Self { by_ms: Some(by_ms), ..row },
            TimelineEvent::Fault { id, what, .. } => {
                Self { fault_id: Some(id), fault: Some(what), ..row }
            }
            TimelineEvent::Heal { id, what, lasted, .. } => {
                let lasted_us = Some(us(lasted));
                Self { fault_id: Some(id), fault: Some(what), lasted_us, ..row }
            }
            _ => row,
        }
    }
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn wall(at: SystemTime) -> String {
    humantime::format_rfc3339_micros(at).to_string()
}

pub(super) async fn run(name: &str, output: &Output) -> Outcome {
    let rows = net::clusters(name).await?.timeline()?.into_iter().map(Row::new);
    printed(match output.output {
        Format::Json => render::json(&rows.collect::<Vec<_>>()),
        Format::Text => render::rows(
            &["TIME", "SINCE START", "VM", "EVENT"],
            rows.map(|row| {
                let since = Duration::from_micros(row.since_start_us).as_secs_f64();
                let vm = row.vm.unwrap_or_else(|| "-".to_owned());
                // A monitor's last words may hold anything.
                let event = fleetbox::harmless(row.summary.as_bytes());
                vec![row.at, format!("{since:.6} s"), vm, event]
            }),
        ),
    })
}
