//! The command line, as nats-server has it: one dash or two, `=` or a blank before the value.

use std::any::TypeId;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use super::syntax::{duration, nearest};
use super::tls::certificates::Pair;
use super::{
    ClusterOptions, LogFormat, Options, RouteUrl, Seating, Secret, ShardCount, StartError, Syslog,
    UnixOptions, UserOptions,
};
use super::{listeners, tls};
use crate::engine::SHARDS_MAX;
use crate::host::Tier;

/// An action that the command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Print the usage page.
    Help,
    /// Print the version.
    Version,
    /// Check the configuration file.
    TestConfig(Box<Args>),
    /// Send a signal to a running server: `command` or `command=pid`.
    Signal(String),
    /// Print what there is to say about TLS.
    HelpTls,
    /// Print the completions for a shell; holds its name.
    Completions(String),
    /// Print the manual page.
    Man,
    /// Examine this host; holds the arguments after the word `doctor`.
    Doctor(Vec<String>),
    /// Import the streams of a stopped nats-server from this directory.
    Import(PathBuf, Box<Args>),
    /// Run the server.
    Serve(Box<Args>),
}

/// The flags that were given. Each is one flag with several names; all may have one dash or two.
#[derive(Debug, Clone, Default, PartialEq, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
#[command(args_override_self = true)]
pub struct Args {
    #[arg(long, aliases = ["a", "net"])]
    pub(crate) addr: Option<String>,
    #[arg(long, alias = "p", value_parser = port)]
    pub(crate) port: Option<u16>,
    #[arg(long = "listen-unix", alias = "listen_unix", value_parser = socket_path)]
    listen_unix: Option<String>,
    #[arg(long = "http_port", alias = "m", value_parser = port)]
    pub(crate) http_port: Option<u16>,
    #[arg(long = "https_port", alias = "ms", value_parser = port)]
    https_port: Option<u16>,
    #[arg(long = "server_name", aliases = ["name", "n"])]
    pub(crate) server_name: Option<String>,
    #[arg(long, alias = "P")]
    pid: Option<PathBuf>,
    #[arg(long = "ports_file_dir")]
    ports_file_dir: Option<PathBuf>,
    /// The configuration file.
    #[arg(long, alias = "c")]
    pub config: Option<PathBuf>,
    #[arg(long = "client_advertise")]
    client_advertise: Option<String>,

    #[arg(long, alias = "l")]
    log: Option<PathBuf>,
    #[arg(long = "log_size_limit")]
    log_size_limit: Option<u64>,
    #[arg(long, alias = "s", value_parser = switch)]
    syslog: Option<bool>,
    #[arg(long = "remote_syslog", alias = "r", value_parser = str::parse::<Syslog>)]
    remote_syslog: Option<Syslog>,
    #[arg(long = "log_format", value_parser = str::parse::<LogFormat>)]
    log_format: Option<LogFormat>,
    #[arg(long, alias = "T", value_parser = switch)]
    logtime: Option<bool>,
    #[arg(long = "logtime_utc", value_parser = switch)]
    logtime_utc: Option<bool>,
    #[arg(long, alias = "D", value_parser = switch)]
    debug: Option<bool>,
    #[arg(long, alias = "V", value_parser = switch)]
    trace: Option<bool>,
    #[arg(long = "VV", value_parser = switch)]
    trace_verbose: Option<bool>,
    #[arg(long = "DV", value_parser = switch)]
    debug_trace: Option<bool>,
    #[arg(long = "DVV", value_parser = switch)]
    debug_trace_verbose: Option<bool>,
    #[arg(long = "max_traced_msg_len")]
    max_traced_msg_len: Option<usize>,

    #[arg(long)]
    pub(crate) user: Option<String>,
    #[arg(long, value_parser = secret)]
    pub(crate) pass: Option<Secret>,
    #[arg(long, value_parser = secret)]
    pub(crate) auth: Option<Secret>,

    #[arg(long, alias = "cluster_listen")]
    cluster: Option<String>,
    #[arg(long = "cluster_name")]
    cluster_name: Option<String>,
    #[arg(long = "cluster_advertise")]
    cluster_advertise: Option<String>,
    #[arg(long)]
    routes: Option<String>,
    #[arg(long = "connect_retries")]
    connect_retries: Option<u32>,
    #[arg(long = "no_advertise", value_parser = switch)]
    no_advertise: Option<bool>,

