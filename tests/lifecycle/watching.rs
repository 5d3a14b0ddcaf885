//! recsync.metrics_listen: what is served over HTTP, to whom, when, and that it is in nobody's way.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::numbers::{Numbers, ask, free_address, get, get_json};
use crate::support::{Api, Cluster, PATIENCE, Sql, wait_until};

fn listening(address: SocketAddr) -> Cluster {
    Cluster::start(&[("recsync.metrics_listen", &address.to_string())])
}

fn wait_until_listening(address: SocketAddr) {
    wait_until(PATIENCE, "it listens", || {
        ask(address, "GET", "/healthz").is_some()
    });
}

#[test]
fn metrics_health_and_status_are_served_without_a_text_of_a_row() {
    let address = free_address();
    let cluster = listening(address);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "max_attempts '1'");
    db.settle("item_embedding");
    api.echo_in_errors();
    api.refuse_texts_with("secret", 400);
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'a secret')");
    db.settle("item_embedding");
    let labels = [
        ("database", db.name.as_str()),
        ("pipeline", "public.item_embedding"),
    ];
    wait_until(PATIENCE, "the dead letter is seen", || {
        let numbers = Numbers::parse(&get(address, "/metrics").body);
        numbers.find("recsync_dead_letters", &labels) == Some(1.0)
    });
    let metrics = get(address, "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .head
            .contains("application/openmetrics-text; version=1.0.0"),
        "{}",
        metrics.head
    );
    assert_eq!(
        Numbers::parse(&metrics.body).of("recsync_vectors_stored_total", &labels),
        1.0
    );

    let health = get(address, "/healthz");
    assert_eq!(health.status, 200, "{}", health.body);
    let status = get_json(address, "/status.json");
    let pipeline = &status["databases"][0]["pipelines"][0];
    assert_eq!(pipeline["name"], "public.item_embedding");
    assert_eq!(
        (&pipeline["state"], &pipeline["embedded"]),
        (&"running".into(), &1.into())
    );
    assert_eq!(pipeline["failures"][0]["status"], 400);
    assert_eq!(
        status["bounds"].as_array().unwrap().len() + 1,
        pipeline["latency"][0]["counts"].as_array().unwrap().len()
    );
    for body in [
        &metrics.body,
        &health.body,
        &status.to_string(),
        &get(address, "/").body,
    ] {
        assert!(
            !body.contains("secret") && !body.contains("TEST_API_KEY"),
            "{body}"
        );
    }

    assert_eq!(ask(address, "POST", "/metrics").unwrap().status, 405);
    assert_eq!(get(address, "/other").status, 404);
    let head = ask(address, "HEAD", "/").unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    db.run("ALTER TABLE item DROP COLUMN title");
    wait_until(PATIENCE, "it is unwell", || {
        get(address, "/healthz").status == 503
    });
    let health = get_json(address, "/healthz");
    assert_eq!(health["ok"], false);
    assert_eq!(health["faults"][0]["check_name"], "pipeline");
    assert!(
        health["faults"][0]["subject"]
            .as_str()
            .unwrap()
            .contains("item_embedding")
    );
}

#[test]
fn it_listens_where_it_is_told_from_the_next_reload_on_and_a_port_in_use_is_a_warning_once() {
    let (one, other) = (free_address(), free_address());
    let cluster = listening(one);
    let mut client = cluster.connect("postgres");
    const LAUNCHER: &str =
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync launcher'";
    wait_until_listening(one);
    let launcher: i32 = client.one(LAUNCHER);

    cluster.set("recsync.metrics_listen", &other.to_string());
    wait_until_listening(other);
    assert!(
        TcpStream::connect(one).is_err(),
        "it still listens on the old port"
    );

    let taken = TcpListener::bind(one).unwrap();
    cluster.set("recsync.metrics_listen", &one.to_string());
    let warnings = || cluster.log().matches("recsync cannot listen on").count();
    wait_until(PATIENCE, "it says that the port is in use", || {
        warnings() == 1
    });
    drop(taken);
    client.run("SELECT pg_reload_conf()");
    wait_until_listening(one);
    assert_eq!(warnings(), 1);

    cluster.set("recsync.metrics_listen", "");
    wait_until(PATIENCE, "nobody listens", || {
        TcpStream::connect(one).is_err()
    });
    let error = client.refused("ALTER SYSTEM SET recsync.metrics_listen = 'everywhere'");
    assert_eq!(error.code().code(), "22023");
    assert_eq!(
        client.one::<i32>(LAUNCHER),
        launcher,
        "the launcher was started again"
    );
}

#[test]
fn silent_connections_hold_up_neither_the_server_nor_its_shutdown() {
    let address = free_address();
    let cluster = listening(address);
    wait_until_listening(address);
    let silent: Vec<TcpStream> = (0..8)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    assert_eq!(get(address, "/healthz").status, 200);
    let took = cluster.stop_fast();
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(silent);
}

