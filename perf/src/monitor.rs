//! What a shardcast counts of itself, read from its monitoring port.

use crate::report::human;
use crate::stats::Summary;
use serde::{Deserialize, Serialize};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long connecting, and each read, may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Counters of all shards together, since the server's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    turns: u64,
    system_calls: u64,
    sends: u64,
    delivered: u64,
    wakeups: u64,
    lane_records: u64,
}

/// What these counters say of the time between two looks; each where it has a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Rates {
    /// Entries into the kernel.
    pub(crate) system_calls_per_delivery: Option<f64>,
    /// Sends that completed.
    pub(crate) sends_per_turn: Option<f64>,
    /// Messages to clients.
    pub(crate) messages_per_send: Option<f64>,
    /// Records for another shard, for each time that one had to be woken.
    pub(crate) records_per_wakeup: Option<f64>,
    /// Records for another shard; where each message is a record, the part that has crossed.
    pub(crate) records_per_delivery: Option<f64>,
    /// How often another shard had to be woken.
    pub(crate) wakeups_per_turn: Option<f64>,
}

impl Rates {
    /// Each with its name, a dash where it has no meaning.
    pub(crate) fn cells(self) -> [(&'static str, String); 6] {
        let cell = |rate: Option<f64>| match rate {
            None => "–".to_owned(),
            Some(0.0) => "0".to_owned(),
            Some(rate) if rate < 0.1 => format!("{rate:.2e}"),
            Some(rate) => human(rate),
        };
        [
            ("system calls/delivery", cell(self.system_calls_per_delivery)),
            ("sends/turn", cell(self.sends_per_turn)),
            ("messages/send", cell(self.messages_per_send)),
            ("records/wake-up", cell(self.records_per_wakeup)),
            ("records/delivery", cell(self.records_per_delivery)),
            ("wake-ups/turn", cell(self.wakeups_per_turn)),
        ]
    }

    /// All in one line.
    pub(crate) fn text(self) -> String {
        self.cells().map(|(name, value)| format!("{value} {name}")).join(", ")
    }

    /// The median of each over several runs; nothing of none.
    pub(crate) fn median(rates: &[Self]) -> Option<Self> {
        let of = |rate: fn(&Self) -> Option<f64>| {
            Summary::of(rates.iter().filter_map(rate)).map(|summary| summary.median)
        };
        (!rates.is_empty()).then(|| Self {
            system_calls_per_delivery: of(|rates| rates.system_calls_per_delivery),
            sends_per_turn: of(|rates| rates.sends_per_turn),
            messages_per_send: of(|rates| rates.messages_per_send),
            records_per_wakeup: of(|rates| rates.records_per_wakeup),
            records_per_delivery: of(|rates| rates.records_per_delivery),
            wakeups_per_turn: of(|rates| rates.wakeups_per_turn),
        })
    }
}

/// What is read of `/shardz`.
#[derive(Deserialize)]
struct Shardz {
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Shard {
    turns: u64,
    system_calls: u64,
    sends: u64,
    out_msgs: u64,
    wakeups_sent: u64,
    lanes: Vec<Lane>,
}

#[derive(Deserialize)]
struct Lane {
    records: u64,
}

impl Counters {
    /// Asks for them; nothing when nobody answers, or another server does.
    pub(crate) fn of(monitor: SocketAddr) -> Option<Self> {
        let mut stream = TcpStream::connect_timeout(&monitor, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET /shardz HTTP/1.1\r\nHost: {monitor}\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        if !head.starts_with("HTTP/1.1 200") {
            return None;
        }
        serde_json::from_str(body).ok().map(|shardz: Shardz| Self::sum(&shardz.shards))
    }

    fn sum(shards: &[Shard]) -> Self {
        let all = |of: fn(&Shard) -> u64| shards.iter().map(of).sum();
        Self {
            turns: all(|shard| shard.turns),
            system_calls: all(|shard| shard.system_calls),
            sends: all(|shard| shard.sends),
            delivered: all(|shard| shard.out_msgs),
            wakeups: all(|shard| shard.wakeups_sent),
            lane_records: all(|shard| shard.lanes.iter().map(|lane| lane.records).sum()),
        }
    }

    /// What has happened since `before`.
    pub(crate) fn since(self, before: Self) -> Rates {
        let per = |count: fn(&Self) -> u64, unit: fn(&Self) -> u64| {
            let grown = |of: fn(&Self) -> u64| of(&self).saturating_sub(of(&before)) as f64;
            (grown(unit) > 0.0).then(|| grown(count) / grown(unit))
        };
        Rates {
            system_calls_per_delivery: per(|c| c.system_calls, |c| c.delivered),
            sends_per_turn: per(|c| c.sends, |c| c.turns),
            messages_per_send: per(|c| c.delivered, |c| c.sends),
            records_per_wakeup: per(|c| c.lane_records, |c| c.wakeups),
            records_per_delivery: per(|c| c.lane_records, |c| c.delivered),
            wakeups_per_turn: per(|c| c.wakeups, |c| c.turns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_and_missing_where_nothing_is_divided_by() {
        let shard = |turns, out_msgs| Shard {
            turns,
            system_calls: turns,
            sends: 2 * turns,
            out_msgs,
            wakeups_sent: 0,
            lanes: vec![Lane { records: 3 * turns }],
        };
        let before = Counters::sum(&[shard(10, 100), shard(20, 0)]);
        let rates = Counters::sum(&[shard(15, 200), shard(25, 0)]).since(before);
        assert_eq!(rates.system_calls_per_delivery, Some(0.1));
        assert_eq!(rates.sends_per_turn, Some(2.0));
        assert_eq!(rates.messages_per_send, Some(5.0));
        assert_eq!(rates.records_per_wakeup, None);
        assert_eq!(rates.records_per_delivery, Some(0.3));
        assert_eq!(rates.wakeups_per_turn, Some(0.0));
    }
}
