//! Owns what a failed test leaves: a directory with everything known of the failure, and a page that shows
//! it. It must not decide what is a failure; `testing` does.
//!
//! ```text
//! Story ──gather──► Evidence of each member ──┬─► files
//!                                             ├─► REPRODUCE.md
//!                                             └─► index.html
//! ```

mod event;
mod gather;
mod page;
mod place;
mod reproduce;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;

use self::event::Event;
use self::gather::Evidence;
use crate::console::harmless;
use crate::error::{Error, Result};
use crate::health::{Ailment, Finding};
use crate::ssh::Transcript;
use crate::vm::Vm;

/// The page that shows the rest.
pub(crate) const PAGE: &str = "index.html";

/// What happened in a test.
pub(crate) struct Story {
    test: String,
    began: SystemTime,
    pub transcript: Transcript,
    pub members: Vec<Vm>,
    pub findings: Vec<Finding>,
    boot: Option<Error>,
}

impl Story {
    pub(crate) fn new(test: &str) -> Self {
        Self {
            test: test.to_owned(),
            began: SystemTime::now(),
            transcript: Transcript::default(),
            members: Vec::new(),
            findings: Vec::new(),
            boot: None,
        }
    }

    /// The machines did not come up.
    pub(crate) fn boot_failed(&mut self, error: Error) {
        self.boot = Some(error);
    }
}

/// Asks the members for what they know, side by side, and writes it all down. The directory appears whole or
/// not at all. A member that does not answer is told as such: the rest is worth having.
pub(crate) async fn write(story: &Story, failure: &str) -> Result<PathBuf> {
    let place = place::Place::of(&story.test)?;
    let panics = story.findings.iter().filter(|finding| finding.ailment == Ailment::Panic);
    let dead: Vec<&str> = panics.map(|finding| finding.vm.as_str()).collect();
    let mut evidence = gather::all(&story.members, &dead).await;
    evidence.extend(story.boot.as_ref().and_then(Evidence::of_failed_boot));
    let events = event::all(story, &evidence);
    let dir = place.begin()?;
    for member in &evidence {
        let sub = dir.path().join(&member.vm);
        std::fs::create_dir(&sub).map_err(|e| Error::io("make", &sub, e))?;
        for (name, content) in &member.files {
            put(&sub.join(name), content)?;
        }
    }
    for (number, path) in story.transcript.captures().iter().enumerate() {
        copy_capture(path, &dir.path().join(format!("capture-{}.pcap", number + 1)))?;
    }
    put(&dir.path().join("failure.txt"), harmless(failure.as_bytes()).as_bytes())?;
    put(&dir.path().join("timeline.jsonl"), &lines(&events))?;
    put(&dir.path().join("REPRODUCE.md"), reproduce::text(story, failure, &evidence).as_bytes())?;
    let page = page::page(&page::Told { story, failure, evidence: &evidence, events: &events });
    put(&dir.path().join(PAGE), page.as_bytes())?;
    place.finish(dir)
}

/// One JSON object a line.
fn lines(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events {
        let line = json!({
            "at": humantime::format_rfc3339_micros(event.at).to_string(),
            "vm": event.vm,
            "what": event.kind.as_str(),
            "text": event.text,
            "took_us": event.took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            "end": event.end,
            "stdout": event.stdout,
            "stderr": event.stderr,
        });
        bytes.extend_from_slice(line.to_string().as_bytes());
        bytes.push(b'\n');
    }
    bytes
}

/// One that a test has discarded is not there any more.
fn copy_capture(from: &Path, to: &Path) -> Result<()> {
    match std::fs::copy(from, to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("copy", from, e)),
        _ => Ok(()),
    }
}

fn put(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(|e| Error::io("write", path, e))
}
