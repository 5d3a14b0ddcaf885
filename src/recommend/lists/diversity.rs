//! A list that is not ten times the same: each place is given to the candidate that is best by its score, less how alike
//! it is to those that are listed already (maximal marginal relevance: Carbonell, Goldstein, SIGIR 1998).
//!
//! It never asks for anything: candidates and vectors are given. A longer list begins as a shorter one.

use std::collections::BTreeMap;

/// Candidates that compete for the places; who is beyond these is listed by score.
pub const POOL: usize = 200;

/// Candidates by their numbers, in the order of their places.
pub struct Spread {
    diversity: f64,
    /// Scores as shares of the best one, and directions.
    candidates: Vec<(f64, Option<Vec<f32>>)>,
    /// Who has no place yet, and how alike it is to the one that it is most alike.
    left: Vec<(usize, f64)>,
}

impl Spread {
    /// `diversity`: from 0, by score alone, to 1, by what is unlike the others alone. What has no vector is like nothing.
    pub fn new<'a>(
        candidates: impl Iterator<Item = (&'a str, f64)>,
        vectors: &BTreeMap<String, Vec<f32>>,
        diversity: f64,
    ) -> Spread {
        let given: Vec<(&str, f64)> = candidates.collect();
        let scores = given.iter().map(|(_, score)| *score);
        let best = scores.fold(f64::MIN_POSITIVE, f64::max);
        let direction_of = |item: &str| vectors.get(item).and_then(|vector| direction(vector));
        let candidates = given.iter();
        Spread {
            diversity,
            left: (0..given.len()).map(|number| (number, 0.0)).collect(),
            candidates: candidates
                .map(|(item, score)| (score / best, direction_of(item)))
                .collect(),
        }
    }

    fn worth(&self, &(number, alike): &(usize, f64)) -> f64 {
        let score = self.candidates.get(number).map_or(0.0, |(score, _)| *score);
        (1.0 - self.diversity) * score - self.diversity * alike
    }
}

impl Iterator for Spread {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (place, candidate) in self.left.iter().enumerate() {
            let worth = self.worth(candidate);
            if best.is_none_or(|(_, so_far)| worth > so_far) {
                best = Some((place, worth));
            }
        }
        // The others stay in order, so that of equals the first comes first.
        let (next, _) = self.left.remove(best?.0);
        if let Some((_, Some(listed))) = self.candidates.get(next) {
            for (number, alike) in &mut self.left {
                if let Some((_, Some(vector))) = self.candidates.get(*number) {
                    *alike = alike.max(cosine(listed, vector));
                }
            }
        }
        Some(next)
    }
}

/// The vector of length 1; `None` where it has no direction.
fn direction(vector: &[f32]) -> Option<Vec<f32>> {
    let length = vector.iter().map(|number| number * number).sum::<f32>();
    let length = length.sqrt();
    (length > 0.0).then(|| vector.iter().map(|number| number / length).collect())
}

fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let products = one.iter().zip(other).map(|(one, other)| one * other);
    f64::from(products.sum::<f32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(diversity: f64) -> Vec<usize> {
        let vectors = [
            ("a", [1.0, 0.0]),
            ("b", [2.0, 0.0]),
            ("c", [0.9, 0.1]),
            ("d", [0.0, 1.0]),
        ];
        let vectors = vectors.map(|(item, vector)| (item.to_owned(), vector.to_vec()));
        let candidates = [("a", 1.0), ("b", 0.9), ("c", 0.8), ("d", 0.5), ("e", 0.1)];
        Spread::new(candidates.into_iter(), &vectors.into(), diversity).collect()
    }

    #[test]
    fn without_diversity_it_is_the_order_of_the_scores() {
        assert_eq!(ordered(0.0), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn with_it_what_is_unlike_comes_first() {
        assert_eq!(ordered(0.6)[..3], [0, 3, 4]);
        assert_eq!(ordered(1.0), [0, 3, 4, 2, 1]);
    }

    #[test]
    fn none_are_lost_and_none_come_twice() {
        for tenths in 0..=10 {
            let mut all = ordered(f64::from(tenths) / 10.0);
            all.sort();
            assert_eq!(all, [0, 1, 2, 3, 4]);
        }
        let none = Spread::new(std::iter::empty(), &BTreeMap::new(), 0.5);
        assert_eq!(none.count(), 0);
    }
}
