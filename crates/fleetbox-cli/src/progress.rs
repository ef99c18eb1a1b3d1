//! Owns how long work looks: a line per stage on a terminal, plain lines otherwise. Always on
//! standard error.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fleetbox::{Progress, Stage};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Shows the progress of any number of things side by side.
#[derive(Clone)]
pub(crate) struct Display {
    bars: Option<MultiProgress>,
}

impl Display {
    pub(crate) fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars }
    }

    /// What to hand to the library for the thing called `name`.
    pub(crate) fn sink(&self, name: &str) -> impl Fn(Progress) + Send + Sync + 'static {
        let line = Arc::new(Mutex::new(Line::new(self.bars.clone(), name.to_owned())));
        move |event| line.lock().unwrap_or_else(PoisonError::into_inner).take(event)
    }

    /// What to hand to the library for things that it names itself.
    pub(crate) fn sinks(&self) -> impl Fn(&str, Progress) + Send + Sync + 'static {
        let (bars, lines) = (self.bars.clone(), Mutex::new(HashMap::new()));
        move |name, event| {
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            let line = lines.entry(name.to_owned());
            line.or_insert_with(|| Line::new(bars.clone(), name.to_owned())).take(event);
        }
    }
}

struct Line {
    bars: Option<MultiProgress>,
    name: String,
    bar: Option<ProgressBar>,
    stage: Option<(Stage, Instant)>,
    /// What is over, for the summary where lines are not redrawn.
    over: Vec<String>,
    began: Instant,
    /// The last tenth told of each transfer, where there is no terminal to redraw.
    told: HashMap<Stage, u64>,
}

impl Line {
    fn new(bars: Option<MultiProgress>, name: String) -> Self {
        Self {
            bars,
            name,
            bar: None,
            stage: None,
            over: Vec::new(),
            began: Instant::now(),
            told: HashMap::new(),
        }
    }

    fn take(&mut self, event: Progress) {
        match event {
            Progress::Begin(stage) => self.begin(stage),
            Progress::Advance { stage, done, total } => self.advance(stage, done, total),
            Progress::Note(text) => self.say(&format!("{}: {text}", self.name)),
            Progress::Step { number, total, text, cached } => {
                self.end_stage();
                let cached = if cached { " (cached)" } else { "" };
                self.say(&format!("{}: step {number}/{total}: {text}{cached}", self.name));
            }
            Progress::Output(line) => self.say(&format!("{}: | {line}", self.name)),
            Progress::Ready => {
                self.end_stage();
                let total = self.began.elapsed().as_secs_f64();
                self.say(&match &self.bars {
                    Some(_) => format!("{}: ready      {total:>6.1} s", self.name),
                    None if self.over.is_empty() => format!("{}: ready", self.name),
                    None => format!(
                        "{}: ready after {total:.1} s ({})",
                        self.name,
                        self.over.join(", ")
                    ),
                });
            }
            _ => {}
        }
    }

    fn begin(&mut self, stage: Stage) {
        if self.stage.is_some_and(|(now, _)| now == stage) {
            return;
        }
        self.end_stage();
        self.stage = Some((stage, Instant::now()));
        match &self.bars {
            Some(bars) => {
                let bar = bars.add(ProgressBar::new_spinner());
                bar.set_style(style("{spinner} {msg} {elapsed}"));
                bar.set_message(format!("{}: {stage}", self.name));
                bar.enable_steady_tick(Duration::from_millis(100));
                self.bar = Some(bar);
            }
            None => self.say(&format!("{}: {stage}", self.name)),
        }
    }

    fn end_stage(&mut self) {
        let Some((stage, began)) = self.stage.take() else { return };
        self.over.push(format!("{stage} {:.1} s", began.elapsed().as_secs_f64()));
        if let (Some(bar), Some(bars)) = (self.bar.take(), &self.bars) {
            bar.finish_and_clear();
            bars.remove(&bar);
            self.say(&format!(
                "{}: {stage:<10} {:>6.1} s",
                self.name,
                began.elapsed().as_secs_f64()
            ));
        }
    }

    fn advance(&mut self, stage: Stage, done: u64, total: Option<u64>) {
        if self.stage.is_none_or(|(now, _)| now != stage) {
            self.begin(stage);
        }
        match (&self.bar, total) {
            (Some(bar), Some(total)) => {
                bar.set_style(style("{spinner} {msg} {bytes}/{total_bytes} {bytes_per_sec} {eta}"));
                bar.set_length(total);
                bar.set_position(done);
            }
            (Some(bar), None) => {
                bar.set_style(style("{spinner} {msg} {bytes} {bytes_per_sec}"));
                bar.set_position(done);
            }
            (None, total) => self.tell_tenths(stage, done, total),
        }
    }

    /// A line for each tenth, or for each 256 MiB of a transfer of unknown length.
    fn tell_tenths(&mut self, stage: Stage, done: u64, total: Option<u64>) {
        let step = match total {
            Some(total) if total > 0 => done.saturating_mul(10) / total,
            _ => done >> 28,
        };
        if self.told.insert(stage, step) == Some(step) || step == 0 {
            return;
        }
        let mib = done >> 20;
        match total {
            Some(total) => {
                self.say(&format!("{}: {stage} {mib} of {} MiB", self.name, total >> 20));
            }
            None => self.say(&format!("{}: {stage} {mib} MiB", self.name)),
        }
    }

    fn say(&self, text: &str) {
        let text = fleetbox::harmless(text.as_bytes());
        let shown = match &self.bars {
            Some(bars) => bars.println(&text),
            None => writeln!(std::io::stderr(), "{text}"),
        };
        // Nobody reads standard error any more: the work itself goes on.
        drop(shown);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
