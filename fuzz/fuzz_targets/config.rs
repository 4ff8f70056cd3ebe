//! Whatever a configuration file says: options, or a line about each mistake in it.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardcast::config::args::{self, Args, Command};
use shardcast::config::load;

/// The file that is read, over and over; one for each process.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("shardcast-fuzz-{}.conf", std::process::id()))
});

/// The flags that name it; to read them takes longer than to read the file.
static ARGS: LazyLock<Box<Args>> =
    LazyLock::new(|| match args::parse(["-c".to_owned(), FILE.display().to_string()]) {
        Ok(Command::Serve(args)) => args,
        other => panic!("{other:?}"),
    });

fuzz_target!(|data: &[u8]| {
    // A file may include others, and this machine's are none of the fuzzer's business.
    if data.to_ascii_lowercase().windows(7).any(|word| word == b"include") {
        return;
    }
    std::fs::write(&*FILE, data).expect("the temporary directory takes a file");
    if let Err(error) = load(&ARGS) {
        let lines = error.lines();
        assert!(!lines.is_empty(), "refused without a word");
        assert!(!lines.iter().any(|line| line.contains('\n')), "not one line each: {error}");
    }
});
