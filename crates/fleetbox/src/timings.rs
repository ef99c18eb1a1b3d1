//! Owns how long each stage of a start took. It must not decide when a stage begins.

use std::time::{Duration, Instant};

use crate::progress::Stage;

/// How long each stage of a start took, in the order they came. A VM that ran already has no
/// stages but the last.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// let vm = fleetbox::Vm::start("web").await?;
/// for (stage, took) in vm.timings().stages() {
///     println!("{stage:<12} {:>8.2} s", took.as_secs_f64());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Timings {
    began: Instant,
    marks: Vec<(Stage, Instant)>,
    end: Option<Instant>,
}

impl Timings {
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self { began: now, marks: vec![(Stage::Download, now)], end: None }
    }

    pub(crate) fn enter(&mut self, stage: Stage) {
        self.marks.push((stage, Instant::now()));
    }

    pub(crate) fn finish(&mut self) {
        self.end = Some(Instant::now());
    }

    /// Each stage with the time until the next one began.
    #[must_use]
    pub fn stages(&self) -> Vec<(Stage, Duration)> {
        let end = self.end.unwrap_or_else(Instant::now);
        let nexts = self.marks.iter().skip(1).map(|(_, at)| *at).chain([end]);
        self.marks.iter().zip(nexts).map(|((stage, at), next)| (*stage, next - *at)).collect()
    }

    /// From the call of `start` to the guest's first answer.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.end.unwrap_or_else(Instant::now) - self.began
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up_to_the_total() {
        let mut timings = Timings::start();
        timings.enter(Stage::Prepare);
        timings.enter(Stage::Kernel);
        timings.finish();
        let sum: Duration = timings.stages().iter().map(|(_, took)| *took).sum();
        assert_eq!(sum, timings.total());
        assert_eq!(timings.stages().len(), 3);
    }
}
