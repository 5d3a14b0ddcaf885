//! What is spent and saved, on its way into the ledger; and budgets, which stop what would be sent beyond them.
//!
//! It never lets a store wait: bills go with the vectors, and by themselves where none are stored. What is in here when
//! the worker dies, a second's worth at the most beside requests whose vectors were not stored yet, is not counted.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::leader::Leader;
use super::process::{Failed, transaction};
use super::running::{Running, State};
use crate::catalog::server;
use crate::embed::sent::Sent;
use crate::error::Result;
use crate::hooks::outbox;
use crate::ledger::asked::Asker;
use crate::ledger::bill::{Bill, Bills, Open, Payer, Saved};
use crate::ledger::budget::{self, Account, Figures, Notice, Notices};
use crate::ledger::log::{self, Spent};
use crate::ledger::month::Month;
use crate::shared::Shared;
use crate::shared::money::Money;

/// How long a bill waits for a store that takes it along.
const AGE: Duration = Duration::from_secs(1);
/// How long after somebody has said that they wait none does: who waits says so once a second.
const HURRY: Duration = Duration::from_secs(3);
/// When what was appended is folded: then, or when it is so many rows.
const FOLD: Duration = Duration::from_secs(600);
const MOST_ROWS: usize = 2_000;
/// How soon after the last fold, or a try while somebody read the ledger: each leaves a dead version of the rows that it
/// adds to, which a held snapshot keeps.
const AGAIN: Duration = Duration::from_secs(10);

pub struct Spending {
    pub open: Open,
    /// Rows that were appended since the last fold.
    rows: usize,
    /// When they are folded; `None`: there are none.
    fold_at: Option<Instant>,
    /// But not before then.
    fold_from: Instant,
    month: Month,
    /// The money of the month.
    spent: Spent,
    /// What is said of budgets; `None`: nobody has looked since the worker began.
    notices: Option<Notices>,
    budgets_due: bool,
    /// When what could not be written down of budgets is tried again.
    say_again: Option<Instant>,
    /// When it was last looked for what sessions have asked.
    took_asked: Option<Instant>,
    /// When somebody last waited for the work to be done: who has waited finds in the ledger what came of it.
    hurried: Option<Instant>,
    /// Where it is counted for those who watch.
    shared: &'static Shared,
    database: pg_sys::Oid,
}

impl Spending {
    /// What the ledger says of this month; and whether there is something to fold.
    pub fn resume() -> Result<(Month, Spent, bool)> {
        let month = Month::of(SystemTime::now());
        Ok((month, Spent::read(month)?, log::has_rows()?))
    }

    pub fn new(
        (month, spent, has_rows): (Month, Spent, bool),
        shared: &'static Shared,
        database: pg_sys::Oid,
    ) -> Spending {
        Spending {
            shared,
            database,
            open: Open::default(),
            rows: 0,
            fold_at: has_rows.then(Instant::now),
            fold_from: Instant::now(),
            month,
            spent,
            notices: None,
            budgets_due: true,
            say_again: None,
            took_asked: None,
            hurried: None,
        }
    }

    /// A request has been answered.
    pub fn sent(&mut self, payer: &Rc<Payer>, sent: Sent) {
        if let Some(money) = self.money_of(payer.pipeline) {
            money.cost.add(payer.cost(sent.tokens));
        }
        self.add(payer, sent, 0);
    }

    /// Sessions have asked, for a pipeline that runs under that number.
    fn asked(&mut self, payer: &Rc<Payer>, sent: Sent, pipeline: Option<i32>) {
        if let Some(money) = pipeline.and_then(|id| self.money_of(id)) {
            money.queries.fetch_add(sent.requests, Relaxed);
            money.query_tokens.fetch_add(sent.tokens, Relaxed);
            money.cost.add(payer.cost(sent.tokens));
        }
        self.add(payer, sent, sent.requests);
    }

