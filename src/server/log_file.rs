//! A log file that can be opened again, and renamed when it has grown.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::Local;

use crate::config::{LogOptions, StartError};

/// The open log file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        let (file, length) = append_to(path).map_err(|error| {
            let reason = format!("cannot open log file {}: {error}", path.display());
            StartError::new(reason)
        })?;
        Ok(Self { path: path.to_owned(), file, length })
    }

    /// Opens the file again by its name. If that fails, the old file stays in use.
    pub(super) fn open_again(&mut self) {
        match append_to(&self.path) {
            Ok((file, length)) => (self.file, self.length) = (file, length),
            Err(error) => {
                let path = self.path.display();
                let _ = writeln!(io::stderr(), "cannot open log file {path} again: {error}");
            }
        }
    }

    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        self.length += line.len() as u64;
        self.file.write_all(line.as_bytes())
    }

    /// Renames the file and begins a new one if it has grown beyond its limit; returns lines to log
    /// about it.
    pub(super) fn put_aside_if_grown(&mut self, options: &LogOptions) -> Vec<String> {
        if options.file_bytes_max == 0 || self.length < options.file_bytes_max {
            return Vec::new();
        }
        // A file that cannot be renamed grows by as much again before the next attempt.
        self.length = 0;
        let mut aside = self.path.clone().into_os_string();
        aside.push(Local::now().format(".%Y.%m.%d.%H.%M.%S.%f").to_string());
        if let Err(error) = fs::rename(&self.path, &aside) {
            return vec![format!("Unable to rename the log file: {error}")];
        }
        self.open_again();
        let mut told = vec![format!("Rotated log, backup saved as {aside:?}")];
        let removed = self.remove_oldest(options.files_max);
        told.extend(removed.into_iter().map(|name| format!("Purged log file {name:?}")));
        told
    }

    fn remove_oldest(&self, files_max: usize) -> Vec<String> {
        let directory = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        let Some(name) = self.path.file_name().filter(|_| files_max > 0) else {
            return Vec::new();
        };
        let prefix = format!("{}.", name.to_string_lossy());
        let name_of =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_aside = |path: &PathBuf| {
            let name = name_of(path);
            let date = name.strip_prefix(&prefix).unwrap_or_default();
            date.len() > 20 && date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        };
        let entries = fs::read_dir(directory.unwrap_or(Path::new(".")));
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let mut aside: Vec<PathBuf> = paths.filter(is_aside).collect();
        aside.sort();
        // A file that cannot be removed now is tried again the next time.
        let oldest = aside.iter().rev().skip(files_max - 1);
        oldest.filter(|path| fs::remove_file(path).is_ok()).map(|path| name_of(path)).collect()
    }
}

fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_moved_away_is_created_anew_when_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("log"), dir.path().join("moved"));
        let mut log = LogFile::open(&path).unwrap();
        log.write("one\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        log.write("two\n").unwrap();
        log.open_again();
        log.write("three\n").unwrap();
        assert_eq!(fs::read_to_string(moved).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(path).unwrap(), "three\n");
    }

    #[test]
    fn a_log_file_that_has_grown_is_put_aside_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let options = LogOptions { file_bytes_max: 8, files_max: 3, ..LogOptions::default() };
        let mut log = LogFile::open(&path).unwrap();
        let mut told = Vec::new();
        for line in 0..20 {
            told.extend(log.put_aside_if_grown(&options));
            log.write(&format!("line {line:03}\n")).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "the log and two put aside");
        assert_eq!(fs::read_to_string(path).unwrap(), "line 019\n");
        assert!(told[0].starts_with("Rotated log, backup saved as "), "{told:?}");
        assert!(told.iter().any(|text| text.starts_with("Purged log file ")), "{told:?}");
    }

    #[test]
    fn a_log_goes_on_after_a_restart_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for line in ["one\n", "two\n"] {
            LogFile::open(&path).unwrap().write(line).unwrap();
        }
        assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }
}
