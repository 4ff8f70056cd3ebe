//! Pools of routes: accounts spread over several connections, alone and with nats-server.

use crate::broker::Broker;
use crate::broker::http::json;
use crate::broker::members::{
    Kind, Old, Original, Ours, config, has_original, meet, originals, routes, routes_to_each, start,
};
use crate::broker::peers::{next, within};
use crate::broker::wire::Wire;
use async_nats::{Client, ConnectOptions};

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// Accounts `A0` … `A7` with a user each, called the same.
const ACCOUNTS: usize = 8;

fn accounts() -> String {
    let account = |at| format!("A{at} {{ users: [{{user: A{at}, password: A{at}}}] }}");
    let all: Vec<String> = (0..ACCOUNTS).map(account).collect();
    format!("accounts {{ {} }}", all.join("\n"))
}

/// A member of a cluster whose block also says `cluster`.
fn member_with(kind: Kind, name: &str, seeds: &mut [&mut Broker], cluster: &str) -> Broker {
    start(kind, &config(name, &routes("127.0.0.1", seeds), cluster, &accounts()))
}

async fn user(broker: &Broker, name: &str) -> Client {
    let options = ConnectOptions::with_user_and_password(name.to_owned(), name.to_owned());
    let options = options.retry_on_initial_connect();
    within(options.connect(broker.url())).await.expect("it accepts")
}

/// What each account publishes at `from` arrives in it alone at `to`, in order.
async fn check_accounts(from: &Broker, to: &Broker) {
    const MESSAGES: usize = 100;
    let mut heard = Vec::new();
    let mut publishers = Vec::new();
    for at in 0..ACCOUNTS {
        let name = format!("A{at}");
        let (publisher, subscriber) = (user(from, &name).await, user(to, &name).await);
        heard.push((subscriber.subscribe("x.*").await.expect("connected"), subscriber.clone()));
        meet(&subscriber, &publisher).await;
        publishers.push(publisher);
    }
    for number in 0..MESSAGES {
        for (at, publisher) in publishers.iter().enumerate() {
            let payload = format!("A{at} {number}");
            publisher.publish("x.y", payload.into()).await.expect("connected");
        }
    }
    for (at, (heard, _)) in heard.iter_mut().enumerate() {
        for number in 0..MESSAGES {
            assert_eq!(next(heard).await.payload, format!("A{at} {number}").as_bytes());
        }
    }
}

