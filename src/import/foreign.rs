//! The store of a nats-server, as it leaves it when it ends: a directory for each account, and in
//! it one for each stream, `streams/<stream>`. There is `meta.inf` with the configuration; `msgs`
//! with blocks, `1.blk` and so on, and before 2.10 an index of each, `1.idx`; and for each consumer
//! `obs/<consumer>` with its configuration `meta.inf` and its position `o.dat`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::archive::{BlockFile, BlockIndex};
use crate::config::StartError;
use crate::consumer::{ArchivedConsumer, ConsumerPosition};

/// Bytes of one file of a nats-server, at most: its blocks are 64 MiB, and a message is in one.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// The directory of a nats-server's streams.
#[derive(Debug)]
pub(super) struct ForeignStore {
    path: PathBuf,
}

/// A stream in it.
#[derive(Debug)]
pub(super) struct ForeignStream {
    pub(super) account: String,
    pub(super) name: String,
    path: PathBuf,
}

/// A file of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockName(u32);

/// A block with what is beside it; its error is in words for people.
pub(super) struct ForeignBlock {
    pub(super) number: u32,
    pub(super) file: Result<BlockFile, String>,
    pub(super) index: Option<BlockIndex>,
}

impl ForeignStore {
    /// Finds the store in `from`: the `store_dir` of a nats-server, or the directory `jetstream` in
    /// it.
    pub(super) fn open(from: &Path) -> Result<Self, StartError> {
        let inner = from.join("jetstream");
        let path = if inner.is_dir() { inner } else { from.to_owned() };
        let store = Self { path };
        if store.streams()?.is_empty() {
            return Err(StartError::new(format!(
                "import: {} has no streams of a nats-server; give the store_dir of its \
                 configuration",
                from.display()
            )));
        }
        Ok(store)
    }

    /// All streams, by account and name.
    pub(super) fn streams(&self) -> Result<Vec<ForeignStream>, StartError> {
        let mut streams = Vec::new();
        for account in self.names(&self.path)? {
            let directory = self.path.join(&account).join("streams");
            if !directory.is_dir() {
                continue;
            }
            for name in self.names(&directory)? {
                let path = directory.join(&name);
                if !path.join("meta.inf").is_file() {
                    continue;
                }
                if path.join("meta.key").exists() {
                    return Err(StartError::new(format!(
                        "import: {} is encrypted; start its nats-server with prev_key and without \
                         key, so that it writes the streams in plain, end it, and import again",
                        path.display()
                    )));
                }
                streams.push(ForeignStream { account: account.clone(), name, path });
            }
        }
        Ok(streams)
    }

    fn names(&self, directory: &Path) -> Result<Vec<String>, StartError> {
        names(directory).map_err(|error| {
            let (place, directory) = (directory.display(), self.path.display());
            StartError::new(format!(
                "import: cannot read {place}: {error}; give the directory of a nats-server's \
                 streams instead of {directory}, or read it as its owner"
            ))
        })
    }
}

/// Returns the names in a directory that are text, in order.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

impl ForeignStream {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        let found = self.find(name).map_err(|error| format!("cannot read {name}: {error}"))?;
        found.ok_or_else(|| format!("cannot read {name}: there is none"))
    }

    /// Returns the contents of a file, if it is there.
    fn find(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        let about = match fs::metadata(&path) {
            Ok(about) => about,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !about.is_file() || about.len() > FILE_BYTES_MAX {
            return Err(io::Error::other("it is no file of a nats-server"));
        }
        fs::read(path).map(Some)
    }

    /// The file with the configuration.
    pub(super) fn meta(&self) -> Result<Vec<u8>, String> {
        self.read("meta.inf")
    }

    /// The blocks in order.
    pub(super) fn blocks(&self) -> Result<Vec<BlockName>, String> {
        let directory = self.path.join("msgs");
        if !directory.is_dir() {
            return Ok(Vec::new());
        }
        let names = names(&directory).map_err(|error| format!("cannot read msgs: {error}"))?;
        let number = |name: &String| name.strip_suffix(".blk")?.parse().ok().map(BlockName);
        let mut blocks: Vec<BlockName> = names.iter().filter_map(number).collect();
        blocks.sort_unstable();
        Ok(blocks)
    }

    /// A block.
    pub(super) fn block(&self, block: &BlockName) -> Result<ForeignBlock, String> {
        let BlockName(number) = *block;
        let file = self.read(&format!("msgs/{number}.blk"))?;
        let index = self.read(&format!("msgs/{number}.idx")).ok();
        Ok(ForeignBlock {
            number,
            file: BlockFile::new(&self.name, number, file).map_err(|error| error.0.to_owned()),
            index: index.and_then(|index| BlockIndex::from_bytes(&index)),
        })
    }

    /// The consumers; of one whose position cannot be read, the problem.
    pub(super) fn consumers(&self) -> Result<Vec<Result<ArchivedConsumer, String>>, String> {
        let directory = self.path.join("obs");
        if !directory.is_dir() {
            return Ok(Vec::new());
        }
        let names = names(&directory).map_err(|error| format!("cannot read obs: {error}"))?;
        let consumer = |name: String| {
            let config = self.read(&format!("obs/{name}/meta.inf"))?;
            let file = self.find(&format!("obs/{name}/o.dat"));
            let position = match file.map_err(|e| format!("cannot read obs/{name}/o.dat: {e}"))? {
                Some(file) => ConsumerPosition::from_bytes(&file)
                    .ok_or_else(|| format!("the position of the consumer {name} is damaged"))?,
                // Nothing was delivered yet.
                None => <_>::default(),
            };
            Ok(ArchivedConsumer { name, config, position })
        };
        Ok(names.into_iter().map(consumer).collect())
    }
}
