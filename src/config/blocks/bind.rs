//! Keys of the configuration file to options: one row of a table for each key.

use super::auth::{Auth, UserOptions};
use super::field::Action::{Absent, Ignore, Refuse, Set};
use super::field::{AbsentPart, Field, Key, Warnings, bind_entry, bind_map, names, row_of};
use super::file::{Map, ValueKind};
use super::mistakes::Mistakes;
use super::written::Written;
use super::{
    CalloutOptions, Options, StartError, accounts, callout, jetstream, limits, log, monitoring,
    nearest, network, resolver, server, trust, unsupported,
};
use crate::auth::jwt;
use crate::auth::{Permissions, Responses, Secret, SubjectEntry, SubjectList};
use crate::subject::is_valid_filter;

const KEYS: &[&[Key<Options>]] = &[
    network::KEYS,
    server::KEYS,
    monitoring::KEYS,
    log::KEYS,
    limits::KEYS,
    AUTH,
    jetstream::KEYS,
    OTHER_SUBSYSTEMS,
];

/// Binds a whole file.
pub(in crate::config) fn bind(map: Map, options: &mut Options, mistakes: &mut Mistakes) -> Written {
    #[cfg(test)]
    super::consulted::note(KEYS);
    let mut warnings = Warnings::default();
    let mut mistaken = Vec::new();
    for entry in map.entries() {
        if mistakes.take(bind_entry(KEYS, entry, options, &mut warnings)).is_some() {
            continue;
        }
        // An unknown key leaves unsaid whatever it was meant to set.
        let meant = nearest(&entry.key.to_ascii_lowercase(), names(KEYS));
        let row = row_of(KEYS, &entry.key).or_else(|| row_of(KEYS, meant?));
        mistaken.extend(row.iter().copied().flat_map(|Key(names, _)| names.iter()));
    }
    let written = Written { map, mistaken };
    if let Err(violation) = trust::settle(options) {
        written.tell(&[violation], mistakes);
    }
    accounts::settle(options);
    callout::settle(options);
    options.notes.warnings.append(&mut warnings.doubtful);
    options.notes.missing.append(&mut warnings.missing);
    options.notes.absent.append(&mut warnings.absent);
    written
}

const AUTH: &[Key<Options>] = &[
    Key(&["authorization"], Set(authorization)),
    Key(&["no_auth_user"], Set(|o, v| v.text().map(|name| o.auth.no_auth_user = Some(name)))),
    Key(&["accounts"], Set(accounts::bind)),
    Key(
        &["system_account", "system"],
        Set(|o, v| v.text().map(|name| o.accounts.system = Some(name))),
    ),
    Key(
        &["no_system_account", "no_system", "no_sys_acc"],
        Set(|o, v| {
            if v.boolean()? {
                o.accounts.system = None;
            }
            Ok(())
        }),
    ),
    Key(&["default_sentinel"], Set(trust::default_sentinel)),
    Key(&["operator", "operators", "root", "roots"], Set(trust::operators)),
    Key(&["root_operator", "root_operators"], Set(trust::operators)),
    Key(&["resolver", "account_resolver", "accounts_resolver"], Set(resolver::resolver)),
    Key(&["resolver_preload"], Set(trust::preload)),
    Key(&["resolver_pinned_accounts"], Set(trust::pinned)),
    Key(&["trusted_keys", "trusted"], Set(trust::trusted_keys)),
    Key(
        &["mappings", "maps"],
        Set(|o, v| super::mapping::bind(&mut o.accounts.global().mappings, v)),
    ),
    Key(
        &["proxies"],
        Absent(AbsentPart {
            is_wanted: unsupported::proxies,
            misses: "the proxy of a client is not checked",
            note: |_| {},
        }),
    ),
    Key(&["resolver_tls"], Set(resolver::resolver_tls)),
    Key(&["cluster"], Set(super::cluster::bind)),
    Key(&["gateway"], Set(super::gateway::bind)),
    Key(&["leafnodes", "leaf"], Set(super::leafnodes::bind)),
];

