//! Files about this process for other programs: its id, and its ports.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::ServerIdentity;
use super::listen::host_port;
use crate::config::StartError;

/// Writes this process's id, without a newline. The file stays after the end, as nats-server's
/// does; a new file may be read by its owner only.
pub fn write_pid(path: &Path) -> Result<(), StartError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let id = std::process::id().to_string();
    file.and_then(|mut file| file.write_all(id.as_bytes())).map_err(|error| {
        StartError::new(format!("Could not write pidfile {}: {error}", path.display()))
    })
}

/// The file `<program>_<pid>.ports`, removed when dropped.
#[derive(Debug)]
pub struct PortsFile(PathBuf);

impl PortsFile {
    /// Writes the file into `directory`: a JSON object with the URLs of each kind.
    pub fn write(directory: &Path, identity: &ServerIdentity) -> Result<Self, StartError> {
        let name = format!("{}_{}.ports", identity.program, std::process::id());
        let path = directory.join(name);
        let mut content = json!({ "nats": [url("nats", &identity.host, identity.port)] });
        if let Some(websocket) = &identity.websocket {
            let scheme = if websocket.is_tls { "wss" } else { "ws" };
            content["websocket"] = json!([url(scheme, &websocket.host, websocket.port)]);
        }
        if let Some(http) = &identity.http {
            let scheme = if http.is_tls { "https" } else { "http" };
            content["monitoring"] = json!([url(scheme, &http.host, http.port)]);
        }
        if let Some(leaf) = &identity.leaf {
            content["leafnodes"] = json!([url("nats", &leaf.host, leaf.port)]);
        }
        if let Some(cluster) = &identity.cluster {
            content["cluster"] = json!([url("nats", &cluster.host, cluster.port)]);
        }
        let content = content.to_string();
        // Written under another name first, so that no reader of the file sees half of it.
        let unfinished = path.with_extension("ports.tmp");
        fs::write(&unfinished, content).and_then(|()| fs::rename(&unfinished, &path)).map_err(
            |error| StartError::new(format!("Could not write {}: {error}", path.display())),
        )?;
        Ok(Self(path))
    }
}

/// Returns a URL of an address; one that is unspecified is reached by loopback.
pub(crate) fn url(scheme: &str, host: &str, port: u16) -> String {
    let host = match host {
        "0.0.0.0" | "::" => "127.0.0.1",
        host => host,
    };
    format!("{scheme}://{}", host_port(host, port))
}

impl Drop for PortsFile {
    fn drop(&mut self) {
        // The file may have been removed before.
        let _ = fs::remove_file(&self.0);
    }
}
