//! Lists made for users before they ask: for those who have just done something, and for those whose lists are of
//! yesterday.
//!
//! While there is something else to do it has a share of the time, and looks for that after each list: who changes
//! something waits for one list at the most.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::keeping::{self, report, wait_briefly};
use super::leader::Leader;
use super::process::{Failed, guard_user_code, is_passing, transaction};
use crate::catalog::recommender::{self, Recommender};
use crate::error::Result;
use crate::recommend::lists::warm::{self, Made};
use crate::settings;

/// A user who is at it asks for other lists meanwhile: theirs is made again so long after it has gone, and not before.
/// So no user's row is written so often that what was there before, under a snapshot that is held, has to be waded through.
const QUIET: Duration = Duration::from_secs(3);
/// In how long as many are made as `recsync.warm_limit` allows, and how many in any case.
const BUDGET: Duration = Duration::from_secs(60);
const LEAST: usize = 60;
/// How often it is looked which lists are old.
const LOOK: Duration = Duration::from_secs(30);
/// How long others may wait that nobody would wake the worker for.
const SLICE: Duration = Duration::from_millis(20);
/// After a failure that does not pass by itself.
const REST: Duration = Duration::from_secs(10);
/// Pages of interactions in which users are looked for at once.
const PAGES: u32 = 32;

/// Whose lists of one recommender are to be made.
#[derive(Default)]
pub struct Warming {
    /// Of those who have done something, in the order of when they are.
    due: VecDeque<(Instant, String)>,
    /// Of others, whose turn is after theirs.
    others: VecDeque<String>,
    /// All of them, and whether they have done something. Who does so while they are among the others is in both lines.
    users: HashMap<String, bool>,
    /// How many have been made since.
    made: (usize, Option<Instant>),
    /// When it is looked again which are old; `None`: now.
    looks_at: Option<Instant>,
    /// How many lists there are, about.
    there: usize,
    /// What lists are made by may be something else.
    unlooked: bool,
    /// Tables of interactions in which users are looked for, and before which page.
    search: Option<Vec<(i32, u32)>>,
    rests_until: Option<Instant>,
}

impl Warming {
    /// These users' lists have gone.
    pub fn add(&mut self, users: &[String]) {
        let most = settings::warm_limit();
        let at = Instant::now() + QUIET;
        for user in users {
            // Of too many the first are made: those who come in between would have all of them wait for ever.
            let is_known = self.users.get(user) == Some(&true);
            if self.due.len() < most && !is_known {
                self.users.insert(user.clone(), true);
                self.due.push_back((at, user.clone()));
            }
        }
        while self.due.len() > most {
            self.take_due();
        }
    }

    /// What lists are made by may be something else.
    pub fn look_again(&mut self) {
        self.looks_at = None;
        self.unlooked = true;
        self.rests_until = None;
    }

    fn take_due(&mut self) -> Option<String> {
        let (_, user) = self.due.pop_front()?;
        self.users.remove(&user);
        Some(user)
    }

    /// Whose turn it is now.
    fn take(&mut self) -> Option<String> {
        let is_due = |(at, _): &(Instant, String)| *at <= Instant::now();
        if self.due.front().is_some_and(is_due) {
            return self.take_due();
        }
        while let Some(user) = self.others.pop_front() {
            if self.users.get(&user) == Some(&false) {
                self.users.remove(&user);
                return Some(user);
            }
        }
        None
    }

    /// These have no list, or one of yesterday.
    fn add_others(&mut self, users: Vec<String>) {
        for user in users {
            if !self.users.contains_key(&user) {
                self.users.insert(user.clone(), false);
                self.others.push_back(user);
            }
        }
    }

    /// In how long there is something to do.
    fn next(&self) -> Option<Duration> {
        let now = Instant::now();
        let budget = match self.made {
            (made, Some(since)) if made >= settings::warm_limit().max(LEAST) => {
                Some(since + BUDGET)
            }
            _ => None,
        };
        let at = match self.others.is_empty() {
            true => self.due.front().map(|(at, _)| *at),
            false => Some(now),
        };
        let at = at.map(|at| budget.map_or(at, |budget| budget.max(at)));
        let some = self.unlooked || self.there > 0 || at.is_some();
        let looks = some.then(|| self.looks_at.unwrap_or(now));
        let next = at.into_iter().chain(looks).min()?;
        let next = self.rests_until.map_or(next, |until| until.max(next));
        Some(next.saturating_duration_since(now))
    }

    /// One list, or one look; false where no list has been made. The recommender is as it is now.
    fn step(&mut self, r: &Recommender) -> std::result::Result<bool, Failed> {
        if self
            .looks_at
            .is_none_or(|looks_at| looks_at <= Instant::now())
        {
            return self.look(r).map(|()| false);
        }
        if self.made.1.is_none_or(|since| since.elapsed() >= BUDGET) {
            self.made = (0, Some(Instant::now()));
        }
        let Some(user) = self.take() else {
            return Ok(false);
        };
        self.made.0 += 1;
        let most = settings::warm_limit();
        let too_many = self.there + 1 > most + most / 16;
        let made = transaction(|| {
            begin()?;
            guard_user_code()?;
            let made = warm::make(r, &user)?;
            let left = too_many.then(|| warm::trim(r, most)).transpose()?;
            Ok((made, left))
        })?;
        if made.0 == Made::NotYet {
            self.add(&[user]);
        }
        let made_one = made.0 == Made::Yes;
        self.there = made.1.unwrap_or(self.there + usize::from(made_one));
        Ok(made_one)
    }

