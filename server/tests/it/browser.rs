//! A real Chromium without a window, driven over WebDriver: JSON over HTTP, spoken by chromedriver. Tests of the
//! program share it.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Time for one command, and for what a page is to come to.
const PATIENCE: Duration = Duration::from_secs(30);
/// The key of an element's id in WebDriver's answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A browser with one page, which ends with the test.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    /// The browser's own process, while there is one.
    process: Option<u64>,
    _profile: TempDir,
}

/// A program where a variable or Debian says that it is.
fn program(variable: &str, usual: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).map_or_else(|| usual.into(), PathBuf::from);
    path.is_file().then_some(path)
}

impl Browser {
    /// None, and a word on stderr, where no browser is installed.
    pub(crate) fn start() -> Option<Self> {
        let chromium = program("CHROMIUM", "/usr/bin/chromium");
        let driver = program("CHROMEDRIVER", "/usr/bin/chromedriver");
        let (Some(chromium), Some(driver)) = (chromium, driver) else {
            // Past the harness, which keeps what tests print to itself.
            let words = "SKIPPED: the page was not tested, since there is no browser: install chromium and \
                chromium-driver, or set CHROMIUM and CHROMEDRIVER\n";
            std::io::stderr().write_all(words.as_bytes()).unwrap();
            return None;
        };
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            line.strip_suffix('.')?.rsplit_once("successfully on port ")?.1.parse::<u16>().ok()
        });
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Browser {
            driver,
            address: ([127, 0, 0, 1], port.expect("chromedriver says its port")).into(),
            session: String::new(),
            process: None,
            _profile: profile,
        };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([profile.as_str()]).collect();
        let options = json!({"binary": chromium, "args": flags});
        let wanted = json!({
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
        });
        let made = browser.call("POST", "/session", &json!({"capabilities": {"alwaysMatch": wanted}}));
        browser.session = made["sessionId"].as_str().unwrap().to_owned();
        browser.process = made["capabilities"]["goog:processID"].as_u64();
        Some(browser)
    }

    /// Status and body of an answer. The driver keeps connections open, so the body's length is what counts.
    fn try_call(&self, method: &str, path: &str, body: &Value) -> std::io::Result<(bool, Value)> {
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let (host, length) = (self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nContent-Type: \
             application/json\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut reader = BufReader::new(stream);
        let (mut status, mut length) = (String::new(), 0);
        reader.read_line(&mut status)?;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            if let Some(told) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = told.trim().parse().map_err(std::io::Error::other)?;
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok((status.contains(" 200 "), serde_json::from_slice(&body)?))
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.try_call(method, path, body);
        let (is_good, mut answer) = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(is_good, "{path}: {answer}");
        answer["value"].take()
    }

    /// A command of the session.
    #[track_caller]
    fn command(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("/session/{}/{path}", self.session), body)
    }

    pub(crate) fn open(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// What a script returns.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn wait(&self, expression: &str) {
        let begun = Instant::now();
        while self.run(&format!("return Boolean({expression})")) != json!(true) {
            let page = self.run("return document.body.innerText");
            assert!(begun.elapsed() < PATIENCE, "{expression} never came to be in {page}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let found = self.command("element", &json!({"using": "css selector", "value": selector}));
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// A click where a person would click: what cannot be seen or reached fails.
    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        self.command(&format!("element/{}/click", self.element(selector)), &json!({}));
    }

    /// Types into a field.
    #[track_caller]
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        self.command(&format!("element/{}/value", self.element(selector)), &json!({"text": text}));
    }

    /// Chooses a file.
    #[track_caller]
    pub(crate) fn choose(&self, selector: &str, file: &Path) {
        self.fill(selector, file.to_str().unwrap());
    }

    /// Makes the page as wide as a screen of so many pixels.
    pub(crate) fn widen(&self, width: u32) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": size});
        self.command("goog/cdp/execute", &command);
    }

    /// Makes the page as it is for people who prefer `light` or `dark`, on a `screen` or in `print`.
    #[allow(dead_code)] // the program's pages are shown so
    pub(crate) fn show_as(&self, scheme: &str, medium: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let media = json!({"media": medium, "features": features});
        self.command("goog/cdp/execute", &json!({"cmd": "Emulation.setEmulatedMedia", "params": media}));
    }

    /// The page as it looks, a PNG file.
    #[allow(dead_code)] // for people who want to see it
    pub(crate) fn picture(&self) -> Vec<u8> {
        let command = json!({"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": true}});
        let taken = self.command("goog/cdp/execute", &command);
        base64(taken["data"].as_str().unwrap())
    }

    /// What went wrong in the page, in its console's words.
    pub(crate) fn complaints(&self) -> Vec<Value> {
        let log = self.command("se/log", &json!({"type": "browser"}));
        log.as_array().unwrap().iter().filter(|line| line["level"] == "SEVERE").cloned().collect()
    }
}

/// Bytes out of their letters.
fn base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let letters: Vec<u8> = text.bytes().filter(|letter| *letter != b'=').map(value).collect();
    let group = |group: &[u8]| {
        let bits =
            group.iter().fold(0_u32, |bits, six| bits << 6 | u32::from(*six)) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    letters.chunks(4).flat_map(group).collect()
}

impl Drop for Browser {
    fn drop(&mut self) {
        let ended = self.try_call("DELETE", &format!("/session/{}", self.session), &Value::Null);
        if ended.is_err()
            && let Some(process) = self.process
        {
            let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
