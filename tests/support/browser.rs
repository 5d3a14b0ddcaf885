//! A headless Chromium, driven by chromedriver's WebDriver protocol. It opens pages of the loopback address only.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::numbers::free_address;
use super::wait::{PATIENCE, wait_until};

pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    address: SocketAddr,
    session: String,
}

impl Browser {
    /// `None` where the machine has none, which is a failure at night.
    pub fn start() -> Option<Browser> {
        let Some(driver) = driver() else {
            let what = "not looked at in a browser: install chromium and chromium-driver";
            assert!(std::env::var_os("RECSYNC_NIGHTLY").is_none(), "{what}");
            println!("{what}");
            return None;
        };
        let address = free_address();
        let driver = Command::new(driver)
            .arg(format!("--port={}", address.port()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver");
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(60)));
        let mut browser = Browser {
            driver,
            agent: config.build().into(),
            address,
            session: String::new(),
        };
        wait_until(PATIENCE, "chromedriver is ready", || {
            browser
                .try_ask("GET", "/status", None)
                .is_some_and(|status| status["ready"] == true)
        });
        let session = browser.ask(
            "POST",
            "/session",
            json!({"capabilities": {"alwaysMatch": {
                "browserName": "chrome",
                "goog:loggingPrefs": {"browser": "ALL"},
                "goog:chromeOptions": {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]},
            }}}),
        );
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn try_ask(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
        let url = format!("http://{}{path}", self.address);
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(url)
            .header("Content-Type", "application/json")
            .body(body.map(Value::to_string).unwrap_or_default())
            .unwrap();
        let mut answer = self.agent.run(request).ok()?;
        let answer = answer.body_mut().with_config().limit(50_000_000);
        let answer: Value = serde_json::from_str(&answer.read_to_string().ok()?).ok()?;
        Some(answer["value"].clone())
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.try_ask(method, path, Some(&body));
        let answer = answer.unwrap_or_else(|| panic!("chromedriver does not answer {path}"));
        assert!(answer["error"].is_null(), "{path}: {answer}");
        answer
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value) -> Value {
        self.ask("POST", &format!("{}{path}", self.session), body)
    }

    pub fn open(&self, url: &str) {
        self.post("/url", json!({"url": url}));
    }

    /// What a script returns that runs in the page.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": []}))
    }

    fn command(&self, name: &str, parameters: &Value) -> Value {
        self.post(
            "/goog/cdp/execute",
            json!({"cmd": name, "params": parameters}),
        )
    }

    /// Of so many pixels of CSS in width; what the person likes: `light` or `dark`.
    pub fn look(&self, width: u32, scheme: &str) {
        self.command(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}),
        );
        let scheme = json!({"name": "prefers-color-scheme", "value": scheme});
        self.command("Emulation.setEmulatedMedia", &json!({"features": [scheme]}));
    }

    /// The whole page, as a PNG.
    pub fn picture(&self) -> Vec<u8> {
        let picture = self.command(
            "Page.captureScreenshot",
            &json!({"captureBeyondViewport": true}),
        );
        STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()
    }

    /// What the console has said since the last call.
    pub fn console(&self) -> Vec<String> {
        let lines = self.post("/se/log", json!({"type": "browser"}));
        let lines = lines.as_array().unwrap().iter();
        lines.map(Value::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.try_ask("DELETE", &self.session, None);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Where chromedriver is.
fn driver() -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/setup/browser.sh");
    let output = Command::new(script).output().expect(script);
    let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    (output.status.success() && !path.is_empty()).then_some(path)
}