#[test]
fn a_standby_serves_its_own_numbers_and_works_once_it_is_promoted() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    db.settle("item_embedding");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    let name = db.name.clone();
    let standby = cluster.standby();
    let address = free_address();
    standby.set_for_next_start("recsync.metrics_listen", &address.to_string());
    standby.restart();
    wait_until_listening(address);
    let numbers = Numbers::parse(&get(address, "/metrics").body);
    assert_eq!(numbers.of("recsync_standby", &[]), 1.0);
    assert_eq!(get_json(address, "/healthz")["standby"], true);
    let mut client = standby.connect(&name);
    let text: String = client.one("SELECT recsync.metrics()");
    assert_eq!(Numbers::parse(&text).of("recsync_standby", &[]), 1.0);
    cluster.stop_fast();
    client.run("SELECT pg_promote()");
    client.run("INSERT INTO item VALUES (2, 'two')");
    wait_until(PATIENCE, "there is a worker", || {
        client
            .one("SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'recsync worker'")
    });
    assert!(client.one::<bool>("SELECT recsync.wait_for('item_embedding', '30 s')"));
    wait_until(PATIENCE, "it knows that it is none any more", || {
        get_json(address, "/healthz")["standby"] == false
    });
}

#[test]
fn the_page_stands_alone_and_finds_in_the_json_what_it_shows() {
    let address = free_address();
    let cluster = listening(address);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    db.settle("item_embedding");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    let page = get(address, "/");
    assert!(
        page.head
            .contains("Content-Security-Policy: default-src 'none'"),
        "{}",
        page.head
    );
    let page = page.body;
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    for resource in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!outside.contains(resource), "{resource} in the page");
    }
    for part in [
        "<html lang=",
        "name=\"viewport\"",
        "<header>",
        "<main>",
        "<footer",
        "aria-live=\"polite\"",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(part), "no {part} in the page");
    }
    assert_eq!(
        page.matches("<th ").count(),
        page.matches("scope=\"col\"").count()
    );
    for id in parts(&page, "$(\"", "\")") {
        assert!(page.contains(&format!("id=\"{id}\"")), "no element {id}");
    }
    let status = get_json(address, "/status.json");
    let (database, pipeline) = (
        &status["databases"][0],
        &status["databases"][0]["pipelines"][0],
    );
    for (what, of) in [
        ("status", &status),
        ("database", database),
        ("view", pipeline),
        ("view.provider", &pipeline["provider"]),
        ("view.money", &pipeline["money"]),
        ("view.lists", &pipeline["lists"]),
        ("status.health", &status["health"]),
    ] {
        for name in parts(&page, &format!("{what}."), "") {
            if ["json", "key", "place"].contains(&name.as_str()) {
                continue; // the address; what the page itself adds
            }
            assert!(of.get(&name).is_some(), "the page asks for {what}.{name}");
        }
    }
}

/// What stands between `before` and `after`; an empty `after`: the name that follows.
fn parts(text: &str, before: &str, after: &str) -> Vec<String> {
    let found = text.split(before).skip(1);
    let found = found.filter_map(|rest| match after {
        "" => rest
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next(),
        _ => rest.split(after).next(),
    });
    found
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn readme_dashboard_and_alerts_speak_of_metrics_that_exist_and_the_readme_of_all_of_them() {
    let address = free_address();
    let cluster = listening(address);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    db.settle("item_embedding");
    let numbers = Numbers::parse(&get(address, "/metrics").body);
    let exists = |name: &str| {
        let suffixes = ["", "_total", "_bucket", "_sum", "_count", "_info"];
        let mut bases = suffixes
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix));
        bases.any(|base| numbers.families.contains_key(base))
    };
    let file = |name: &str| {
        std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let (readme, alerts) = (file("README.md"), file("examples/monitoring/alerts.yml"));
    let dashboard = file("examples/monitoring/grafana.json");
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let section = readme
        .split("### Metrics and the status page\n")
        .nth(1)
        .unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut described = Vec::new();
    for (text, where_from) in [
        (section, "README"),
        (&alerts, "alerts"),
        (&dashboard, "dashboard"),
    ] {
        for name in parts(text, "recsync_", "")
            .iter()
            .map(|rest| format!("recsync_{rest}"))
        {
            assert!(
                name == "recsync_admin" || exists(&name),
                "{where_from}: there is no {name}"
            );
            described.push(name);
        }
    }
    for name in numbers.families.keys() {
        assert!(
            described.iter().any(|one| one.starts_with(name)),
            "nobody describes {name}"
        );
    }
    checked_by_promtool(&alerts);
    for alert in parts(&alerts, "- alert: ", "") {
        assert!(
            section.contains(&format!("| `{alert}` |")),
            "the README does not say what to do about {alert}"
        );
    }
}

/// Where it is to be had: that Prometheus would load the rules. (Its check of metrics reads the older text format only.)
fn checked_by_promtool(alerts: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/setup/promtool.sh");
    let found = Command::new(script).output().expect(script);
    let promtool = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    if promtool.is_empty() {
        println!("not checked by promtool, which is not to be had here");
        return;
    }
    let mut child = Command::new(&promtool)
        .args(["check", "rules", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(alerts.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(
        output.status.success() && said.contains("rules found"),
        "{said}"
    );
}
