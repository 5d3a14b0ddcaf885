//! How good lists are, of users whose next items are known.
//!
//! An item is relevant or not. *NDCG*: 1 / log2(place + 1) added up over the hits, as a share of the most that there can
//! be (Järvelin, Kekäläinen, ACM TOIS 2002). *Recall*: the share of the relevant items that are listed; *precision*: the
//! share of k that are hits; *MRR*: 1 / the place of the first hit; *hit rate*: whether there is one. Each is the mean of
//! the users'. *Coverage*: the share of the catalogue that is listed for anybody. *Novelty*: the mean over all that is
//! listed of −log2 of the share of users that have the item (Vargas, Castells, RecSys 2011). It never knows where lists
//! come from.

use std::collections::HashSet;

/// Of one way to make lists.
#[derive(Debug, Default)]
pub struct Measures {
    k: usize,
    users: usize,
    ndcg: f64,
    recall: f64,
    precision: f64,
    mrr: f64,
    hits: usize,
    listed: HashSet<usize>,
    novelty: f64,
    places: usize,
}

/// The means.
#[derive(Debug, PartialEq)]
pub struct Means {
    pub users: usize,
    pub ndcg: f64,
    pub recall: f64,
    pub precision: f64,
    pub mrr: f64,
    pub hit_rate: f64,
    pub coverage: f64,
    pub novelty: f64,
}

impl Measures {
    pub fn at(k: usize) -> Measures {
        Measures {
            k,
            ..Measures::default()
        }
    }

    /// One user's list. `share`: of all users, those that have an item.
    pub fn add(&mut self, list: &[usize], relevant: &HashSet<usize>, share: impl Fn(usize) -> f64) {
        let list = &list[..list.len().min(self.k)];
        let gain = |place: usize| 1.0 / (place as f64 + 2.0).log2();
        let hits: Vec<usize> = (0..list.len())
            .filter(|place| relevant.contains(&list[*place]))
            .collect();
        let ideal: f64 = (0..relevant.len().min(self.k)).map(gain).sum();
        self.users += 1;
        self.ndcg += hits.iter().copied().map(gain).sum::<f64>() / ideal;
        self.recall += hits.len() as f64 / relevant.len() as f64;
        self.precision += hits.len() as f64 / self.k as f64;
        self.mrr += hits
            .first()
            .map_or(0.0, |place| 1.0 / (*place as f64 + 1.0));
        self.hits += usize::from(!hits.is_empty());
        for item in list {
            self.listed.insert(*item);
            self.novelty -= share(*item).log2();
        }
        self.places += list.len();
    }

    /// `catalogue`: how many items there are.
    pub fn means(&self, catalogue: usize) -> Means {
        let of = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
        Means {
            users: self.users,
            ndcg: of(self.ndcg, self.users),
            recall: of(self.recall, self.users),
            precision: of(self.precision, self.users),
            mrr: of(self.mrr, self.users),
            hit_rate: of(self.hits as f64, self.users),
            coverage: of(self.listed.len() as f64, catalogue),
            novelty: of(self.novelty, self.places),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    /// By hand: hits at places 1 and 3 of a list of four, of three relevant ones; then none.
    #[test]
    fn means_are_those_that_a_hand_comes_to() {
        let mut measures = Measures::at(4);
        let share = |item: usize| if item == 9 { 0.25 } else { 0.5 };
        measures.add(&[7, 8, 9, 6, 5], &HashSet::from([7, 9, 1]), share);
        measures.add(&[7, 8], &HashSet::from([2]), share);
        let means = measures.means(8);
        let ideal = 1.0 + 1.0 / 3f64.log2() + 0.5;
        assert!(close(means.ndcg, (1.0 + 0.5) / ideal / 2.0));
        assert!(close(means.recall, 2.0 / 3.0 / 2.0));
        assert!(close(means.precision, 0.25));
        assert!(close(means.mrr, 0.5));
        assert!(close(means.hit_rate, 0.5));
        assert!(close(means.coverage, 0.5));
        assert!(close(
            means.novelty,
            (1.0 + 1.0 + 2.0 + 1.0 + 1.0 + 1.0) / 6.0
        ));
        assert_eq!(means.users, 2);
    }

    #[test]
    fn the_best_list_has_an_ndcg_of_one_however_many_are_relevant() {
        for relevant in [1, 3, 20] {
            let mut measures = Measures::at(5);
            let list: Vec<usize> = (0..5).collect();
            measures.add(&list, &(0..relevant).collect(), |_| 1.0);
            let means = measures.means(5);
            assert!(close(means.ndcg, 1.0) && close(means.mrr, 1.0));
        }
        assert_eq!(Measures::at(5).means(0).ndcg, 0.0);
    }
}
