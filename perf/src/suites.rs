//! The built-in sets of scenarios.

/// A built-in set of scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Suite {
    /// Throughput from one publisher to 1, 10, 100 and 1000 subscribers, and 100,000 subjects
    Fanout,
    /// Latency at fixed rates
    Latency,
    /// 100 subscribers that read, beside 0, 1, 10 and 50 that do not: latency at a fixed rate, and
    /// as fast as it goes
    Slow,
    /// All that a broker is judged by: rates, memory, times, and what could spoil them
    Limits,
    /// Many publishers, subscribers and requesters on all threads of a server: the CPU of each
    /// delivery, for --shards 1,2,4,8
    Crossing,
    /// Storing messages in a stream and values in a bucket, with so many under way
    Streams,
    /// Reading a stream, and a bucket's values and changes
    Stored,
    /// Publishers at one server, subscribers at another, joined by routes, a leaf connection, or
    /// gateways: name two servers as 'NAME=COMMAND && COMMAND'
    Links,
    /// MQTT: fan-out, messages that are acknowledged, idle sessions; for a server that speaks
    /// nothing else, write {mqtt} for its port
    Mqtt,
    /// One short run of each kind, to see that all works
    Smoke,
}

impl Suite {
    /// Its scenarios, each with its name in front.
    pub(crate) fn scenarios(self) -> Vec<String> {
        match self {
            Self::Fanout => fanout(),
            Self::Latency => [
                ("1→1 128 B, 1 k/s", "--rate 1000"),
                ("1→1 128 B, 20 k/s", "--rate 20000"),
                ("1→100 128 B, 1 k/s", "--rate 1000 --subs 100"),
                ("1→100 128 B, 5 k/s", "--rate 5000 --subs 100"),
                ("1→10 16 KiB, 1 k/s", "--rate 1000 --subs 10 --payload 16KiB"),
                (
                    "10→10 of 1000 subjects, 20 k/s",
                    "--rate 20000 --pubs 10 --subs 10 \
                    --subjects 1000",
                ),
            ]
            .iter()
            .map(|(name, options)| format!("{name}: latency --duration 5s {options}"))
            .collect(),
            Self::Slow => slow(),
            Self::Crossing => crossing(),
            Self::Streams => STREAMS.map(brief).to_vec(),
            Self::Stored => STORED.map(brief).to_vec(),
            Self::Links => links(),
            Self::Mqtt => MQTT.map(brief).into_iter().chain([MQTT_IDLE.to_owned()]).collect(),
            Self::Limits => LIMITS.iter().map(|text| (*text).to_owned()).collect(),
            Self::Smoke => SMOKE.iter().map(|text| (*text).to_owned()).collect(),
        }
    }
}

const LIMITS: [&str; 29] = [
    "1→1 16 B: throughput --payload 16",
    "1→1 128 B: throughput",
    "1→10 128 B: throughput --subs 10",
    "1→100 16 B: throughput --subs 100 --payload 16",
    "1→100 128 B: throughput --subs 100",
    "1→100 1 KiB: throughput --subs 100 --payload 1KiB",
    "1→100 16 KiB: throughput --subs 100 --payload 16KiB",
    "1→100 64 KiB: throughput --subs 100 --payload 64KiB",
    "1→1000 16 B: throughput --subs 1000 --payload 16",
    "1→1000 128 B: throughput --subs 1000",
    "1→100, own sids: throughput --subs 100 --own-sids",
    "1→100, headers of 32 B: throughput --subs 100 --headers 32",
    "1→100, replies of 32 B: throughput --subs 100 --reply 32",
    "1→100, 10 k/s SUB and UNSUB: throughput --subs 100 --churn 10000",
    "1→1000, 10 k/s SUB and UNSUB: throughput --subs 1000 --churn 10000",
    "1→100, permissions: throughput --subs 100 --permissions",
    "1→100, idle between: throughput --subs 100 --idle-between",
    "1→100 across shards: throughput --subs 100 --idle-between --shards 2",
    "10 times 1→10: throughput --pubs 10 --own-subjects --subjects 10 --subs 100 --fanout 10",
    "queue group of 10: throughput --subs 10 --queue-groups 1",
    "100,000 subjects: throughput --subs 10 --subjects 100000",
    "10,000 wildcards, 1 to 5 match: throughput --subs 10 --subjects 10000 --overlapping",
    "request and reply: rtt",
    "PING beside a flood: rtt --responders 0 --flood 1 --rate 1000",
    "request and reply beside a flood: rtt --flood 1 --rate 1000",
    "1→100, 15 k/s: latency --subs 100 --rate 15000",
    "1→1000, 1 k/s: latency --subs 1000 --rate 1000",
    "10,000 idle connections: idle --conns 10000 --burst",
    "1,000,000 subscriptions: subs",
];

