//! Who has had to do with what, by numbers: what models are made of.
//!
//! It never holds a key: whoever made the numbers knows whose they are.

/// Items of users, numbered from 0; each at most once a user.
pub struct Sets {
    /// How many different items there are.
    items: usize,
    /// Where each user's begin, and the end of the last one's.
    starts: Vec<usize>,
    of_users: Vec<u32>,
    /// What place each has among its user's, where that is known.
    places: Vec<u32>,
}

impl Sets {
    /// Of pairs of a user and an item, numbered from 1, in any order.
    pub fn new(users: &[i32], items: &[i32]) -> Sets {
        Sets::with_places(users, items, &[])
    }

    /// The same, with the places that the items have among their user's; without places all have the same.
    pub fn with_places(users: &[i32], items: &[i32], places: &[i32]) -> Sets {
        let count = |numbers: &[i32]| numbers.iter().copied().max().unwrap_or(0).max(0) as usize;
        let (user_count, item_count) = (count(users), count(items));
        let mut starts = vec![0; user_count + 1];
        let number = |number: &i32| (*number).max(1) as usize - 1;
        for user in users.iter().map(number) {
            if let Some(next) = starts.get_mut(user + 1) {
                *next += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut free = starts.clone();
        let mut placed = vec![(0, 0); users.len()];
        let place_of = |pair: usize| places.get(pair).map_or(0, |place| *place as u32);
        let pairs = users.iter().map(number).zip(items.iter().map(number));
        for (pair, (user, item)) in pairs.enumerate() {
            if let Some(next) = free.get_mut(user) {
                if let Some(slot) = placed.get_mut(*next) {
                    *slot = (item as u32, place_of(pair));
                }
                *next += 1;
            }
        }
        for bounds in starts.windows(2) {
            placed[bounds[0]..bounds[1]].sort_unstable();
        }
        let (of_users, places) = placed.into_iter().unzip();
        Sets {
            items: item_count,
            starts,
            of_users,
            places,
        }
    }

    pub fn items(&self) -> usize {
        self.items
    }

    pub fn users(&self) -> usize {
        self.starts.len() - 1
    }

    /// Pairs of a user and an item.
    pub fn pairs(&self) -> usize {
        self.of_users.len()
    }

    /// Each item's users, as if they were a user's items.
    pub fn turned(&self) -> Sets {
        let users = self.of_users().enumerate();
        let pairs = users.flat_map(|(user, set)| {
            set.iter()
                .map(move |item| (user as i32 + 1, *item as i32 + 1))
        });
        let (users, items): (Vec<i32>, Vec<i32>) = pairs.unzip();
        let mut turned = Sets::new(&items, &users);
        turned.items = self.users();
        turned
    }

    /// A user's items, in order; none of one whom nobody has heard of.
    pub fn of_user(&self, user: usize) -> &[u32] {
        match (self.starts.get(user), self.starts.get(user + 1)) {
            (Some(from), Some(to)) => &self.of_users[*from..*to],
            _ => &[],
        }
    }

    /// Each user's items, in order, with their places.
    pub fn placed(&self) -> impl Iterator<Item = (&[u32], &[u32])> {
        self.starts.windows(2).map(|bounds| {
            let of_user = bounds[0]..bounds[1];
            (&self.of_users[of_user.clone()], &self.places[of_user])
        })
    }

    /// Each user's items, in order.
    pub fn of_users(&self) -> impl Iterator<Item = &[u32]> {
        self.starts
            .windows(2)
            .map(|bounds| &self.of_users[bounds[0]..bounds[1]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_their_items_in_order() {
        let sets = Sets::new(&[2, 1, 2, 4, 2], &[3, 1, 1, 2, 2]);
        assert_eq!((sets.users(), sets.items(), sets.pairs()), (4, 3, 5));
        let of_users: Vec<&[u32]> = sets.of_users().collect();
        assert_eq!(of_users, [&[0][..], &[0, 1, 2], &[], &[1]]);
        let turned = sets.turned();
        assert_eq!((turned.users(), turned.items()), (3, 4));
        let of_items: Vec<&[u32]> = turned.of_users().collect();
        assert_eq!(of_items, [&[0, 1][..], &[1, 3], &[1]]);
    }

    #[test]
    fn places_stay_with_their_items() {
        let sets = Sets::with_places(&[2, 1, 2, 2], &[3, 1, 1, 2], &[1, 1, 3, 2]);
        let placed: Vec<(&[u32], &[u32])> = sets.placed().collect();
        assert_eq!(placed, [(&[0][..], &[1][..]), (&[0, 1, 2], &[3, 2, 1])]);
        let sets = Sets::new(&[1, 1], &[1, 2]);
        assert_eq!(sets.placed().next(), Some((&[0, 1][..], &[0, 0][..])));
    }

    #[test]
    fn nobody_has_nothing() {
        let sets = Sets::new(&[], &[]);
        assert_eq!((sets.users(), sets.items(), sets.pairs()), (0, 0, 0));
        assert_eq!(sets.of_users().count(), 0);
    }
}
