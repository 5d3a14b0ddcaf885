//! What a change of users' items does: how many users an item has, and whose lists of neighbours are stale.
//!
//! Whole numbers only: what is added up change by change is the same as what is counted at once. It never looks at a
//! user whose items are as they were.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Users, and the items of each.
pub type Sets = HashMap<String, BTreeSet<String>>;

/// What it comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Changes<'a> {
    /// Users of an item: more, or fewer.
    pub users: BTreeMap<&'a str, i32>,
    /// Items that have one user more or fewer in common with another.
    pub stale: BTreeSet<&'a str>,
}

impl<'a> Changes<'a> {
    pub fn between(before: &'a Sets, after: &'a Sets) -> Changes<'a> {
        let mut changes = Changes::default();
        let none = BTreeSet::new();
        for (user, had) in before {
            changes.count(had, after.get(user).unwrap_or(&none), -1);
        }
        for (user, has) in after {
            changes.count(has, before.get(user).unwrap_or(&none), 1);
        }
        changes.users.retain(|_, users| *users != 0);
        changes
    }

    /// The items of `all` that are not in `others`; they are in all pairs of that user that come or go.
    fn count(&mut self, all: &'a BTreeSet<String>, others: &BTreeSet<String>, sign: i32) {
        let mut any = false;
        for item in all.iter().filter(|item| !others.contains(*item)) {
            *self.users.entry(item).or_default() += sign;
            any = true;
        }
        if any {
            self.stale.extend(all.iter().map(String::as_str));
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
    fn a_new_item_makes_the_lists_of_its_user_stale_and_no_other() {
        let before = sets(&[("ann", &["a", "b"]), ("bob", &["c"])]);
        let after = sets(&[("ann", &["a", "b", "x"]), ("bob", &["c"])]);
        let changes = Changes::between(&before, &after);
        assert_eq!(changes.users, BTreeMap::from([("x", 1)]));
        assert_eq!(changes.stale, BTreeSet::from(["a", "b", "x"]));
        let back = Changes::between(&after, &before);
        assert_eq!(back.users, BTreeMap::from([("x", -1)]));
        assert_eq!(back.stale, BTreeSet::from(["a", "b", "x"]));
    }

    #[test]
    fn a_user_who_comes_counts_for_all_of_their_items() {
        let (none, after) = (Sets::new(), sets(&[("ann", &["a", "b"])]));
        let changes = Changes::between(&none, &after);
        assert_eq!(changes.users, BTreeMap::from([("a", 1), ("b", 1)]));
        assert_eq!(changes.stale, BTreeSet::from(["a", "b"]));
    }

    #[test]
    fn what_is_as_it_was_comes_to_nothing() {
        let same = sets(&[("ann", &["a", "b"])]);
        assert_eq!(Changes::between(&same, &same), Changes::default());
        // The same user by another spelling of a key that ignores case.
        let (lower, upper) = (sets(&[("ann", &["a"])]), sets(&[("Ann", &["a"])]));
        assert!(Changes::between(&lower, &upper).users.is_empty());
    }

    /// The law: changes added up give what a count of the end gives, and whoever has other users in common is stale.
    #[test]
    fn changes_added_up_are_the_count_of_the_end() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut sets = Sets::new();
        let mut users: BTreeMap<String, i32> = BTreeMap::new();
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
            let changes = Changes::between(&sets, &next);
            for (item, count) in changes.users {
                *users.entry(item.to_owned()).or_insert(0) += count;
            }
            for item in (0..12).map(|n| format!("i{n}")) {
                let common = |sets: &Sets| -> BTreeMap<String, usize> {
                    let mut common = BTreeMap::new();
                    for items in sets.values().filter(|items| items.contains(&item)) {
                        for other in items {
                            *common.entry(other.clone()).or_insert(0) += 1;
                        }
                    }
                    common
                };
                if common(&sets) != common(&next) {
                    assert!(changes.stale.contains(item.as_str()), "{item}");
                }
            }
            sets = next;
        }
        users.retain(|_, count| *count != 0);
        let none = Sets::new();
        let counted = Changes::between(&none, &sets).users;
        let counted: BTreeMap<String, i32> = counted
            .into_iter()
            .map(|(item, count)| (item.to_owned(), count))
            .collect();
        assert_eq!(users, counted);
    }
}
