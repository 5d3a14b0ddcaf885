//! What a change of users' items does to how many users an item has, and how many each two items have in common.
//!
//! Whole numbers only: what is added up change by change is the same as what is counted at once. It never looks at a
//! user whose items are as they were.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Users, and the items of each.
pub type Sets = HashMap<String, BTreeSet<String>>;

/// What is to be added.
#[derive(Debug, Default, PartialEq)]
pub struct Deltas<'a> {
    /// Users of an item.
    pub items: BTreeMap<&'a str, i32>,
    /// Users of two items, in both orders.
    pub pairs: BTreeMap<(&'a str, &'a str), i32>,
}

impl<'a> Deltas<'a> {
    pub fn between(before: &'a Sets, after: &'a Sets) -> Deltas<'a> {
        let mut deltas = Deltas::default();
        let none = BTreeSet::new();
        for (user, had) in before {
            deltas.count(had, after.get(user).unwrap_or(&none), -1);
        }
        for (user, has) in after {
            deltas.count(has, before.get(user).unwrap_or(&none), 1);
        }
        deltas.items.retain(|_, users| *users != 0);
        deltas.pairs.retain(|_, users| *users != 0);
        deltas
    }

    /// The items of `all` that are not in `others`, with each other and with those that are.
    fn count(&mut self, all: &'a BTreeSet<String>, others: &BTreeSet<String>, sign: i32) {
        for item in all.iter().filter(|item| !others.contains(*item)) {
            *self.items.entry(item).or_default() += sign;
            for other in all.iter().filter(|other| *other != item) {
                // Of two that come or go together, the pair is met twice.
                if others.contains(other) || item < other {
                    *self.pairs.entry((item, other)).or_default() += sign;
                    *self.pairs.entry((other, item)).or_default() += sign;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(of: &[(&str, &[&str])]) -> Sets {
        of.iter()
            .map(|(user, items)| {
                let items = items.iter().map(|item| (*item).to_owned()).collect();
                ((*user).to_owned(), items)
            })
            .collect()
    }

    #[test]
    fn a_new_item_meets_the_others_of_its_user_and_nobody_else() {
        let before = sets(&[("ann", &["a", "b"]), ("bob", &["c"])]);
        let after = sets(&[("ann", &["a", "b", "x"]), ("bob", &["c"])]);
        let deltas = Deltas::between(&before, &after);
        assert_eq!(deltas.items, BTreeMap::from([("x", 1)]));
        let pairs = [("a", "x"), ("x", "a"), ("b", "x"), ("x", "b")].map(|pair| (pair, 1));
        assert_eq!(deltas.pairs, BTreeMap::from(pairs));
    }

    #[test]
    fn items_that_come_together_are_counted_once() {
        let (none, after) = (Sets::new(), sets(&[("ann", &["a", "b"])]));
        let deltas = Deltas::between(&none, &after);
        assert_eq!(deltas.items, BTreeMap::from([("a", 1), ("b", 1)]));
        assert_eq!(
            deltas.pairs,
            BTreeMap::from([(("a", "b"), 1), (("b", "a"), 1)])
        );
        let back = Deltas::between(&after, &none);
        assert_eq!(
            back.pairs,
            BTreeMap::from([(("a", "b"), -1), (("b", "a"), -1)])
        );
    }

    #[test]
    fn what_is_as_it_was_comes_to_nothing() {
        let same = sets(&[("ann", &["a", "b"])]);
        assert_eq!(Deltas::between(&same, &same), Deltas::default());
        // The same user by another spelling of a key that ignores case.
        let (lower, upper) = (sets(&[("ann", &["a", "b"])]), sets(&[("Ann", &["a", "b"])]));
        assert_eq!(Deltas::between(&lower, &upper), Deltas::default());
    }

    /// The law: changes added up give what a count of the end gives.
    #[test]
    fn changes_added_up_are_the_count_of_the_end() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut sets = Sets::new();
        let (mut items, mut pairs) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..2_000 {
            let mut next = sets.clone();
            for _ in 0..rng.usize(1..4) {
                let user = format!("u{}", rng.u8(0..6));
                let item = format!("i{}", rng.u8(0..12));
                let of_user = next.entry(user).or_default();
                if !of_user.remove(&item) {
                    of_user.insert(item);
                }
            }
            next.retain(|_, items| !items.is_empty());
            let deltas = Deltas::between(&sets, &next);
            for (item, users) in deltas.items {
                *items.entry(item.to_owned()).or_insert(0) += users;
            }
            for ((item, other), users) in deltas.pairs {
                *pairs
                    .entry((item.to_owned(), other.to_owned()))
                    .or_insert(0) += users;
            }
            sets = next;
        }
        items.retain(|_, users| *users != 0);
        pairs.retain(|_, users| *users != 0);
        let none = Sets::new();
        let counted = Deltas::between(&none, &sets);
        let strings = |map: &BTreeMap<&str, i32>| -> BTreeMap<String, i32> {
            map.iter()
                .map(|(item, users)| ((*item).to_owned(), *users))
                .collect()
        };
        assert_eq!(items, strings(&counted.items));
        let counted_pairs = counted.pairs.iter();
        let counted_pairs: BTreeMap<(String, String), i32> = counted_pairs
            .map(|((item, other), users)| (((*item).to_owned(), (*other).to_owned()), *users))
            .collect();
        assert_eq!(pairs, counted_pairs);
        // And each count is that of users who have both.
        for ((item, other), users) in &pairs {
            let both = sets
                .values()
                .filter(|of| of.contains(item) && of.contains(other));
            assert_eq!(both.count(), *users as usize);
        }
    }
}
