//! Login of a connection: its user, the progress of its greeting, and its seat in the account.

use std::rc::Rc;
use std::sync::Arc;

use crate::auth::callout::Service;
use crate::auth::certificate;
use crate::auth::grants::{Checks, Grants};
use crate::auth::user::User;
use crate::interest::account_settings::AccountLimits;

/// The next step of a login.
#[derive(Debug, Clone)]
pub(crate) enum LoginStep {
    /// The client is this user.
    Enter(Rc<User>),
    /// The service is asked who the client is.
    Ask(Arc<Service>),
    /// The client is sent away.
    Refuse,
}

/// A CONNECT that is not decided, or not in force: `Input::held` has the reason.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The step if the credentials hold.
    pub(crate) holds: LoginStep,
    /// The step if they do not.
    pub(crate) fails: LoginStep,
    /// Whether the client had sent a CONNECT before.
    pub(crate) again: bool,
}

/// The user of a connection.
#[derive(Debug, Default)]
enum UserState {
    /// No user: a CONNECT has to come, or was refused.
    #[default]
    Awaited,
    /// A user that is valid if the claim holds.
    Claimed(Box<Claim>),
    /// A user of an account that is asked for.
    Wanting {
        /// Whether the client had sent a CONNECT before.
        again: bool,
    },
    /// A user about whom a service is asked.
    Asked {
        service: Arc<Service>,
        /// Whether the client had sent a CONNECT before.
        again: bool,
    },
    /// A valid user, after a login or because none is needed.
    In {
        user: Rc<User>,
        payload_bytes_max: Option<usize>,
        subscriptions_max: Option<usize>,
        checks: Option<Box<Checks>>,
    },
}

/// Progress of the greeting between server and client, in order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Greeting {
    #[default]
    Silent,
    /// The first INFO was sent.
    Informed,
    /// A CONNECT has come.
    Connected,
    /// A PING has come after the CONNECT: from now on INFO may be sent again.
    Greeted,
}

/// State of the login of a connection.
#[derive(Debug, Default)]
pub(crate) struct LoginState {
    user: UserState,
    greeting: Greeting,
    has_seat: bool,
    /// Names in the client's certificate, if logins depend on them.
    pub(crate) cert_names: Option<Box<certificate::Names>>,
}

impl LoginState {
    pub(crate) fn user(&self) -> Option<&Rc<User>> {
        match &self.user {
            UserState::In { user, .. } => Some(user),
            _ => None,
        }
    }

    /// Returns the claim of a login that is not decided, or not in force.
    pub(crate) fn claimed(&self) -> Option<&Claim> {
        match &self.user {
            UserState::Claimed(claim) => Some(claim),
            _ => None,
        }
    }

    /// Returns the service that is asked about the client.
    pub(crate) fn asked(&self) -> Option<&Arc<Service>> {
        match &self.user {
            UserState::Asked { service, .. } => Some(service),
            _ => None,
        }
    }

    /// Returns the account's bound of header and payload of one message, in bytes.
    pub(crate) fn payload_bytes_max(&self) -> Option<usize> {
        match self.user {
            UserState::In { payload_bytes_max, .. } => payload_bytes_max,
            _ => None,
        }
    }

    /// Returns the account's bound of subscriptions.
    pub(crate) fn subscriptions_max(&self) -> Option<usize> {
        match self.user {
            UserState::In { subscriptions_max, .. } => subscriptions_max,
            _ => None,
        }
    }

    /// Returns the permissions of the user, if there are any, with the results of earlier checks.
    pub(crate) fn checks(&mut self) -> Option<(&Grants, &mut Checks)> {
        let UserState::In { user, checks, .. } = &mut self.user else { return None };
        Some((user.permissions.as_ref()?, checks.get_or_insert_default()))
    }

    /// Drops the results of earlier checks, and the permitted responses.
    pub(crate) fn forget_checks(&mut self) {
        if let UserState::In { checks, .. } = &mut self.user {
            *checks = None;
        }
    }