/// By account, if the route is for one only, what came over each route to the one other member.
fn received(broker: &Broker) -> Vec<(Option<String>, u64)> {
    let routes = json(broker, "/routez")["routes"].as_array().cloned().unwrap_or_default();
    let shown = |route: &serde_json::Value| {
        (route["account"].as_str().map(str::to_owned), route["in_msgs"].as_u64().unwrap_or(0))
    };
    routes.iter().map(shown).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_spread_over_a_pool_and_some_have_a_route_of_their_own() {
    let mut pairs = vec![[Ours(2), Ours(4)]];
    if has_original() {
        pairs.extend([[Ours(3), Original], [Original, Ours(2)]]);
    }
    for kinds in pairs {
        let dedicated = "accounts: [A6, A7]";
        let mut first = member_with(kinds[0], "a", &mut [], dedicated);
        let second = member_with(kinds[1], "b", &mut [&mut first], dedicated);
        check_accounts(&first, &second).await;
        check_accounts(&second, &first).await;
        for broker in [&first, &second] {
            let received = received(broker);
            let own = received.iter().filter_map(|(account, _)| account.as_deref());
            let mut own: Vec<_> = own.collect();
            own.sort_unstable();
            assert_eq!(own, ["$SYS", "A6", "A7"], "{kinds:?}");
            let shared: Vec<u64> =
                received.iter().filter(|(account, _)| account.is_none()).map(|(_, n)| *n).collect();
            assert_eq!(shared.len(), 3, "{kinds:?}");
            // A0 to A5 go to all three of them.
            assert!(shared.iter().all(|msgs| *msgs >= 100), "{kinds:?}: {received:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_pools_of_different_sizes_or_none_are_one_system() {
    let mut pairs = vec![([Ours(2), Ours(2)], [1, 4]), ([Ours(2), Ours(2)], [-1, 3])];
    if has_original() {
        pairs.extend([
            ([Ours(2), Original], [5, 3]),
            ([Original, Ours(2)], [5, 1]),
            ([Ours(2), Original], [-1, 3]),
            ([Original, Ours(2)], [-1, 3]),
        ]);
    }
    for kind in originals().into_iter().filter(|kind| *kind == Old) {
        pairs.extend([([Ours(2), kind], [3, 0]), ([kind, Ours(2)], [0, 3])]);
    }
    for (kinds, sizes) in pairs {
        let [one, other] = sizes.map(|size| match size {
            0 => String::new(),
            size => format!("pool_size: {size}"),
        });
        let mut first = member_with(kinds[0], "a", &mut [], &one);
        let second = member_with(kinds[1], "b", &mut [&mut first], &other);
        check_accounts(&first, &second).await;
        check_accounts(&second, &first).await;
        let wanted = match sizes {
            [one, other] if one < 1 || other < 1 => 1,
            [one, other] => usize::try_from(one.max(other)).expect("positive") + 1,
        };
        for broker in [&first, &second] {
            assert_eq!(routes_to_each(broker), [wanted], "{kinds:?} {sizes:?}");
        }
    }
}

/// A connection for routes of a peer of the test's own that has a pool, or a route for `account`.
fn pooled_peer(broker: &mut Broker, index: i64, account: &str) -> Wire {
    let mut wire = Wire::at(broker.route_port());
    let hello = format!(
        "CONNECT {{\"name\":\"PEER\",\"cluster\":\"C\",\"echo\":false}}\r\nINFO \
         {{\"server_id\":\"PEER\",\"server_name\":\"PEER\",\"headers\":true,\"cluster\":\"C\",\
         \"route_pool_size\":3,\"route_pool_idx\":{index},\"route_account\":\"{account}\"}}\r\n"
    );
    wire.send(hello.as_bytes());
    wire
}

/// The next line that is no PING and not about the server itself.
fn told(wire: &mut Wire) -> String {
    loop {
        let line = wire.line();
        if line != "PING" && !line.contains("$SYS") && !line.contains(" _R_") {
            return line;
        }
    }
}

#[test]
fn a_peer_with_a_pool_is_told_of_an_account_on_one_of_its_connections() {
    let mut kinds = vec![Ours(1), Ours(2)];
    if has_original() {
        kinds.push(Original);
    }
    for kind in kinds {
        let mut broker = member_with(kind, "a", &mut [], "accounts: [A7]");
        let mut pool = [0, 1, 2].map(|index| pooled_peer(&mut broker, index, ""));
        let mut own = pooled_peer(&mut broker, 0, "A7");
        for wire in pool.iter_mut().chain([&mut own]) {
            wire.send(b"PING\r\n");
            while told(wire) != "PONG" {}
        }
        let client = |at: usize| {
            let (mut wire, name) = (Wire::ungreeted(&broker), format!("A{at}"));
            assert!(wire.line().starts_with("INFO "));
            let login = format!("\"user\":\"{name}\",\"pass\":\"{name}\"");
            wire.send(format!("CONNECT {{\"verbose\":false,{login}}}\r\n").as_bytes());
            wire
        };
        let mut clients: Vec<Wire> = (0..ACCOUNTS).map(client).collect();
        for client in &mut clients {
            client.send(b"SUB s 1\r\nSUB s q 2\r\n");
            client.sync();
        }
        let mut heard = Vec::new();
        for wire in &mut pool {
            wire.send(b"PING\r\n");
            let mut lines = Vec::new();
            loop {
                let line = told(wire);
                if line == "PONG" {
                    break;
                }
                lines.push(line);
            }
            lines.sort();
            heard.push(lines);
        }
        // By FNV-1a, 32 bits, of the name modulo three.
        let wanted = [&["A0", "A3", "A5"][..], &["A2", "A4"], &["A1", "A6"]].map(|names| {
            let lines = |name: &&str| [format!("RS+ {name} s"), format!("RS+ {name} s q 1")];
            names.iter().flat_map(lines).collect::<Vec<_>>()
        });
        assert_eq!(heard, wanted, "{kind:?}");
        assert_eq!(told(&mut own), "RS+ s", "{kind:?}");
        assert_eq!(told(&mut own), "RS+ s q 1", "{kind:?}");

        // What has no name on the wire reaches the account, on every shard, and what is published
        // there comes back the same way.
        own.send(b"RMSG s | q 1\r\nx\r\nRS+ back\r\nPING\r\n");
        assert_eq!(told(&mut own), "PONG");
        let both = [(); 4].map(|()| clients[7].line()).join(" ");
        assert!(both.contains("MSG s 1 1 x") && both.contains("MSG s 2 1 x"), "{kind:?}: {both}");
        clients[7].send(b"PUB back reply 2\r\nhi\r\n");
        assert_eq!((told(&mut own), own.line()), ("RMSG back reply 2".into(), "hi".into()));
        clients[6].send(b"PUB back 2\r\nno\r\nPING\r\n");
        clients[6].expect(b"PONG\r\n");
        // With the connection goes what was wanted over it, and only that.
        own.send(b"RS- back\r\nPING\r\n");
        assert_eq!(told(&mut own), "PONG");
        drop(own);
        pool[1].send(b"RMSG A7 s 1\r\ny\r\n");
        clients[7].expect(b"MSG s 1 1\r\ny\r\n");
    }
}

#[test]
fn a_peer_that_asks_for_a_place_in_the_pool_that_is_not_there_is_told_so() {
    let mut kinds = vec![Ours(2)];
    if has_original() {
        kinds.push(Original);
    }
    for kind in kinds {
        let mut broker = member_with(kind, "a", &mut [], "accounts: [A7]");
        for (index, account, error) in [
            (3, "", "-ERR 'Invalid route pool index: 3 - pool size is 3'"),
            (-1, "", "-ERR 'Invalid route pool index: -1 - pool size is 3'"),
            (5_000_000_000, "", "-ERR 'Invalid route pool index: 5000000000 - pool size is 3'"),
            (0, "A1", "-ERR 'No route for account \"A1\"'"),
            (0, "NOPE", "-ERR 'Unable to lookup account \"NOPE\": account missing'"),
        ] {
            let mut wire = pooled_peer(&mut broker, index, account);
            assert_eq!(told(&mut wire), error, "{kind:?}");
            wire.expect_end();
        }
    }
}

#[test]
fn a_peer_without_a_pool_has_no_places_in_one_and_no_account_a_route_of_its_own() {
    let mut kinds = vec![Ours(2)];
    if has_original() {
        kinds.push(Original);
    }
    for kind in kinds {
        let mut broker = member_with(kind, "a", &mut [], "accounts: [A7]");
        let mut said = |more: &str| {
            let mut wire = Wire::at(broker.route_port());
            let hello = format!(
                "CONNECT {{\"name\":\"LONE\",\"cluster\":\"C\"}}\r\nINFO \
                 {{\"server_id\":\"LONE\",\"server_name\":\"LONE\",\"cluster\":\"C\",{more}}}\r\n\
                 PING\r\n"
            );
            wire.send(hello.as_bytes());
            let line = told(&mut wire);
            (line, wire)
        };
        for (more, account) in [
            ("\"route_account\":\"A7\"", "A7"),
            ("\"route_account\":\"A1\"", "A1"),
            ("\"route_account\":\"A7\",\"route_pool_size\":-1", "A7"),
        ] {
            let (line, mut wire) = said(more);
            let error = format!(
                "-ERR 'Not possible to have a dedicated route for account \"{account}\" between \
                 those servers'"
            );
            assert_eq!(line, error, "{kind:?}");
            wire.expect_end();
        }
        assert_eq!(said("\"route_pool_idx\":2").0, "PONG", "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_who_dial_each_other_have_one_route_for_an_account_of_its_own() {
    let mut pairs = vec![[Ours(2), Ours(2)]];
    if has_original() {
        pairs.extend([[Ours(1), Original], [Original, Ours(2)]]);
    }
    for kinds in pairs {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let ports = listeners.map(|listener| listener.local_addr().expect("bound").port());
        let config = |at: usize| {
            let (own, other) = (ports[at], ports[1 - at]);
            format!(
                "server_name: s{at}\nhttp: \"127.0.0.1:-1\"\n\
                 cluster {{ name: C, accounts: [A6, A7]\nlisten: \"127.0.0.1:{own}\"\n\
                 routes: [\"nats-route://127.0.0.1:{other}\"] }}\n{}",
                accounts()
            )
        };
        let [first, second] = [0, 1].map(|at| start(kinds[at], &config(at)));
        check_accounts(&first, &second).await;
        check_accounts(&second, &first).await;
        for broker in [&first, &second] {
            let received = received(broker);
            let mut own: Vec<_> = received.iter().filter_map(|(name, _)| name.as_deref()).collect();
            own.sort_unstable();
            assert_eq!(own, ["$SYS", "A6", "A7"], "{kinds:?}");
            assert_eq!(received.len(), 6, "{kinds:?}: {received:?}");
        }
    }
}

/// What a peer says to whoever has dialled it, before it has heard anything.
const DIALED: &str = "INFO {\"server_id\":\"PEER\",\"server_name\":\"PEER\",\"headers\":true,\
                      \"cluster\":\"C\",\"route_pool_size\":3}\r\n";
/// And on A7's own route once it knows that it is that.
const SAID_OF_A7: &[u8] =
    b"RS+ out\r\nRS+ group q 1\r\nRMSG in 2\r\nhi\r\nRMSG in | q 3\r\nyou\r\n";

/// A peer that is dialled, as far as its route for A7 alone: each line that comes over that, and
/// a way to say something there.
fn dialed_peer(listener: TcpListener) -> Receiver<(TcpStream, Receiver<String>)> {
    let (found, routes) = channel();
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let found = found.clone();
            thread::spawn(move || serve_dialer(socket, &found));
        }
    });
    routes
}

fn serve_dialer(mut socket: TcpStream, found: &Sender<(TcpStream, Receiver<String>)>) {
    let (heard, lines) = channel();
    let mut lines = Some(lines);
    let reader = BufReader::new(socket.try_clone().expect("a descriptor"));
    // Whoever dials may be gone again.
    let _ = socket.write_all(DIALED.as_bytes());
    for line in reader.lines().map_while(Result::ok) {
        if line == "PING" {
            let _ = socket.write_all(b"PONG\r\n");
            continue;
        }
        let is_own = line.starts_with("INFO ") && line.contains("\"route_account\":\"A7\"");
        let _ = heard.send(line);
        if let Some(lines) = lines.take_if(|_| is_own) {
            let _ = socket.write_all(SAID_OF_A7);
            let _ = found.send((socket.try_clone().expect("a descriptor"), lines));
        }
    }
}

#[test]
fn an_accounts_own_route_that_a_member_dials_names_it_in_no_line_of_either_side() {
    let mut kinds = vec![Ours(1), Ours(2)];
    if has_original() {
        kinds.push(Original);
    }
    for kind in kinds {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        // What the clients want is known before the peer answers.
        let url = format!("\"nats-route://127.0.0.1:{port}\"");
        let broker = start(kind, &config("a", &url, "accounts: [A7]", &accounts()));
        let mut client = Wire::ungreeted(&broker);
        assert!(client.line().starts_with("INFO "));
        client.send(b"CONNECT {\"verbose\":false,\"user\":\"A7\",\"pass\":\"A7\"}\r\n");
        client.send(b"SUB in 1\r\nSUB in q 2\r\n");
        client.sync();
        let (mut socket, lines) = dialed_peer(listener).recv().expect("it dials a route for A7");
        let mut got: Vec<String> = (0..6).map(|_| client.line()).collect();
        got.sort_unstable();
        let wanted = ["MSG in 1 2", "MSG in 1 3", "MSG in 2 3", "hi", "you", "you"];
        assert_eq!(got, wanted, "{kind:?}");
        client.send(b"PUB out 2\r\nok\r\nPUB group re 2\r\nok\r\nSUB more 3\r\nUNSUB 3\r\n");
        client.sync();
        let mut said: Vec<String> = Vec::new();
        while said.last().is_none_or(|line| line != "RS- more") {
            said.push(lines.recv().expect("it says so"));
        }
        assert!(said[0].starts_with("CONNECT {") && said[1].starts_with("INFO {"), "{said:?}");
        let said = &said[2..];
        for wanted in ["RS+ in", "RS+ in q 1", "RMSG out 2", "RMSG group + re q 2", "RS+ more"] {
            assert!(said.iter().any(|line| line == wanted), "{kind:?}: {wanted} in {said:?}");
        }
        assert!(!said.iter().any(|line| line.contains("A7 ")), "{kind:?}: {said:?}");
        // What has a name there is no line at all.
        socket.write_all(b"RS+ A7 named q 1\r\n").expect("connected");
        while lines.recv().is_ok() {}
    }
}
