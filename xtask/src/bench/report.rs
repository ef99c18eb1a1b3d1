//! Owns what a measured figure says: its row, the bound it is held to, the table for people and the
//! JSON for programs. It must not measure.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// One measured figure.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub name: String,
    /// In `unit`, a median.
    pub ours: f64,
    /// In `unit`, a median; of the peer that `note` names.
    pub peer: Option<f64>,
    /// As `bound` defines it.
    pub ratio: Option<f64>,
    pub bound: String,
    pub unit: &'static str,
    pub holds: bool,
    pub runs: usize,
    pub note: String,
}

/// What a figure is held to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    /// Ours, in the row's unit.
    AtMost(f64),
    /// The peer's over ours: how many times as fast we are.
    TimesAsFast(f64),
    /// Ours over the peer's: how many times as long we take.
    TimesAsLong(f64),
    /// Ours over the peer's, where more is better.
    ShareOf(f64),
    /// Ours, in the row's unit: what was asked for, and by how much it may be missed.
    Asked(f64, f64),
}

impl Row {
    /// Judges a pair of medians. A bound on a ratio needs the peer's.
    pub(super) fn new(
        name: &str,
        (ours, peer): (f64, Option<f64>),
        unit: &'static str,
        bound: Bound,
        runs: usize,
        note: impl Into<String>,
    ) -> Self {
        let (text, ratio, holds) = match bound {
            Bound::AtMost(most) => {
                (format!("ours ≤ {most} {unit}"), peer.map(|peer| peer / ours), ours <= most)
            }
            Bound::TimesAsFast(least) => {
                let ratio = peer.map(|peer| peer / ours);
                (format!("peer/ours ≥ {least}"), ratio, ratio.is_some_and(|r| r >= least))
            }
            Bound::TimesAsLong(most) => {
                let ratio = peer.map(|peer| ours / peer);
                (format!("ours/peer ≤ {most}"), ratio, ratio.is_some_and(|r| r <= most))
            }
            Bound::ShareOf(least) => {
                let ratio = peer.map(|peer| ours / peer);
                (format!("ours/peer ≥ {least}"), ratio, ratio.is_some_and(|r| r >= least))
            }
            Bound::Asked(asked, margin) => {
                let holds = (ours - asked).abs() <= margin;
                (format!("{asked} ± {margin} {unit}"), None, holds)
            }
        };
        Self {
            name: name.to_owned(),
            ours,
            peer,
            ratio,
            bound: text,
            unit,
            holds,
            runs,
            note: note.into(),
        }
    }
}

/// What is being done now: measuring takes minutes.
#[expect(clippy::print_stderr, reason = "progress is for whoever waits, the table is the result")]
pub(super) fn progress(text: &str) {
    eprintln!("{text}");
}

/// A row as soon as it is known.
pub(super) fn announce(row: &Row) {
    let peer = row.peer.map_or(String::new(), |peer| format!(", peer {}", shown(peer)));
    progress(&format!("  {}: ours {}{peer} {}", row.name, shown(row.ours), row.unit));
}

pub(super) fn write_json(path: &Path, rows: &[Row]) -> Outcome<()> {
    let json = serde_json::to_vec_pretty(rows)
        .map_err(|e| Failure::new(format!("failed to write the figures as JSON: {e}")))?;
    std::fs::write(path, json).map_err(Failure::io("write", path))
}

/// The table, the notes and the failures on standard output.
pub(super) fn print(rows: &[Row], failures: &[String]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}\n\n{}", machine(), table(rows))?;
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        writeln!(out, "{}: {}", row.name, row.note)?;
    }
    for failure in failures {
        writeln!(out, "error: {failure}")?;
    }
    Ok(())
}

/// What the figures depend on.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    format!("{cores} cores, load average at the end {}", load.join(" "))
}

fn table(rows: &[Row]) -> String {
    let head = ["figure", "ours", "peer", "unit", "ratio", "bound", "holds", "runs"];
    let mut cells = vec![head.map(str::to_owned)];
    let number = |value: Option<f64>| value.map_or("–".to_owned(), shown);
    cells.extend(rows.iter().map(|row| {
        [
            row.name.clone(),
            shown(row.ours),
            number(row.peer),
            row.unit.to_owned(),
            number(row.ratio),
            row.bound.clone(),
            if row.holds { "yes" } else { "NO" }.to_owned(),
            row.runs.to_string(),
        ]
    }));
    let mut widths = [0; 8];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in cells {
        let padded = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Three digits that matter.
fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(pair: (f64, Option<f64>), bound: Bound) -> bool {
        Row::new("x", pair, "ms", bound, 5, "").holds
    }

    #[test]
    fn bounds_judge_and_a_missing_peer_never_holds() {
        assert!(holds((15.0, None), Bound::AtMost(15.0)));
        assert!(!holds((15.1, None), Bound::AtMost(15.0)));
        assert!(holds((10.0, Some(200.0)), Bound::TimesAsFast(20.0)));
        assert!(!holds((10.0, Some(199.0)), Bound::TimesAsFast(20.0)));
        assert!(holds((105.0, Some(100.0)), Bound::TimesAsLong(1.05)));
        assert!(!holds((106.0, Some(100.0)), Bound::TimesAsLong(1.05)));
        assert!(!holds((1.0, None), Bound::TimesAsFast(1.0)));
        assert!(holds((90.0, Some(100.0)), Bound::ShareOf(0.9)));
        assert!(!holds((89.0, Some(100.0)), Bound::ShareOf(0.9)));
        assert!(!holds((89.0, None), Bound::ShareOf(0.9)));
        assert!(holds((8.6, None), Bound::Asked(10.0, 1.5)));
        assert!(!holds((8.4, None), Bound::Asked(10.0, 1.5)));
        assert!(!holds((f64::NAN, None), Bound::Asked(10.0, 1.5)));
    }

    #[test]
    fn the_table_lines_up() {
        let rows = [
            Row::new("ls", (4.256, None), "ms", Bound::AtMost(15.0), 5, ""),
            Row::new("a-long-name", (80.0, Some(1234.5)), "ms", Bound::TimesAsFast(20.0), 5, ""),
        ];
        let text = table(&rows);
        let column: Vec<usize> = text
            .lines()
            .map(|line| {
                let at = line.find("ms").or_else(|| line.find("unit")).unwrap();
                line[..at].chars().count()
            })
            .collect();
        assert!(column.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert!(text.contains("NO") && text.contains("4.26") && text.contains("1234"), "{text}");
    }
}
