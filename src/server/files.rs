//! Files that tell others about this process: its id, and its ports.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Identity;
use super::listen::host_port;
use crate::config::StartError;

/// Writes this process's id, without a newline. The file stays, as nats-server's does; a new one
/// is for its owner.
pub fn write_pid(path: &Path) -> Result<(), StartError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let id = std::process::id().to_string();
    file.and_then(|mut file| file.write_all(id.as_bytes())).map_err(|error| {
        StartError::new(format!("Could not write pidfile {}: {error}", path.display()))
    })
}

/// `<program>_<pid>.ports`, removed when dropped.
#[derive(Debug)]
pub struct PortsFile(PathBuf);

impl PortsFile {
    /// Writes the file into `directory`: a JSON object with the URLs of each kind.
    pub fn write(directory: &Path, identity: &Identity) -> Result<Self, StartError> {
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
        if let Some(cluster) = &identity.cluster {
            content["cluster"] = json!([url("nats", &cluster.host, cluster.port)]);
        }
        let content = content.to_string();
        // Under another name first: whoever waits for the file must not see half of it.
        let unfinished = path.with_extension("ports.tmp");
        fs::write(&unfinished, content).and_then(|()| fs::rename(&unfinished, &path)).map_err(
            |error| StartError::new(format!("Could not write {}: {error}", path.display())),
        )?;
        Ok(Self(path))
    }
}

fn url(scheme: &str, host: &str, port: u16) -> String {
    // "Every address" is no address to connect to.
    let host = match host {
        "0.0.0.0" | "::" => "127.0.0.1",
        host => host,
    };
    format!("{scheme}://{}", host_port(host, port))
}

impl Drop for PortsFile {
    fn drop(&mut self) {
        // Somebody else may have tidied up before.
        let _ = fs::remove_file(&self.0);
    }
}
