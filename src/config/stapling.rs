//! Certificates of the server that are to be stapled, and whether those of peers are looked into.

use std::sync::Arc;

use super::Options;
use super::ocsp::StapleMode;
use crate::transport::{Staple, Tls};

/// A certificate to be stapled.
#[derive(Debug, Clone)]
pub(crate) struct Stapling {
    /// The kind of the connections with the certificate, in words of the log.
    pub(crate) kind: &'static str,
    /// The certificate.
    pub(crate) staple: Arc<Staple>,
    /// Whether the server ends when the certificate is not good.
    pub(crate) ends_server: bool,
}

impl Options {
    /// Returns the certificates that are to be stapled. Those for leaf nodes are not.
    pub(crate) fn staplings(&self) -> impl Iterator<Item = Stapling> {
        let mode = self.ocsp.mode;
        self.own_certificates().filter_map(move |(kind, staple)| {
            let ends_server = match mode {
                StapleMode::Never => return None,
                StapleMode::Auto | StapleMode::Must if !staple.is_must() => return None,
                StapleMode::Auto => false,
                StapleMode::Must | StapleMode::Always => true,
            };
            Some(Stapling { kind, staple: Arc::clone(staple), ends_server })
        })
    }

    /// Returns the certificates that demand a staple and are to have none.
    pub(crate) fn unstapled(&self) -> impl Iterator<Item = &Arc<Staple>> {
        let is_off = self.ocsp.mode == StapleMode::Never;
        let own = self.own_certificates().filter(move |(_, staple)| is_off && staple.is_must());
        own.map(|(_, staple)| staple)
    }

    /// Whether the status of any peers' certificates is checked.
    pub(crate) fn checks_peers(&self) -> bool {
        let (network, leaf) = (&self.network, &self.leaf);
        let websocket = network.websocket.as_ref().and_then(|websocket| websocket.tls.as_ref());
        let mqtt = network.mqtt.as_ref().and_then(|mqtt| mqtt.tls.as_ref());
        let accepted = [network.tls.as_ref(), websocket, mqtt, leaf.tls.as_ref()];
        let mut remotes = leaf.remotes.iter().filter_map(|remote| remote.link.tls.as_ref());
        accepted.into_iter().flatten().any(|tls| tls.peers.is_some())
            || remotes.any(|tls| tls.peers.is_some())
    }

    fn own_certificates(&self) -> impl Iterator<Item = (&'static str, &Arc<Staple>)> {
        let network = &self.network;
        let websocket = network.websocket.as_ref().and_then(|websocket| websocket.tls.as_ref());
        let mqtt = network.mqtt.as_ref().and_then(|mqtt| mqtt.tls.as_ref());
        let of_clients = [network.tls.as_ref(), websocket, mqtt];
        let of_clients = of_clients.into_iter().flatten().map(|tls| ("Client", tls));
        let router = self.cluster.tls.iter().map(|mutual| ("Router", &mutual.tls));
        let remotes = self.gateway.others().filter_map(|remote| remote.tls.as_ref());
        let gateway = self.gateway.tls.iter().chain(remotes);
        let gateway = gateway.map(|mutual| ("Gateway", &mutual.tls));
        let all = of_clients.chain(router).chain(gateway);
        all.flat_map(|(kind, tls): (_, &Tls)| tls.staples.iter().map(move |own| (kind, own)))
    }
}
