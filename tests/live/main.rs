//! A live server on loopback, and what its users see of it.
//!
//! One executable for all of it: most of these tests wait most of their time, and only those of
//! one executable wait at once.

#![forbid(unsafe_code)]

mod broker;

mod abuse;
mod accounts;
mod cli;
mod clients;
mod cluster;
mod cluster_faults;
mod conformance;
mod denials;
mod exchange;
mod fields;
mod growth;
mod jwt;
mod logins;
mod mapping;
mod message_trace;
mod metrics;
mod monitor;
mod overflow;
mod page;
mod pool;
mod ports;
mod raw;
mod reload;
mod resolver;
mod route_peers;
mod routes;
mod seccomp;
mod shards;
mod start;
mod system;
mod tls;
mod transports;