    fn money_of(&self, pipeline: i32) -> Option<&'static Money> {
        let counters = self.shared.counters(self.database, pipeline)?;
        Some(&self.shared.meters(counters).money)
    }

    fn add(&mut self, payer: &Rc<Payer>, sent: Sent, queries: u64) {
        let bill = Bill {
            sent,
            queries,
            ..Bill::default()
        };
        self.open.add(payer, bill);
        let cost = payer.cost(sent.tokens);
        self.spent
            .add(payer.account, &payer.server, &payer.currency, cost);
        self.budgets_due |= cost > 0.0;
    }

    /// Something did not have to be sent.
    pub fn saved(&mut self, payer: &Rc<Payer>, saved: Saved) {
        if saved == Saved::default() {
            return;
        }
        if let Some(money) = self.money_of(payer.pipeline) {
            for (reason, spared) in [saved.coalesced, saved.unchanged, saved.known]
                .iter()
                .enumerate()
            {
                money.spared[reason].fetch_add(spared.count, Relaxed);
                money.spared_tokens[reason].fetch_add(spared.tokens, Relaxed);
                money.spared_cost[reason].add(payer.cost(spared.tokens));
            }
        }
        let bill = Bill {
            saved,
            ..Bill::default()
        };
        self.open.add(payer, bill);
    }

    /// What has become of bills that were to be written.
    pub fn settle(&mut self, bills: Bills, written: bool) {
        if !written {
            return self.open.put_back(bills);
        }
        if !bills.is_empty() {
            self.rows += bills.len();
            let now = Instant::now();
            let at = self.fold_at.get_or_insert(now + FOLD);
            if self.rows >= MOST_ROWS {
                *at = (*at).min(self.fold_from.max(now));
            }
        }
    }

    /// Somebody waits for the work to be done: what it has cost is to be in the ledger by then.
    pub fn hurry(&mut self) {
        self.hurried = Some(Instant::now());
    }

    /// Budgets or prices may be others.
    pub fn look_at_budgets(&mut self) {
        self.notices = None; // somebody may have taken back what was said
        self.budgets_due = true;
    }

    /// Whether nothing more is sent for a pipeline, as far as is known.
    pub fn stops(&self, pipeline: i32) -> bool {
        let notices = self.notices.as_ref();
        let notice = notices.and_then(|notices| notices.get(&pipeline));
        notice.is_some_and(|notice| notice.stops)
    }

    /// In how long there is something to do, but for what sessions ask.
    fn next(&self) -> Duration {
        let open = self.open.since().map(|since| since + AGE);
        let next = open.into_iter().chain(self.fold_at);
        let next = next.chain(self.say_again).min();
        let next = next.map(|at| at.saturating_duration_since(Instant::now()));
        let left = self.month.left(SystemTime::now());
        next.unwrap_or(left).min(left)
    }

    /// What is to be said of a pipeline's budgets.
    fn notice(&self, running: &Running) -> Option<(Notice, Figures)> {
        let (of_pipeline, of_server) = (
            running.pipeline.monthly_budget,
            running.endpoint.monthly_budget,
        );
        of_pipeline.or(of_server)?;
        let (payer, currency) = (&running.payer, &running.payer.currency);
        let own = of_pipeline.map(|budget| {
            let of_account = (payer.account, currency.clone());
            (budget, self.spent.by_account.get(&of_account), None)
        });
        let of_server = of_server.map(|budget| {
            let of_server = (payer.server.clone(), currency.clone());
            let spent = self.spent.by_server.get(&of_server);
            (budget, spent, Some(payer.server.as_str()))
        });
        let accounts = own.into_iter().chain(of_server);
        let accounts: Vec<Account> = accounts
            .map(|(budget, spent, server)| Account {
                budget,
                spent: spent.copied().unwrap_or(0.0),
                currency,
                server,
            })
            .collect();
        // What has no price, as a model of one's own, spends nothing.
        payer.price_per_million_tokens.as_ref()?;
        let (notice, account) = budget::notice(&accounts)?;
        let figures = Figures {
            server: payer.server.clone(),
            spent: account.spent,
            budget: account.budget,
            currency: currency.clone(),
        };
        Some((notice, figures))
    }
}

impl Leader {
    /// Pipelines whose budget is spent send nothing more, from now on; those that have one again go on.
    pub(super) fn watch_budgets(&mut self) -> std::result::Result<(), Failed> {
        self.take_asked()?;
        let month = Month::of(SystemTime::now());
        if month != self.spending.month {
            self.write_bills(true)?;
            self.spending.spent = transaction(|| Spent::read(month))?;
            self.spending.month = month;
            self.spending.budgets_due = true;
        }
        let again = self.spending.say_again.take_if(|at| *at <= Instant::now());
        if !std::mem::take(&mut self.spending.budgets_due) && again.is_none() {
            return Ok(());
        }
        let (mut notices, mut figures) = (Notices::new(), BTreeMap::new());
        for (id, state) in &mut self.pipelines {
            let Some(running) = state.running() else {
                continue;
            };
            let notice = self.spending.notice(running);
            let is_spent = notice.as_ref().is_some_and(|(notice, _)| notice.stops);
            if running.is_spent && !is_spent {
                running.claims.start_over();
                let name = &running.pipeline.relation;
                log!("recsync worker: pipeline {name} has a budget again");
            }
            running.is_spent = is_spent;
            if let Some((notice, of_notice)) = notice {
                notices.insert(*id, notice);
                figures.insert(*id, of_notice);
            }
        }
        if self.spending.notices.as_ref() == Some(&notices) || self.spending.say_again.is_some() {
            return Ok(());
        }
        let pipelines: Vec<i32> = self.pipelines.keys().copied().collect();
        let said = transaction(|| {
            Spi::run("SET LOCAL lock_timeout = '50ms'")?;
            let news = budget::publish(&pipelines, &notices, month)?;
            for (id, _) in &news {
                if let Some(of) = figures.get(id) {
                    outbox::budget(*id, &of.server, of.spent, of.budget, &of.currency)?;
                }
            }
            Ok(news)
        });
        let Ok(news) = said else {
            // Somebody has changed a budget and not committed yet: what is stopped is stopped, and is said later.
            self.spending.say_again = Some(Instant::now() + AGE);
            return Ok(());
        };
        self.tell(news);
        self.spending.notices = Some(notices);
        self.jobs_ended = true; // who waits is told
        self.spending.hurry();
        Ok(())
    }