    /// Takes a CONNECT: the user is open again.
    pub(crate) fn on_connect(&mut self) {
        self.user = UserState::Awaited;
        self.greeting = self.greeting.max(Greeting::Connected);
    }

    /// Sets the user, under the condition that its claim holds.
    pub(crate) fn claim(&mut self, claim: Claim) {
        self.user = UserState::Claimed(Box::new(claim));
    }

    /// Notes that a service is asked about the client.
    pub(crate) fn ask(&mut self, service: Arc<Service>, again: bool) {
        self.user = UserState::Asked { service, again };
    }

    /// Notes that the account of the user is asked for.
    pub(crate) fn want(&mut self, again: bool) {
        self.user = UserState::Wanting { again };
    }

    /// Ends the wait for the account. Returns whether the client had sent a CONNECT before; `None`
    /// if it does not wait.
    pub(crate) fn take_wanting(&mut self) -> Option<bool> {
        match self.user {
            UserState::Wanting { again } => {
                self.user = UserState::Awaited;
                Some(again)
            }
            _ => None,
        }
    }

    /// Takes out the service that was asked, when it has answered, and whether the client had sent
    /// a CONNECT before.
    pub(crate) fn take_asked(&mut self) -> Option<(Arc<Service>, bool)> {
        match std::mem::take(&mut self.user) {
            UserState::Asked { service, again } => Some((service, again)),
            other => {
                self.user = other;
                None
            }
        }
    }

    /// Takes out the claim, which is decided.
    pub(crate) fn take_claim(&mut self) -> Option<Claim> {
        match std::mem::take(&mut self.user) {
            UserState::Claimed(claim) => Some(*claim),
            other => {
                self.user = other;
                None
            }
        }
    }

    /// Sets the user, and the limits of its account, from now on.
    pub(crate) fn enter(&mut self, user: Rc<User>, limits: AccountLimits) {
        let AccountLimits { payload_bytes_max, subscriptions_max, .. } = limits;
        self.user = UserState::In { user, payload_bytes_max, subscriptions_max, checks: None };
    }

    /// Notes that INFO is sent to the client.
    pub(crate) fn on_info(&mut self) {
        self.greeting = self.greeting.max(Greeting::Informed);
    }

    /// Takes a PING. Returns whether it is the first after a CONNECT.
    pub(crate) fn on_ping(&mut self) -> bool {
        let greets = self.greeting == Greeting::Connected;
        if greets {
            self.greeting = Greeting::Greeted;
        }
        greets
    }

    pub(crate) fn is_informed(&self) -> bool {
        self.greeting >= Greeting::Informed
    }

    /// Whether a CONNECT has come.
    pub(crate) fn has_connected(&self) -> bool {
        self.greeting >= Greeting::Connected
    }

    /// Whether INFO may be sent again, unasked.
    pub(crate) fn is_greeted(&self) -> bool {
        self.greeting == Greeting::Greeted
    }

    /// Whether the connection has a seat of its account.
    pub(crate) fn has_seat(&self) -> bool {
        self.has_seat
    }

    pub(crate) fn take_seat(&mut self) {
        self.has_seat = true;
    }

    /// Gives the seat back; `false` if there was none.
    pub(crate) fn leave_seat(&mut self) -> bool {
        std::mem::take(&mut self.has_seat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ping_after_a_connect_greets_and_later_ones_do_not() {
        let mut login = LoginState::default();
        assert!(!login.on_ping() && !login.is_informed());
        login.on_info();
        assert!(!login.on_ping() && login.is_informed() && !login.has_connected());
        login.on_connect();
        login.on_info();
        assert!(login.has_connected() && login.on_ping() && login.is_greeted());
        login.on_connect();
        assert!(!login.on_ping() && login.is_greeted(), "one that was greeted stays so");
    }

    #[test]
    fn a_seat_is_given_back_once() {
        let mut login = LoginState::default();
        assert!(!login.leave_seat());
        login.take_seat();
        login.on_connect();
        assert!(login.has_seat() && login.leave_seat() && !login.leave_seat());
    }
}
