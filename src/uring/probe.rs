//! Features of this host's io_uring, found out by using them.

use std::fmt;
use std::io;
use std::time::Duration;

use io_uring::opcode;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::ring::Ring;
use super::{Event, Reactor, ReactorOptions, TurnWait, ZeroCopy};
use crate::host::Tier;

/// Turns of a trial at most, and the longest wait of each: a poll, a receive, and some signals.
const TRIAL_TURNS_MAX: usize = 8;
const TRIAL_WAIT: Duration = Duration::from_millis(250);

/// Features that a reactor on this host can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The best tier, or the one that was forced.
    pub tier: Tier,
    /// Whether reactors wake each other through their rings.
    pub ring_to_ring: bool,
    /// Whether sending without a copy is possible, for single and for vectored sends.
    pub zero_copy: bool,
}

/// An obstacle to a reactor, with cause and remedy.
#[derive(Debug)]
pub enum Unavailable {
    /// A host where `kernel.io_uring_disabled` forbids it.
    Disabled {
        /// The value of the setting.
        setting: u8,
    },
    /// A system call that is answered with "not permitted".
    Blocked,
    /// A system call that does not exist for this process.
    Missing,
    /// A limit of locked memory that is too low.
    Memlock,
    /// A limit of open descriptors that is reached.
    Descriptors,
    /// A kernel that lacks a feature of the tier.
    TooOld {
        /// The tier that was asked for.
        tier: Tier,
        /// The feature that the kernel lacks.
        lacks: &'static str,
    },
    /// A kernel that does not poll network cards for a ring.
    NoNapi(io::Error),
    /// An unexpected error while the tier was tried.
    Failed {
        /// The tier that was tried.
        tier: Tier,
        /// The kernel's error.
        error: io::Error,
    },
}

/// Writes cause and remedy in one line.
impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause(), self.remedy())
    }
}

impl std::error::Error for Unavailable {}

impl Unavailable {
    /// Returns the cause, as a sentence.
    pub fn cause(&self) -> String {
        match self {
            Self::Disabled { setting } => format!(
                "io_uring is switched off on this host (kernel.io_uring_disabled = {setting})"
            ),
            Self::Blocked => "io_uring is forbidden for this process (EPERM), most likely by a \
                              container's seccomp profile"
                .to_owned(),
            Self::Missing => "this process has no io_uring (ENOSYS): either the kernel is built \
                              without it or older than 5.11, or a seccomp profile hides it"
                .to_owned(),
            Self::Memlock => "io_uring may not lock enough memory (ENOMEM)".to_owned(),
            Self::Descriptors => {
                "io_uring needs descriptors and this process may open no more (EMFILE)".to_owned()
            }
            Self::TooOld { tier, lacks } => {
                format!("this kernel's io_uring lacks {lacks}, which tier {tier} needs")
            }
            Self::NoNapi(error) => {
                format!("this kernel's io_uring cannot poll network cards ({error})")
            }
            Self::Failed { tier, error } => {
                format!("io_uring does not work here in tier {tier} ({error})")
            }
        }
    }

    /// Returns the remedy, as a sentence.
    pub fn remedy(&self) -> String {
        match self {
            Self::Disabled { .. } => "run `sysctl -w kernel.io_uring_disabled=0`".to_owned(),
            Self::Blocked | Self::Missing => "allow io_uring_setup, io_uring_enter and \
                                              io_uring_register in the seccomp profile, for \
                                              instance with `docker run --security-opt \
                                              seccomp=tuning/seccomp.json`"
                .to_owned(),
            Self::Memlock => "raise the limit with `ulimit -l unlimited`, \
                              `LimitMEMLOCK=infinity` in the systemd unit or `docker run --ulimit \
                              memlock=-1`"
                .to_owned(),
            Self::Descriptors => "raise the limit with `ulimit -n` or `LimitNOFILE=` in the \
                                  systemd unit"
                .to_owned(),
            Self::TooOld { tier, .. } => format!(
                "run Linux {} or later{}",
                tier.kernel(),
                if *tier == Tier::Base { "" } else { ", or leave --uring-tier out" },
            ),
            Self::NoNapi(_) => "run Linux 6.9 or later, built with NET_RX_BUSY_POLL, or leave \
                                --napi out"
                .to_owned(),
            Self::Failed { .. } => "try a lower --uring-tier".to_owned(),
        }
    }

    /// Explains the failure to set up a ring.
    pub(super) fn at_setup(tier: Tier, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => match disabled_setting() {
                Some(setting @ 1..) => Self::Disabled { setting },
                _ => Self::Blocked,
            },
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::ENOMEM) => Self::Memlock,
            Some(libc::EINVAL) => Self::TooOld {
                tier,
                lacks: match tier {
                    Tier::Base => "a completion queue of its own size",
                    Tier::Rings => "cooperative task running",
                    Tier::TaskRun => "deferred task running",
                },
            },
            _ => Self::at_use(tier, error),
        }
    }

    /// Explains the failure of a ring that was set up.
    pub(super) fn at_use(tier: Tier, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Self::Descriptors,
            _ => Self::Failed { tier, error },
        }
    }
}

