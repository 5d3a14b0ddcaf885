//! Whether recsync does its work, and if not, why: for `recsync.health()` and `/healthz`.
//!
//! What somebody has decided (a pause, `recsync.enabled`) is no fault. It never looks at anything but a snapshot.

use serde::Serialize;

use super::snapshot::{DatabaseView, PipelineView, Snapshot, State, Worker};

/// A server that fails for so long is no hiccup: its breaker asks it again every minute at the latest.
const PATIENCE: f64 = 60.0;

/// One thing that was looked at.
#[derive(Debug, PartialEq, Serialize)]
pub struct Check {
    pub check_name: &'static str,
    /// The database, with the pipeline or recommender where it is about one; empty: the cluster.
    pub subject: String,
    pub ok: bool,
    pub detail: String,
    /// What to do about it.
    pub hint: String,
}

impl Check {
    fn fine(check_name: &'static str, subject: String, detail: impl Into<String>) -> Check {
        Check {
            check_name,
            subject,
            ok: true,
            detail: detail.into(),
            hint: String::new(),
        }
    }

    fn fault(
        check_name: &'static str,
        subject: String,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Check {
        Check {
            check_name,
            subject,
            ok: false,
            detail: detail.into(),
            hint: hint.into(),
        }
    }
}

pub fn checks(snapshot: &Snapshot) -> Vec<Check> {
    let mut checks = vec![launcher(snapshot)];
    if !snapshot.enabled {
        checks.push(Check::fine(
            "enabled",
            String::new(),
            "recsync.enabled is off: changes are logged, nothing is sent",
        ));
    }
    for database in &snapshot.databases {
        checks.push(worker(database));
        for pipeline in &database.pipelines {
            let subject = format!("{}: {}", database.name, pipeline.name);
            checks.push(state(pipeline, subject.clone()));
            if pipeline.kind != "recommender" && pipeline.state != State::Stopped {
                checks.push(provider(pipeline, subject));
            }
        }
    }
    checks
}

fn launcher(snapshot: &Snapshot) -> Check {
    match snapshot.launcher {
        true if snapshot.standby => Check::fine(
            "launcher",
            String::new(),
            "this is a standby: there are no workers until it is promoted",
        ),
        true => Check::fine("launcher", String::new(), "it runs"),
        false => Check::fault(
            "launcher",
            String::new(),
            "it does not run",
            "The server starts it again within a second or two; if it does not last, the server's log says why.",
        ),
    }
}

fn worker(database: &DatabaseView) -> Check {
    let subject = database.name.clone();
    match database.worker {
        Worker::Runs => Check::fine("worker", subject, "it runs"),
        Worker::GaveWay => Check::fine(
            "worker",
            subject,
            "it has nothing to do, and comes back with the next change",
        ),
        Worker::Held => Check::fine("worker", subject, "a command holds it off for the moment"),
        Worker::Standby => Check::fine("worker", subject, "there is none on a standby"),
        Worker::Suspended => Check::fault(
            "worker",
            subject,
            "the library and the extension are of different versions",
            "Run ALTER EXTENSION recsync UPDATE in this database.",
        ),
        Worker::LacksSlot => Check::fault(
            "worker",
            subject,
            "there is no slot for it: databases are served in turn",
            "Raise recsync.max_workers, and max_worker_processes (with a restart).",
        ),
        Worker::Starting => Check::fault(
            "worker",
            subject,
            "it does not run (yet)",
            "It is started within a second; if it ends again and again, the server's log says why.",
        ),
    }
}

fn state(pipeline: &PipelineView, subject: String) -> Check {
    match pipeline.state {
        State::Paused => Check::fine(pipeline.kind, subject, "somebody has paused it"),
        State::Stopped => Check::fault(
            pipeline.kind,
            subject,
            "recsync has paused it, because it cannot go on",
            "paused_reason in recsync.status says why; mend that, then call recsync.resume.",
        ),
        State::BudgetSpent => Check::fine(
            pipeline.kind,
            subject,
            "its monthly budget, or its server's, is spent: it waits for the next month or a higher one",
        ),
        State::Disabled => Check::fine(pipeline.kind, subject, "it rests, by recsync.enabled"),
        State::Waiting => Check::fine(pipeline.kind, subject, "it waits for the worker"),
        State::ProviderDown | State::Running => Check::fine(pipeline.kind, subject, "it runs"),
    }
}

fn provider(pipeline: &PipelineView, subject: String) -> Check {
    let failing = pipeline.provider.failing_seconds;
    if failing < PATIENCE {
        return Check::fine("provider", subject, "it answers, or has not been asked");
    }
    let last = pipeline.failures.first();
    let status = last.and_then(|last| last.failure.status);
    Check::fault(
        "provider",
        subject,
        format!(
            "server {} has failed for {failing:.0} s{}",
            pipeline.server,
            status.map_or(String::new(), |status| format!(" (HTTP {status})")),
        ),
        "Nothing is lost, and what waits is sent when it answers again. recsync.errors says what it answers with.",
    )
}

/// Of several, what `/healthz` says: whether all are fine, and those that are not.
#[derive(Debug, Serialize)]
pub struct Health {
    pub ok: bool,
    pub version: &'static str,
    pub standby: bool,
    pub faults: Vec<Check>,
}

impl Health {
    pub fn of(snapshot: &Snapshot) -> Health {
        let faults: Vec<Check> = checks(snapshot)
            .into_iter()
            .filter(|check| !check.ok)
            .collect();
        Health {
            ok: faults.is_empty(),
            version: snapshot.version,
            standby: snapshot.standby,
            faults,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Snapshot {
        Snapshot {
            launcher: true,
            enabled: true,
            databases: vec![DatabaseView {
                name: "shop".into(),
                pipelines: vec![PipelineView {
                    kind: "pipeline",
                    name: "public.product_embedding".into(),
                    ..PipelineView::default()
                }],
                ..DatabaseView::default()
            }],
            ..Snapshot::default()
        }
    }

    /// The names of what is not fine after a change.
    fn faults(change: impl FnOnce(&mut Snapshot)) -> Vec<&'static str> {
        let mut snapshot = healthy();
        change(&mut snapshot);
        let health = Health::of(&snapshot);
        assert_eq!(health.ok, health.faults.is_empty());
        assert!(health.faults.iter().all(|fault| !fault.hint.is_empty()));
        health.faults.iter().map(|fault| fault.check_name).collect()
    }

    #[test]
    fn what_keeps_it_from_its_work_is_a_fault_and_says_what_to_do() {
        assert_eq!(faults(|_| ()), [""; 0]);
        assert_eq!(faults(|s| s.launcher = false), ["launcher"]);
        for worker in [Worker::Suspended, Worker::LacksSlot, Worker::Starting] {
            assert_eq!(faults(|s| s.databases[0].worker = worker), ["worker"]);
        }
        let stop = |s: &mut Snapshot| s.databases[0].pipelines[0].state = State::Stopped;
        assert_eq!(faults(stop), ["pipeline"]);
        let fail = |s: &mut Snapshot| s.databases[0].pipelines[0].provider.failing_seconds = 61.0;
        assert_eq!(faults(fail), ["provider"]);
    }

    #[test]
    fn what_somebody_decided_or_what_passes_is_none() {
        assert_eq!(faults(|s| s.enabled = false), [""; 0]);
        let pause = |s: &mut Snapshot| s.databases[0].pipelines[0].state = State::Paused;
        assert_eq!(faults(pause), [""; 0]);
        let hiccup = |s: &mut Snapshot| s.databases[0].pipelines[0].provider.failing_seconds = 3.0;
        assert_eq!(faults(hiccup), [""; 0]);
        for worker in [Worker::GaveWay, Worker::Held, Worker::Standby] {
            assert_eq!(faults(|s| s.databases[0].worker = worker), [""; 0]);
        }
    }
}