    #[arg(long, value_parser = switch)]
    tls: Option<bool>,
    #[arg(long, value_parser = switch)]
    tlsverify: Option<bool>,
    #[arg(long)]
    tlscert: Option<PathBuf>,
    #[arg(long)]
    tlskey: Option<PathBuf>,
    #[arg(long)]
    tlscacert: Option<PathBuf>,

    #[arg(long, value_parser = shard_count)]
    pub(crate) shards: Option<ShardCount>,
    #[arg(long, value_parser = seating())]
    seating: Option<Seating>,
    #[arg(long = "uring-tier", alias = "uring_tier", value_parser = uring_tier())]
    uring_tier: Option<Tier>,
    #[arg(long = "no-pin", alias = "no_pin", value_parser = switch)]
    pub(crate) no_pin: Option<bool>,
    #[arg(long = "busy-poll", alias = "busy_poll", value_parser = microseconds)]
    busy_poll: Option<u32>,
    #[arg(long, value_parser = microseconds)]
    napi: Option<u32>,

    #[arg(long, alias = "js", value_parser = switch)]
    pub(crate) jetstream: Option<bool>,
    #[arg(long = "store_dir", alias = "sd")]
    pub(crate) store_dir: Option<PathBuf>,

    #[arg(long = "t", value_parser = switch)]
    test: Option<bool>,
    #[arg(long, alias = "sl")]
    signal: Option<String>,
    #[arg(long, alias = "v", value_parser = switch)]
    version: Option<bool>,
    #[arg(long, alias = "h", value_parser = switch)]
    help: Option<bool>,
    #[arg(long = "help_tls", value_parser = switch)]
    help_tls: Option<bool>,

    /// Words that are no flags.
    #[arg(hide = true)]
    words: Vec<String>,

    /// Remarks for the operator about flags without effect.
    #[arg(skip)]
    missing: Vec<String>,
}

/// A flag of nats-server that this server does not have.
struct MissingFlag {
    names: &'static [&'static str],
    takes_value: bool,
    /// Whether the flag is refused: without effect, access, reach or a port would differ from what
    /// the operator asked for.
    matters: bool,
}

const MISSING: &[MissingFlag] =
    &[MissingFlag { names: &["profile"], takes_value: true, matters: false }];

/// Reads a command line, without the program's name.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, StartError> {
    let args: Vec<String> = args.into_iter().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["doctor", ..] => return Ok(Command::Doctor(args[1..].to_vec())),
        ["import", ..] => return import(&args[1..]),
        ["man"] => return Ok(Command::Man),
        ["completions", shell] => return Ok(Command::Completions(shell.to_owned())),
        ["completions", ..] => {
            let reason = "completions needs the name of a shell, as in \"completions bash\"";
            return Err(StartError::new(reason));
        }
        _ => {}
    }
    let mut missing = Vec::new();
    let uniform = uniform(&args, &mut missing)?;
    let mut parsed = Args::command()
        .try_get_matches_from(uniform)
        .and_then(|matches| Args::from_arg_matches(&matches))
        .map_err(|error| StartError::new(one_line(&error)))?;
    parsed.missing = missing;
    command(parsed)
}

/// Reads what follows the word `import`: a directory, and flags that say where to.
fn import(args: &[String]) -> Result<Command, StartError> {
    let reason = "import takes one directory, the store_dir of a stopped nats-server, and then the \
                  flags -c or -sd, which say where to";
    let wrong = || Err(StartError::new(reason));
    match args.split_first() {
        Some((from, flags)) if !from.starts_with('-') => match parse(flags.iter().cloned())? {
            Command::Serve(args) => Ok(Command::Import(from.into(), args)),
            _ => wrong(),
        },
        _ => wrong(),
    }
}

fn command(args: Args) -> Result<Command, StartError> {
    if let Some(word) = args.words.first() {
        return match word.to_ascii_lowercase().as_str() {
            "help" => Ok(Command::Help),
            "version" => Ok(Command::Version),
            "import" => {
                let reason = "import comes first; run \"shardcast import <directory> -c <file>\"";
                Err(StartError::new(reason))
            }
            command @ ("doctor" | "man" | "completions") => Err(StartError::new(format!(
                "{command} takes none of the server's flags; run \"shardcast {command}\""
            ))),
            _ => Err(StartError::new(format!("unrecognized command: \"{word}\""))),
        };
    }
    let given = |flag: Option<bool>| flag == Some(true);
    if given(args.help) {
        return Ok(Command::Help);
    }
    if given(args.help_tls) {
        return Ok(Command::HelpTls);
    }
    if given(args.version) {
        return Ok(Command::Version);
    }
    if let Some(signal) = args.signal {
        return Ok(Command::Signal(signal));
    }
    if given(args.test) {
        if args.config.is_none() {
            let reason = "must specify [-c, --config] option to check configuration file syntax";
            return Err(StartError::new(reason));
        }
        return Ok(Command::TestConfig(Box::new(args)));
    }
    Ok(Command::Serve(Box::new(args)))
}