const SMOKE: [&str; 17] = [
    "1→2 128 B: throughput --subs 2 --verify --warmup 100ms --duration 300ms",
    "2→4, 2 queue groups: throughput --pubs 2 --subs 4 --queue-groups 2 --verify \
     --warmup 100ms --duration 300ms",
    "100 subjects, headers: throughput --subjects 100 --subs 4 --headers 64 --verify \
     --warmup 100ms --duration 300ms",
    "wildcard: throughput --subjects 10 --subs 2 --wildcard --verify \
     --warmup 100ms --duration 300ms",
    "overlapping: throughput --subjects 50 --subs 7 --overlapping --own-sids --verify \
     --warmup 100ms --duration 300ms",
    "2 times 1→2, replies: throughput --pubs 2 --own-subjects --subjects 2 --subs 4 --fanout 2 \
     --reply 32 --verify --warmup 100ms --duration 300ms",
    "3 pairs, a KiB at a time: throughput --pubs 3 --subs 3 --subjects 3 --own-subjects \
     --write 1KiB --verify --warmup 100ms --duration 300ms",
    "churn: throughput --subs 2 --churn 500 --idle-between --verify \
     --warmup 100ms --duration 1s",
    "1→2, 2 k/s: latency --rate 2000 --subs 2 --verify --lag-max 100ms \
     --warmup 100ms --duration 300ms",
    "permissions: throughput --subs 2 --permissions --reply 32 --verify \
     --warmup 100ms --duration 300ms",
    "across shards: throughput --subs 2 --idle-between --shards 2 --verify \
     --warmup 100ms --duration 300ms",
    "beside a flood: rtt --flood 1 --rate 200 --warmup 100ms --duration 300ms",
    "beside a storm: rtt --storm 20 --rate 200 --warmup 100ms --duration 500ms",
    "1→2 beside 2 stalled: throughput --subs 2 --stalled 2 --verify --warmup 100ms \
     --duration 300ms",
    "round trips: rtt --warmup 100ms --duration 300ms",
    "idle: idle --conns 100 --settle 100ms --burst",
    "subs: subs --count 10000 --settle 100ms",
];

const STREAMS: [&str; 7] = [
    "publish, 1 under way: rtt --of publish",
    "publish, 16 under way: rtt --of publish --outstanding 16",
    "publish, 256 under way: rtt --of publish --outstanding 256",
    "publish, 4096 under way: rtt --of publish --outstanding 4096",
    "publish, 256 connections with 1: rtt --of publish --requesters 256",
    "put, 1 under way: rtt --of put",
    "put, 256 under way: rtt --of put --outstanding 256",
];

const STORED: [&str; 7] = [
    "fetch: read --by fetch",
    "fetch, acknowledged: read --by fetch --acked",
    "push: read --by push",
    "push, acknowledged: read --by push --acked",
    "get, 1 under way: rtt --of get",
    "get, 256 under way: rtt --of get --outstanding 256",
    "watch, 256 puts under way: rtt --of put --outstanding 256 --watchers 1",
];

