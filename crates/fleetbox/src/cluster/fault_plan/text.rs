//! Owns a plan's text: writing it, and reading it with a word on what is wrong where. What is written is
//! read to an equal plan.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{FaultPlan, PlanKind, PlanStep, PlannedFault};
use crate::cluster::link::Impairment;
use crate::error::{Error, ErrorKind, Result};

const TITLE: &str = "# fleetbox fault plan";

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TITLE)?;
        if let Some(seed) = self.seed {
            write!(f, ", seed {seed}")?;
        }
        writeln!(f)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// A line of a plan's text.
impl fmt::Display for PlanStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} +{} {}", Seconds(self.at), Seconds(self.length), self.fault)
    }
}

/// In the words of `fleetbox net` and `fleetbox fault`.
impl fmt::Display for PlannedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().as_str())?;
        match self {
            Self::Cut { from, to } => write!(f, " {from} {to}"),
            Self::Partition { groups } => {
                let groups: Vec<String> = groups.iter().map(|group| group.join(",")).collect();
                write!(f, " {}", groups.join(" / "))
            }
            Self::Isolate { vm } | Self::PowerCut { vm } | Self::Pause { vm } => write!(f, " {vm}"),
            Self::Link { vm, peer, impairment, seed } => {
                write!(f, " {vm}")?;
                if let Some(peer) = peer {
                    write!(f, " {peer}")?;
                }
                write!(f, " {impairment}")?;
                seed.map_or(Ok(()), |seed| write!(f, " --seed {seed}"))
            }
            Self::ClockJump { vm, by_ms } => {
                let by = humantime::format_duration(Duration::from_millis(by_ms.unsigned_abs()));
                let sign = if *by_ms < 0 { "-" } else { "" };
                write!(f, " {vm} --by={sign}{}", by.to_string().replace(' ', ""))
            }
        }
    }
}

/// With as many digits as it has, three at least.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ns) = (self.0.as_secs(), self.0.subsec_nanos());
        if ns.is_multiple_of(1_000_000) {
            write!(f, "{seconds}.{:03}s", ns / 1_000_000)
        } else {
            write!(f, "{seconds}.{ns:09}s")
        }
    }
}

impl fmt::Display for PlanKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error, of [`ErrorKind::InvalidSpec`], lists the words there are.
impl FromStr for PlanKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let words: Vec<&str> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
            let message = format!("plan a \"{}\": it is no kind of fault", text.escape_debug());
            Error::new(ErrorKind::InvalidSpec, message).hint(format!("use {}", words.join(", ")))
        })
    }
}

/// The error, of [`ErrorKind::InvalidSpec`], names the line.
impl FromStr for FaultPlan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut steps = Vec::new();
        let mut seed = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if let Some(title) = line.strip_prefix(TITLE) {
                let told = title.strip_prefix(", seed ").and_then(|seed| seed.parse().ok());
                seed = seed.or(told);
            } else if !line.is_empty() && !line.starts_with('#') {
                steps.push(line.parse::<PlanStep>().map_err(|e| at_line(number, &e))?);
            }
        }
        Ok(Self { seed, ..Self::of(steps)? })
    }
}

/// A line of a plan's text.
impl FromStr for PlanStep {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let at = words.next().map(time).transpose()?;
        let length = words.next().map(length).transpose()?;
        let kind = words.next().map(str::parse).transpose()?;
        let (Some(at), Some(length), Some(kind)) = (at, length, kind) else {
            return Err(bad(format!("\"{}\" is not whole", line.escape_debug())));
        };
        let fault = fault(kind, &words.collect::<Vec<_>>())?;
        let step = Self { at, length, fault };
        super::check(&step)?;
        Ok(step)
    }
}

fn at_line(number: usize, error: &Error) -> Error {
    let message = format!("read line {number} of the fault plan: {}", error.message());
    let hint = error.hint_text().unwrap_or("write as `1.200s +3.400s isolate node-2`");
    Error::new(error.kind(), message).hint(hint)
}

fn bad(what: String) -> Error {
    Error::new(ErrorKind::InvalidSpec, what).hint(
        "write as `1.200s +3.400s isolate node-2`: when it begins, how long it lasts, what it is",
    )
}

