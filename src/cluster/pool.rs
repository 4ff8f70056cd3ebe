//! The division of accounts over several connections between two servers.
//!
//! Accounts go round the connections of a pool, by a hash of their names that all servers know;
//! some have a connection of their own. The interest and the messages of an account are on one
//! connection only, so those of one client stay in order.

/// Connections to one other member, at most: no peer can have this server dial more.
pub const POOL_SIZE_MAX: u16 = 64;

/// The accounts that a connection between two servers carries.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolPart {
    /// All accounts: one of the two servers has no pool.
    All,
    /// The accounts of this number in the pool.
    Pool(u16),
    /// One account, which no line on the connection names.
    Account(Box<str>),
}

impl PoolPart {
    /// Returns the account that is announced to others when the connection is made; for other parts
    /// only the server is announced.
    pub(super) fn announced(&self) -> Option<&str> {
        match self {
            Self::Account(name) => Some(name),
            Self::All | Self::Pool(_) => None,
        }
    }
}

/// A server's settings of its pools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pooling {
    /// Connections of a pool; 0 without pools.
    size: u16,
    /// Accounts with a connection of their own.
    accounts: Vec<Box<str>>,
}

impl Pooling {
    /// A pool of `size` connections, and accounts with one of their own; with a size of 0 there is
    /// neither.
    pub fn new<'a>(size: u16, accounts: impl IntoIterator<Item = &'a str>) -> Self {
        if size == 0 {
            return Self::default();
        }
        let mut accounts: Vec<Box<str>> = accounts.into_iter().map(Into::into).collect();
        accounts.sort_unstable();
        accounts.dedup();
        Self { size, accounts }
    }

    /// Returns the connections of a pool; 0 without pools.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the account has a connection of its own.
    pub fn is_dedicated(&self, account: &str) -> bool {
        self.accounts.iter().any(|dedicated| **dedicated == *account)
    }

    /// Returns the connections of the pool with a peer that has `theirs`; 0 without a pool.
    pub fn size_with(&self, theirs: i32) -> u16 {
        match u16::try_from(theirs) {
            Ok(0) => 0,
            Ok(_) if self.size == 0 => 0,
            Ok(theirs) => self.size.max(theirs).min(POOL_SIZE_MAX),
            // A negative size is no pool; one over the maximum counts as the maximum.
            Err(_) if theirs < 0 || self.size == 0 => 0,
            Err(_) => POOL_SIZE_MAX,
        }
    }

    /// Returns the parts for which there must be connections to a peer that has `theirs`.
    pub fn parts_with(&self, theirs: i32) -> Vec<PoolPart> {
        match self.size_with(theirs) {
            0 => vec![PoolPart::All],
            size => {
                let own = self.accounts.iter().cloned().map(PoolPart::Account);
                (0..size).map(PoolPart::Pool).chain(own).collect()
            }
        }
    }

    /// Returns the size from which the accounts' numbers in the pool with a peer follow; `theirs`
    /// is the peer's own size.
    ///
    /// A nats-server goes by its own size, whatever the peer's is, and accepts every account on any
    /// connection. Its size, used here too, keeps an account on one connection in both directions:
    /// so a request never overtakes the interest in its answer.
    pub fn modulus(&self, theirs: i32, is_shardcast: bool) -> u16 {
        match u16::try_from(theirs) {
            Ok(theirs) if !is_shardcast && theirs <= POOL_SIZE_MAX => theirs,
            _ => self.size_with(theirs),
        }
    }

    /// Whether the interest and the messages of an account go to a peer on `part`.
    pub fn is_on(&self, account: &str, part: &PoolPart, modulus: u16) -> bool {
        match part {
            PoolPart::All => true,
            PoolPart::Pool(at) => !self.is_dedicated(account) && index(account, modulus) == *at,
            PoolPart::Account(name) => **name == *account,
        }
    }
}

fn index(account: &str, modulus: u16) -> u16 {
    let number = fnv1a(account.as_bytes()) % u32::from(modulus.max(1));
    u16::try_from(number).unwrap_or(0)
}

fn fnv1a(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: [&str; 6] = ["$G", "$SYS", "A", "B", "C", "P"];

    fn pooling(size: u16) -> Pooling {
        Pooling::new(size, ["$SYS", "P"])
    }

    #[test]
    fn accounts_have_the_numbers_that_nats_server_gives_them() {
        assert_eq!(fnv1a(b"$G"), 0x7abc_619c);
        for (account, size, index) in
            [("$G", 3, 2), ("$G", 1, 0), ("$G", 2, 0), ("A", 3, 0), ("B", 2, 1), ("B", 3, 0)]
        {
            assert_eq!(super::index(account, size), index, "{account} of {size}");
        }
    }

    #[test]
    fn both_ends_put_an_account_on_the_same_connection() {
        for (one, other) in [(1, 3), (3, 5), (4, 4), (64, 2)] {
            let [here, there] = [one, other].map(pooling);
            let ours = [here.modulus(other.into(), true), there.modulus(one.into(), true)];
            assert_eq!(ours[0], ours[1]);
            // A nats-server's numbers follow from its own size.
            assert_eq!(here.modulus(other.into(), false), other);
        }
    }

    #[test]
    fn every_account_is_on_exactly_one_connection_whatever_the_peer_has() {
        for (own, theirs) in [(0, 3), (3, 0), (3, -1), (1, 1), (3, 5), (5, 3), (3, i32::MAX)] {
            let pooling = pooling(own);
            let parts = pooling.parts_with(theirs);
            assert!(parts.len() <= usize::from(POOL_SIZE_MAX) + 2);
            let modulus = [true, false].map(|is_ours| pooling.modulus(theirs, is_ours));
            for (modulus, account) in modulus.into_iter().flat_map(|m| ACCOUNTS.map(|a| (m, a))) {
                let is_on = |part: &&PoolPart| pooling.is_on(account, part, modulus);
                let on = parts.iter().filter(is_on).count();
                assert_eq!(on, 1, "{account} with {own} and {theirs}");
            }
        }
    }
}
