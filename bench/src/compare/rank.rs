//! The exact rank test of Mann and Whitney: no assumption about how run times spread.

/// The chance that two samples of one and the same thing are at least as far apart as these, in either direction. Ties share their
/// ranks. 1 for an empty sample.
pub(crate) fn chance(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    // Ranks are doubled, so that shared ones stay whole.
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let rank = |value: &f64| all.iter().map(|other| usize::from(other < value) * 2 + usize::from(other == value)).sum::<usize>() + 1;
    let ranks: Vec<usize> = all.iter().map(rank).collect();
    let total: usize = ranks.iter().sum();
    // ways[k][s]: in how many ways k of the values have ranks that sum to s.
    let mut ways = vec![vec![0.0f64; total + 1]; a.len() + 1];
    ways[0][0] = 1.0;
    for rank in &ranks {
        for k in (1..=a.len()).rev() {
            for sum in (*rank..=total).rev() {
                ways[k][sum] += ways[k - 1][sum - rank];
            }
        }
    }
    let observed: usize = ranks[..a.len()].iter().sum();
    // Twice the distance from the mean sum, whole for the same reason.
    let distance = |sum: usize| (sum * all.len()).abs_diff(total * a.len());
    let (far, every) = ways[a.len()]
        .iter()
        .enumerate()
        .fold((0.0, 0.0), |(far, every), (sum, ways)| (if distance(sum) >= distance(observed) { far + ways } else { far }, every + ways));
    far / every
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_those_of_the_tables() {
        let near = |a: &[f64], b: &[f64], expected: f64| assert!((chance(a, b) - expected).abs() < 1e-9, "{} {expected}", chance(a, b));
        // Complete separation: 2 of C(10, 5) and of C(6, 3) orders.
        near(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.0], 2.0 / 252.0);
        near(&[4.0, 5.0, 6.0], &[1.0, 2.0, 3.0], 2.0 / 20.0);
        // U = 1 of 3 x 3: 4 of 20.
        near(&[1.0, 2.0, 4.0], &[3.0, 5.0, 6.0], 4.0 / 20.0);
        // All equal, and nothing at all.
        near(&[1.0; 5], &[1.0; 5], 1.0);
        near(&[], &[1.0], 1.0);
        // One tied pair across: the ranks are 1 2.5 | 2.5 4.
        near(&[1.0, 2.0], &[2.0, 3.0], 4.0 / 6.0);
    }
}