fn fault(kind: PlanKind, words: &[&str]) -> Result<PlannedFault> {
    let name = |name: &str| name.to_owned();
    let wrong = || Err(bad(format!("\"{}\" is no {kind}", words.join(" ").escape_debug())));
    Ok(match (kind, words) {
        (PlanKind::Cut, [from, to]) => PlannedFault::Cut { from: name(from), to: name(to) },
        (PlanKind::Isolate, [vm]) => PlannedFault::Isolate { vm: name(vm) },
        (PlanKind::PowerCut, [vm]) => PlannedFault::PowerCut { vm: name(vm) },
        (PlanKind::Pause, [vm]) => PlannedFault::Pause { vm: name(vm) },
        (PlanKind::Partition, words) => {
            let line = words.join(" ");
            let members = |group: &str| {
                group.split([',', ' ']).filter(|vm| !vm.is_empty()).map(name).collect()
            };
            PlannedFault::Partition { groups: line.split('/').map(members).collect() }
        }
        (PlanKind::ClockJump, [vm, by @ ..]) => match options(by)?[..] {
            [("--by", by)] => PlannedFault::ClockJump { vm: name(vm), by_ms: jump(by)? },
            _ => return wrong(),
        },
        (PlanKind::Link, [vm, rest @ ..]) => {
            let (peer, rest) = match rest {
                [peer, rest @ ..] if !peer.starts_with("--") => (Some(name(peer)), rest),
                rest => (None, rest),
            };
            let (impairment, seed) = link(&options(rest)?)?;
            PlannedFault::Link { vm: name(vm), peer, impairment, seed }
        }
        _ => return wrong(),
    })
}

/// `--name value` and `--name=value`.
fn options<'a>(words: &[&'a str]) -> Result<Vec<(&'a str, &'a str)>> {
    let mut options = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let option = match word.split_once('=') {
            Some(option) => option,
            None => (*word, words.next().copied().unwrap_or_default()),
        };
        if !word.starts_with("--") || options.iter().any(|(known, _)| *known == option.0) {
            return Err(bad(format!("\"{}\" is out of place", word.escape_debug())));
        }
        options.push(option);
    }
    Ok(options)
}

fn link(options: &[(&str, &str)]) -> Result<(Impairment, Option<u64>)> {
    let mut impairment = Impairment::default();
    let mut seed = None;
    for (option, value) in options {
        match *option {
            "--latency" => impairment.latency = time(value)?,
            "--jitter" => impairment.jitter = time(value)?,
            "--loss" => impairment.loss = share(value)?,
            "--duplicate" => impairment.duplicate = share(value)?,
            "--reorder" => impairment.reorder = share(value)?,
            "--bandwidth" => impairment.bandwidth_kbit_per_s = Some(kbit_per_s(value)?),
            "--seed" => {
                let number = || bad(format!("\"{}\" is no seed", value.escape_debug()));
                seed = Some(value.parse().map_err(|_| number())?);
            }
            other => return Err(bad(format!("a link has no \"{}\"", other.escape_debug()))),
        }
    }
    Ok((impairment, seed))
}

/// `1.2s`, or as `1m30s`.
fn time(text: &str) -> Result<Duration> {
    let refused = || bad(format!("\"{}\" is no time as 1.2s or 300ms", text.escape_debug()));
    let seconds = text.strip_suffix('s').filter(|number| {
        number.starts_with(|c: char| c.is_ascii_digit())
            && number.chars().all(|c| c.is_ascii_digit() || c == '.')
    });
    let Some(seconds) = seconds else {
        return humantime::parse_duration(text).map_err(|_| refused());
    };
    let (whole, part) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let ns = (part.len() <= 9 && !part.contains('.')).then(|| format!("{part:0<9}").parse().ok());
    match (whole.parse(), ns.flatten()) {
        (Ok(whole), Some(ns)) => Ok(Duration::new(whole, ns)),
        _ => Err(refused()),
    }
}

fn length(text: &str) -> Result<Duration> {
    let told = text.strip_prefix('+');
    time(told.ok_or_else(|| bad(format!("\"{}\" has no +", text.escape_debug())))?)
}

/// `-1h`, in milliseconds.
fn jump(text: &str) -> Result<i64> {
    let (sign, length) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let far = || bad(format!("\"{}\" is too far", text.escape_debug()));
    Ok(sign * i64::try_from(time(length)?.as_millis()).map_err(|_| far())?)
}

/// `10%` or `0.1`.
fn share(text: &str) -> Result<f64> {
    let (number, whole) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let share = number.parse().map(|number: f64| number / whole);
    share.map_err(|_| bad(format!("\"{}\" is no share as 10% or 0.1", text.escape_debug())))
}

