//! From many noisy numbers to one and how far it can be trusted.

use serde::Serialize;

/// The middle of many measurements, and the middle half of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The first quartile.
    pub low: f64,
    /// The third quartile.
    pub high: f64,
}

impl Spread {
    /// Takes measurements; of none, everything is NaN.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { median: quantile(&sorted, 0.5), low: quantile(&sorted, 0.25), high: quantile(&sorted, 0.75) }
    }

    /// A single measurement.
    pub const fn exactly(n: f64) -> Self {
        Self { median: n, low: n, high: n }
    }
}

/// Between two neighbours it is a straight line.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q * as_f64(last);
    let low = at.floor();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and `last`")]
    let index = low as usize;
    let next = sorted[(index + 1).min(last)];
    sorted[index] + (next - sorted[index]) * (at - low)
}

/// Counts here are far below 2⁵³, up to which a float is exact.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub const fn as_f64(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_half_is_between_the_quartiles() {
        let spread = Spread::of([5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(spread, Spread { median: 3.0, low: 2.0, high: 4.0 });
        assert_eq!(Spread::of([1.0, 2.0]).median, 1.5);
        assert!(Spread::of([]).median.is_nan());
    }
}
