//! The addresses of this host that other hosts can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Tree;

impl Tree {
    /// Returns all addresses of the host's interfaces that are neither loopback nor for one link
    /// only.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        // An address, and on a line below it its kind.
        let mut last: Option<Ipv4Addr> = None;
        for line in self.text("proc/net/fib_trie").unwrap_or_default().lines() {
            let line = line.trim();
            if let Some(address) = line.strip_prefix("|-- ") {
                last = address.parse().ok();
            } else if line.ends_with("host LOCAL") {
                addresses.extend(last.filter(|ip| !ip.is_loopback()).map(IpAddr::from));
            }
        }
        // The address in hexadecimal is the first word, and its scope the fourth: 00 is global.
        for line in self.text("proc/net/if_inet6").unwrap_or_default().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [address, _, _, "00", ..] = words[..] {
                let bits = u128::from_str_radix(address, 16);
                addresses.extend(bits.map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))));
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_reach_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("proc/net");
        std::fs::create_dir_all(&net).unwrap();
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.0\n        /16 link UNICAST\n\
                    |-- 10.1.2.3\n /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n\
                    Local:\n     |-- 10.1.2.3\n        /32 host LOCAL\n";
        std::fs::write(net.join("fib_trie"), trie).unwrap();
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe800000000000000000000000000001 02 40 20 80     eth0\n\
                     20010db8000000000000000000000005 02 40 00 80     eth0\n";
        std::fs::write(net.join("if_inet6"), inet6).unwrap();
        let wanted: [IpAddr; 2] = ["10.1.2.3".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        assert_eq!(Tree::at(dir.path()).addresses(), wanted);
    }
}