const OTHER_SUBSYSTEMS: &[Key<Options>] = &[
    Key(&["prof_port", "prof_block_rate"], Ignore(unsupported::any)),
    Key(&["no_fast_producer_stall"], Ignore(unsupported::any)),
    Key(&["disable_sublist_cache", "no_sublist_cache"], Ignore(unsupported::any)),
    Key(&["connect_error_reports", "reconnect_error_reports"], Ignore(unsupported::any)),
    Key(&["feature_flags"], Ignore(unsupported::any)),
];

/// The block `authorization`, before it is known which of its forms was used.
#[derive(Default)]
struct Authorization {
    user: Option<String>,
    password: Option<Secret>,
    users: Option<Vec<UserOptions>>,
    token: Option<Secret>,
    timeout_ms: Option<u64>,
    default_permissions: Option<Permissions>,
    callout: Option<CalloutOptions>,
}

const AUTHORIZATION: &[Key<Authorization>] = &[
    Key(&["user", "username"], Set(|a, v| v.text().map(|name| a.user = Some(name)))),
    Key(&["password", "pass"], Set(|a, v| v.text().map(|p| a.password = Some(Secret::new(p))))),
    Key(&["token"], Set(|a, v| v.text().map(|token| a.token = Some(Secret::new(token))))),
    Key(&["timeout"], Set(|a, v| v.login_timeout_ms().map(|ms| a.timeout_ms = Some(ms)))),
    Key(&["users"], Set(|a, v| users(v).map(|users| a.users = Some(users)))),
    Key(
        &["default_permission", "default_permissions", "permissions"],
        Set(|a, v| permissions(v).map(|p| a.default_permissions = Some(p))),
    ),
    Key(
        &["auth_callout", "auth_hook"],
        Set(|a, v| callout::bind(v).map(|callout| a.callout = Some(callout))),
    ),
    Key(&["proxy_required"], Refuse(unsupported::any)),
];

fn authorization(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let mut block = Authorization::default();
    bind_map(&[AUTHORIZATION], v.map()?, &mut block, v.warnings)?;
    // A password beside users belongs to none of them, and may be there for a variable.
    let single = block.user.is_some() || (block.password.is_some() && block.users.is_none());
    let reason = match (single, block.token.is_some(), block.users.is_some()) {
        (true, true, _) => "cannot have a user/password and a token; keep one",
        (true, _, true) => "cannot have a single user/password and a users array; keep one",
        (_, true, true) => "cannot have a token and a users array; keep one",
        (true, ..) if block.user.is_none() => "a password needs a user",
        _ => "",
    };
    if !reason.is_empty() {
        return Err(v.error(reason));
    }
    let single = block.user.map(|name| UserOptions {
        password: block.password.unwrap_or_else(|| Secret::new("")),
        ..UserOptions::named(name)
    });
    let mut users = std::mem::take(&mut options.auth.users);
    let mut mistakes = Mistakes::default();
    for user in block.users.unwrap_or_else(|| single.into_iter().collect()) {
        if users.iter().any(|other| other.name == user.name) {
            mistakes.take::<()>(Err(accounts::duplicate_user(v, &user.name)));
        } else {
            users.push(user);
        }
    }
    options.auth = Auth {
        timeout_ms: block.timeout_ms.unwrap_or(Auth::default().timeout_ms),
        users,
        token: block.token,
        no_auth_user: options.auth.no_auth_user.take(),
        default_permissions: block.default_permissions,
        callout: block.callout,
    };
    mistakes.result()
}

pub(super) fn users(v: &mut Field<'_>) -> Result<Vec<UserOptions>, StartError> {
    let mut names = std::collections::HashSet::new();
    v.each(|v| {
        let user = user(v)?;
        match names.insert(user.name.clone()) {
            true => Ok(user),
            false => Err(accounts::duplicate_user(v, &user.name)),
        }
    })
}

const USER: &[Key<UserOptions>] = &[
    Key(&["user", "username"], Set(|u, v| v.text().map(|name| u.name = name))),
    Key(&["password", "pass"], Set(|u, v| v.text().map(|p| u.password = Secret::new(p)))),
    Key(
        &["permissions", "permission", "authorization"],
        Set(|u, v| permissions(v).map(|p| u.permissions = Some(p))),
    ),
    Key(&["allowed_connection_types", "connection_types", "clients"], Set(connection_types)),
    Key(&["nkey"], Set(nkey)),
    Key(&["proxy_required"], Refuse(unsupported::any)),
];