// With 64 KiB ahead no subscriber has a thousand messages waiting, from which on mosquitto drops.
const MQTT: [&str; 6] = [
    "1→100 128 B: throughput --mqtt 0 --subs 100 --window 64KiB",
    "1→1000 128 B: throughput --mqtt 0 --subs 1000 --window 64KiB",
    "QoS 1, publish, 1 under way: rtt --of mqtt",
    "QoS 1, publish, 16 under way: rtt --of mqtt --outstanding 16",
    "QoS 1, publish and deliver 1→1: throughput --mqtt 1 --window 16KiB --write 2KiB",
    "QoS 1, publish and deliver 1→10: throughput --mqtt 1 --subs 10 --window 16KiB --write 2KiB",
];

const MQTT_IDLE: &str = "10,000 idle sessions: idle --conns 10000 --mqtt";

fn links() -> Vec<String> {
    let loads = [
        "1→1 128 B: throughput",
        "1→10 128 B: throughput --subs 10",
        "1→100 128 B: throughput --subs 100",
        "1→1 1 KiB: throughput --payload 1KiB",
        "1→10 1 KiB: throughput --payload 1KiB --subs 10",
        "1→100 1 KiB: throughput --payload 1KiB --subs 100",
        "10 pairs: throughput --pubs 10 --subs 10 --subjects 10 --own-subjects --write 16KiB",
        "request and reply: rtt",
    ];
    let joined =
        |link: &str| loads.map(|text| brief(&format!("{link}, {text} --link {link}"))).to_vec();
    ["route", "leaf", "gateway"].iter().flat_map(|link| joined(link)).collect()
}

/// The scenario with a window that is short, so that a server's stream stays small.
fn brief(text: &str) -> String {
    format!("{text} --warmup 300ms --duration 1s")
}

fn slow() -> Vec<String> {
    let stalled = [0, 1, 10, 50];
    // While a server still waits for them, and once it has cut them off.
    let kinds = ["latency --rate 500 --duration 8s", "throughput --warmup 3s --duration 4s"];
    let scenario = |kind: &str, stalled: usize| {
        let (what, _) = kind.split_once(' ').unwrap_or((kind, ""));
        format!("1→100 beside {stalled} stalled, {what}: {kind} --subs 100 --stalled {stalled}")
    };
    kinds.iter().flat_map(|kind| stalled.map(|stalled| scenario(kind, stalled))).collect()
}

fn fanout() -> Vec<String> {
    let mut scenarios = Vec::new();
    for subs in [1, 10, 100, 1000] {
        for payload in ["16 B", "128 B", "1 KiB", "16 KiB"] {
            let bytes = payload.replace(' ', "");
            scenarios
                .push(format!("1→{subs} {payload}: throughput --subs {subs} --payload {bytes}"));
        }
    }
    scenarios.push("100,000 subjects 128 B: throughput --subjects 100000 --subs 10".to_owned());
    scenarios.iter().map(|text| format!("{text} --warmup 500ms --duration 2s")).collect()
}

fn crossing() -> Vec<String> {
    // What a publisher writes at once, so that each of so many has its part of the window.
    let pairs = [(10, "10", "64KiB"), (100, "100", "8KiB"), (1000, "1,000", "1KiB")];
    let kinds = [
        ("pairs", "--own-subjects"),
        ("pairs in turn", ""),
        ("pairs, headers of 32 B", "--own-subjects --headers 32"),
        ("pairs in turn, headers of 32 B", "--headers 32"),
    ];
    let mut scenarios = Vec::new();
    for (kind, options) in kinds {
        for (count, name, write) in pairs {
            scenarios.push(format!(
                "{name} {kind}: throughput --pubs {count} --subs {count} --subjects {count} \
                 --write {write} {options}"
            ));
        }
    }
    scenarios.extend(
        [
            "100,000 subjects: throughput --pubs 10 --subs 10 --subjects 100000",
            "queue group of 10: throughput --pubs 10 --subs 10 --queue-groups 1",
            "1→10: throughput --subs 10",
            "1→100: throughput --subs 100",
            "request and reply, 1 to 10: rtt --responders 10",
            "request and reply, 100 to 10: rtt --requesters 100 --responders 10",
            "request and reply, 1,000 to 10: rtt --requesters 1000 --responders 10",
        ]
        .map(str::to_owned),
    );
    scenarios.iter().map(|text| format!("{text} --warmup 500ms --duration 2s")).collect()
}
