//! Identification of clients by their credentials, at login and after a reload.

use std::rc::Rc;
use std::sync::Arc;

use crate::auth::callout::Service;
use crate::auth::credential_check::CredentialCheck;
use crate::auth::token_users::{self, Refusal};
use crate::auth::user::{Allowed, Caller, User};
use crate::auth::{Secret, certificate};
use crate::core::conn::Conn;
use crate::core::login::{Claim, LoginStep};
use crate::core::settings::{Login, Logins, Settings};
use crate::proto::Connect;
use crate::transport::Transport;

/// The result of looking at the credentials of a CONNECT.
#[derive(Debug)]
pub(crate) enum Identified {
    /// A client that is this user.
    Is(Rc<User>),
    /// A client that is this user if the credential check succeeds.
    IsIf(Rc<User>, CredentialCheck),
    /// A client with credentials to check, and the steps if they hold and if not.
    Depends(CredentialCheck, LoginStep, LoginStep),
    /// A client about whom a service decides.
    Asks(Arc<Service>),
    /// A client of an account that has to be asked for.
    Wants(Box<str>),
    /// A client without valid credentials.
    Refused,
}

/// Standing of a user after a reload.
#[derive(Debug)]
pub(crate) enum Standing {
    /// A user that may stay, with these permissions.
    Stays(Rc<User>),
    /// A user that has to show other credentials.
    Changed,
    /// A user that is in another account now.
    Moved,
    /// A user that is not known any more.
    Gone,
    /// A user with a token that its account has revoked.
    Revoked,
}

impl Settings {
    /// Finds the user of a client by its credentials, if that user may use the client's transport.
    ///
    /// `names` are those of its certificate, where certificates name users.
    pub(crate) fn log_in(
        &self,
        conn: &Conn,
        names: Option<&certificate::Names>,
        now: u64,
    ) -> Identified {
        let own = self.log_in_here(conn, names, now);
        let Some(callout) = &self.auth.callout else { return own };
        let ask = || callout.service.clone().map_or(LoginStep::Refuse, LoginStep::Ask);
        let asked = || callout.service.clone().map_or(Identified::Refused, Identified::Asks);
        let login = self.named_login(conn, names);
        let is_listed = login.is_some_and(|login| {
            login.user.name.as_ref().is_some_and(|name| callout.is_auth_user(name))
        });
        match own {
            own if is_listed => own,
            Identified::Is(user) if callout.exempts(&user) => Identified::Is(user),
            Identified::IsIf(user, check) if callout.exempts(&user) => {
                Identified::Depends(check, LoginStep::Enter(user), ask())
            }
            _ => asked(),
        }
    }

    /// Finds the user of a client by what is known here.
    fn log_in_here(&self, conn: &Conn, names: Option<&certificate::Names>, now: u64) -> Identified {
        match self.identify(conn, names, now) {
            Identified::Is(user) | Identified::IsIf(user, _)
                if !user.may_use(conn.transport.kind()) =>
            {
                tracing::debug!("{} - connection type not allowed", conn.label());
                Identified::Refused
            }
            identified => identified,
        }
    }

    fn identify(&self, conn: &Conn, names: Option<&certificate::Names>, now: u64) -> Identified {
        let Conn { peer, connect, transport, .. } = conn;
        if let Some(trusted) = &self.auth.trusted {
            let nonce = self.auth.nonces.nonce(peer.cid);
            return match trusted.identify(
                Caller { peer, kind: transport.kind() },
                connect,
                nonce,
                now,
            ) {
                Ok(token_users::IdentifiedUser { check, asks: Some(service), .. }) => {
                    Identified::Depends(check, LoginStep::Ask(service), LoginStep::Refuse)
                }
                Ok(token_users::IdentifiedUser { user, check, asks: None }) => {
                    Identified::IsIf(Rc::new(user), check)
                }
                Err(Refusal::Wants(account)) => Identified::Wants(account),
                Err(refusal) => {
                    tracing::debug!("cid:{} - token refused: {refusal}", peer.cid);
                    Identified::Refused
                }
            };
        }
        let Logins { users, token } = self.logins(*transport);
        if let Some(token) = token {
            return check(token, &connect.auth_token, &self.auth.nobody);
        }
        if users.is_empty() {
            return Identified::Is(Rc::clone(&self.auth.nobody));
        }
        if let Some(guest) = self.guest_of(conn) {
            return Identified::Is(Rc::clone(guest));
        }
        let Some(login) = self.named_login(conn, names) else { return Identified::Refused };
        let maps = self.maps(*transport);
        if maps && !connect.user.is_empty() && login.user.name.as_deref() != Some(&connect.user) {
            let user = &connect.user;
            tracing::warn!("User {user:?} found in connect proto, but user required from cert");
        }
        match (login.has_nkey, connect.nkey.is_empty()) {
            (false, true) => check(&login.password, &connect.pass, &login.user),
            (true, false) => Identified::IsIf(
                Rc::clone(&login.user),
                CredentialCheck::Signature {
                    key: connect.nkey.to_string(),
                    nonce: self.auth.nonces.nonce(peer.cid),
                    signature: connect.sig.to_string(),
                },
            ),
            _ => Identified::Refused,
        }
    }

    /// Whether certificates name the users of clients over `transport`.
    fn maps(&self, transport: Transport) -> bool {
        self.tls_of(transport).is_some_and(|tls| tls.map)
    }

    /// Returns the guest, for a client that shows no credentials.
    pub(crate) fn guest_of(&self, conn: &Conn) -> Option<&Rc<User>> {
        let Connect { user, pass, auth_token, nkey, .. } = &*conn.connect;
        let is_bare = [user, pass, auth_token, nkey].iter().all(|text| text.is_empty());
        let logins = self.logins(conn.transport);
        let is_bare = is_bare && !self.maps(conn.transport) && !logins.users.is_empty();
        self.guest(conn.transport).filter(|_| is_bare)
    }