    /// Which lists are old, and who has none.
    fn look(&mut self, r: &Recommender) -> std::result::Result<(), Failed> {
        self.looks_at = Some(Instant::now() + LOOK);
        let most = settings::warm_limit();
        // Made again before they are too old to be served.
        let age = settings::list_age().as_secs_f64() / 2.0;
        let (there, old) = transaction(|| {
            begin()?;
            Ok((warm::trim(r, most)?, warm::outdated(r, age, most)?))
        })?;
        (self.there, self.unlooked) = (there, false);
        let room = most.saturating_sub(there + self.users.len());
        self.add_others(old);
        if room == 0 {
            return Ok(());
        }
        let mut search = match self.search.take() {
            Some(search) => search,
            None => transaction(|| {
                let pages = |member: i32| Ok((member, warm::pages(member)?));
                r.members().into_iter().map(pages).collect()
            })?,
        };
        if let Some((member, before)) = search.iter_mut().max_by_key(|(_, before)| *before)
            && *before > 0
        {
            let mut users = transaction(|| {
                begin()?;
                warm::active(r, *member, *before, PAGES)
            })?;
            users.retain(|user| !self.users.contains_key(user));
            users.truncate(room);
            self.add_others(users);
            *before = before.saturating_sub(PAGES);
            self.look_again(); // there may be more of them
        }
        self.search = Some(search);
        Ok(())
    }
}

/// Within a transaction: nobody waits for it, and a list that is lost is made again.
fn begin() -> Result<()> {
    wait_briefly()?;
    Ok(pgrx::Spi::run("SET LOCAL synchronous_commit = off")?)
}

impl Leader {
    /// Makes lists while nothing is due for `idle`. In how long there is something to do, after that.
    pub(super) fn warm(&mut self, idle: Duration) -> Duration {
        self.hand_over_users();
        let began = Instant::now();
        let mut left = idle;
        while let Some((id, wait)) = self.next_to_warm() {
            left = idle.saturating_sub(began.elapsed());
            if !wait.is_zero() {
                return left.min(wait + Duration::from_millis(1));
            }
            let others_wait = left.is_zero() || began.elapsed() >= SLICE || self.is_wanted();
            if others_wait && !self.shares.warming.is_due() {
                return Duration::ZERO;
            }
            let since = Instant::now();
            self.warm_one(id);
            self.shares.warming.took(since.elapsed());
        }
        left
    }

    /// What users have done is told by the tables of interactions, lists are the recommender's.
    fn hand_over_users(&mut self) {
        let feeds = self.recommenders.iter_mut();
        let feeds = feeds.filter(|(id, keeping)| keeping.recommender.of != **id);
        let users: Vec<(i32, Vec<String>)> = feeds
            .map(|(_, keeping)| {
                let users = std::iter::from_fn(|| keeping.warming.take_due()).collect();
                (keeping.recommender.of, users)
            })
            .collect();
        for (of, users) in users {
            if let Some(keeping) = self.recommenders.get_mut(&of) {
                keeping.warming.add(&users);
            }
        }
    }

    fn next_to_warm(&self) -> Option<(i32, Duration)> {
        let stands_still = self.suspended
            || !settings::enabled()
            || settings::warm_limit() == 0
            || settings::list_age().is_zero()
            || self.shared.waiting_databases.load(SeqCst) > 0;
        if stands_still {
            return None;
        }
        let may = self.recommenders.iter().filter(|(id, keeping)| {
            let r = &keeping.recommender;
            r.of == **id && r.backfilled && warm::is_told(r) && !self.is_trained_elsewhere(**id)
        });
        may.filter_map(|(id, keeping)| Some((*id, keeping.warming.next()?)))
            .min_by_key(|(_, wait)| *wait)
    }

    /// Somebody has committed something, or a request has been answered.
    pub(super) fn is_called(&self) -> bool {
        self.database.wake.has_rung() || !self.replies.is_empty()
    }

    /// The same, or something is declared otherwise.
    fn is_wanted(&self) -> bool {
        self.is_called() || self.database.catalog_changed.load(SeqCst)
    }

    fn warm_one(&mut self, id: i32) {
        let declared = transaction(|| recommender::by_id(id));
        let Some(keeping) = self.recommenders.get_mut(&id) else {
            return;
        };
        let made = match declared {
            Ok(Some(r)) if r.is_kept() && r.backfilled && r.trouble().is_none() => {
                keeping.warming.step(&r)
            }
            Ok(_) => {
                keeping.warming.rests_until = Some(Instant::now() + keeping::REST);
                Ok(false)
            }
            Err(failed) => Err(failed),
        };
        match made {
            Ok(true) => {
                let counters = self.shared.counters_or_new(self.database_oid(), id);
                if let Some(counters) = counters {
                    counters.lists_warmed.fetch_add(1, SeqCst);
                }
            }
            Ok(false) => {}
            Err(failed) => {
                // Lists are made when they are asked for.
                let rest = match is_passing(failed.code) {
                    true => keeping::REST,
                    false => REST,
                };
                keeping.warming.rests_until = Some(Instant::now() + rest);
                report(&keeping.recommender, &failed);
            }
        }
    }
}
