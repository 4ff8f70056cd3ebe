//! The tokens of accounts in a directory: one file each, that is either the old one or the new.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::auth::jwt;
use crate::config::StartError;
use crate::config::trust::{Directory, Trust, stored};

/// A directory of tokens, and what is known of it.
#[derive(Debug)]
pub(super) struct Store {
    directory: Directory,
    /// Of each account's token.
    digests: BTreeMap<String, [u8; 32]>,
}

impl Store {
    /// Opens the directory, if the tokens are in one, and puts there what was preloaded.
    pub(super) fn open(trust: &Trust) -> Result<Option<Self>, StartError> {
        let Some(directory) = trust.directory.clone() else { return Ok(None) };
        let tokens = stored(&directory.path)?;
        let digests = tokens.into_iter().map(|(key, text)| (key, digest(&text))).collect();
        let mut store = Self { directory, digests };
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

    /// The accounts whose tokens there are.
    pub(super) fn keys(&self) -> Vec<&String> {
        self.digests.keys().collect()
    }

    /// Says in 32 bytes what tokens there are: the same on all servers that have the same.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut all = [0; 32];
        for digest in self.digests.values() {
            all.iter_mut().zip(digest).for_each(|(all, one)| *all ^= one);
        }
        all
    }

    /// The token of an account.
    pub(super) fn load(&self, key: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(key)).ok().filter(|_| self.has(key))?;
        Some(jwt::undecorated(&text).to_owned())
    }

    /// Keeps a token, in place of an earlier one of the account. It is on the disk when this
    /// returns.
    pub(super) fn save(&mut self, key: &str, text: &str) -> Result<(), String> {
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
        Ok(())
    }

    /// Has no token of this account any more.
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
        Ok(())
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.path.join(format!("{key}.jwt"))
    }

    /// Names are on the disk only once the directory is.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory.path)?.sync_all()
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use nkeys::KeyPair;

    use super::*;

    fn store(directory: Directory) -> Store {
        let mut trust = Trust::default();
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
