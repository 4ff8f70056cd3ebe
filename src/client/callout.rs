//! Logins about which a service decides: the question, the wait, the entry.
//!
//! The shard makes a [`Question`] of what it knows of the client (`Output::Callout`), and the
//! client waits as during a credential check: its input is held back, bounded by
//! `UNDECIDED_BYTES_MAX`, and the login has its deadline. The thread `callouts` signs the request,
//! has it published, and judges the answer, which comes by a tap (`Tap::Callouts`). With its
//! decision the client enters or is refused ([`on_decided`]). So a service that is slow or gone
//! costs nobody anything but those who are asked about.

use std::rc::Rc;
use std::sync::Arc;

use crate::auth::callout::{
    AskedClient, AskedConnect, AskedTls, AskingServer, Decision, Question, Service,
};
use crate::auth::certificate::{chain, pem};
use crate::auth::user::{Allowed, User};
use crate::auth::{ConnectionType, jwt};
use crate::client::login;
use crate::core::conn::Conn;
use crate::core::outputs::Output;
use crate::core::settings::Settings;
use crate::core::{Core, events};
use crate::interest::ids::ConnId;

/// Asks a service about a client, which waits for the decision.
pub(super) fn ask(core: &mut Core, id: ConnId, service: Arc<Service>, again: bool) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let cluster = core.links.name.as_deref();
    let question = Box::new(question(&core.settings, conn, &service, cluster));
    let timeout_ns = core.settings.auth_timeout_ns_of(conn.transport);
    conn.login.ask(service, again);
    core.out.push(Output::Callout { conn: id, question, timeout_ns });
    login::wait_for_decision(core, id);
}

fn question(
    settings: &Settings,
    conn: &Conn,
    service: &Arc<Service>,
    cluster: Option<&str>,
) -> Question {
    let info = &settings.listen.info;
    let server = AskingServer {
        name: info.server_name.clone(),
        host: info.host.clone(),
        id: info.server_id.clone(),
        version: info.version.clone(),
        cluster: cluster.unwrap_or_default().to_owned(),
        tags: settings.auth.tags.clone(),
    };
    Question {
        service: Arc::clone(service),
        server,
        client: client(settings, conn, service),
        connect: connect(settings, conn, service),
        tls: tls(settings, conn),
    }
}

fn client(settings: &Settings, conn: &Conn, service: &Service) -> AskedClient {
    let connect = &conn.connect;
    let own = service.has_operator.then(|| jwt::decode::<jwt::UserClaims>(&connect.jwt));
    let own = own.and_then(Result::ok).map(|token| token.claims);
    let (key, name_tag, tags) = own.map_or_else(Default::default, |claims| {
        (claims.subject.into_boxed_str(), claims.name.into_boxed_str(), claims.body.tags)
    });
    let guest = settings.guest_of(conn).and_then(|user| user.name.clone());
    let user = [&connect.nkey, &connect.user, &guest.unwrap_or_default(), &key]
        .into_iter()
        .find(|text| !text.is_empty())
        .cloned();
    let token = || (!connect.auth_token.is_empty()).then(|| "[REDACTED]".into());
    let has_signed = settings.offers_nonces() && !connect.sig.is_empty();
    let nonce = has_signed.then(|| settings.nonce(conn.peer.cid).into());
    AskedClient {
        host: conn.peer.ip.clone(),
        id: conn.peer.cid,
        user: user.or_else(token).unwrap_or_default(),
        name: if conn.transport.is_mqtt() { Box::default() } else { connect.name.clone() },
        mqtt_client: conn.mqtt.as_ref().map(|client| Box::from(&*client.id)).unwrap_or_default(),
        tags,
        name_tag,
        kind: if conn.transport.is_leaf() { "Leafnode" } else { "Client" },
        protocol: protocol(conn.transport.kind()),
        nonce: nonce.unwrap_or_default(),
    }
}

fn protocol(kind: ConnectionType) -> &'static str {
    match kind {
        ConnectionType::Websocket => "websocket",
        ConnectionType::Leafnode | ConnectionType::LeafnodeWs => "",
        ConnectionType::Mqtt => "mqtt",
        ConnectionType::MqttWs => "mqtt_websocket",
        _ => "nats",
    }
}

