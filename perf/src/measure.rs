//! What can be measured, and what is left of it when servers are compared.

use crate::ceiling;
use crate::cli::Subject;
use crate::fault::Outcome;
use crate::load::{self, Pace, Plan, histogram};
use crate::monitor::Rates;
use crate::probe::{self, Site, Storm, StormReport, Subscribing, SubscribingReport};
use crate::report::{LoadReport, Progress, Quantiles};
use crate::requests::{self, RoundTrips, RttReport, Service};
use crate::server::Setup;
use crate::stored::{self, Reading, ReadingReport};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::atomic::AtomicBool;

/// A measurement that has been asked for.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Publishers and subscribers.
    Load {
        /// Who does what.
        plan: Plan,
        /// How late the generator may be at its 99th percentile, in microseconds.
        lag_max_us: f64,
    },
    /// Request and reply.
    RoundTrips(RoundTrips),
    /// A stream that is read.
    Reading(Reading),
    /// Many connections.
    Storm(Storm),
    /// Many subscriptions.
    Subscribing(Subscribing),
}

/// Which figures of a measurement matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Kind {
    /// What a second of CPU gives.
    Throughput,
    /// How long something takes.
    Time,
    /// What a second of CPU gives, and how long each takes.
    Requests,
    /// How much memory something takes.
    Memory,
}

impl Work {
    /// Which figures matter.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Load { plan, .. } if matches!(plan.pace, Pace::Open { .. }) => Kind::Time,
            Self::Load { .. } | Self::Reading(_) => Kind::Throughput,
            Self::RoundTrips(_) => Kind::Requests,
            Self::Storm(storm) if storm.settle.is_zero() => Kind::Time,
            Self::Storm(_) | Self::Subscribing(_) => Kind::Memory,
        }
    }

    /// What its times are.
    pub(crate) fn times(&self) -> &'static str {
        match self {
            Self::Load { .. } => "latency from the intended send time",
            Self::RoundTrips(_) => "round trip",
            Self::Reading(_) => "time of a batch",
            Self::Storm(_) | Self::Subscribing(_) => "time to ready",
        }
    }

    /// The work of taking the same deliveries when they are poured, and the command that pours
    /// them, for each size of the batches; nothing where there is no such ceiling.
    pub(crate) fn ceilings(&self) -> Outcome<Vec<(Self, String)>> {
        let Self::Load { plan, lag_max_us } = self else {
            return Ok(Vec::new());
        };
        let poured = ceiling::of(plan)?.into_iter();
        Ok(poured
            .map(|(plan, command)| (Self::Load { plan, lag_max_us: *lag_max_us }, command))
            .collect())
    }

    /// What it needs of a server that is started for it.
    pub(crate) fn setup(&self) -> Setup {
        match self {
            Self::Load { plan, .. } => plan.setup.clone(),
            Self::RoundTrips(RoundTrips { link, service, .. }) => {
                let mqtt = (*service == Service::Mqtt).then_some(1);
                Setup { link: *link, mqtt, ..Setup::default() }
            }
            Self::Storm(storm) => Setup { mqtt: storm.mqtt.then_some(0), ..Setup::default() },
            _ => Setup::default(),
        }
    }

    /// Does it to `subject`, until `stop`. Gives what was seen, and times in nanoseconds.
    pub(crate) fn run(
        &self,
        subject: &Subject,
        stop: &AtomicBool,
        progress: &mut Progress,
    ) -> Outcome<(Run, Histogram<u64>)> {
        let Subject { target, far, pids, monitor, .. } = subject;
        let site = Site { target, far, pids, monitor: *monitor, stop };
        Ok(match self {
            Self::Load { plan, lag_max_us } => {
                let seen = load::run(plan, subject, stop, progress)?;
                (Run::Load(Box::new(LoadReport::new(plan, &seen, *lag_max_us))), seen.latency)
            }
            Self::RoundTrips(plan) => {
                let (report, times) = requests::rtt(&site, plan, progress)?;
                (Run::RoundTrips(report), times)
            }
            Self::Reading(plan) => {
                let (report, times) = stored::read(&site, plan, progress)?;
                (Run::Reading(report), times)
            }
            Self::Storm(plan) => {
                let (report, times) = probe::storm(&site, plan, progress)?;
                (Run::Storm(report), times)
            }
            Self::Subscribing(plan) => {
                (Run::Subscribing(probe::subscribe(&site, plan, progress)?), histogram())
            }
        })
    }
}

/// What one run showed.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Run {
    /// Of a load.
    Load(Box<LoadReport>),
    /// Of round trips.
    RoundTrips(RttReport),
    /// Of a stream that was read.
    Reading(ReadingReport),
    /// Of many connections.
    Storm(StormReport),
    /// Of many subscriptions.
    Subscribing(SubscribingReport),
}

/// The figures that all kinds of runs are compared by, each where it has a meaning. What is
/// counted are deliveries, replies, connections or subscriptions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Per second of the server's CPU.
    pub(crate) per_server_cpu_s: Option<f64>,
    /// Per second.
    pub(crate) per_s: Option<f64>,
    /// This program's own CPU for each, in nanoseconds.
    pub(crate) generator_ns_each: Option<f64>,
    /// How long each took.
    pub(crate) times: Option<Quantiles>,
    /// The server's memory for each, in bytes.
    pub(crate) server_bytes_each: Option<f64>,
    /// What part of its memory before the server has after connections have come and gone.
    pub(crate) memory_kept: Option<f64>,
    /// What the server counts.
    pub(crate) counted: Option<Rates>,
}

impl Run {
    /// What to compare it by.
    pub(crate) fn figures(&self) -> Figures {
        match self {
            Self::Load(report) => Figures {
                per_server_cpu_s: report.per_server_cpu_s,
                per_s: Some(report.delivered_per_s),
                generator_ns_each: Some(report.generator_ns_each),
                times: report.latency_us,
                counted: report.counted,
                ..Figures::default()
            },
            Self::RoundTrips(report) => report.figures(),
            Self::Reading(report) => report.figures(),
            Self::Storm(report) => report.figures(),
            Self::Subscribing(report) => report.figures(),
        }
    }

    /// Whether it got more out of the server's CPU, and may be used.
    pub(crate) fn beats(&self, other: &Self) -> bool {
        let rank = |run: &Self| {
            (run.invalid().is_empty(), run.figures().per_server_cpu_s.unwrap_or(f64::NEG_INFINITY))
        };
        rank(self) > rank(other)
    }

    /// Why the figures must not be used; empty when they may.
    pub(crate) fn invalid(&self) -> Vec<String> {
        match self {
            Self::Load(report) => report.invalid.clone(),
            Self::RoundTrips(report) => report.invalid(),
            Self::Reading(report) => report.invalid(),
            Self::Storm(_) | Self::Subscribing(_) => Vec::new(),
        }
    }

    /// Whether the user ended it early.
    pub(crate) fn is_interrupted(&self) -> bool {
        match self {
            Self::Load(report) => report.interrupted,
            Self::RoundTrips(report) => report.interrupted,
            Self::Reading(report) => report.interrupted,
            Self::Storm(report) => report.interrupted,
            Self::Subscribing(report) => report.interrupted,
        }
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Load(report) => report.text(),
            Self::RoundTrips(report) => report.text(),
            Self::Reading(report) => report.text(),
            Self::Storm(report) => report.text(),
            Self::Subscribing(report) => report.text(),
        }
    }
}
