//! The live page in a real browser: headless Chromium, told what to do over a pipe.
//!
//! Without Chromium the tests are skipped, unless `CI` is `true`: `apt-get install chromium`.
//! `SHARDCAST_TEST_CHROMIUM` names another program.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait for a process")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE, http, is_nats_server};
use serde_json::{Value, json};
use tempfile::TempDir;

const ARGS: &[&str] = &["-m", "-1"];
/// What a stranger may call a client to have a script run by whoever looks at it.
const EVIL: &str = r#"<img src=x onerror="document.title='taken'"><script>document.title='taken'
</script>"><svg onload=document.title='taken'>"#;

/// A browser with one page open, closed when dropped.
struct Browser {
    process: Child,
    answers: Receiver<Value>,
    session: String,
    last_id: u64,
    is_loaded: bool,
    /// What went wrong on the page: exceptions, errors, anything written to its console.
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// None where there is no browser and none is required.
    fn start() -> Option<Self> {
        let wanted = std::env::var("SHARDCAST_TEST_CHROMIUM");
        let program = wanted.unwrap_or_else(|_| "chromium".to_owned());
        let profile = tempfile::tempdir().unwrap();
        // The protocol is spoken on the descriptors 3 and 4.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh", &program]);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--disable-quic", "--no-first-run", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let answers = follow(&mut process);
        let mut browser = Self {
            process,
            answers,
            session: String::new(),
            last_id: 0,
            is_loaded: false,
            complaints: Vec::new(),
            _profile: profile,
        };
        let Some(target) = browser.ask("Target.createTarget", json!({ "url": "about:blank" }))
        else {
            let required = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!required, "{program} does not run: `apt-get install chromium`");
            println!("skipped: {program} does not run; `apt-get install chromium`");
            return None;
        };
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", target);
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Asks the browser; none if it has ended.
    fn ask(&mut self, method: &str, params: Value) -> Option<Value> {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": params });
        if !self.session.is_empty() {
            request["sessionId"] = json!(self.session);
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(0);
        self.process.stdin.as_mut().unwrap().write_all(&bytes).ok()?;
        loop {
            let message = self.answers.recv_timeout(PATIENCE).ok()?;
            if message["id"] == self.last_id {
                assert_eq!(message["error"], Value::Null, "{method}");
                return Some(message["result"].clone());
            }
            self.note(&message);
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.ask(method, params).unwrap_or_else(|| panic!("the browser has ended: {method}"))
    }

    /// Keeps what a page must not cause.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        self.is_loaded |= event["method"] == "Page.loadEventFired";
        let is_bad = match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded" => true,
            "Network.responseReceived" => params["response"]["status"].as_u64() >= Some(400),
            "Network.requestWillBeSent" => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                !["http://127.0.0.1:", "data:", "about:"].iter().any(|own| url.starts_with(own))
            }
            _ => false,
        };
        if is_bad {
            self.complaints.push(event.to_string());
        }
    }

    /// Opens a page and waits until it is there.
    fn open(&mut self, url: &str) {
        self.is_loaded = false;
        self.call("Page.navigate", json!({ "url": url }));
        while !self.is_loaded {
            let message = self.answers.recv_timeout(PATIENCE).expect("the page loads");
            self.note(&message);
        }
    }

    /// What an expression comes to on the page.
    fn value(&mut self, expression: &str) -> Value {
        let params = json!({
            "expression": expression,
            "returnByValue": true,
            "awaitPromise": true,
        });
        let answer = self.call("Runtime.evaluate", params);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true on the page.
    fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.value(expression) != true {
            let page = self.value("document.body.innerText");
            assert!(Instant::now() < deadline, "never true: {expression}\n{page}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Reads what the browser says, one message before each zero.
fn follow(process: &mut Child) -> Receiver<Value> {
    let stdout = process.stdout.take().unwrap();
    let (to, messages) = mpsc::channel();
    std::thread::spawn(move || {
        for message in BufReader::new(stdout).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { return };
            if to.send(message).is_err() {
                return; // The test is over.
            }
        }
    });
    messages
}

/// A client of that name that gets all messages.
fn subscriber(broker: &Broker, name: &str) -> Wire {
    let mut wire = Wire::open(broker);
    let connect = json!({ "verbose": false, "name": name });
    wire.send(format!("CONNECT {connect}\r\nSUB load 1\r\n").as_bytes());
    wire.sync();
    wire
}

/// Has messages flow from one client to two others while `test` runs.
fn under_load(broker: &Broker, test: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let mut subscribers = [subscriber(broker, "plain"), subscriber(broker, EVIL)];
    let mut publisher = Wire::connect(broker);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                publisher.send(&b"PUB load 5\r\nhello\r\n".repeat(10));
                publisher.sync();
                for subscriber in &mut subscribers {
                    subscriber.expect(&b"MSG load 1 5\r\nhello\r\n".repeat(10));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        // Also when the test fails.
        let _end = Ending(&stop);
        test();
    });
}

/// The texts whose contrast with what is behind them is below 4.5 to 1.
const PALE: &str = r"
(() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => {
    const mix = (key) => top[key] * top.a + below[key] * (1 - top.a);
    return { r: mix('r'), g: mix('g'), b: mix('b'), a: 1 };
  };
  const behind = (element) => {
    if (!element) return parse('rgb(255, 255, 255)');
    const own = parse(getComputedStyle(element).backgroundColor);
    return own.a === 1 ? own : over(own, behind(element.parentElement));
  };
  const light = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255)
      .map((c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * x + .7152 * y + .0722 * z;
  };
  const pale = [];
  for (const element of document.body.querySelectorAll('*')) {
    const isText = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!isText || !element.checkVisibility() || element.closest('script')) continue;
    const ground = behind(element);
    const text = over(parse(getComputedStyle(element).color), ground);
    const [low, high] = [light(text), light(ground)].sort((a, b) => a - b);
    const contrast = (high + .05) / (low + .05);
    if (contrast < 4.5) pale.push(`${element.textContent}: ${contrast.toFixed(2)}`);
  }
  return pale;
})()";