fn nkey(user: &mut UserOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    let key = v.text()?;
    if !jwt::is_key(&key, &['U']) {
        return Err(v.error("nkey is the public key of a user: 56 characters that begin with U"));
    }
    if !user.name.is_empty() {
        return Err(v.error("a user has a name or an nkey; leave one out"));
    }
    user.name = key;
    user.has_nkey = true;
    Ok(())
}

fn user(v: &mut Field<'_>) -> Result<UserOptions, StartError> {
    let mut user = UserOptions::named("");
    bind_map(&[USER], v.map()?, &mut user, v.warnings)?;
    if user.name.is_empty() {
        return Err(v.error("a user needs a name, as in {user: ann, password: \"…\"}"));
    }
    if user.has_nkey && (!user.name.starts_with('U') || user.password != Secret::new("")) {
        return Err(v.error("a user with an nkey has no name and no password; leave them out"));
    }
    Ok(user)
}

fn connection_types(user: &mut UserOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    user.connection_types =
        v.one_or_each(|v| v.text()?.parse().map_err(|reason: String| v.error(reason)))?;
    Ok(())
}

const PERMISSIONS: &[Key<Permissions>] = &[
    Key(
        &["publish", "pub", "import"],
        Set(|p, v| {
            p.publish = subject_list(v)?;
            let mut entries = p.publish.allow.iter().chain(&p.publish.deny);
            match entries.find(|entry| entry.queue.is_some()) {
                Some(_) => Err(v.error("a publish permission has no queue; leave it out")),
                None => Ok(()),
            }
        }),
    ),
    Key(
        &["subscribe", "sub", "export"],
        Set(|p, v| subject_list(v).map(|list| p.subscribe = list)),
    ),
    Key(&["allow_responses", "publish_allow_responses"], Set(allow_responses)),
];

pub(super) fn permissions(v: &mut Field<'_>) -> Result<Permissions, StartError> {
    let mut permissions = Permissions::default();
    bind_map(&[PERMISSIONS], v.map()?, &mut permissions, v.warnings)?;
    Ok(permissions)
}

const SUBJECT_LIST: &[Key<SubjectList>] = &[
    Key(&["allow"], Set(|list, v| subjects(v).map(|subjects| list.allow = subjects))),
    Key(&["deny"], Set(|list, v| subjects(v).map(|subjects| list.deny = subjects))),
];

fn subject_list(v: &mut Field<'_>) -> Result<SubjectList, StartError> {
    let mut list = SubjectList::default();
    if let ValueKind::Map(map) = &v.value.kind {
        bind_map(&[SUBJECT_LIST], map, &mut list, v.warnings)?;
    } else {
        list.allow = subjects(v)?;
    }
    Ok(list)
}

fn subjects(v: &mut Field<'_>) -> Result<Vec<SubjectEntry>, StartError> {
    v.one_or_each(|v| subject_entry(v))
}

fn subject_entry(v: &Field<'_>) -> Result<SubjectEntry, StartError> {
    let text = v.text()?;
    let mut words = text.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(subject), queue, None) if is_valid_filter(subject.as_bytes()) => {
            Ok(SubjectEntry { subject: subject.to_owned(), queue: queue.map(str::to_owned) })
        }
        _ => Err(v.error(format!("\"{text}\" is not a valid subject"))),
    }
}

const RESPONSES: &[Key<Responses>] = &[
    Key(
        &["max", "max_msgs", "max_messages", "max_responses"],
        Set(|r, v| v.integer().map(|max| r.max = max)),
    ),
    Key(
        &["expires", "expiration", "ttl"],
        Set(|r, v| v.signed_duration_ms().map(|ms| r.expires_ms = ms)),
    ),
];

