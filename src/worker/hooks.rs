//! Hooks are told what they have not been told yet: by NOTIFY, and by letters, one lane a server.
//!
//! It never sends what shares a key with an earlier one that has not arrived: for each hook and key the order is that of
//! the commits. A letter that fails holds up no other key, and a receiver that fails charges no letter an attempt.

// Letters sent and landed.
mod letters;

// Items that have gone, and hooks for which too much is kept.
mod upkeep;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::leader::{Leader, report};
use super::process::{Failed, transaction};
use super::rest::works;
use super::running::Lanes;
use super::telling::{Seen, Turned, tell_turned, was_paused};
use super::watching::show_provider;
use crate::catalog::server;
use crate::embed::endpoint::Endpoint;
use crate::embed::lane::{Lane, Reply};
use crate::embed::rate::{self, Grant};
use crate::embed::secret::SecretPolicy;
use crate::error::Result;
use crate::hooks::hook::{self, Hook};
use crate::hooks::outbox::{self, Stored};
use crate::hooks::saying::{coalesced, letter_of};
use crate::hooks::watched;
use crate::observe::status::failure;
use crate::settings;
use crate::shared::meters::now_us;

/// Letters of a hook that are looked at at a time: so many keys may wait for their turn before others do.
const WINDOW: usize = 64;
/// Events that are read at once where they are only said by NOTIFY.
const AT_ONCE: usize = 500;
/// After what passes by itself.
const REST: Duration = Duration::from_secs(1);

/// What has not been told yet, of one hook.
struct Waiting {
    stored: Stored,
    /// Not before that.
    due: Instant,
    in_flight: bool,
    notified: bool,
    /// There is nothing in it to write a letter of.
    silent: bool,
}

struct Listening {
    hook: Hook,
    endpoint: Option<Endpoint>,
    /// The lane's number.
    lane: Option<u64>,
    /// In their order.
    waiting: VecDeque<Waiting>,
    /// All up to this number have been read.
    read_up_to: i64,
    /// There may be more.
    unread: bool,
    /// When the limits of the server's account let the next letter go.
    grant: Option<Grant>,
}

pub(super) struct Hooks {
    /// All of them, also those that are paused.
    declared: HashSet<i32>,
    listening: BTreeMap<i32, Listening>,
    lanes: Lanes,
    policy: SecretPolicy,
    replies: Receiver<Reply>,
    reply_to: Sender<Reply>,
    /// Which letter of which hook a batch is.
    flights: HashMap<u64, (i32, i64)>,
    last: u64,
    /// When something can be sent that could not be sent yet.
    next: Option<Instant>,
    /// The worker has just begun.
    swept: bool,
    /// Sources and recommenders whose items are watched.
    watched: Vec<(i32, i32)>,
    /// When it was last looked how much is kept.
    bounded_at: Option<Instant>,
}

impl Default for Hooks {
    fn default() -> Hooks {
        let (reply_to, replies) = unbounded();
        Hooks {
            declared: HashSet::new(),
            listening: BTreeMap::new(),
            lanes: Lanes::default(),
            policy: settings::secret_policy(),
            replies,
            reply_to,
            flights: HashMap::new(),
            last: 0,
            next: None,
            swept: false,
            watched: Vec::new(),
            bounded_at: None,
        }
    }
}

impl Hooks {
    pub(super) fn has(&self, id: i32) -> bool {
        self.declared.contains(&id)
    }

    pub(super) fn are_flying(&self) -> bool {
        !self.flights.is_empty()
    }

    /// In how long there is something to do.
    pub(super) fn next(&self) -> Option<Duration> {
        if !self.replies.is_empty() {
            return Some(Duration::ZERO);
        }
        if !works() {
            return None;
        }
        let unread = self.listening.values().any(Listening::may_read);
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        match unread {
            true => Some(Duration::ZERO),
            false => self.next.map(left),
        }
    }

    /// Somebody may have written something for them.
    pub(super) fn look(&mut self) {
        for listening in self.listening.values_mut() {
            listening.unread = true;
        }
    }
}

/// A hook that runs: where its letters go.
type Loaded = (Hook, std::result::Result<Option<Endpoint>, String>);

/// `doubted`: those whose pause may be over.
fn load(doubted: &HashSet<i32>) -> Result<(Vec<Seen>, Vec<Loaded>)> {
    let mut hooks = hook::load_all()?;
    for hook in &mut hooks {
        if hook.paused && doubted.contains(&hook.id) && endpoint_of(hook).is_ok() {
            hook.paused = !hook::go_on(hook.id)?;
        }
    }
    let declared = hooks
        .iter()
        .map(|hook| Seen {
            id: hook.id,
            name: hook.name.clone(),
            paused: hook.paused,
            for_a_reason: hook.paused_reason.is_some(),
        })
        .collect();
    let running = hooks.into_iter().filter(|hook| !hook.paused);
    let with_endpoint = running.map(|hook| {
        let endpoint = endpoint_of(&hook);
        (hook, endpoint)
    });
    Ok((declared, with_endpoint.collect()))
}