    /// Returns the login that a client names, by its certificate, its key or a name.
    fn named_login(&self, conn: &Conn, names: Option<&certificate::Names>) -> Option<&Login> {
        let users = &self.logins(conn.transport).users;
        let name = if self.maps(conn.transport) {
            names.and_then(|names| names.user(users.keys().map(String::as_str)))?
        } else if conn.connect.nkey.is_empty() {
            &*conn.connect.user
        } else {
            &*conn.connect.nkey
        };
        users.get(name)
    }

    /// Returns the user that a service has allowed, if the user's account is here and its rules
    /// allow that, too.
    pub(crate) fn allow(
        &self,
        allowed: &Arc<Allowed>,
        conn: &Conn,
        now: u64,
    ) -> Result<User, Refusal> {
        let caller = Caller { peer: &conn.peer, kind: conn.transport.kind() };
        if let Some(trusted) = &self.auth.trusted {
            return trusted.allow(allowed, caller, now);
        }
        let account = self.accounts.numbers.get(&allowed.claims.audience);
        let account = *account.ok_or(Refusal::Because("the account is not configured"))?;
        let Some(callout) = &self.auth.callout else {
            return Err(Refusal::Because("services are not asked any more"));
        };
        callout.allow(allowed, account, caller, now)
    }

    /// Finds the user by credentials shown before, unless that needs a credential check: all
    /// connections are reviewed in one go, which must not hold up the shard.
    fn log_in_at_once(&self, conn: &Conn, now: u64) -> Option<Rc<User>> {
        // Without names, users that certificates name have to log in anew.
        match self.log_in(conn, None, now) {
            Identified::Is(user) => Some(user),
            _ => None,
        }
    }

    /// Whether a login that began under `old` may go on.
    pub(crate) fn claim_stands(&self, claim: &Claim, old: &Self) -> bool {
        [&claim.holds, &claim.fails].into_iter().all(|step| match step {
            LoginStep::Enter(user) => self.claims_hold(user, old),
            LoginStep::Ask(service) => self.still_asks(service),
            LoginStep::Refuse => true,
        })
    }

    /// Whether a service is asked as before.
    pub(crate) fn still_asks(&self, service: &Arc<Service>) -> bool {
        let services = self.auth.trusted.as_ref().map(|trusted| &trusted.services);
        let ours = match services {
            Some(services) => services.get(&service.issuer),
            None => self.auth.callout.as_ref().and_then(|callout| callout.service.as_ref()),
        };
        ours == Some(service)
    }

    /// Whether the claims behind a user of `old` are still the same.
    pub(crate) fn claims_hold(&self, user: &User, old: &Self) -> bool {
        let both = self.auth.trusted.as_ref().zip(old.auth.trusted.as_ref());
        both.is_some_and(|(now, old)| now.says_the_same_of(&user.account_name, old))
    }

    /// Returns the standing of a user of `old` that logged in on `conn`.
    pub(crate) fn standing(&self, user: &Rc<User>, conn: &Conn, old: &Self, now: u64) -> Standing {
        if let Some(allowed) = &user.allowed_by {
            let renamed = |new: User| User { name: user.name.clone(), ..new };
            return standing_of(user, self.allow(allowed, conn, now).map(renamed));
        }
        if let Some(trusted) = &self.auth.trusted {
            if self.claims_hold(user, old) {
                return Standing::Stays(Rc::clone(user));
            }
            // The signatures of the user have held before, and its token is the same.
            let caller = Caller { peer: &conn.peer, kind: conn.transport.kind() };
            let shown = trusted.identify(caller, &conn.connect, String::new(), now);
            return match shown {
                // A service has to decide from now on.
                Ok(token_users::IdentifiedUser { asks: Some(_), .. }) => Standing::Changed,
                shown => standing_of(user, shown.map(|identity| identity.user)),
            };
        }
        let (logins, old) = (self.logins(conn.transport), old.logins(conn.transport));
        let Some(name) = user.name.as_deref() else {
            // The client logged in by a token, or without any credentials.
            let is_same = logins.token.is_none() || logins.token == old.token;
            if logins.users.is_empty() && is_same && self.auth.callout.is_none() {
                return Standing::Stays(Rc::clone(&self.auth.nobody));
            }
            return self.log_in_at_once(conn, now).map_or(Standing::Changed, Standing::Stays);
        };
        match (logins.users.get(name), old.users.get(name)) {
            (Some(new), Some(_)) if new.user.account != user.account => Standing::Moved,
            (Some(new), Some(old))
                if new.password == old.password && new.user.may_use(conn.transport.kind()) =>
            {
                Standing::Stays(Rc::clone(&new.user))
            }
            (Some(_), _) => Standing::Changed,
            (None, _) => Standing::Gone,
        }
    }
}

fn standing_of(user: &User, now: Result<User, Refusal>) -> Standing {
    match now {
        Ok(new) if new.account != user.account => Standing::Moved,
        Ok(new) => Standing::Stays(Rc::new(new)),
        Err(Refusal::Revoked) => Standing::Revoked,
        Err(_) => Standing::Gone,
    }
}

/// Compares `given` with the secret of `user`; bcrypt needs a credential check off the shard.
fn check(secret: &Secret, given: &str, user: &Rc<User>) -> Identified {
    let user = Rc::clone(user);
    if secret.is_bcrypt() {
        return Identified::IsIf(
            user,
            CredentialCheck::Password { secret: secret.clone(), given: given.to_owned() },
        );
    }
    if secret.matches(given) { Identified::Is(user) } else { Identified::Refused }
}