/// Rewrites every flag to `--name=value`, the form clap agrees with; a switch alone is true.
///
/// As in nats-server, the word after a flag that takes a value is its value, whatever it looks
/// like (`-p -1`), and flags end at the first other word or at `--`.
fn uniform(args: &[String], no_effect: &mut Vec<String>) -> Result<Vec<String>, StartError> {
    let clap = Args::command();
    let mut uniform = Vec::with_capacity(args.len() + 1);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            break;
        }
        let flag = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'));
        let Some(flag) = flag.filter(|flag| !flag.is_empty()) else {
            uniform.extend(["--".to_owned(), arg.clone()]);
            break;
        };
        let (name, mut value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let missing = MISSING.iter().find(|missing| missing.names.contains(&name));
        let takes_value = match missing {
            Some(missing) => missing.takes_value,
            None => takes_value(&clap, name)?,
        };
        if takes_value && value.is_none() {
            let next = rest.next().cloned();
            let reason = || StartError::new(format!("flag {arg} needs a value, as in {arg}=VALUE"));
            value = Some(next.ok_or_else(reason)?);
        }
        match missing {
            Some(_) if value.as_deref().is_some_and(|value| switch(value) == Ok(false)) => {}
            Some(missing) if missing.matters => {
                let reason = format!("flag {arg} is not supported yet; start without it");
                return Err(StartError::new(reason));
            }
            Some(_) => no_effect.push(format!("Flag {arg} is not supported yet and has no effect")),
            None => uniform.push(format!("--{name}={}", value.as_deref().unwrap_or("true"))),
        }
    }
    uniform.extend(rest.cloned());
    Ok(uniform)
}

fn takes_value(clap: &clap::Command, name: &str) -> Result<bool, StartError> {
    let known = clap.get_arguments().find(|arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        arg.get_long() == Some(name) || aliases.contains(&name)
    });
    if let Some(arg) = known {
        return Ok(arg.get_value_parser().type_id() != TypeId::of::<bool>());
    }
    let names = clap.get_arguments().filter_map(clap::Arg::get_long);
    let names = names.chain(MISSING.iter().flat_map(|missing| missing.names.iter().copied()));
    Err(StartError::new(match nearest(name, names) {
        Some(near) => format!("unknown flag --{name}; did you mean --{near}? -h lists all flags"),
        None => format!("unknown flag --{name}; -h lists all flags"),
    }))
}

/// Returns clap's complaint as one sentence.
fn one_line(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.split(' ').next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let flag = context(ContextKind::InvalidArg).replace("[=", "=");
    let flag = flag.split('=').next().unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    match (error.kind(), std::error::Error::source(error)) {
        (ErrorKind::InvalidValue, _) => {
            let mut allowed = String::new();
            if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
                allowed = format!("; it is one of {}", values.join(", "));
            }
            format!("invalid value \"{value}\" for {flag}{allowed}")
        }
        (_, Some(source)) => format!("invalid value \"{value}\" for {flag}: {source}"),
        _ => error.to_string().lines().next().unwrap_or_default().replacen("error: ", "", 1),
    }
}

impl Args {
    /// Applies the given flags to `options`.
    pub fn apply(&self, options: &mut Options) -> Result<(), StartError> {
        set(&mut options.network.host, &self.addr);
        set(&mut options.network.port, &self.port);
        if let Some(path) = &self.listen_unix {
            // The socket keeps the settings that the file has for it.
            let unix = options.network.unix.take().unwrap_or_else(|| UnixOptions::at(path));
            options.network.unix = Some(UnixOptions { path: path.clone(), ..unix });
        }
        if let Some(port) = self.http_port {
            options.monitoring.listen(None, port, false)?;
        }
        if let Some(port) = self.https_port {
            options.monitoring.listen(None, port, true)?;
        }
        set_some(&mut options.server.name, &self.server_name);
        set_some(&mut options.server.pid_file, &self.pid);
        set_some(&mut options.server.ports_file_dir, &self.ports_file_dir);
        set_some(&mut options.network.client_advertise, &self.client_advertise);
        self.apply_log(options);
        set(&mut options.runtime.shards, &self.shards);
        set(&mut options.runtime.seating, &self.seating);
        options.runtime.uring_tier = self.uring_tier.or(options.runtime.uring_tier);
        set(&mut options.runtime.pin, &self.no_pin.map(|no_pin| !no_pin));
        set(&mut options.runtime.busy_poll_us, &self.busy_poll);
        set(&mut options.runtime.napi_us, &self.napi);
        options.notes.missing.extend(self.missing.iter().cloned());
        set(&mut options.jetstream.is_enabled, &self.jetstream);
        set_some(&mut options.jetstream.store_dir, &self.store_dir);
        self.apply_tls(options)?;
        self.apply_cluster(options)?;
        self.apply_auth(options)
    }

