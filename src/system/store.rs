//! Tokens of accounts in a directory: one file each, which is replaced in one step.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::auth::jwt;
use crate::config::StartError;
use crate::config::trust::{Directory, TrustOptions, stored};

/// A directory of tokens, with the digests of its files.
#[derive(Debug)]
pub(super) struct Store {
    directory: Directory,
    /// The digest of each account's token.
    digests: BTreeMap<String, [u8; 32]>,
    /// The time at which each token of a cache was stored or found.
    since: BTreeMap<String, Instant>,
}

impl Store {
    /// Opens the directory, if one is configured, and saves preloaded tokens of further accounts in
    /// it.
    pub(super) fn open(trust: &TrustOptions) -> Result<Option<Self>, StartError> {
        let Some(directory) = trust.directory.clone() else { return Ok(None) };
        let tokens = stored(&directory.path)?;
        let digests: BTreeMap<String, [u8; 32]> =
            tokens.into_iter().map(|(key, text)| (key, digest(&text))).collect();
        let now = now();
        let since = digests.keys().filter(|_| directory.is_cache).map(|key| (key.clone(), now));
        let since = since.collect();
        let mut store = Self { directory, digests, since };
        for (key, text) in &trust.preloaded {
            if !store.has(key) {
                store.save(key, text).map_err(|reason| {
                    let path = store.directory.path.display();
                    StartError::new(format!("resolver: cannot write into {path}: {reason}"))
                })?;
            }
        }
        Ok(Some(store))
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.digests.contains_key(key)
    }

    /// Returns the accounts with a token.
    pub(super) fn keys(&self) -> Vec<&String> {
        self.digests.keys().collect()
    }

    /// Returns a digest of all tokens: equal on servers with the same tokens.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut all = [0; 32];
        for digest in self.digests.values() {
            all.iter_mut().zip(digest).for_each(|(all, one)| *all ^= one);
        }
        all
    }

    /// Returns the token of an account.
    pub(super) fn load(&self, key: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(key)).ok().filter(|_| self.has(key))?;
        Some(jwt::undecorated(&text).to_owned())
    }

    /// Returns the time at which the oldest token of a cache goes, if it keeps none for ever.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.since.values().min().filter(|_| self.directory.ttl_ms > 0)?;
        Some(*oldest + Duration::from_millis(self.directory.ttl_ms))
    }

    /// Removes the tokens of a cache whose time is over; who is connected does not need them.
    pub(super) fn expire(&mut self) {
        let now = now();
        while self.next_expiry().is_some_and(|at| at <= now) && self.drop_oldest() {}
    }

    /// Removes the oldest token of a cache. Returns whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.since.iter().min_by_key(|(_, since)| **since);
        let Some(key) = oldest.map(|(key, _)| key.clone()) else { return false };
        if let Err(reason) = self.delete(&key) {
            tracing::error!("resolver: {key} - {reason}");
        }
        self.since.remove(&key);
        true
    }

    /// Saves a token in place of the account's earlier one. It is on the disk when this returns. In
    /// a cache without room the oldest one goes.
    pub(super) fn save(&mut self, key: &str, text: &str) -> Result<(), String> {
        while !self.has(key)
            && self.digests.len() >= self.directory.accounts_max
            && self.drop_oldest()
        {}
        if !self.has(key) && self.digests.len() >= self.directory.accounts_max {
            return Err("jwt store is full".to_owned());
        }
        let path = self.path(key);
        let unfinished = path.with_extension("jwt.tmp");
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&unfinished)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            self.sync()
        };
        write().map_err(|error: io::Error| error.to_string())?;
        self.digests.insert(key.to_owned(), digest(text));
        if self.directory.is_cache {
            self.since.insert(key.to_owned(), now());
        }
        Ok(())
    }

    /// Removes the token of an account.
    pub(super) fn delete(&mut self, key: &str) -> Result<(), String> {
        let path = self.path(key);
        let gone = match self.directory.hard_delete {
            true => fs::remove_file(&path),
            false => fs::rename(&path, path.with_extension("jwt.deleted")),
        };
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.to_string()),
            _ => self.sync().map_err(|error| error.to_string())?,
        }
        self.digests.remove(key);
        self.since.remove(key);
        Ok(())
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.path.join(format!("{key}.jwt"))
    }

    /// Writes the directory to the disk: only then are new names there, too.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory.path)?.sync_all()
    }
}

#[expect(clippy::disallowed_methods, reason = "the age of files, off the shards")]
fn now() -> Instant {
    Instant::now()
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use nkeys::KeyPair;

    use super::*;

    fn store(directory: Directory) -> Store {
        let mut trust = TrustOptions::default();
        trust.directory = Some(directory);
        Store::open(&trust).unwrap().unwrap()
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart_and_what_was_deleted_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let directory = |hard_delete| Directory {
            path: dir.path().into(),
            hard_delete,
            ..Directory::default()
        };
        let (a, b) = (KeyPair::new_account().public_key(), KeyPair::new_account().public_key());
        let mut first = store(directory(false));
        let empty = first.digest();
        first.save(&a, "one").unwrap();
        let with_one = first.digest();
        first.save(&b, "two").unwrap();
        first.save(&a, "three").unwrap();
        let again = store(directory(true));
        assert_eq!(
            (again.load(&a).as_deref(), again.load(&b).as_deref()),
            (Some("three"), Some("two"))
        );
        assert_eq!(again.digest(), first.digest(), "whoever has the same says the same");
        first.delete(&b).unwrap();
        first.save(&a, "one").unwrap();
        assert_eq!((first.load(&b), first.digest()), (None, with_one));
        assert!(dir.path().join(format!("{b}.jwt.deleted")).exists());
        let mut hard = store(directory(true));
        hard.delete(&a).unwrap();
        hard.delete(&a).unwrap();
        assert_eq!((hard.keys().len(), hard.digest()), (0, empty));
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "the one that was only renamed");
    }

    #[test]
    fn a_cache_without_room_forgets_the_oldest_and_one_with_a_time_forgets_all() {
        let dir = tempfile::tempdir().unwrap();
        let directory = |ttl_ms| Directory {
            path: dir.path().into(),
            accounts_max: 2,
            is_cache: true,
            hard_delete: true,
            ttl_ms,
            ..Directory::default()
        };
        let keys: Vec<String> = (0..3).map(|_| KeyPair::new_account().public_key()).collect();
        let mut cache = store(directory(0));
        for key in &keys {
            cache.save(key, "one").unwrap();
        }
        assert_eq!((cache.load(&keys[0]), cache.keys().len()), (None, 2));
        assert_eq!(cache.next_expiry(), None);
        let mut brief = store(directory(1));
        assert!(brief.next_expiry().is_some());
        while brief.next_expiry().is_some() {
            brief.expire();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_store_takes_other_tokens_of_those_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let mut store = store(Directory { path, accounts_max: 1, ..Directory::default() });
        store.save("A", "one").unwrap();
        assert_eq!(store.save("B", "two"), Err("jwt store is full".to_owned()));
        store.save("A", "three").unwrap();
        assert_eq!(store.load("A").as_deref(), Some("three"));
    }
}
