//! The vectors of users' interests, brought up to date: of users who have just done something, of those whose items have
//! got other vectors, and of those who have none yet.
//!
//! It never makes anybody wait: a list is made of a vector that is right, or of the interactions themselves.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::keeping::wait_briefly;
use super::leader::Leader;
use super::process::{Failed, transaction};
use super::warming::Warming;
use crate::dispatch::queue::Lane;
use crate::hooks::outbox;
use crate::recommend::keep::{AT_ONCE, Interests};

/// Users that are remembered; of more, all are looked at.
const REMEMBERED: usize = 10_000;
/// How soon revised items are looked for after something has happened.
const SOON: Duration = Duration::from_millis(50);
/// Numbers are given before they are committed: so often they are looked at from the first one on.
const AGAIN: Duration = Duration::from_secs(60);

/// What is to be done for the interests of one recommender's users.
pub struct Due {
    users: Users,
    /// Users are looked at one after the other, from after this one on.
    walk: Option<Option<String>>,
    /// Revised items up to this number have been followed.
    followed: i64,
    from_the_first_at: Instant,
    looked_at: Instant,
    /// Something has happened since.
    unlooked: bool,
    /// There are many of them: each change of a user's would be made anew for the next ones.
    behind: bool,
}

/// Each of them once, who came first first: those who are at it all the time hold up nobody.
#[derive(Default)]
struct Users {
    order: VecDeque<String>,
    known: HashSet<String>,
}

impl Users {
    fn add(&mut self, users: Vec<String>) {
        for user in users {
            if self.known.insert(user.clone()) {
                self.order.push_back(user);
            }
        }
    }

    fn remove_first(&mut self, count: usize) {
        for user in self.order.drain(..count) {
            self.known.remove(&user);
        }
    }
}

impl Default for Due {
    fn default() -> Due {
        let now = Instant::now();
        Due {
            users: Users::default(),
            walk: Some(None),
            followed: 0,
            from_the_first_at: now,
            looked_at: now,
            unlooked: true,
            behind: false,
        }
    }
}

impl Due {
    pub fn add(&mut self, users: Vec<String>) {
        if self.users.order.len() + users.len() > REMEMBERED {
            self.users = Users::default();
            self.walk = Some(None);
        }
        self.users.add(users);
    }

    /// The items have no vectors.
    fn forget(&mut self) {
        (self.users, self.behind) = (Users::default(), false);
    }

    /// Somebody's interest is another by now.
    pub fn waits(&self) -> bool {
        self.behind || !self.users.order.is_empty()
    }

    /// In how long there is something to do.
    pub fn next(&self) -> Option<Duration> {
        if self.waits() || self.walk.is_some() {
            return Some(Duration::ZERO);
        }
        let left = SOON.saturating_sub(self.looked_at.elapsed());
        self.unlooked.then_some(left)
    }

    /// One step; false when there is nothing to do for now.
    fn step(
        &mut self,
        of: i32,
        interests: &Interests,
        warming: &mut Warming,
    ) -> std::result::Result<bool, Failed> {
        if self.behind || self.unlooked && self.looked_at.elapsed() >= SOON {
            return self.follow(of, interests, warming).map(|()| true);
        }
        if !self.users.order.is_empty() {
            let users: Vec<String> = self.users.order.iter().take(AT_ONCE).cloned().collect();
            transaction(|| {
                wait_briefly()?;
                interests.refresh(&users)
            })?;
            self.users.remove_first(users.len());
            return Ok(true);
        }
        if let Some(after) = self.walk.take() {
            let walked = transaction(|| interests.walk(after.as_deref()))?;
            self.walk = walked.after.map(Some);
            self.users.add(walked.users);
            return Ok(true);
        }
        Ok(false)
    }

    /// The next revised items.
    fn follow(
        &mut self,
        of: i32,
        interests: &Interests,
        warming: &mut Warming,
    ) -> std::result::Result<(), Failed> {
        if self.from_the_first_at.elapsed() > AGAIN {
            self.from_the_first_at = Instant::now();
            self.followed = 0;
        }
        let revised = transaction(|| {
            wait_briefly()?;
            let revised = interests.follow_revised(self.followed)?;
            outbox::invalidated_users(of, &revised.users)?;
            Ok(revised)
        })?;
        warming.add(&revised.users); // their lists have gone
        self.add(revised.users);
        self.followed = revised.up_to;
        self.behind = revised.more;
        if !revised.more {
            self.looked_at = Instant::now();
            self.unlooked = false;
        }
        Ok(())
    }
}

impl Leader {
    /// Goes on for a slice of time, once all interactions that were there before have been read.
    pub(super) fn refresh_interests(
        &mut self,
        id: i32,
        until: Instant,
    ) -> std::result::Result<(), Failed> {
        let loading = self.queue.waits(id, Lane::Backfill) > 0;
        let Some(keeping) = self.recommenders.get_mut(&id) else {
            return Ok(());
        };
        let rests = loading || !keeping.recommender.backfilled || keeping.rests();
        let of = keeping.recommender.of;
        let (due, interests) = (&mut keeping.due, &keeping.keeper.interests);
        let warming = &mut keeping.warming;
        let Some(interests) = interests else {
            due.forget();
            return Ok(());
        };
        due.unlooked = true;
        if rests {
            return Ok(());
        }
        loop {
            match due.step(of, interests, warming) {
                Ok(true) if Instant::now() < until => {}
                Ok(_) => break,
                Err(failed) => return self.failed_to_keep(id, failed),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_again_and_again_is_behind_those_who_came_before() {
        let names = |users: &[&str]| users.iter().map(|user| user.to_string()).collect();
        let mut users = Users::default();
        users.add(names(&["a", "z", "a"]));
        users.remove_first(1);
        users.add(names(&["z", "a"]));
        assert_eq!(users.order, ["z", "a"]);
        users.remove_first(2);
        users.add(names(&["a"]));
        assert_eq!(users.order, ["a"]);
    }
}