/// Where its letters go; `None` for one that only notifies.
fn endpoint_of(hook: &Hook) -> std::result::Result<Option<Endpoint>, String> {
    match (hook.owner(), &hook.server) {
        (None, _) => Err(format!("role {} does not exist", hook.owner_name)),
        (_, None) => Ok(None),
        (Some(owner), Some(name)) => match server::of_hooks(name, owner) {
            Ok(endpoint) => Ok(Some(endpoint)),
            Err(error) => Err(error.to_string()),
        },
    }
}

impl Leader {
    /// Takes up what is declared. Letters of before may have been tried again by somebody: all are looked at.
    pub(super) fn load_hooks(&mut self) -> std::result::Result<(), Failed> {
        let (declared, loaded) = transaction(|| load(&self.incomplete.paused))?;
        self.telling.look("hook", &declared);
        self.hooks.declared = declared.iter().map(|hook| hook.id).collect();
        self.hooks.watched = transaction(watched::load)?;
        let mut known = std::mem::take(&mut self.hooks.listening);
        let policy = settings::secret_policy();
        if policy != self.hooks.policy {
            self.hooks.policy = policy;
            self.hooks.lanes.clear(); // what flies still comes back
        }
        for (hook, endpoint) in loaded {
            let endpoint = match endpoint {
                Ok(endpoint) => endpoint,
                Err(reason) => {
                    note_pause(&hook, &reason)?;
                    self.incomplete.paused.insert(hook.id);
                    continue;
                }
            };
            self.incomplete.paused.remove(&hook.id);
            let waiting = known.remove(&hook.id).map(|before| before.waiting);
            let lane = endpoint
                .as_ref()
                .map(|endpoint| self.lane_of(&hook, endpoint));
            let listening = Listening {
                endpoint,
                lane,
                waiting: waiting.unwrap_or_default(),
                read_up_to: 0,
                unread: true,
                grant: None,
                hook,
            };
            self.hooks.listening.insert(listening.hook.id, listening);
        }
        if !known.is_empty() || !self.hooks.swept {
            transaction(outbox::sweep)?;
            self.hooks.swept = true;
        }
        let used: HashSet<u64> = self
            .hooks
            .listening
            .values()
            .filter_map(|one| one.lane)
            .collect();
        self.hooks.lanes.keep(|lane| used.contains(&lane));
        Ok(())
    }

    fn lane_of(&mut self, hook: &Hook, endpoint: &Endpoint) -> u64 {
        let owner = hook.owner().map_or(0, pg_sys::Oid::to_u32);
        let (reply_to, ringer) = (self.hooks.reply_to.clone(), self.ringer.clone());
        let policy = self.hooks.policy.clone();
        self.hooks.lanes.of(endpoint, owner, |number| {
            Lane::of_letters(number, endpoint.clone(), policy, reply_to, ringer)
        })
    }

    /// What has arrived is done, what is new is read, said and sent.
    pub(super) fn tell_hooks(&mut self) -> std::result::Result<(), Failed> {
        self.land_letters()?;
        if outbox::has_written() {
            self.hooks.look();
        }
        self.hooks.next = None;
        self.bound_hooks()?;
        if !works() || self.is_relieved() {
            return Ok(());
        }
        let ids: Vec<i32> = self.hooks.listening.keys().copied().collect();
        for id in ids {
            self.read_events(id)?;
            self.notify(id);
            self.pass_over(id)?;
            self.send_letters(id);
        }
        Ok(())
    }

