//! The Unix socket: visible only when it is complete, and removed when the server ends.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::listen::BACKLOG;
use crate::config::{StartError, UnixOptions};

/// The file of a listening socket, removed when dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: the path may belong to another server's socket by the time it is removed.
    identity: (u64, u64),
}

/// Listens as `options` say. The file exists until it is dropped; an abstract name has none.
pub(super) fn bind(options: &UnixOptions) -> Result<(OwnedFd, Option<SocketFile>), StartError> {
    let path = &options.path;
    let failed = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "; stop the process on that path or choose another path",
            io::ErrorKind::PermissionDenied => "; choose a directory that this user may write",
            io::ErrorKind::NotFound => "; make its directory first",
            _ => "",
        };
        StartError::new(format!("Error listening on Unix socket: {path}, \"{error}\"{remedy}"))
    };
    if let Some(name) = path.strip_prefix('@') {
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes());
        let socket = address.map_err(io::Error::from).and_then(|address| listener(&address));
        return Ok((socket.map_err(failed)?, None));
    }
    check_place(Path::new(path))?;
    let (socket, file) = place(options).map_err(failed)?;
    Ok((socket, Some(file)))
}

fn listener(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let socket =
        net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    net::bind(&socket, address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Checks that the path is free, or has a socket without a listener.
fn check_place(path: &Path) -> Result<(), StartError> {
    let Ok(there) = fs::symlink_metadata(path) else { return Ok(()) };
    let shown = path.display();
    if !there.file_type().is_socket() {
        return Err(StartError::new(format!(
            "{shown} exists and is not a socket; remove it or choose another path"
        )));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(StartError::new(format!(
            "another server listens on {shown}; stop it, or choose another path"
        ))),
        Err(error) => Err(StartError::new(format!(
            "cannot tell whether another server listens on {shown}: {error}; \
             choose another path, or remove it"
        ))),
    }
}

/// Creates the socket beside its path and moves it there when it has its owner and mode. Before, no
/// client finds it; a socket that a dead server has left is replaced in one step.
fn place(options: &UnixOptions) -> io::Result<(OwnedFd, SocketFile)> {
    let path = PathBuf::from(&options.path);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Short, for the path itself may be as long as the kernel allows.
    let unfinished = directory.join(format!(".{}", std::process::id()));
    let _ = fs::remove_file(&unfinished);
    let done = SocketAddrUnix::new(&unfinished)
        .map_err(io::Error::from)
        .and_then(|address| listener(&address))
        .and_then(|socket| {
            std::os::unix::fs::chown(&unfinished, options.owner, options.group)?;
            fs::set_permissions(&unfinished, fs::Permissions::from_mode(options.mode))?;
            fs::rename(&unfinished, &path)?;
            let file = fs::symlink_metadata(&path)?;
            let identity = (file.st_dev(), file.st_ino());
            Ok((socket, SocketFile { path, identity }))
        });
    if done.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    done
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |file: fs::Metadata| (file.st_dev(), file.st_ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &Path) -> UnixOptions {
        UnixOptions::at(&path.display().to_string())
    }

    #[test]
    fn a_socket_has_its_mode_from_the_first_and_goes_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_socket, file) = bind(&UnixOptions { mode: 0o640, ..at(&path) }).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_place_of_a_dead_server_is_taken_and_that_of_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (socket, dead) = bind(&at(&path)).unwrap();
        let error = bind(&at(&path)).unwrap_err().to_string();
        assert!(error.contains("another server listens on"), "{error}");
        drop(socket);
        let (_socket, _file) = bind(&at(&path)).unwrap();
        drop(dead);
        UnixStream::connect(&path).expect("a late goodbye of the dead removes nothing of ours");
    }

    #[test]
    fn what_is_no_socket_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        let error = bind(&at(&path)).unwrap_err().to_string();
        assert!(error.contains("is not a socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let error = bind(&at(&dir.path().join("no/s"))).unwrap_err().to_string();
        assert!(error.contains("make its directory first"), "{error}");
    }

    #[test]
    fn an_abstract_name_is_refused_while_another_server_has_it() {
        let options = UnixOptions::at(&format!("@shardcast-test-{}", std::process::id()));
        let (socket, file) = bind(&options).unwrap();
        assert!(file.is_none());
        let error = bind(&options).unwrap_err().to_string();
        assert!(error.contains("stop the process on that path"), "{error}");
        drop(socket);
        bind(&options).unwrap();
    }
}
