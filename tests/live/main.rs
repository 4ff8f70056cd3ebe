//! A live server on loopback, and what its users see of it.
//!
//! One executable for all of it: most of these tests wait most of their time, and only those of
//! one executable wait at once.

#![forbid(unsafe_code)]

mod broker;

mod abuse;
mod accounts;
mod archives;
mod callouts;
mod cli;
mod clients;
mod cluster;
mod cluster_faults;
mod conformance;
mod denials;
mod exchange;
mod far_copies;
mod fetched;
mod fields;
mod gateways;
mod growth;
mod hostile_leaf;
mod import;
mod jwt;
mod latency;
mod leaf;
mod leaf_streams;
mod leaf_websocket;
mod logins;
mod mapping;
mod message_trace;
mod metrics;
mod monitor;
mod mqtt;
mod ocsp;
mod overflow;
mod page;
mod pool;
mod ports;
mod prometheus;
mod raw;
mod reach;
mod reload;
mod resolver;
mod route_peers;
mod routes;
mod seats;
mod seccomp;
mod shards;
mod slow_links;
mod start;
mod streams;
mod system;
mod tls;
mod transports;
mod written;