fn allow_responses(permissions: &mut Permissions, v: &mut Field<'_>) -> Result<(), StartError> {
    let mut responses = Responses::default();
    let given = match &v.value.kind {
        ValueKind::Boolean(given) => *given,
        ValueKind::Map(map) => {
            bind_map(&[RESPONSES], map, &mut responses, v.warnings)?;
            true
        }
        _ => return Err(v.error("allow_responses is true, false, or {max: …, expires: \"…\"}")),
    };
    // As in nats-server, zero is the default and not "never".
    let Responses { max, expires_ms } = Responses::default();
    responses.max = if responses.max == 0 { max } else { responses.max };
    responses.expires_ms =
        if responses.expires_ms == 0 { expires_ms } else { responses.expires_ms };
    permissions.allow_responses = given.then_some(responses);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConnectionType, HttpOptions, Rates};

    fn outcome(text: &str) -> Result<Options, StartError> {
        crate::config::of_text(text)
    }

    fn bound(text: &str) -> Options {
        outcome(text).unwrap_or_else(|error| panic!("{text}\n{error}"))
    }

    fn refused(text: &str) -> String {
        match outcome(text) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{text} is accepted"),
        }
    }

    fn entries(texts: &[&str]) -> Vec<SubjectEntry> {
        let entry = |text: &&str| {
            let mut words = text.split(' ').map(str::to_owned);
            SubjectEntry { subject: words.next().unwrap(), queue: words.next() }
        };
        texts.iter().map(entry).collect()
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        assert_eq!(bound(""), Options::default());
    }

    #[test]
    fn addresses_are_read_in_all_their_forms() {
        let address = |text: &str| {
            let options = bound(text);
            (options.network.host, options.network.port)
        };
        let local = ("127.0.0.1".to_owned(), 4333);
        for text in [
            "listen: \"127.0.0.1:4333\"",
            "listen: 127.0.0.1:4333",
            "host: 127.0.0.1\nport: 4333",
            "net = 127.0.0.1, port = 4333",
            "HOST 127.0.0.1\nlisten 4333",
        ] {
            assert_eq!(address(text), local, "{text}");
        }
        assert_eq!(address("listen: \"[::1]:-1\""), ("::1".to_owned(), 0));
        assert_eq!(address("listen: \":4\""), ("0.0.0.0".to_owned(), 4));
        assert_eq!(address("port: -1").1, 0);
        let http = bound("http: 127.0.0.1:-1").monitoring.http.unwrap();
        assert_eq!(
            http,
            HttpOptions { host: Some("127.0.0.1".to_owned()), port: 0, is_tls: false }
        );
        assert_eq!(
            bound("monitor_port: 8222").monitoring.http,
            Some(HttpOptions { host: None, port: 8222, is_tls: false })
        );
        for text in ["listen: \"127.0.0.1\"", "port: \"x\"", "port: 65536", "listen: \"h:x\""] {
            assert!(refused(text).contains("port"), "{text}");
        }
    }

    #[test]
    fn limits_and_timers_have_units() {
        let options = bound(
            "max_payload: 128KB\nmax_pending: 1MB\nmax_control_line: 8KB\nmax_conn: 2\n\
             max_subs: 3\nmax_sub_tokens: 4\nping_interval: \"100ms\"\nping_max: 5\n\
             write_deadline: \"2s\"\nlame_duck_duration: \"30s\"\n\
             lame_duck_grace_period: \"200ms\"",
        );
        let wanted = crate::config::Limits {
            control_line_bytes_max: 8192,
            payload_bytes_max: 131_072,
            pending_bytes_max: 1 << 20,
            connections_max: 2,
            subscriptions_max: 3,
            subscription_tokens_max: 4,
        };
        assert_eq!(options.limits, wanted);
        assert_eq!((options.timeouts.ping_interval_ms, options.timeouts.ping_max), (100, 5));
        assert_eq!(options.timeouts.write_deadline_ms, 2000);
        assert_eq!((options.lame_duck.duration_ms, options.lame_duck.grace_ms), (30_000, 200));
    }

    #[test]
    fn rates_are_off_until_they_are_named() {
        assert!(!bound("").rates.pace_connections());
        let rates = bound(
            "rate_limits { connections: 1000, connections_per_ip: 20, \
             msgs_per_connection: 5k, bytes_per_connection: 1MB }",
        )
        .rates;
        let wanted = Rates {
            connections: 1000,
            connections_per_ip: 20,
            msgs_per_connection: 5000,
            bytes_per_connection: 1 << 20,
        };
        assert_eq!(rates, wanted);
        assert_eq!(bound("rate_limits { connections: -1 }").rates, Rates::default());
        assert!(refused("rate_limits { conections: 1 }").contains("\"connections\""));
    }

    #[test]
    fn no_connections_is_a_limit_and_a_negative_one_is_none() {
        assert_eq!(bound("max_connections: 0").limits.connections_max, 0);
        assert_eq!(bound("max_connections: -1").limits.connections_max, usize::MAX);
        assert_eq!(bound("max_subscriptions: -1").limits.subscriptions_max, 0);
    }

    #[test]
    fn a_number_as_a_duration_is_seconds_and_a_warning() {
        let options = bound("ping_interval: 1");
        assert_eq!(options.timeouts.ping_interval_ms, 1000);
        let warning = "c.conf:1:16: ping_interval is a duration; write \"1s\"";
        assert_eq!(options.notes.warnings, [warning]);
    }

    #[test]
    fn a_single_user_a_token_and_a_list_of_users_are_read() {
        let auth = bound("authorization { username: a, pass: 'b c', timeout: 0.4 }").auth;
        assert_eq!((auth.users[0].name.as_str(), auth.timeout_ms), ("a", 400));
        assert!(auth.users[0].password.matches("b c"));
        assert!(bound("authorization { token: t }").auth.token.unwrap().matches("t"));
        assert_eq!(bound("authorization { token: t, timeout: 1 }").auth.timeout_ms, 1000);
        assert_eq!(bound("authorization { token: t, timeout: \"3s\" }").auth.timeout_ms, 3000);
        let auth = bound(
            "no_auth_user: guest\nauthorization { users = [ {user: guest, password: \"g\"}\n\
             {username: \"cy@example.com\", pass: 'three'} ] }",
        )
        .auth;
        assert_eq!(auth.users[1].name, "cy@example.com");
        assert_eq!(auth.no_auth_user.as_deref(), Some("guest"));
        assert!(auth.is_required() && auth.has_plaintext());
    }

    #[test]
    fn permissions_have_synonyms_and_three_forms() {
        let permissions = |text: &str| {
            let text = format!(
                "authorization {{ users: [{{user: u, password: p, permissions: {text}}}] }}"
            );
            bound(&text).auth.users.swap_remove(0).permissions.unwrap()
        };
        let wanted = Permissions {
            publish: SubjectList { allow: entries(&["a.>"]), deny: entries(&[]) },
            subscribe: SubjectList { allow: entries(&["b", "c q*"]), deny: entries(&["d"]) },
            allow_responses: None,
        };
        for text in [
            "{publish: \"a.>\", subscribe: {allow: [b, \"c q*\"], deny: d}}",
            "{pub: [a.>], sub: {allow: [\"b\"\n 'c q*'], deny: [d]}}",
            "{import: {allow: a.>}, export: {deny: d, allow: [b, \"c  q*\"]}}",
        ] {
            assert_eq!(permissions(text), wanted, "{text}");
        }
        let responses = |text: &str| permissions(text).allow_responses;
        assert_eq!(responses("{allow_responses: true}"), Some(Responses::default()));
        assert_eq!(responses("{allow_responses: false}"), None);
        let some = Some(Responses { max: -1, expires_ms: 400 });
        assert_eq!(responses("{allow_responses: {max: -1, expires: \"400ms\"}}"), some);
        let synonyms = "{publish_allow_responses: {max_msgs: -1, ttl: \"400ms\"}}";
        assert_eq!(responses(synonyms), some);
    }

    #[test]
    fn a_block_of_permissions_can_be_a_variable() {
        let auth = bound(
            "authorization { PERM { publish: p }\n default_permissions: $PERM\n\
             users: [{user: u, password: p, permission: $PERM}] }",
        )
        .auth;
        assert_eq!(auth.users[0].permissions, auth.default_permissions);
        assert!(auth.default_permissions.is_some());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let cases = [
            ("authorization { user: a, password: b, token: c }", "a token; keep one"),
            ("authorization { user: a, users: [] }", "a users array; keep one"),
            ("authorization { token: a, users: [] }", "a users array; keep one"),
            ("authorization { password: a }", "needs a user"),
            ("authorization { users: [{user: q},{user: q}] }", "duplicate user \"q\""),
            ("authorization { users: [{password: q}] }", "needs a name"),
            ("authorization { user: 123 }", "user is text; put it in quotes"),
            ("authorization { token: t }\nno_auth_user: x", "no_auth_user \"x\""),
            ("max_payload: 100\nmax_pending: 10", "cannot be higher than max_pending"),
            ("lame_duck_duration: \"10s\"", "at least \"30s\""),
            ("lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"30s\"", "must be less than"),
            ("server_name: \"a b\"", "cannot contain spaces"),
            ("max_subscription_tokens: 256", "a number from 0 to 255"),
            ("max_control_line: 3GB", "a number from 0 to"),
            ("max_payload: -1", "a number from 0 to"),
            ("debug: \"true\"", "true or false, without quotes"),
            ("write_deadline: \"-3s\"", "cannot be negative"),
            ("ping_interval: \"3\"", "expected a unit"),
            ("authorization: 3", "a block"),
            ("write_timeout: sometimes", "default, close or retry"),
        ];
        for (text, reason) in cases {
            let error = refused(text);
            assert!(error.contains(reason), "{text}\n{error}");
        }
        for subject in ["a..b", ".a", "a.", ">.a", "", "a b c"] {
            let text = format!("authorization {{ permissions: {{publish: \"{subject}\"}} }}");
            assert!(refused(&text).contains("is not a valid subject"), "{subject}");
        }
        let queue = refused("authorization { permissions: {publish: \"a q\"} }");
        assert!(queue.contains("has no queue"), "{queue}");
    }

    #[test]
    fn no_error_and_no_warning_names_a_secret() {
        for text in ["authorization { password: 98765, user: a }", "authorization { token: 98765 }"]
        {
            assert!(!refused(text).contains("98765"));
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_known_one() {
        let error = refused("port: 1\nmax_paylod: 3");
        assert_eq!(
            error,
            "c.conf:2:1: unknown field \"max_paylod\"; did you mean \"max_payload\"?"
        );
        assert_eq!(refused("zzz: 1"), "c.conf:1:1: unknown field \"zzz\"");
        assert!(refused("authorization { usr: 1 }").contains("did you mean \"user\"?"));
        bound("zzz: 4222\nport: $zzz");
    }

    #[test]
    fn an_import_has_one_local_subject() {
        let text = |local: &str| {
            let import = format!("{{stream: {{account: A, subject: a}}, {local}}}");
            format!("accounts {{ A {{ exports: [{{stream: a}}] }}, B {{ imports: [{import}] }} }}")
        };
        bound(&text("to: b"));
        bound(&text("prefix: c"));
        assert!(refused(&text("to: b, prefix: c")).contains("keep one"));
    }

    #[test]
    fn what_is_missing_is_refused_where_it_matters_and_mentioned_where_it_does_not() {
        assert!(refused("tls { cert_match: a }").contains("is not supported yet"));
        let key = nkeys::KeyPair::new_server().public_key();
        let proxies = |key: &str| format!("proxies {{ trusted: [{{key: {key}}}] }}");
        assert!(bound(&proxies(&key)).notes.absent[0].contains("has no effect"));
        assert!(refused(&proxies("SX")).contains("\"SX\" is not a public key"));
        assert!(refused("proxies { trust: [] }").contains("did you mean \"trusted\"?"));
        let other = "authorization { users: [{user: a, allowed_connection_types: [PIGEON]}] }";
        assert!(refused(other).contains("a connection type is one of"), "{other}");
        let two =
            "authorization { users: [{user: a, allowed_connection_types: [Standard, MQTT]}] }";
        let wanted = [ConnectionType::Standard, ConnectionType::Mqtt];
        assert_eq!(bound(two).auth.users[0].connection_types, wanted);
        assert!(bound("prof_port: 1").notes.missing[0].contains("has no effect"));
        assert_eq!(bound("mqtt {}").network.mqtt, None);
        let nats_js = "host: 127.0.0.1\nport: -1\nhttp: 127.0.0.1:-1\nserver_tags: [a, b:c]\n\
             websocket {port: -1, no_tls: true}\nports_file_dir: /tmp";
        assert_eq!(bound(nats_js).server.tags, ["a", "b:c"]);
    }

    #[test]
    fn no_key_is_in_two_rows() {
        let mut seen = std::collections::HashSet::new();
        for Key(names, _) in KEYS.iter().copied().flatten() {
            for name in *names {
                assert!(seen.insert(*name), "{name}");
                assert_eq!(name.to_ascii_lowercase(), *name);
            }
        }
    }
}