    fn apply_cluster(&self, options: &mut Options) -> Result<(), StartError> {
        let cluster = &mut options.cluster;
        let url = |flag: &str, text: &str| {
            RouteUrl::parse(text)
                .map_err(|reason| StartError::new(format!("invalid value for --{flag}: {reason}")))
        };
        match self.cluster.as_deref() {
            None => {}
            // As in nats-server: without an address there is no clustering.
            Some("") => *cluster = ClusterOptions::default(),
            Some(text) => {
                // -1 is any free port.
                let any = text.strip_suffix(":-1").map(|text| format!("{text}:0"));
                let url = url("cluster", any.as_deref().unwrap_or(text))?;
                (cluster.host, cluster.port) = (url.host, Some(url.port));
                if let Some((user, password)) = url.login {
                    if password.revealed().is_empty() {
                        let reason = "--cluster with a user needs a password, as in \
                                      nats://user:password@host:port";
                        return Err(StartError::new(reason));
                    }
                    (cluster.user, cluster.password) = (Some(user), password);
                }
            }
        }
        set_some(&mut cluster.name, &self.cluster_name);
        set_some(&mut cluster.advertise, &self.cluster_advertise);
        set(&mut cluster.connect_retries, &self.connect_retries);
        set(&mut cluster.no_advertise, &self.no_advertise);
        if let Some(routes) = &self.routes {
            let urls = routes.split(',').map(str::trim).filter(|text| !text.is_empty());
            cluster.routes = urls.map(|text| url("routes", text)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    /// Applies TLS flags. Files that they name replace the whole block of the configuration file.
    fn apply_tls(&self, options: &mut Options) -> Result<(), StartError> {
        let verify = self.tlsverify == Some(true);
        let asked = verify || self.tls == Some(true);
        let files = [&self.tlscert, &self.tlskey, &self.tlscacert];
        if files.iter().any(|file| file.is_some()) || (asked && options.network.tls.is_none()) {
            let block = tls::TlsBlock {
                pair: Pair { cert_file: self.tlscert.clone(), key_file: self.tlskey.clone() },
                ca_file: self.tlscacert.clone(),
                verify,
                ..tls::TlsBlock::default()
            };
            options.network.tls = Some(block.load()?);
        }
        Ok(())
    }

    fn apply_log(&self, options: &mut Options) {
        let log = &mut options.log;
        set_some(&mut log.file, &self.log);
        set(&mut log.file_bytes_max, &self.log_size_limit);
        set_some(&mut log.syslog, &self.syslog.unwrap_or_default().then_some(Syslog::Local));
        set_some(&mut log.syslog, &self.remote_syslog);
        set(&mut log.format, &self.log_format);
        set(&mut log.timestamps, &self.logtime);
        set(&mut log.utc, &self.logtime_utc);
        set(&mut log.traced_message_bytes_max, &self.max_traced_msg_len);
        for flag in [self.debug, self.debug_trace, self.debug_trace_verbose] {
            set(&mut log.debug, &flag);
        }
        let verbose = [self.trace_verbose, self.debug_trace_verbose];
        for flag in [self.trace, self.debug_trace].into_iter().chain(verbose) {
            set(&mut log.trace, &flag);
        }
        for flag in verbose {
            set(&mut log.trace_verbose, &flag);
        }
    }

    fn apply_auth(&self, options: &mut Options) -> Result<(), StartError> {
        let auth = &mut options.auth;
        match (&self.user, &self.pass, &self.auth) {
            (None, None, None) => {}
            // nats-server looks at the token where both are given.
            (_, _, Some(token)) => {
                auth.users.clear();
                auth.token = Some(token.clone());
            }
            (Some(name), password, None) => {
                auth.token = None;
                let password = password.clone().unwrap_or_else(|| Secret::new(""));
                let name = name.clone();
                auth.users = vec![UserOptions { password, ..UserOptions::named(name) }];
            }
            (None, Some(_), None) => {
                return Err(StartError::new("--pass needs --user"));
            }
        }
        Ok(())
    }
}

fn set<T: Clone>(option: &mut T, given: &Option<T>) {
    if let Some(given) = given {
        option.clone_from(given);
    }
}

fn set_some<T: Clone>(option: &mut Option<T>, given: &Option<T>) {
    if given.is_some() {
        option.clone_from(given);
    }
}

/// Reads a port. Any free one is -1, as in nats-server, and here 0, too.
fn port(text: &str) -> Result<u16, String> {
    match text {
        "-1" => Ok(0),
        _ => text.parse().map_err(|_| "expected 0 to 65535, or -1 for any free port".to_owned()),
    }
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

fn socket_path(text: &str) -> Result<String, String> {
    listeners::check_path(text).map(|()| text.to_owned())
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn shard_count(text: &str) -> Result<ShardCount, String> {
    match text.parse() {
        _ if text == "auto" => Ok(ShardCount::Auto),
        Ok(count @ 1..=SHARDS_MAX) => Ok(ShardCount::Exactly(count)),
        _ => Err(format!("expected auto, or a number from 1 to {SHARDS_MAX}")),
    }
}

fn seating() -> impl TypedValueParser<Value = Seating> {
    PossibleValuesParser::new(["fewest", "round-robin"]).map(|name| match &*name {
        "fewest" => Seating::Fewest,
        _ => Seating::RoundRobin,
    })
}

fn uring_tier() -> impl TypedValueParser<Value = Tier> {
    PossibleValuesParser::new(["base", "rings", "taskrun"]).try_map(|name| name.parse::<Tier>())
}

fn microseconds(text: &str) -> Result<u32, String> {
    let us = duration::parse_ns(text)? / 1000;
    u32::try_from(us).map_err(|_| "expected a duration from 0 to 71 minutes".to_owned())
}

/// The usage page of `program`.
pub fn usage(program: &str) -> String {
    format!("\nUsage: {program} [options]\n{USAGE}\n")
}

/// The page about TLS.
pub fn usage_of_tls() -> String {
    let list = |names: Vec<String>| names.join("\n    ");
    let (suites, curves) = (list(tls::suites()), list(tls::curves()));
    format!(
        "{TLS_USAGE}\nCipher suites, in order of preference:\n    {suites}\n\nCurves:\n    {curves}"
    )
}

const TLS_USAGE: &str = "\
TLS is configured by flags (--tls, --tlscert, --tlskey, --tlsverify, --tlscacert) or in the file:

    tls {
        cert_file: \"server.pem\"
        key_file:  \"server-key.pem\"
        ca_file:   \"ca.pem\"      # who vouches for clients
        verify:    true           # clients need a certificate
        min_version: \"1.2\"      # or \"1.3\"
        cipher_suites: [ \"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\" ]
        curve_preferences: [ \"X25519\", \"CurveP256\" ]
    }

Versions 1.2 and 1.3 are spoken. Cipher suites are those of nats-server's names; those of 1.3 are
all on unless the list names some. All keys: docs/configuration.md.
";

const USAGE: &str = "\
All flags may have one dash or two, and a blank or = before the value. They win over the file.

Server Options:
    -a, --addr, --net <host>         Bind to host address (default: 0.0.0.0)
    -p, --port <port>                Use port for clients (default: 4222; -1: any free port)
    -m, --http_port <port>           Use port for http monitoring (default: none; -1: any free port)
    -ms, --https_port <port>         Use port for https monitoring, with the certificate of TLS
    -n, --name
        --server_name <name>         Server name (default: the server id)
    -P, --pid <file>                 File to store the process id
        --ports_file_dir <dir>       Directory for the ports file (<program>_<pid>.ports)
    -c, --config <file>              Configuration file
    -t                               Test configuration and exit
    -js, --jetstream                 Enable JetStream
    -sd, --store_dir <dir>           Directory above that of the streams (default: a temporary one)
    -sl,--signal <signal>[=<pid>]    Send signal to a running server and exit
                                     (ldm, stop, quit, term, reopen, reload);
                                     <pid> is a process id, the path of a pid file, or
                                     the beginning of ids and a *
        --listen-unix <path>         Also listen on a Unix socket (@name: an abstract one)
        --client_advertise <string>  Client address to advertise to other servers

Performance Options:
        --shards <n>                 Shards, one thread each (default: auto, one per core)
        --seating <how>              Where a new connection goes: to the shard with the fewest, or
                                     round-robin (default: fewest)
        --no-pin                     Do not keep each shard on one core
        --busy-poll <duration>       Look for work this long before sleeping (default: 0)
        --napi <duration>            Let the kernel poll network cards this long before a shard
                                     sleeps (default: 0; needs Linux 6.9)
        --uring-tier <tier>          Use this much of io_uring: base, rings or taskrun
                                     (default: the best tier that works here)

Logging Options:
    -l, --log <file>                 File to redirect log output
        --log_size_limit <bytes>     Size after which the log file is put aside (default: never)
    -s, --syslog                     Log to the system's log (unless there is a log file)
    -r, --remote_syslog <url>        Log to one elsewhere (udp://host:514, tcp://host:514)
        --log_format <format>        Lines as text or json (default: text)
    -T, --logtime                    Timestamp log entries (default: true)
        --logtime_utc                Timestamps in UTC instead of local time (default: false)
    -D, --debug                      Enable debugging output
    -V, --trace                      Trace the raw protocol
    -VV                              Verbose trace (traces system account as well)
    -DV                              Debug and trace
    -DVV                             Debug and verbose trace (traces system account as well)
        --max_traced_msg_len <len>   Maximum printable length for traced messages

Authorization Options:
        --user <user>                User required for connections
        --pass <password>            Password required for connections
        --auth <token>               Authorization token required for connections

TLS Options:
        --tls                        TLS for clients (with the files of the configuration or below)
        --tlscert <file>             Server certificate file
        --tlskey <file>              Private key of the server certificate
        --tlsverify                  Clients need a certificate, too
        --tlscacert <file>           Who vouches for their certificates
        --help_tls                   Show versions, cipher suites and curves of TLS

Cluster Options:
        --routes <url, url>          Servers of the cluster to connect to (nats-route://host:port)
        --cluster
        --cluster_listen <url>       Where other servers reach this one (nats://host:port; with
                                     user:password@ before the host they need these)
        --cluster_name <name>        Name of the cluster (default: made up)
        --no_advertise               Do not tell clients about other servers, or others of this one
        --cluster_advertise <string> Cluster address to advertise to other servers (host[:port])
        --connect_retries <n>        Extra attempts for servers that others spoke of (default: 0)

Commands:
    doctor [--json] [<interface>]    Examine this host and say what to mend; the exit status is
                                     0 (nothing that matters), 1 (something warns) or 2 (something
                                     fails). doctor -h: --fix, --pid, --disk, --bundle
    import <directory> [-c <file>] [-sd <directory>]
                                     Import the streams of a stopped nats-server from its store_dir
    completions <shell>              Print completions for bash, zsh, fish, elvish or powershell
    man                              Print the manual page

Common Options:
    -h, --help                       Show this message
    -v, --version                    Show version
";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{RuntimeOptions, load};

    fn options(line: &str) -> Options {
        match parse(line.split_whitespace().map(str::to_owned)) {
            Ok(Command::Serve(args)) => load(&args).unwrap(),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        match parse(line.split_whitespace().map(str::to_owned)) {
            Ok(Command::Serve(args)) => load(&args).unwrap_err().to_string(),
            Ok(other) => panic!("{line}: {other:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn one_dash_or_two_and_a_blank_or_an_equals_sign_are_the_same() {
        for line in ["-p 42", "--p 42", "-p=42", "--p=42", "-port 42", "--port 42", "--port=42"] {
            assert_eq!(options(line).network.port, 42, "{line}");
        }
        for line in ["-a ::1", "--addr ::1", "-net=::1", "--net ::1"] {
            assert_eq!(options(line).network.host, "::1", "{line}");
        }
        for line in ["-n x", "--name x", "-server_name x"] {
            assert_eq!(options(line).server.name.as_deref(), Some("x"), "{line}");
        }
    }

    #[test]
    fn a_negative_port_is_any_free_port() {
        for line in ["-p -1", "--port -1", "--port=-1", "-p 0"] {
            assert_eq!(options(line).network.port, 0, "{line}");
        }
    }

    #[test]
    fn the_last_of_equal_flags_counts() {
        assert_eq!(options("-p 1 --port 2").network.port, 2);
    }

    #[test]
    fn switches_take_their_value_after_an_equals_sign_only() {
        assert!(!options("-T=false").log.timestamps);
        assert!(!options("--logtime=false").log.timestamps);
        assert!(options("-T").log.timestamps);
        assert!(options("-logtime_utc").log.utc);
        assert!(!options("-D=0").log.debug);
        assert_eq!(refused("-T false"), "unrecognized command: \"false\"");
    }

    #[test]
    fn the_verbosity_flags_add_up() {
        let verbosity = |line: &str| {
            let log = options(line).log;
            (log.debug, log.trace, log.trace_verbose)
        };
        assert_eq!(verbosity("-D"), (true, false, false));
        assert_eq!(verbosity("-V"), (false, true, false));
        assert_eq!(verbosity("-DV"), (true, true, false));
        assert_eq!(verbosity("-VV"), (false, true, true));
        assert_eq!(verbosity("-DVV"), (true, true, true));
        assert_eq!(verbosity("-D -V"), (true, true, false));
    }

    #[test]
    fn the_command_lines_of_client_harnesses_are_understood() {
        let py = options("-p 4222 -a 127.0.0.1 --user u --pass p");
        assert_eq!(py.auth.users[0].name, "u");
        assert!(py.auth.users[0].password.matches("p"));

        let rust = options("--store_dir /tmp/x -p -1 -l /tmp/l -P /tmp/pid");
        assert_eq!(rust.log.file.as_deref(), Some(Path::new("/tmp/l")));
        assert_eq!(rust.server.pid_file.as_deref(), Some(Path::new("/tmp/pid")));
        assert_eq!(rust.jetstream.store_dir.as_deref(), Some(Path::new("/tmp/x")));

        let c = options("-a 127.0.0.1 -p 22 -l log -DV -user ivan -pass secret");
        assert!(c.log.debug && c.log.trace);
        assert_eq!(c.auth.users[0].name, "ivan");
        assert!(options("-auth testToken").auth.token.unwrap().matches("testToken"));

        let core = options("--port -1 --addr ::1 --debug --store_dir d --server_name s");
        assert_eq!((core.network.port, core.network.host.as_str()), (0, "::1"));
    }

    #[test]
    fn our_own_flags_have_checked_values() {
        let line = "--shards 3 --seating round-robin --uring-tier base --no-pin \
                    --busy-poll 50us --napi 7us";
        let wanted = RuntimeOptions {
            shards: ShardCount::Exactly(3),
            seating: Seating::RoundRobin,
            uring_tier: Some(Tier::Base),
            pin: false,
            busy_poll_us: 50,
            napi_us: 7,
        };
        assert_eq!(options(line).runtime, wanted);
        assert_eq!(options("--shards auto").runtime, RuntimeOptions::default());
        assert!(refused("--shards 0").contains("from 1 to"));
        assert!(refused("--busy-poll -1ms").contains("from 0"));
        assert!(refused("--napi 2h").contains("71 minutes"));
        let tiers = "invalid value \"x\" for --uring-tier; it is one of base, rings, taskrun";
        assert_eq!(refused("--uring-tier x"), tiers);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_flag() {
        let port = "invalid value \"abc\" for --port: expected 0 to 65535, or -1 for any free port";
        assert_eq!(refused("-p abc"), port);
        assert!(refused("-p 65536").starts_with("invalid value \"65536\" for --port: "));
        assert_eq!(refused("-p"), "flag -p needs a value, as in -p=VALUE");
        assert!(refused("-T=maybe").starts_with("invalid value \"maybe\" for --logtime: "));
    }

    #[test]
    fn an_unknown_flag_is_one_line_with_a_hint() {
        assert_eq!(
            refused("--prot 4"),
            "unknown flag --prot; did you mean --port? -h lists all flags",
        );
        assert_eq!(refused("--zzz"), "unknown flag --zzz; -h lists all flags");
        assert_eq!(refused("foo"), "unrecognized command: \"foo\"");
    }

    #[test]
    fn a_flag_that_is_missing_and_does_not_matter_is_mentioned() {
        assert_eq!(options("--profile 1").notes.missing.len(), 1);
    }

    #[test]
    fn jetstream_is_switched_by_a_flag_that_takes_precedence_over_the_file() {
        assert!(!options("-p 1").jetstream.is_enabled);
        for line in ["-js", "--jetstream", "-js=true"] {
            assert!(options(line).jetstream.is_enabled, "{line}");
        }
        for line in ["-sd /tmp/x", "--store_dir=/tmp/x"] {
            let wanted = Some(Path::new("/tmp/x"));
            assert_eq!(options(line).jetstream.store_dir.as_deref(), wanted, "{line}");
        }
        let text = "-js=false".split_whitespace().map(str::to_owned);
        let Ok(Command::Serve(args)) = parse(text) else { panic!("it runs") };
        let mut options = Options::default();
        options.jetstream.is_enabled = true;
        args.apply(&mut options).unwrap();
        assert!(!options.jetstream.is_enabled);
    }

    #[test]
    fn the_secrets_of_a_command_line_are_never_printed() {
        for line in ["--user a --pass hush", "--auth hush"] {
            let command = parse(line.split_whitespace().map(str::to_owned)).unwrap();
            assert!(!format!("{command:?}").contains("hush"), "{line}");
        }
    }

    #[test]
    fn a_cluster_is_made_of_flags() {
        let line = "--cluster nats://a:b@127.0.0.1:-1 --cluster_name C --no_advertise \
                    --routes nats://h:1,nats-route://i:2 --connect_retries 3";
        let cluster = options(line).cluster;
        assert_eq!((cluster.host.as_str(), cluster.port), ("127.0.0.1", Some(0)));
        assert_eq!((cluster.user.as_deref(), cluster.name.as_deref()), (Some("a"), Some("C")));
        assert!(cluster.password.matches("b") && cluster.no_advertise);
        let ports: Vec<_> = cluster.routes.iter().map(|url| url.port).collect();
        assert_eq!((ports, cluster.connect_retries), (vec![1, 2], 3));
        assert_eq!(options("--cluster=").cluster.port, None);
        assert!(refused("--routes nats://h:1").contains("--cluster"));
        assert!(refused("--cluster nats://a@h:1").contains("needs a password"));
    }

    #[test]
    fn of_user_and_token_the_token_counts() {
        let auth = options("--user a --pass b --auth c").auth;
        assert!(auth.token.is_some_and(|token| token.matches("c")) && auth.users.is_empty());
        assert!(refused("--pass b").contains("--user"));
    }

    #[test]
    fn some_command_lines_are_not_for_a_server() {
        let command = |line: &str| parse(line.split_whitespace().map(str::to_owned)).unwrap();
        for line in ["-v", "--version", "version", "-p 1 version"] {
            assert_eq!(command(line), Command::Version, "{line}");
        }
        assert_eq!(command("man"), Command::Man);
        assert_eq!(command("completions zsh"), Command::Completions("zsh".to_owned()));
        assert!(refused("completions").contains("completions bash"));
        assert!(refused("-p 1 man").contains("none of the server's flags"));
        for line in ["--help_tls", "-help_tls"] {
            assert_eq!(command(line), Command::HelpTls, "{line}");
        }
        for line in ["-h", "-help", "help", "HELP"] {
            assert_eq!(command(line), Command::Help, "{line}");
        }
        assert_eq!(command("--signal ldm=12"), Command::Signal("ldm=12".to_owned()));
        assert_eq!(command("-sl reload"), Command::Signal("reload".to_owned()));
        assert!(matches!(command("-t -c f"), Command::TestConfig(_)));
        assert!(refused("-t").contains("--config"));
        let doctor = vec!["--json".to_owned(), "eth0".to_owned()];
        assert_eq!(command("doctor --json eth0"), Command::Doctor(doctor));
        assert!(refused("-p 1 doctor").contains("none of the server's flags"));
        let import = command("import dir -sd store");
        assert!(matches!(&import, Command::Import(from, _) if from == Path::new("dir")));
        assert!(refused("import -sd store").contains("import takes one directory"));
        assert!(refused("import dir doctor").contains("import takes one directory"));
        assert!(refused("-p 1 import dir").contains("import comes first"));
        // After a flag, the word `doctor` is its value.
        assert_eq!(options("-n doctor").server.name.as_deref(), Some("doctor"));
    }

    #[test]
    fn the_page_about_tls_names_what_there_is() {
        let page = usage_of_tls();
        for name in ["TLS_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20", "X25519", "CurveP384"]
        {
            assert!(page.contains(name), "{name} is not in {page}");
        }
        assert!(!page.contains("RC4"), "{page}");
    }

    #[test]
    fn the_usage_page_names_every_flag() {
        let page = usage("shardcast");
        for arg in Args::command().get_arguments().filter_map(clap::Arg::get_long) {
            let dashed = format!("-{arg}");
            assert!(page.contains(&dashed), "{dashed}");
        }
    }
}
