//! The status page in a browser: what it shows when things go well, and when they do not. It needs Chromium.

use std::path::Path;

use crate::support::browser::Browser;
use crate::support::numbers::{free_address, get};
use crate::support::{Api, Cluster, Database, PATIENCE, Receiver, Sql, eventually, wait_until};

/// The cell of a row in a table: its text.
fn cell(browser: &Browser, table: &str, row: &str, column: &str) -> String {
    let script = format!(
        "const row = [...document.querySelectorAll('#{table} tbody tr')].find((row) => row.cells[0].textContent === '{row}');
         const cell = row && [...row.cells].find((cell) => cell.dataset.name === '{column}');
         return cell ? cell.textContent : '';"
    );
    let text = browser.run(&script);
    text.as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn wait_for(browser: &Browser, (table, row, column): (&str, &str, &str), wanted: &str) {
    let shown = || cell(browser, table, row, column);
    if !eventually(PATIENCE, || shown().starts_with(wanted)) {
        panic!(
            "{column} of {row} is not {wanted}: {}\n{}",
            shown(),
            browser.run("return document.body.innerText")
        );
    }
}

/// A pipeline that is well, one that fails, one that somebody has paused, one that recsync has, one whose budget is
/// spent; a recommender; a hook whose receiver is not there.
fn every_state<'a>(cluster: &'a Cluster, api: &Api, failing: &Api) -> Database<'a> {
    let mut db = cluster.database();
    db.items(api, "max_attempts '1', price_per_million_tokens '1000'");
    api.refuse_texts_with("bad", 400);
    db.run("INSERT INTO item SELECT i, CASE WHEN i % 40 = 0 THEN 'bad ' ELSE 'text number ' END || i FROM generate_series(1, 200) i");
    db.settle("item_embedding");
    db.run("SELECT recsync.set_budget('item_embedding', 1)");
    for (table, server) in [
        ("paused", "api"),
        ("stopped", "api"),
        ("spent", "api"),
        ("fails", "failing"),
    ] {
        if server == "failing" {
            db.server("failing", failing, "");
        }
        db.run(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, title text); INSERT INTO {table} SELECT i, 'text ' || i FROM generate_series(1, 5) i"
        ));
        db.run(&format!("SELECT recsync.create_pipeline('{table}_embedding', '{table}', columns => '{{title}}', server => '{server}', index => 'none')"));
        db.settle(&format!("{table}_embedding"));
    }
    db.run("SELECT recsync.pause('paused_embedding'); ALTER TABLE stopped DROP COLUMN title; SELECT recsync.set_budget('spent_embedding', 0.001)");
    db.run(
        "CREATE TABLE event (id int PRIMARY KEY, user_id int NOT NULL, item_id int NOT NULL REFERENCES item, created_at timestamptz NOT NULL DEFAULT now());
         SELECT recsync.create_recommender('shop', items => 'item', interactions => 'event', user_column => 'user_id');
         INSERT INTO event SELECT i, i % 3, 1 + i % 5 FROM generate_series(1, 10) i",
    );
    db.settle("shop");
    db.run("SELECT FROM shop_recommend(1); SELECT FROM shop_recommend(2)");
    db
}

/// Texts that are too pale for what is behind them, by WCAG 2: less than 4.5 to 1.
const PALE: &str = "
const light = (text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color;
  }
  return 'rgb(255, 255, 255)';
};
const pale = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.offsetParent || ['SCRIPT', 'NOSCRIPT'].includes(element.tagName)) continue;
  const [one, other] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
  const contrast = (one + 0.05) / (other + 0.05);
  if (contrast < 4.5) pale.push(`${element.textContent}: ${contrast.toFixed(2)}`);
}
return pale;";

