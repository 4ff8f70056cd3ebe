//! Staples of this server's certificates: found, put beside the certificate, kept fresh.
//!
//! Before the server listens, and at each reload, every certificate that needs a staple gets one:
//! the one in force, that of a file, or that of a responder. Without one the server does not start.
//! Later the staple is renewed at half of its time. Until a new one is there the old one stays; at
//! its end the certificate is not presented any more, and handshakes fail: no certificate that
//! needs a staple is ever shown without.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use chrono::DateTime;
use crossbeam_channel::Sender;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout, timeout_at};

use super::super::fetch::runtime;
use super::super::http::{HttpClient, HttpReply};
use super::{StartError, SystemOrder, get, now};
use crate::config::{Options, Stapling, tls};
use crate::host::hex;
use crate::ocsp::{ANSWER_BYTES_MAX, CertAnswer, CertLink, CertStatus};

/// The time that one request to a responder may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that all responders of a certificate have together.
const RESPONDERS_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds until a staple without an end is renewed.
const ENDLESS_S: i64 = 24 * 3600;
/// Seconds until responders are asked again about a certificate whose staple has ended.
const OVERDUE_S: i64 = 30;

/// Sources of staples: files and responders.
pub(super) struct StapleSource {
    client: HttpClient,
    directory: Option<PathBuf>,
    urls: Vec<String>,
}

/// A staple in DER form, and what it says.
type FoundStaple = (Vec<u8>, CertAnswer);

impl StapleSource {
    pub(super) fn new(options: &Options, client: HttpClient) -> Self {
        let directory = options.jetstream.store_dir.as_ref().map(|path| path.join("ocsp"));
        Self { client, directory, urls: options.ocsp.urls.clone() }
    }

    /// Returns the staple of a file, if it is current.
    fn of_file(&self, link: &CertLink) -> Option<FoundStaple> {
        let file = fs::File::open(self.file(link)?).ok()?;
        let mut der = Vec::new();
        file.take(ANSWER_BYTES_MAX as u64 + 1).read_to_end(&mut der).ok()?;
        read(link, der).ok()
    }

    fn file(&self, link: &CertLink) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(hex(&link.fingerprint())))
    }

    /// Returns the staple that a responder gives, and saves it.
    async fn of_responders(&self, link: &CertLink) -> Result<FoundStaple, String> {
        let own = link.responders();
        let urls = if self.urls.is_empty() { &own } else { &self.urls };
        if urls.is_empty() {
            return Err("no available ocsp servers".to_owned());
        }
        let question = link.request()?;
        let asked = timeout(RESPONDERS_TIMEOUT, self.ask(urls, &question)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer in {RESPONDERS_TIMEOUT:?}")));
        let der = asked.map_err(|reasons| format!("exhausted ocsp servers: {reasons}"))?;
        let found = read(link, der)?;
        self.save(link, &found.0).map_err(|error| {
            format!("failed to write ocsp status: {error}; make store_dir writable")
        })?;
        Ok(found)
    }

    /// Returns the first answer of a responder; each is asked by POST, and then by GET, which is
    /// all that some understand.
    async fn ask(&self, urls: &[String], question: &[u8]) -> Result<Vec<u8>, String> {
        let mut reasons = Vec::new();
        for url in urls {
            let post = self.client.post_ocsp(url, question.to_vec(), ANSWER_BYTES_MAX);
            match answer_of(timeout(REQUEST_TIMEOUT, post).await) {
                Ok(der) => return Ok(der),
                Err(reason) => reasons.push(format!("POST {url}: {reason}")),
            }
            let get = get(&self.client, url, question);
            match answer_of(timeout(REQUEST_TIMEOUT, get).await) {
                Ok(der) => return Ok(der),
                Err(reason) => reasons.push(format!("GET {url}: {reason}")),
            }
        }
        Err(reasons.join("; "))
    }

    /// Writes a staple into its file, in one step.
    fn save(&self, link: &CertLink, der: &[u8]) -> std::io::Result<()> {
        let Some(path) = self.file(link) else { return Ok(()) };
        if let Some(directory) = &self.directory {
            fs::create_dir_all(directory)?;
        }
        let new = path.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(der)?;
        file.sync_all()?;
        fs::rename(new, path)
    }
}

/// Returns the body of a reply, or the reason why there is none.
fn answer_of(asked: Result<Result<HttpReply, String>, Elapsed>) -> Result<Vec<u8>, String> {
    match asked {
        Ok(Ok(reply)) if reply.status.as_u16() <= 299 => Ok(reply.body.to_vec()),
        Ok(Ok(reply)) => Err(reply.status.to_string()),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!("no answer in {REQUEST_TIMEOUT:?}")),
    }
}

/// Reads a staple, which has to be current.
fn read(link: &CertLink, der: Vec<u8>) -> Result<FoundStaple, String> {
    let answer = link.judge(&der, now())?;
    if !answer.is_current(now(), 0, None) {
        return Err("the answer is not current".to_owned());
    }
    Ok((der, answer))
}

/// Gives every certificate of `options` that needs a staple one; those in force `before` stay as
/// long as they are current.
///
/// # Errors
///
/// Returns the reason why a certificate has no staple, or why the server may not start with it.
pub(crate) fn prepare(options: &Options, before: Option<&Options>) -> Result<(), StartError> {
    for staple in options.unstapled() {
        let file = staple.file().display();
        tracing::warn!("Certificate at '{file}' has MustStaple but OCSP is disabled");
    }
    if options.staplings().next().is_none() {
        return Ok(());
    }
    let runtime = runtime("ocsp")?;
    let prepared = runtime.block_on(put_all(options, before));
    // A resolver of names that hangs holds up nobody.
    runtime.shutdown_background();
    prepared
}