fn connect(settings: &Settings, conn: &Conn, service: &Service) -> AskedConnect {
    let connect = &conn.connect;
    let shows_token = service.has_operator || conn.transport.is_mqtt();
    let jwt = if shows_token { connect.jwt.clone() } else { Box::default() };
    // A guest is named as if it had said so itself.
    let guest = settings.guest_of(conn).and_then(|user| user.name.clone());
    AskedConnect {
        jwt,
        nkey: connect.nkey.clone(),
        sig: connect.sig.clone(),
        auth_token: connect.auth_token.clone(),
        user: guest.unwrap_or_else(|| connect.user.clone()),
        pass: connect.pass.clone(),
        name: if conn.transport.is_mqtt() { Box::default() } else { connect.name.clone() },
        lang: connect.lang.clone(),
        version: connect.version.clone(),
        protocol: connect.protocol,
    }
}

fn tls(settings: &Settings, conn: &Conn) -> Option<AskedTls> {
    let info = conn.layers.tls()?;
    let certs = conn.layers.peer_certificates();
    let own = settings.tls_of(conn.transport);
    let (mut bare, mut verified_chains) = (Vec::new(), Vec::new());
    match own.filter(|tls| tls.verify) {
        Some(tls) if !certs.is_empty() => {
            verified_chains.push(chain(certs, &tls.authorities).into_iter().map(pem).collect());
        }
        _ => bare = certs.iter().map(|cert| pem(cert)).collect(),
    }
    let (version, cipher) = (info.version, info.cipher_suite.clone());
    Some(AskedTls { version, cipher, certs: bare, verified_chains })
}

/// Takes the decision of a service. Returns the input that waited for it; `None` if nothing did.
pub(super) fn on_decided(core: &mut Core, id: ConnId, decision: Decision) -> Option<Vec<u8>> {
    let conn = core.conns.get_mut(id).filter(|conn| conn.is_open())?;
    let (service, again) = conn.login.take_asked()?;
    let rest = conn.input.take_held()?;
    let allowed = decision.and_then(|mut claims| {
        claims.text = String::new();
        let allowed = Arc::new(Allowed { by: Arc::clone(&service), claims: *claims });
        let user = core.settings.allow(&allowed, conn, core.times.now);
        user.map_err(|refusal| format!("Auth callout user is refused: {refusal}"))
    });
    match allowed {
        Ok(user) => {
            let user = Rc::new(named(conn, user));
            login::claim_holds(core, id, user, again);
        }
        Err(reason) => refuse(core, id, &service, &reason),
    }
    Some(rest)
}

/// Gives the user its name: that of its token, which then stands for all credentials of the client,
/// else that by which the client came.
fn named(conn: &mut Conn, user: User) -> User {
    let connect = &mut conn.connect;
    let claims = user.allowed_by.as_ref().map(|allowed| &allowed.claims);
    let name = claims.map(|claims| claims.name.as_str()).unwrap_or_default();
    // What is granted is of the answer from now on, not of the token that the client has shown.
    connect.jwt = Box::default();
    if !name.is_empty() {
        (connect.nkey, connect.auth_token) = (Box::default(), Box::default());
        connect.user = name.into();
    }
    let given = [&connect.nkey, &connect.user].into_iter().find(|text| !text.is_empty());
    let token = || (!connect.auth_token.is_empty()).then(|| "[REDACTED]".into());
    let key = || claims.map(|claims| claims.subject.as_str().into());
    User { name: given.cloned().or_else(token).or_else(key), ..user }
}

/// Refuses a client for a reason that only the log and the service's account get to know.
fn refuse(core: &mut Core, id: ConnId, service: &Service, reason: &str) {
    let Some(conn) = core.conns.get(id) else { return };
    tracing::warn!("{} - {reason}", conn.label());
    events::tell_refused(core, id, service, reason);
    login::refuse_login(core, id);
}

/// Refuses a client about which a service has not answered in time.
pub(crate) fn on_timeout(core: &mut Core, id: ConnId) {
    let service = core.conns.get(id).and_then(|conn| conn.login.asked()).cloned();
    if let Some(service) = service {
        refuse(core, id, &service, "Authorization callout response not received in time");
    }
}