    /// A line in the server's log for each pipeline or server of which there is news.
    fn tell(&mut self, news: Vec<(i32, String)>) {
        let mut told = Vec::new();
        for (id, text) in news {
            let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                continue;
            };
            let of_server =
                running.endpoint.monthly_budget.is_some() && text.contains(" of server ");
            if of_server && told.contains(&text) {
                continue;
            }
            ereport!(
                WARNING,
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!(
                    "recsync worker: pipeline {}: {text}",
                    running.pipeline.relation
                )
            );
            told.push(text);
        }
    }

    /// In how long there is something to do here.
    pub(super) fn next_spending(&self) -> Duration {
        let next = self.spending.next();
        self.next_asked().map_or(next, |asked| next.min(asked))
    }

    /// In how long it is looked for what sessions have asked; `None`: nothing.
    fn next_asked(&self) -> Option<Duration> {
        let database = self.database_oid().to_u32();
        let took = self.spending.took_asked;
        let next = took.map_or(Duration::ZERO, |at| AGE.saturating_sub(at.elapsed()));
        self.shared.asked.has_news(database).then_some(next)
    }

    /// What sessions have asked for since, once a second.
    fn take_asked(&mut self) -> std::result::Result<(), Failed> {
        if self.next_asked().is_none_or(|next| !next.is_zero()) {
            return Ok(());
        }
        self.spending.took_asked = Some(Instant::now());
        let asked = self.shared.asked.take(self.database_oid().to_u32());
        let payers = transaction(|| asked.iter().map(|(asker, _)| payer(*asker)).collect())?;
        let payers: Vec<Option<Payer>> = payers;
        for (payer, (_, sent)) in payers.into_iter().zip(asked) {
            if let Some(payer) = payer {
                let id = self.runs_for_account(payer.account);
                self.spending.asked(&Rc::new(payer), sent, id);
            }
        }
        Ok(())
    }

    /// Under which number the pipeline runs that has this account: that of its generation in service.
    fn runs_for_account(&mut self, account: i32) -> Option<i32> {
        let mut running = self.pipelines.values_mut().filter_map(State::running);
        let serves =
            |one: &&mut Running| one.payer.account == account && one.pipeline.of_pipeline.is_none();
        running.find(serves).map(|running| running.pipeline.id)
    }

    /// Bills that no store takes along, or all of them; and what was appended becomes days when it is time.
    pub(super) fn write_bills(&mut self, all: bool) -> std::result::Result<(), Failed> {
        let age = if all { Duration::ZERO } else { AGE };
        let hurries = self.spending.hurried.is_some_and(|at| at.elapsed() < HURRY);
        let (pipelines, writers) = (&mut self.pipelines, &self.writers);
        let is_waited_for = |id| {
            let running = pipelines.get_mut(&id).and_then(State::running);
            running
                .is_some_and(|running| !running.unstored.is_empty() || !writers.rows(id).is_empty())
        };
        let due = self.spending.open.take_due(age, hurries, is_waited_for);
        if !due.is_empty() {
            let written = transaction(|| log::append(&due));
            self.spending.settle(due, written.is_ok());
            written?;
        }
        self.fold();
        Ok(())
    }

    fn fold(&mut self) {
        let spending = &mut self.spending;
        let now = Instant::now();
        if spending.fold_at.is_none_or(|at| at > now) {
            return;
        }
        let folded = transaction(|| {
            Spi::run("SET LOCAL synchronous_commit = off")?;
            log::fold()
        });
        spending.rows = 0;
        spending.fold_from = now + AGAIN;
        // A failure is a lock that somebody holds: another time.
        spending.fold_at = folded.is_err().then_some(spending.fold_from);
    }
}

/// Who pays for what a session has asked; `None`: the server is gone.
fn payer(asker: Asker) -> Result<Option<Payer>> {
    let named = server::by_number(pg_sys::Oid::from(asker.server))?;
    Ok(named
        .map(|(server, endpoint)| Payer::new(asker.pipeline, asker.pipeline, &server, &endpoint)))
}