/// Puts a staple beside every certificate that needs one. All responders together have
/// [`RESPONDERS_TIMEOUT`].
async fn put_all(options: &Options, before: Option<&Options>) -> Result<(), StartError> {
    let by = tokio::time::Instant::now() + RESPONDERS_TIMEOUT;
    let tls = tls::of_this_system()?;
    let source = StapleSource::new(options, HttpClient::new(&tls.config));
    let old = before.into_iter().flat_map(Options::staplings);
    let in_force = |old: Stapling| {
        let link = old.staple.link(&tls.authorities)?;
        Some((link.fingerprint(), old.staple.answer()?))
    };
    let mut known: HashMap<[u8; 32], Vec<u8>> = old.filter_map(in_force).collect();
    for stapling in options.staplings() {
        let file = stapling.staple.file().display();
        let bad = |reason: String| {
            let what = format!("bad OCSP status update for certificate at '{file}': {reason}");
            StartError::new(format!("{what}; see `ocsp` in the documentation, or set it to false"))
        };
        let link = stapling.staple.link(&tls.authorities);
        let link = link.ok_or_else(|| bad("no issuers found; add it to cert_file".to_owned()))?;
        let in_force = known.get(&link.fingerprint()).cloned();
        let found =
            in_force.and_then(|der| read(&link, der).ok()).or_else(|| source.of_file(&link));
        let (der, answer) = match found {
            Some(found) => found,
            None => {
                let asked = timeout_at(by, source.of_responders(&link)).await;
                asked.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(bad)?
            }
        };
        if answer.status != CertStatus::Good && stapling.ends_server {
            let status = answer.status.word();
            let what = format!("found existing OCSP status for certificate at '{file}': {status}");
            return Err(StartError::new(format!("{what}; replace the certificate")));
        }
        known.insert(link.fingerprint(), der.clone());
        stapling.staple.put(Some(der));
    }
    Ok(())
}

/// Keeps the staple of a certificate fresh, for ever.
pub(super) async fn keep_fresh(
    stapling: Stapling,
    source: StapleSource,
    to_control: Sender<SystemOrder>,
) {
    let Stapling { kind, staple, ends_server } = &stapling;
    let system = tls::of_this_system().map(|tls| tls.authorities).unwrap_or_else(|_| [].into());
    let file = staple.file().display();
    let Some(link) = staple.link(&system) else { return };
    let in_force = staple.answer().and_then(|der| link.judge(&der, now()).ok());
    // One that has ended is overdue.
    let ended = CertAnswer { status: CertStatus::Unknown, this_update: 0, next_update: Some(0) };
    let mut answer = in_force.unwrap_or(ended);
    tracing::info!("OCSP Stapling enabled for {kind} connections");
    tracing::info!("Found OCSP status for {kind} certificate at '{file}': {}", told(&answer));
    loop {
        sleep(seconds(until_next(&answer, now()))).await;
        let left = answer.next_update.map_or(i64::MAX, |end| end.saturating_sub(now()));
        let asked = if left > 0 {
            timeout(seconds(left.min(ENDLESS_S)), source.of_responders(&link)).await
        } else {
            Ok(source.of_responders(&link).await)
        };
        match asked.unwrap_or_else(|_| Err("no answer before the old one has ended".to_owned())) {
            Ok((der, new)) => {
                staple.put(Some(der));
                answer = new;
                if answer.status == CertStatus::Good {
                    let told = told(&answer);
                    tracing::info!("Received OCSP status for {kind} certificate '{file}': {told}");
                    continue;
                }
                let status = answer.status.word();
                let what =
                    format!("Received OCSP status for {kind} certificate '{file}': {status}");
                tracing::error!("{what}");
                if *ends_server {
                    let _ = to_control.send(SystemOrder::End(what));
                    return;
                }
            }
            Err(reason) => {
                let next = seconds(until_next(&answer, now()));
                tracing::error!(
                    "Bad OCSP status update for certificate '{file}': {reason}, trying again in \
                     {next:?}"
                );
            }
        }
        if !answer.is_current(now(), 0, None) && staple.answer().is_some() {
            staple.put(None);
            tracing::error!(
                "The OCSP status of {kind} certificate '{file}' has ended: no handshake succeeds \
                 until a responder answers"
            );
        }
    }
}

/// Returns the words of the log for an answer.
fn told(answer: &CertAnswer) -> String {
    let at = answer.next_update.and_then(|at| DateTime::from_timestamp(at, 0));
    let next = at.map_or_else(|| "unknown".to_owned(), |at| at.to_rfc3339());
    let again = seconds(until_next(answer, now()));
    format!("{}, next update {next}, checking again in {again:?}", answer.status.word())
}

/// Returns the seconds until a staple is renewed.
fn until_next(answer: &CertAnswer, now: i64) -> i64 {
    match answer.next_update.map(|end| end.saturating_sub(now)) {
        None => ENDLESS_S,
        Some(..0) => OVERDUE_S,
        // It holds to the end of this second.
        Some(left) => (left / 2).clamp(1, ENDLESS_S),
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staple_is_renewed_at_half_of_its_time() {
        let answer =
            |next_update| CertAnswer { status: CertStatus::Good, this_update: 0, next_update };
        assert_eq!(until_next(&answer(Some(1100)), 1000), 50);
        assert_eq!(until_next(&answer(Some(1001)), 1000), 1);
        assert_eq!(until_next(&answer(Some(1000)), 1000), 1);
        assert_eq!(until_next(&answer(Some(999)), 1000), OVERDUE_S);
        assert_eq!(until_next(&answer(Some(i64::MAX)), 1000), ENDLESS_S);
        assert_eq!(until_next(&answer(None), 1000), ENDLESS_S);
    }
}