fn disabled_setting() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Returns the best tier, found by using it; or tries the forced one only.
pub fn probe(forced: Option<Tier>) -> Result<Probe, Unavailable> {
    if let Some(tier) = forced {
        return attempt(tier);
    }
    let mut refused = None;
    for tier in Tier::ALL {
        match attempt(tier) {
            Ok(probe) => return Ok(probe),
            Err(cause) => refused = Some(cause),
        }
    }
    // The last refusal is that of the lowest tier: a feature that it lacks is missing in all.
    Err(refused.unwrap_or(Unavailable::Missing))
}

/// Returns the features of a new ring beyond its tier. Returns an error if one of the tier is
/// missing.
pub(super) fn examine(tier: Tier, ring: &Ring) -> Result<Probe, Unavailable> {
    let too_old = |lacks| Unavailable::TooOld { tier, lacks };
    let params = ring.params();
    if !params.is_feature_ext_arg() {
        return Err(too_old("waiting with a timeout (EXT_ARG)"));
    }
    if !params.is_feature_nodrop() {
        return Err(too_old("a completion queue that loses nothing (NODROP)"));
    }
    if !params.is_feature_submit_stable() {
        return Err(too_old("stable submission (SUBMIT_STABLE)"));
    }
    if !params.is_feature_fast_poll() {
        return Err(too_old("polling inside the ring (FAST_POLL)"));
    }
    let mut known = io_uring::Probe::new();
    ring.submitter()
        .register_probe(&mut known)
        .map_err(|_| too_old("a list of its operations (REGISTER_PROBE)"))?;
    let has = |code| known.is_supported(code);
    for (code, lacks) in [
        (opcode::Accept::CODE, "accepting connections"),
        (opcode::Recv::CODE, "receiving"),
        (opcode::Send::CODE, "sending"),
        (opcode::SendMsg::CODE, "vectored sending"),
        (opcode::PollAdd::CODE, "polling"),
        (opcode::Read::CODE, "reading"),
        (opcode::AsyncCancel::CODE, "cancelling"),
        (opcode::Timeout::CODE, "timeouts"),
    ] {
        if !has(code) {
            return Err(too_old(lacks));
        }
    }
    let above_base = tier > Tier::Base;
    Ok(Probe {
        tier,
        ring_to_ring: above_base && has(opcode::MsgRingData::CODE),
        zero_copy: above_base && has(opcode::SendZc::CODE) && has(opcode::SendMsgZc::CODE),
    })
}

/// Tries a tier: a small reactor has to receive something.
fn attempt(tier: Tier) -> Result<Probe, Unavailable> {
    let failed = |error: io::Error| Unavailable::at_use(tier, error);
    let options = ReactorOptions {
        tier: Some(tier),
        chunk_bytes: 4096,
        chunks: 2,
        entries: 8,
        ..ReactorOptions::default()
    };
    let mut reactor = Reactor::new(&options)?;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| failed(errno.into()))?;
    rustix::io::write(&theirs, b"?").map_err(|errno| failed(errno.into()))?;
    let socket = reactor.adopt(ours, ZeroCopy::Never);
    reactor.read(socket);
    let mut events = Vec::new();
    for _ in 0..TRIAL_TURNS_MAX {
        reactor.turn(TurnWait::For(TRIAL_WAIT), &mut events).map_err(failed)?;
        if !events.is_empty() {
            break;
        }
    }
    match events.pop() {
        Some(Event::Received { chunk, .. }) => reactor.recycle(chunk),
        Some(Event::Ended { error: Some(error), .. }) => {
            return Err(match error.raw_os_error() {
                Some(libc::EINVAL) => Unavailable::TooOld { tier, lacks: "multishot receive" },
                _ => failed(error),
            });
        }
        _ => return Err(failed(io::ErrorKind::TimedOut.into())),
    }
    Ok(reactor.capabilities())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_called_what_the_option_says() {
        for tier in Tier::ALL {
            assert_eq!(tier.to_string().parse(), Ok(tier));
        }
        assert!("newest".parse::<Tier>().is_err());
    }

    #[test]
    fn a_refusal_is_one_line_with_a_remedy() {
        let of = |errno| Unavailable::at_setup(Tier::Rings, io::Error::from_raw_os_error(errno));
        for (errno, remedy) in [
            (libc::ENOSYS, "seccomp profile"),
            (libc::ENOMEM, "LimitMEMLOCK"),
            (libc::EMFILE, "LimitNOFILE"),
            (libc::EINVAL, "run Linux 6.0 or later"),
            (libc::EIO, "lower --uring-tier"),
        ] {
            let sentence = of(errno).to_string();
            assert!(sentence.contains(remedy), "{sentence}");
            assert!(!sentence.contains('\n'), "{sentence}");
        }
        let sentence = Unavailable::NoNapi(io::ErrorKind::InvalidInput.into()).to_string();
        assert!(sentence.contains("leave --napi out") && !sentence.contains('\n'), "{sentence}");
    }

    #[test]
    fn the_best_tier_is_found_by_trying_and_a_lower_one_can_be_forced() {
        let best = probe(None).unwrap().tier;
        for tier in Tier::ALL.into_iter().filter(|tier| *tier <= best) {
            assert_eq!(probe(Some(tier)).unwrap().tier, tier);
        }
    }
}
