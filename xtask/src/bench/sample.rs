//! Owns the way figures are sampled: interleaved, so that whatever else the machine does hits both
//! sides alike, and summed up by the median.

use std::time::Duration;

use crate::failure::Outcome;

/// Milliseconds of one run.
pub(super) fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

pub(super) fn seconds(took: Duration) -> f64 {
    took.as_secs_f64()
}

/// The middle one; of an even number the mean of the two.
pub(super) fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples {
        [] => f64::NAN,
        _ if samples.len() % 2 == 1 => samples[middle],
        _ => f64::midpoint(samples[middle - 1], samples[middle]),
    }
}

/// Runs A B A B …, `runs` times each. Each is told the number of the run.
pub(super) fn side_by_side(
    runs: usize,
    mut ours: impl FnMut(usize) -> Outcome<f64>,
    mut peer: impl FnMut(usize) -> Outcome<f64>,
) -> Outcome<(f64, f64)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for run in 0..runs {
        a.push(ours(run)?);
        b.push(peer(run)?);
    }
    Ok((median(&mut a), median(&mut b)))
}

/// Several at once, each run beginning with another one: none always pays for what the same one
/// before it left behind. Each is told the number of the run.
pub(super) fn in_turns<const N: usize>(
    runs: usize,
    sides: [&dyn Fn(usize) -> Outcome<f64>; N],
) -> Outcome<[f64; N]> {
    let mut samples: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    for run in 0..runs {
        for turn in 0..N {
            let side = (run + turn) % N;
            samples[side].push(sides[side](run)?);
        }
    }
    Ok(samples.map(|mut side| median(&mut side)))
}

/// One side alone.
pub(super) fn alone(runs: usize, mut ours: impl FnMut(usize) -> Outcome<f64>) -> Outcome<f64> {
    let mut samples = (0..runs).map(&mut ours).collect::<Outcome<Vec<f64>>>()?;
    Ok(median(&mut samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_order_and_outliers() {
        assert!((median(&mut [9.0, 1.0, 1000.0]) - 9.0).abs() < 1e-9);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn sides_take_turns() {
        let order = std::cell::RefCell::new(String::new());
        let side = |name: char| {
            let order = &order;
            move |_| {
                order.borrow_mut().push(name);
                Ok(1.0)
            }
        };
        side_by_side(3, side('a'), side('b')).unwrap();
        assert_eq!(order.take(), "ababab");
        in_turns(3, [&side('a'), &side('b'), &side('c')]).unwrap();
        assert_eq!(order.take(), "abcbcacab");
    }
}