    /// Receivers now, for those who watch.
    pub(in crate::worker) fn show_hooks(&mut self) {
        let database = self.database_oid();
        let mut turned = Vec::new();
        for id in &self.hooks.declared {
            let Some(counters) = self.shared.counters(database, *id) else {
                continue;
            };
            let meters = self.shared.meters(counters);
            let listening = self.hooks.listening.get(id);
            let lane = listening.and_then(|one| one.lane);
            let Some(lane) = lane.and_then(|number| self.hooks.lanes.get(number)) else {
                meters.provider.reset();
                counters.rests_since_us.store(0, SeqCst);
                continue;
            };
            let since = counters.rests_since_us.load(SeqCst);
            let fails = lane.breaker.is_open();
            if fails != (since != 0) {
                let since = if fails { now_us() } else { 0 };
                counters.rests_since_us.store(since, SeqCst);
                turned.extend(listening.map(|one| Turned {
                    lane: one.lane.unwrap_or(0),
                    what: format!("hook {}", one.hook.name),
                    server: one.hook.server.clone().unwrap_or_default(),
                    fails,
                    failure: failure(counters.failure.load(SeqCst)),
                }));
            }
            let grant = listening.and_then(|one| one.grant.as_ref());
            let limited =
                grant.map_or(Duration::ZERO, |grant| rate::until(grant.at(), rate::now()));
            let endpoint = listening.and_then(|one| one.endpoint.as_ref());
            let most = endpoint.map_or(0, |endpoint| endpoint.max_concurrency);
            show_provider(&meters.provider, lane, most, limited);
        }
        tell_turned(turned);
    }

    fn read_events(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let Some(listening) = self
            .hooks
            .listening
            .get_mut(&id)
            .filter(|one| one.may_read())
        else {
            return Ok(());
        };
        let most = match listening.lane {
            Some(_) => WINDOW + listening.waiting.len(),
            None => AT_ONCE,
        };
        let read = transaction(|| outbox::read(id, listening.read_up_to, most))?;
        listening.unread = read.len() == most;
        if let Some(last) = read.last() {
            listening.read_up_to = last.number;
        }
        let known: HashSet<i64> = listening
            .waiting
            .iter()
            .map(|waiting| waiting.stored.number)
            .collect();
        let now = Instant::now();
        let new = read
            .into_iter()
            .filter(|stored| !known.contains(&stored.number));
        let flying: HashSet<i64> = self
            .hooks
            .flights
            .values()
            .filter(|(hook, _)| *hook == id)
            .map(|(_, number)| *number)
            .collect();
        listening.waiting.extend(new.map(|stored| Waiting {
            due: now + stored.due_in,
            in_flight: flying.contains(&stored.number),
            notified: false,
            silent: letter_of(&listening.hook, &stored).is_none(),
            stored,
        }));
        listening
            .waiting
            .make_contiguous()
            .sort_by_key(|waiting| waiting.stored.number);
        Ok(())
    }

    /// Says what is new, in a transaction of its own; what is told by that is done.
    fn notify(&mut self, id: i32) {
        let Some(listening) = self.hooks.listening.get_mut(&id) else {
            return;
        };
        let Some(channel) = listening.hook.channel.clone() else {
            return;
        };
        let new = || listening.waiting.iter().filter(|waiting| !waiting.notified);
        if new().next().is_none() {
            return;
        }
        let payloads = coalesced(&listening.hook, new().map(|waiting| &waiting.stored));
        let only = listening.lane.is_none();
        let said = transaction(|| {
            // Said twice is better than waited for.
            Spi::run("SET LOCAL synchronous_commit = off")?;
            for payload in &payloads {
                Spi::run_with_args(
                    "SELECT pg_catalog.pg_notify($1, $2)",
                    &[channel.as_str().into(), payload.as_str().into()],
                )?;
            }
            if only {
                new().try_for_each(|waiting| outbox::done(id, waiting.stored.number))?;
            }
            Ok(())
        });
        if let Err(failed) = said {
            // Nobody reads what is said, and there is no room for more: another time.
            report(None, &failed);
            self.hooks.next = Some(Instant::now() + REST);
            return;
        }
        match only {
            true => listening.waiting.clear(),
            false => listening
                .waiting
                .iter_mut()
                .for_each(|waiting| waiting.notified = true),
        }
    }

    /// What there is nothing to write of is done.
    fn pass_over(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let Some(listening) = self.hooks.listening.get_mut(&id) else {
            return Ok(());
        };
        let speaks = listening.hook.channel.is_some();
        let is_done = |waiting: &Waiting| waiting.silent && (waiting.notified || !speaks);
        let silent = || listening.waiting.iter().filter(|waiting| is_done(waiting));
        if listening.lane.is_none() || silent().next().is_none() {
            return Ok(());
        }
        transaction(|| silent().try_for_each(|waiting| outbox::done(id, waiting.stored.number)))?;
        listening.waiting.retain(|waiting| !is_done(waiting));
        Ok(())
    }
}

impl Listening {
    fn may_read(&self) -> bool {
        self.unread && self.waiting.len() < WINDOW
    }
}

fn note_pause(hook: &Hook, reason: &str) -> std::result::Result<(), Failed> {
    transaction(|| hook::pause_for(hook, reason))?;
    was_paused();
    Ok(())
}
