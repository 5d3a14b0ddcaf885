//! Which candidates, in the order of their scores, get which place: not too many of one kind, and some that are to be
//! tried out.
//!
//! It never looks further back than a list goes: with the same candidates, a longer list begins as a shorter one.

use std::collections::{HashMap, HashSet, VecDeque};

/// An item that may be listed, with its values in the columns of `max_per`.
pub struct Offer<T> {
    pub item: String,
    pub values: Vec<Option<String>>,
    pub candidate: T,
}

pub struct Selection<T> {
    most: usize,
    limits: Vec<usize>,
    counts: HashMap<(usize, String), usize>,
    share: f64,
    /// From 0 to 1: which places are for what is explored.
    phase: f64,
    explored: VecDeque<Offer<T>>,
    taken: HashSet<String>,
    chosen: Vec<T>,
}

impl<T> Selection<T> {
    /// At most `most`, of which `limits` say how many may have the same value.
    pub fn new(most: usize, limits: Vec<usize>) -> Selection<T> {
        Selection {
            most,
            limits,
            counts: HashMap::new(),
            share: 0.0,
            phase: 0.0,
            explored: VecDeque::new(),
            taken: HashSet::new(),
            chosen: Vec::new(),
        }
    }

    /// That `share` of all places is for these, in their order.
    pub fn explore(&mut self, share: f64, phase: f64, explored: Vec<Offer<T>>) {
        self.share = share;
        self.phase = phase;
        self.explored = explored.into();
    }

    /// The next of the others. False when there is no place left.
    pub fn offer(&mut self, offer: Offer<T>) -> bool {
        self.place_explored();
        if !self.is_full() {
            self.place(offer);
        }
        self.place_explored();
        !self.is_full()
    }

    pub fn is_full(&self) -> bool {
        self.chosen.len() >= self.most
    }

    pub fn chosen(self) -> Vec<T> {
        self.chosen
    }

    fn place_explored(&mut self) {
        let (share, phase) = (self.share, self.phase);
        let number = |place: usize| (place as f64 * share + phase).floor();
        while !self.is_full() && number(self.chosen.len() + 1) > number(self.chosen.len()) {
            match self.explored.pop_front() {
                Some(offer) => self.place(offer),
                None => return,
            }
        }
    }

    fn place(&mut self, offer: Offer<T>) {
        let of = |column: usize, value: &Option<String>| Some((column, value.clone()?));
        let of_kind: Vec<(usize, String)> = (0..)
            .zip(&offer.values)
            .filter_map(|(column, value)| of(column, value))
            .collect();
        let many = of_kind.iter().any(|kind| {
            let most = self.limits.get(kind.0).copied().unwrap_or(usize::MAX);
            self.counts.get(kind).is_some_and(|count| *count >= most)
        });
        if many || !self.taken.insert(offer.item) {
            return;
        }
        for kind in of_kind {
            *self.counts.entry(kind).or_default() += 1;
        }
        self.chosen.push(offer.candidate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(number: usize, brand: Option<usize>) -> Offer<usize> {
        Offer {
            item: number.to_string(),
            values: vec![brand.map(|brand| brand.to_string())],
            candidate: number,
        }
    }

    fn listed(most: usize, share: f64, phase: f64, limit: usize) -> Vec<usize> {
        let mut selection = Selection::new(most, vec![limit]);
        let explored = (0..50).map(|n| offer(n * 7 % 100, Some(n % 5)));
        selection.explore(share, phase, explored.collect());
        for number in 0..100 {
            // One in ten has no brand.
            let brand = (number % 10 != 9).then_some(number % 5);
            if !selection.offer(offer(number, brand)) {
                break;
            }
        }
        selection.chosen()
    }

    #[test]
    fn a_longer_list_begins_as_a_shorter_one() {
        for (share, phase, limit) in [
            (0.0, 0.0, 3),
            (0.1, 0.5, 100),
            (0.25, 0.9, 4),
            (1.0, 0.0, 100),
        ] {
            let all = listed(60, share, phase, limit);
            for most in 1..60 {
                let some = listed(most, share, phase, limit);
                assert_eq!(some, all[..most.min(all.len())], "{share} {phase} {limit}");
            }
            let once: HashSet<usize> = all.iter().copied().collect();
            assert_eq!(once.len(), all.len(), "{all:?}");
        }
    }

    #[test]
    fn a_share_of_the_places_is_for_what_is_explored() {
        let all = listed(40, 0.1, 0.95, 100);
        // 0.1 * place + 0.95 passes a whole number at places 1, 11, 21, 31.
        assert_eq!([all[0], all[10], all[20], all[30]], [0, 14, 21, 35]);
        assert_eq!(all[1..10], [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(listed(5, 0.0, 0.99, 100), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn of_one_value_there_are_no_more_than_is_said_and_none_is_not_a_value() {
        let all = listed(100, 0.0, 0.0, 2);
        let of_brand = |brand| {
            let those = all.iter().filter(|n| **n % 10 != 9 && **n % 5 == brand);
            those.count()
        };
        assert_eq!([0, 1, 2, 3, 4].map(of_brand), [2; 5]);
        assert_eq!(all.iter().filter(|number| **number % 10 == 9).count(), 10);
    }
}