#[test]
fn the_page_follows_a_pipeline_that_fails_and_recovers_without_a_word_on_the_console() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let address = free_address();
    let cluster = Cluster::start(&[("recsync.metrics_listen", &address.to_string())]);
    let api = Api::start();
    api.announce(&[
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "42"),
        ("x-ratelimit-reset-requests", "1h"),
    ]);
    let mut db = cluster.database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    wait_until(PATIENCE, "it is well", || {
        get(address, "/healthz").status == 200
    });
    browser.open(&format!("http://{address}/"));
    let state = ("pipelines", "public.item_embedding", "State");
    wait_for(&browser, state, "● running");
    for (column, left) in [
        ("Requests left now", "42limit 60"),
        ("Tokens left now", "no limit"),
    ] {
        wait_for(&browser, ("providers", "api", column), left);
    }
    // What is there is changed, not made anew: whoever reads or has selected something is not disturbed.
    browser.run("window.row = document.querySelector('#pipelines tbody tr'); window.scroll = 0;");
    api.down();
    db.run("INSERT INTO item VALUES (2, 'two')");
    wait_for(&browser, state, "▲ its server fails");
    wait_for(
        &browser,
        ("pipelines", "public.item_embedding", "Last error"),
        "provider",
    );
    wait_for(&browser, ("providers", "api", "Breaker"), "✕ open");
    api.up();
    wait_for(&browser, state, "● running");
    wait_for(&browser, ("providers", "api", "Breaker"), "● closed");
    db.settle("item_embedding");
    db.run("DELETE FROM item WHERE id = 1");
    let kept = browser.run("return window.row.isConnected && window.row === document.querySelector('#pipelines tbody tr')");
    assert_eq!(kept, true, "the row was made anew");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn every_state_is_readable_in_light_and_dark_and_on_a_phone() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let address = free_address();
    let cluster = Cluster::start(&[("recsync.metrics_listen", &address.to_string())]);
    let (api, failing) = (Api::start(), Api::start());
    let mut db = every_state(&cluster, &api, &failing);
    failing.down();
    let receiver = Receiver::start();
    db.run(&format!(
        "CREATE SERVER hooks FOREIGN DATA WRAPPER recsync OPTIONS (api 'webhook', url '{}', api_key_env 'TEST_HOOK_API_KEY');
         SELECT recsync.create_hook('told', 'embedded', 'hooks', '/told', listens_to => 'item_embedding');",
        receiver.url()
    ));
    db.run("INSERT INTO item VALUES (1001, 'new'); INSERT INTO fails VALUES (6, 'six')");
    receiver.wait_for(1);
    browser.open(&format!("http://{address}/"));
    for (row, state) in [
        ("item", "● running"),
        ("paused", "❚❚ paused"),
        ("stopped", "✕ stopped"),
        ("spent", "✕ budget is spent"),
        ("fails", "▲ its server fails"),
    ] {
        let row = format!("public.{row}_embedding");
        wait_for(&browser, ("pipelines", &row, "State"), state);
    }
    wait_for(&browser, ("hooks", "public.told", "Arrived"), "1");
    wait_for(
        &browser,
        ("recommenders", "public.shop", "Lists that were ready"),
        "",
    );
    wait_for(
        &browser,
        ("money", "public.item_embedding", "Its budget"),
        "",
    );
    for (name, width, scheme) in [
        ("light", 1280, "light"),
        ("dark", 1280, "dark"),
        ("narrow", 390, "light"),
        ("narrow-dark", 390, "dark"),
    ] {
        browser.look(width, scheme);
        let wide = browser
            .run("return document.documentElement.scrollWidth")
            .as_u64();
        assert!(wide <= Some(width.into()), "{name}: {wide:?} wide");
        let pale = browser.run(PALE);
        assert_eq!(pale.as_array().unwrap().len(), 0, "{name}: {pale}");
        if let Some(folder) = std::env::var_os("RECSYNC_SCREENSHOTS") {
            let file = Path::new(&folder).join(format!("{name}.png"));
            std::fs::write(file, browser.picture()).unwrap();
        }
    }
    assert_eq!(browser.console(), [""; 0]);
}