struct Ending<'s>(&'s AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_page_shows_moving_figures_under_load_and_complains_of_nothing() {
    if is_nats_server() {
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let broker = Broker::start(2, ARGS);
    under_load(&broker, || {
        browser.open(&format!("http://127.0.0.1:{}/", http::port(&broker)));
        browser.until("document.body.dataset.rounds >= 4");
        let number = "((id) => parseFloat(document.getElementById(id).textContent))";
        for id in ["in-msgs", "out-msgs", "in-bytes", "out-bytes", "turn50", "delay50"] {
            browser.until(&format!("{number}('{id}') > 0"));
        }
        assert_eq!(browser.value(&format!("{number}('conns')")), 3);
        let cell = |key: &str, row: usize| {
            format!(
                "document.querySelectorAll('#shards tbody tr')[{row}].cells[[...document\
                 .querySelectorAll('#shards thead th')].findIndex(th => th.dataset.key === '{key}'\
                 )].innerText"
            )
        };
        assert_eq!(browser.value("document.querySelectorAll('#shards tbody tr').length"), 2);
        for row in 0..2 {
            for key in ["load", "turn50", "turn99", "calls"] {
                browser.until(&format!("parseFloat({}) >= 0", cell(key, row)));
            }
            browser.until(&format!("parseFloat({}) > 0", cell("out", row)));
        }
        // Two connections are on one shard, one on the other: something has to cross.
        browser.until(
            "[...document.querySelectorAll('#lanes td')].some(td => parseFloat(td.innerText) > 0)",
        );
        assert_eq!(browser.value("document.querySelectorAll('#lanes td').length"), 4);
        // The figures of two rounds are never all the same.
        let all = "document.querySelector('main').innerText";
        let seen = browser.value(all);
        browser.until(&format!("{all} !== {seen}"));
        browser.until("document.getElementById('line-out').getAttribute('d').includes('L')");
        for id in ["hour-in", "hour-out", "hour-50"] {
            browser
                .until(&format!("document.getElementById('{id}').getAttribute('d').includes('L')"));
        }
    });
    assert_eq!(browser.value("document.getElementById('state').textContent"), "live");
    assert_eq!(browser.complaints, [""; 0]);
}

#[test]
fn a_quantile_is_read_off_buckets_that_double_and_figures_are_shortened() {
    if is_nats_server() {
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let broker = Broker::start(1, ARGS);
    browser.open(&format!("http://127.0.0.1:{}/", http::port(&broker)));
    for (expression, wanted) in [
        // Four values between 4 and 8, in the bucket of those up to 2 to the third.
        ("quantile([0, 0, 0, 4], 1)", json!(8)),
        ("quantile([0, 0, 0, 4], .5)", json!(2_f64.powf(2.5))),
        ("quantile([1, 0, 0, 99], .01)", json!(1)),
        ("quantile([0, 0], .5)", json!(null)),
        ("time(quantile([0, 0], .5))", json!("–")),
        ("time(1536)", json!("1.54 µs")),
        ("bytes(1536)", json!("1.50 KiB")),
        ("rate(0.26)", json!("0.30")),
        ("rate(1234567)", json!("1.23 M")),
    ] {
        assert_eq!(browser.value(expression), wanted, "{expression}");
    }
}

#[test]
fn the_page_can_be_read_by_day_by_night_and_on_a_phone() {
    if is_nats_server() {
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let broker = Broker::start(4, ARGS);
    under_load(&broker, || {
        browser.open(&format!("http://127.0.0.1:{}/", http::port(&broker)));
        browser.until("document.body.dataset.rounds >= 3");
        let mut grounds = Vec::new();
        for scheme in ["light", "dark"] {
            let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
            browser.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
            assert_eq!(browser.value(PALE), json!([]), "{scheme}");
            grounds.push(browser.value("getComputedStyle(document.body).backgroundColor"));
        }
        assert_ne!(grounds[0], grounds[1], "there is a light and a dark page");
        for width in [320, 400, 768, 1280] {
            let size = json!({
                "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600,
            });
            browser.call("Emulation.setDeviceMetricsOverride", size);
            let wide = browser.value("document.documentElement.scrollWidth");
            assert!(wide.as_i64() <= Some(width), "{wide} of {width}");
        }
    });
    assert_eq!(browser.complaints, [""; 0]);
}

#[test]
fn what_a_client_calls_itself_is_shown_and_never_run() {
    if is_nats_server() {
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let broker = Broker::start(1, ARGS);
    let _evil = subscriber(&broker, EVIL);
    browser.open(&format!("http://127.0.0.1:{}/", http::port(&broker)));
    browser.until("document.body.dataset.rounds >= 2");
    let shown = "document.querySelector('#connections td.name').textContent";
    assert_eq!(browser.value(shown), EVIL);
    assert_eq!(browser.value("document.querySelectorAll('#connections tbody td *').length"), 0);
    assert_eq!(browser.value("document.title"), "shardcast");
    assert_eq!(browser.complaints, [""; 0]);
    // Even if the page were careless, the browser would not run it, and these tests would know.
    let careless = format!("document.body.insertAdjacentHTML('beforeend', {})", json!(EVIL));
    browser.value(&careless);
    browser.until("document.querySelectorAll('img').length > 0");
    browser.value("new Promise(done => setTimeout(done, 100))");
    assert_eq!(browser.value("document.title"), "shardcast");
    assert!(!browser.complaints.is_empty(), "the browser says what it has not run");
}

#[test]
fn the_page_tells_of_connections_accounts_streams_and_who_was_cut() {
    if is_nats_server() {
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "http: \"127.0.0.1:-1\"\njetstream {{ store_dir: \"{}\" }}\n\
         cluster {{ name: C, listen: \"127.0.0.1:-1\" }}\n",
        dir.path().display()
    );
    let mut broker = Broker::with_config(2, &config);
    let routes = format!(
        "cluster {{ name: C, listen: \"127.0.0.1:-1\"\n\
         routes: [\"nats://127.0.0.1:{}\"] }}\nserver_name: other\n",
        broker.route_port()
    );
    let _other = Broker::with_config(1, &routes);
    let (_first, _second) = (subscriber(&broker, "first"), subscriber(&broker, "second"));
    let mut streams = Wire::connect(&broker);
    streams.send(b"SUB r 1\r\n");
    for (subject, payload) in [
        ("$JS.API.STREAM.CREATE.S", r#"{"name":"S","subjects":["s"]}"#),
        (
            "$JS.API.CONSUMER.DURABLE.CREATE.S.C",
            r#"{"stream_name":"S","config":{"durable_name":"C","ack_policy":"explicit"}}"#,
        ),
        ("s", "kept"),
    ] {
        streams.send(format!("PUB {subject} r {}\r\n{payload}\r\n", payload.len()).as_bytes());
    }
    let mut bad = subscriber(&broker, "garbled");
    bad.send(b"NONSENSE\r\n");
    bad.until_pong_or_end();

    browser.open(&format!("http://127.0.0.1:{}/", http::port(&broker)));
    let text = |id: &str| format!("document.getElementById('{id}').innerText");
    for (id, wanted) in [
        ("connections", "second"),
        ("connections", "$G"),
        ("cut", "garbled"),
        ("peers", "other"),
        ("peers", "member"),
        ("accounts", "$G"),
        ("streams", "S"),
        ("consumers", "C"),
        ("memory", "MiB"),
        ("cpu", "cores"),
    ] {
        browser.until(&format!("{}.includes('{wanted}')", text(id)));
    }
    browser.until(&format!("/Error|Violation/.test({})", text("cut")));
    connections_are_searched_and_sorted(&mut browser);
    it_fits_a_phone(&mut browser);
    assert_eq!(browser.complaints, [""; 0]);
}

/// Of three connections one is "second".
fn connections_are_searched_and_sorted(browser: &mut Browser) {
    let rows = "document.querySelectorAll('#connections tbody tr').length";
    browser.until(&format!("{rows} === 3"));
    browser.value(
        "(() => { const search = document.getElementById('search'); search.value = 'SECOND';\
         search.dispatchEvent(new Event('input')); })()",
    );
    browser.until(&format!(
        "{rows} === 1 && {}.includes('second')",
        "document.getElementById('connections').innerText"
    ));
    browser.value("document.getElementById('search').value = ''");
    browser.until(&format!("{rows} === 3"));
    // A click sorts by a column, a second one the other way round.
    let cids = "[...document.querySelectorAll('#connections tbody td:first-child')]\
                .map((cell) => Number(cell.innerText))";
    let click = "document.querySelector('#connections thead button').click()";
    let sorted =
        |order: &str| format!("{cids}.every((cid, i, all) => i === 0 || all[i - 1] {order} cid)");
    browser.value(click);
    browser.until(&sorted(">"));
    browser.value(click);
    browser.until(&sorted("<"));
}

fn it_fits_a_phone(browser: &mut Browser) {
    // Whoever looks on a phone can look at all of it.
    let size = json!({ "width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": true });
    browser.call("Emulation.setDeviceMetricsOverride", size);
    let wide = browser.value("document.documentElement.scrollWidth");
    assert!(wide.as_i64() <= Some(400), "{wide}");
    for scheme in ["light", "dark"] {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        browser.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
        assert_eq!(browser.value(PALE), json!([]), "{scheme}");
    }
}

#[test]
fn a_visit_starts_with_the_last_hour() {
    if is_nats_server() {
        return;
    }
    let broker = Broker::start(2, ARGS);
    let deadline = Instant::now() + PATIENCE;
    let mut publisher = Wire::connect(&broker);
    let row = loop {
        publisher.send(b"PUB a 1\r\nx\r\n");
        publisher.sync();
        let history = http::json(&broker, "/historyz");
        assert_eq!(history["interval_s"], 10);
        let rows = history["rows"].as_array().unwrap();
        if let Some(row) = rows.iter().find(|row| row["in_msgs"].as_u64() > Some(0)) {
            break row.clone();
        }
        assert!(Instant::now() < deadline, "{history}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(row["connections"], 1);
    assert!(row["memory_bytes"].as_u64() > Some(1_000_000), "{row}");
    assert!(row["delay50_ns"].as_u64() > Some(0), "{row}");
}

#[test]
fn every_link_of_the_page_leads_somewhere() {
    if is_nats_server() {
        return;
    }
    let broker = Broker::start(1, ARGS);
    let (status, head, page) = http::get(&broker, "/");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/html; charset=utf-8\r\n"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'; "), "{head}");
    let links: Vec<&str> =
        page.split("<a href=\".").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(links.len() >= 15, "{links:?}");
    // Every page is linked, but for the one that a server without Raft has none of.
    let pages = include_str!("../../src/monitor/mod.rs");
    let pages = pages.lines().filter_map(|line| line.trim().strip_prefix("\"/"));
    for page in pages.filter_map(|rest| rest.split('"').next()).filter(|page| !page.is_empty()) {
        let is_linked = links.iter().any(|link| link.trim_start_matches('/').starts_with(page));
        assert!(is_linked || page == "raftz", "{page} is not linked");
    }
    for link in links {
        let (status, _, body) = http::get(&broker, &link.replace("&amp;", "&"));
        assert_eq!(status, 200, "{link}: {body}");
    }
}

#[test]
fn a_page_that_loses_its_server_says_so() {
    if is_nats_server() {
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let mut broker = Broker::start(1, ARGS);
    browser.open(&format!("http://127.0.0.1:{}/", http::port(&broker)));
    browser.until("document.getElementById('state').textContent === 'live'");
    broker.kill();
    browser.until("document.getElementById('state').textContent.startsWith('no answer since')");
}

/// What a page can do with a WebSocket and a dozen lines.
const OVER_WEBSOCKET: &str = r#"
new Promise((done, fail) => {
    const socket = new WebSocket(URL_OF_BROKER);
    socket.binaryType = "arraybuffer";
    let heard = "";
    socket.onerror = () => fail("error");
    socket.onclose = () => fail("closed: " + heard);
    socket.onmessage = (message) => {
        if (heard === "") {
            socket.send('CONNECT {"verbose":false,"pedantic":false}\r\nSUB page.* 1\r\n');
            for (let n = 0; n < 100; n++) {
                const payload = String(n % 10).repeat(n * 100);
                socket.send(`PUB page.${n} ${payload.length}\r\n${payload}\r\n`);
            }
            socket.send("PING\r\n");
        }
        heard += new TextDecoder().decode(message.data);
        if (heard.endsWith("\r\nPONG\r\n")) {
            socket.onclose = (end) => done({
                heard: heard.slice(heard.indexOf("MSG")),
                extensions: socket.extensions,
                code: end.code,
                clean: end.wasClean,
            });
            socket.close(1000, "bye");
        }
    };
})"#;

#[test]
fn a_page_publishes_and_subscribes_over_websocket() {
    let Some(mut browser) = Browser::start() else { return };
    // A page of this machine: others may not be let at it.
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    std::fs::write(&page, "<!doctype html><title>page</title>").unwrap();
    for compression in [false, true] {
        let config = format!(
            "websocket {{ listen: \"127.0.0.1:-1\", no_tls: true, compression: {compression} }}"
        );
        let broker = Broker::with_config(2, &config);
        let banner = broker.banner();
        let url = &banner[banner.find("ws://").unwrap()..];
        let url = json!(url.lines().next().unwrap()).to_string();
        browser.open(&format!("file://{}", page.display()));
        let outcome = browser.value(&OVER_WEBSOCKET.replace("URL_OF_BROKER", &url));
        let mut wanted = String::new();
        for n in 0..100 {
            let payload = (n % 10).to_string().repeat(n * 100);
            wanted += &format!("MSG page.{n} 1 {}\r\n{payload}\r\n", payload.len());
        }
        assert_eq!(outcome["heard"].as_str().unwrap(), wanted + "PONG\r\n");
        let is_packed = outcome["extensions"].as_str().unwrap().contains("permessage-deflate");
        assert_eq!(is_packed, compression);
        assert_eq!((&outcome["code"], &outcome["clean"]), (&json!(1000), &json!(true)));
    }
}
