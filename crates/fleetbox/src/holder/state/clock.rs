//! Owns the arithmetic of setting a guest's clock by questions that take their time: what it is to be told,
//! and how far off it may be afterwards. Pure.

use std::time::Duration;

/// How far a guest's clock may be from the host's.
const OFF_MAX: Duration = Duration::from_millis(25);

/// One clock that is being set. All times are the host's or the guest's since 1970.
#[derive(Debug, Default)]
pub(super) struct Setting {
    /// How long a question is under way, as far as is known.
    way: Duration,
}

impl Setting {
    /// What to set it to, told now.
    pub(super) fn told(&self, now: Duration) -> Duration {
        now + self.way
    }

    /// It was told at `sent`, read `there` after it was set, and its answer came at `came`. Whether it is
    /// right whenever between the two it was read.
    pub(super) fn is_right(&mut self, sent: Duration, there: Duration, came: Duration) -> bool {
        // On a busy host a question may take longer than the clock may be off, and the next as long.
        self.way = came.saturating_sub(sent) / 2;
        there.abs_diff(sent).max(there.abs_diff(came)) <= OFF_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Sets a clock with questions that take so long there and back; returns after how many it is right,
    /// and how far off it then is.
    fn set(ways: &[(u64, u64)]) -> Option<(usize, Duration)> {
        let (mut setting, mut now) = (Setting::default(), ms(1_000_000));
        for (count, (there, back)) in ways.iter().enumerate() {
            let (sent, told) = (now, setting.told(now));
            now += ms(there + back);
            if setting.is_right(sent, told, now) {
                return Some((count + 1, told.abs_diff(sent + ms(*there))));
            }
        }
        None
    }

    #[test]
    fn a_quick_answer_is_enough() {
        assert_eq!(set(&[(1, 2)]), Some((1, ms(1))));
        assert_eq!(set(&[(25, 0)]), Some((1, ms(25))));
    }

    #[test]
    fn on_a_busy_host_the_time_a_question_takes_is_allowed_for() {
        assert_eq!(set(&[(20, 20), (20, 20)]), Some((2, ms(0))));
        assert_eq!(set(&[(35, 10), (35, 10)]), Some((2, ms(12) + ms(1) / 2)));
        assert_eq!(set(&[(300, 20), (3, 3), (3, 3)]), Some((3, ms(0))), "one was late");
    }

    #[test]
    fn nothing_is_taken_for_right_that_may_be_wrong() {
        assert_eq!(set(&[(30, 30); 8]), None);
        let mut setting = Setting::default();
        assert!(!setting.is_right(ms(100), ms(100), ms(126)), "it may have stood for long");
        assert!(!setting.is_right(ms(100), ms(130), ms(104)));
        assert!(!setting.is_right(ms(100), ms(0), ms(104)));
    }
}
