//! Audit: requests of the API and their answers, as events for whoever subscribes to them.
//!
//! The shard of the client publishes the event, for it knows the client.

use serde::Serialize;
use serde_json::value::RawValue;

use super::advisory::advisory;
use super::order::{Order, ReplyTo};
use crate::core::Core;
use crate::core::shard_message::Record;
use crate::delivery::{inside, services};
use crate::interest::ids::{AccountId, Publisher};
use crate::stream::AnswerKind;

const SUBJECT: &str = "$JS.EVENT.ADVISORY.API";

/// A request that somebody wants to hear of.
#[derive(Debug, Clone)]
pub(super) struct Audited {
    publisher: Publisher,
    subject: Box<[u8]>,
    body: Box<[u8]>,
}

/// A request with its answer.
#[derive(Debug)]
pub(super) struct AuditEvent {
    request: Audited,
    account: AccountId,
    answer: Box<[u8]>,
}

#[derive(Serialize)]
struct AuditFields<'a> {
    server: &'a str,
    client: &'a RawValue,
    subject: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    request: &'a str,
    response: &'a str,
}

impl Audited {
    /// The request, if somebody in its account subscribes to audits.
    pub(super) fn of(
        core: &mut Core,
        account: AccountId,
        publisher: Publisher,
        subject: &[u8],
        body: &[u8],
    ) -> Option<Box<Self>> {
        let is_wanted = inside::has_receivers(core, account, SUBJECT.as_bytes(), None);
        is_wanted.then(|| Box::new(Self { publisher, subject: subject.into(), body: body.into() }))
    }
}

impl AuditEvent {
    pub(super) fn bytes(&self) -> usize {
        self.request.subject.len() + self.request.body.len() + self.answer.len()
    }
}

/// Takes note of the answer to a request: errors are counted, audits sent.
pub(super) fn note_answer(core: &mut Core, reply: &ReplyTo, answer: &[u8]) {
    if AnswerKind::is_error(answer) {
        let usage = core.accounts.at(reply.account).stream_usage();
        usage.api_errors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    let Some(request) = &reply.audited else { return };
    let (request, account, answer) = ((**request).clone(), reply.account, answer.into());
    let event = AuditEvent { request, account, answer };
    let shard = event.request.publisher.shard;
    if shard == core.shard {
        publish_audit(core, &event);
    } else {
        core.push_record(shard, Record::Inside(Box::new(Order::Audit(Box::new(event)))));
    }
}

/// Publishes the audit of a request whose client is on this shard.
pub(super) fn publish_audit(core: &mut Core, event: &AuditEvent) {
    let AuditEvent { request, account, answer } = event;
    let info = services::client_info(core, request.publisher, *account);
    let text = String::from_utf8(info).ok().and_then(|text| RawValue::from_string(text).ok());
    let Some(client) = text else { return };
    let server = core.settings.server_name().to_owned();
    let [subject, request, response] =
        [&request.subject, &request.body, answer].map(|text| String::from_utf8_lossy(text));
    let (subject, request, response) = (&*subject, &*request, &*response);
    let fields = AuditFields { server: &server, client: &client, subject, request, response };
    if let Some((subject, text)) = advisory(core, *account, "API", "api_audit", &fields) {
        let subject = subject.as_bytes();
        let message = inside::InnerMessage { subject, reply: b"", headers: b"", body: &text };
        inside::publish(core, *account, &message);
    }
}
