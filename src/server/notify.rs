//! The server's state for systemd, as `Type=notify` expects it.

use sd_notify::NotifyState;
use tracing::warn;

/// The service manager that started this process, if `NOTIFY_SOCKET` says where it listens.
#[derive(Clone, Copy)]
pub(super) struct ServiceManager {
    /// Whether the server is what the manager started, and not a part of it.
    pub(super) listens: bool,
}

impl ServiceManager {
    /// Says that the server is ready, after its start and after each reload.
    pub(super) fn ready(self) {
        self.tell(&[NotifyState::Ready, NotifyState::Status("ready")]);
    }

    /// Says that the configuration is being read again; [`Self::ready`] follows in any case.
    pub(super) fn reloading(self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
    }

    /// Says that the server is about to end, and what it waits for.
    pub(super) fn stopping(self, status: &str) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    fn tell(self, state: &[NotifyState<'_>]) {
        if !self.listens {
            return;
        }
        if let Err(error) = sd_notify::notify(state) {
            warn!("Cannot tell the service manager about this server's state: {error}");
        }
    }
}