/// `512kbit`, `10mbit`, `1gbit`.
fn kbit_per_s(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "kbit" => Some(1),
        "mbit" => Some(1000),
        "gbit" => Some(1_000_000),
        _ => None,
    };
    let kbit = digits.parse().ok().zip(factor).and_then(|(n, f): (u64, u64)| n.checked_mul(f));
    kbit.ok_or_else(|| {
        bad(format!("\"{}\" is no bandwidth as 512kbit or 10mbit", text.escape_debug()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> String {
        text.parse::<FaultPlan>().unwrap_or_else(|e| panic!("{}", e.report())).to_string()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = "# fleetbox fault plan, seed 18446744073709551615\n\
                    0.000s +0.000000001s cut a b\n\
                    1.200s +3.400s partition a,b / c / d\n\
                    1.200s +1.000s isolate a\n\
                    2.000s +90.000s link a b --latency 1s500ms --jitter 1ms --loss 10% \
                    --duplicate 0.123456789012 --reorder 3% --bandwidth 1500kbit --seed 7\n\
                    2.000s +90.000s link a --bandwidth 2gbit\n\
                    3.000s +1.000s power-cut a\n\
                    3.000s +1.000s pause b\n\
                    3.000s +1.000s clock c --by=-1h30m\n\
                    4.000s +1.000s clock c --by=1s5ms\n";
        assert_eq!(written(text), text);
        assert_eq!(text.parse::<FaultPlan>().unwrap().seed(), Some(u64::MAX));
    }

    #[test]
    fn hands_write_in_other_ways() {
        let text = "\n # my own\n  5m +1h30m clock a --by +90s\n 1s +250ms link a --loss=0.5\n\
                    2.5s  +1s partition a, b/c\n";
        assert_eq!(
            written(text),
            "# fleetbox fault plan\n\
             1.000s +0.250s link a --loss 50%\n\
             2.500s +1.000s partition a,b / c\n\
             300.000s +5400.000s clock a --by=1m30s\n"
        );
        assert_eq!(written(""), "# fleetbox fault plan\n");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (line, said) in [
            ("1s", "not whole"),
            ("1s 2s isolate a", "has no +"),
            ("1 +2s isolate a", "no time"),
            ("-1s +2s isolate a", "no time"),
            ("1.s.2s +2s isolate a", "no time"),
            ("99999999999999999999s +2s isolate a", "no time"),
            ("1s +0s isolate a", "no time"),
            ("1s +200h isolate a", "a week"),
            ("1s +2s explode a", "no kind of fault"),
            ("1s +2s isolate a b", "no isolate"),
            ("1s +2s isolate", "no isolate"),
            ("1s +2s cut a a", "named twice"),
            ("1s +2s partition a,b", "two groups"),
            ("1s +2s partition a / b,a", "named twice"),
            ("1s +2s link a", "nothing is to be done"),
            ("1s +2s link a --loss 110%", "a loss of 1.1"),
            ("1s +2s link a --loss nan", "a loss of NaN"),
            ("1s +2s link a --latency 2h", "a latency of 2h"),
            ("1s +2s link a --fire 2h", "has no \"--fire\""),
            ("1s +2s link a --loss 1% --loss 2%", "out of place"),
            ("1s +2s link a --bandwidth 5", "no bandwidth"),
            ("1s +2s link a --loss 1% --seed x", "no seed"),
            ("1s +2s clock a", "no clock"),
            ("1s +2s clock a --by 0s", "a jump by 0 ms"),
            ("1s +2s clock a --by 200years", "a jump by"),
            ("1s +2s isolate ../a", "../a"),
        ] {
            let error = format!("# x\n\n{line}").parse::<FaultPlan>().unwrap_err();
            assert!(error.message().contains("line 3"), "{line}: {}", error.report());
            assert!(error.message().contains(said), "{line}: {}", error.report());
            assert!(error.hint_text().is_some(), "{line}: {}", error.report());
        }
    }

    #[test]
    fn steps_that_do_not_get_along_are_refused() {
        for (text, said) in [
            ("1s +5s power-cut a\n3s +1s pause a", "still suffers"),
            ("1s +5s pause a\n3s +1s clock a --by 1s", "still suffers"),
            ("1s +5s clock a --by 1s\n3s +1s power-cut a", "still suffers"),
            ("3s +1s isolate a\n1s +5s power-cut a", "still suffers `1.000s +5.000s power-cut a`"),
            ("1s +5s power-cut a\n3s +1s cut b a", "still suffers"),
        ] {
            let error = text.parse::<FaultPlan>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec);
            assert!(error.message().contains(said), "{}", error.report());
        }
        for text in [
            "1s +5s power-cut a\n6s +1s pause a",
            "1s +5s isolate a\n3s +1s power-cut a",
            "1s +5s pause a\n3s +1s isolate a",
            "1s +5s power-cut a\n3s +1s power-cut b",
        ] {
            assert!(text.parse::<FaultPlan>().is_ok(), "{text}");
        }
    }
}
