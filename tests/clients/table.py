"""Runs every behaviour with every client against every server, and writes COMPATIBILITY.md."""

import argparse
import base64
import collections
import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib
import queue
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import nkeys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Large objects take longer, and some clients much.
PATIENCE = 60 + 3 * int(os.environ.get("OBJECT_MB", 0))
# What a client program exits with when it has no such behaviour.
NOT_ASKED = 77

USER = 'authorization { users: [{user: u, password: p, permissions: {publish: ["open.>", "_INBOX.>"]'
USER += ', subscribe: ["open.>", "_INBOX.>"]}}] }'
ACCOUNTS = "accounts { SYS { users: [{user: sys, password: s}] }"
ACCOUNTS += ", APP { users: [{user: app, password: a}] } }, system_account: SYS, server_name: s"
STREAMS = 'jetstream { store_dir: "$STORE", max_file: 10GB, max_mem: 1GB }, server_name: s'
MQTT = 'mqtt { listen: "127.0.0.1:$MQTT_PORT" }, ' + STREAMS
MQTT_USERS = f"{MQTT}, {USER}"
MQTT_WEBSOCKET = f"{MQTT}, websocket {{ listen: 127.0.0.1:$WS_PORT, no_tls: true }}"
TLS = 'tls { cert_file: "$DIR/server.pem", key_file: "$DIR/server.key"'
# bcrypt of "secret"
HASH = "$2a$04$shardcastOfficialTableqHlxOomxU2uu9qgkj4.6UjMR.3CiYdm"

# Behaviour: what it is about, and the server's configuration.
BEHAVIOURS = {
    "connect": ("connects, learns the limits, flushes, measures the round trip", ""),
    "verbose-pedantic": ("asks for `+OK` and strict subjects", ""),
    "no-echo": ("does not hear itself", ""),
    "publish-subscribe": ("1000 messages to two wildcards, in order", ""),
    "queue": ("300 messages to a group of three: each once, each member some", ""),
    "request": ("100 requests, with one inbox for all and with one each", ""),
    "no-responders": ("a request that nobody hears fails at once", ""),
    "request-many": ("one request, five answers", ""),
    "headers": ("several values, a body and none", ""),
    "unsubscribe-after": ("ends after 3 messages by itself", ""),
    "drain": ("handles what has come, then closes", ""),
    "max-payload": ("sends as much as is allowed, and hears of more", "max_payload: 4096"),
    "permissions": ("is told what it may not do, and goes on", USER),
    "max-subscriptions": ("is told of one too many", "max_subscriptions: 2"),
    "max-connections": ("is sent away", "max_connections: 1"),
    "auth-password": (
        "user and password, as a bcrypt hash", f'authorization {{ user: ann, password: "{HASH}" }}'),
    "auth-token": ("a token", "authorization { token: t0ken }"),
    "auth-nkey": ("signs a nonce", "authorization { users: [{nkey: $NKEY}] }"),
    "auth-jwt": (
        "a user JWT of an operator's account",
        "operator: $OPERATOR\nresolver: MEMORY\nresolver_preload: { $ACCOUNT_ID: $ACCOUNT }"),
    "auth-wrong": ("is refused", "authorization { user: ann, password: secret }"),
    "tls": ("upgrades", f"{TLS} }}"),
    "tls-certificate": (
        "shows a certificate, and is refused without", f'{TLS}, ca_file: "$DIR/ca.pem", verify: true }}'),
    "tls-first": ("handshakes before INFO", f"{TLS}, handshake_first: true }}"),
    "websocket": (
        "over WebSocket, compressed if it can be",
        "websocket { listen: 127.0.0.1:$WS_PORT, no_tls: true, compression: true }"),
    "reconnect": ("publishes into an outage, and its subscription gets it afterwards", ""),
    "closed": ("hears of the end", ""),
    "lame-duck": ("is told to go elsewhere", "lame_duck_duration: 60s, lame_duck_grace_period: 30s"),
    "slow-consumer": ("notices that its own handler is behind", ""),
    "discovered-servers": (
        "learns of the other server of a cluster, and goes there",
        "cluster { name: c, listen: 127.0.0.1:$ROUTE_PORT, routes: [$ROUTES] }"),
    "jetstream": ("asks for streams where there are none", ""),
    "cli-messages": ("publishes, asks, answers, measures, and traces", ACCOUNTS),
    "cli-server": ("lists, pings and reports servers, and asks each request", ACCOUNTS),
    "cli-checks": ("checks server, connection and request as probes do", ACCOUNTS),
    "cli-bench": ("publishes, subscribes and asks as fast as it can", ACCOUNTS),
    "cli-events": ("shows who comes and goes", ACCOUNTS),
    "streams": ("makes, fills, reads, changes, purges and removes streams; each refusal", STREAMS),
    "streams-pull": ("fetches: limits, filters, waiting, work queues", STREAMS),
    "streams-push": ("is sent messages: flow control, heartbeats, groups, starts", STREAMS),
    "streams-ordered": ("3000 messages in order, without acknowledgements", STREAMS),
    "streams-acks": ("acknowledges in each way, and gets again what it must", STREAMS),
    "streams-kill": ("finds what was acknowledged after the server was killed", STREAMS),
    "key-value": ("a bucket: history, watchers, revisions, deletes", STREAMS),
    "objects": ("objects of 4 MB, or OBJECT_MB: lists, links, watchers, seals", STREAMS),
    "cli-streams": ("makes, fills, shows, changes and removes streams", STREAMS),
    "cli-consumers": ("makes, reads, pauses and removes consumers", STREAMS),
    "cli-key-value": ("a bucket by hand", STREAMS),
    "cli-objects": ("objects by hand", STREAMS),
    "cli-js-bench": ("publishes and consumes as fast as it can", STREAMS),
    "mqtt-messages": ("messages and filters of all qualities, one filter refused", MQTT),
    "mqtt-flood": ("300 messages of all qualities at once: each once, in order", MQTT),
    "mqtt-retained": ("retained messages: replaced, removed, for new filters", MQTT),
    "mqtt-sessions": ("a session that is kept, taken over, and wiped", MQTT),
    "mqtt-will": ("a will, retained, after a break and not after DISCONNECT", MQTT),
    "mqtt-kill": ("session and retained message after the server was killed", MQTT),
    "mqtt-users": ("a right login, a wrong one and none; permissions", MQTT_USERS),
    "mqtt-websocket": ("100 kB of QoS 2 over WebSocket", MQTT_WEBSOCKET),
}
CLIENTS = {
    "async-nats": ("rust", "rust"),
    "nats-py": ("python", "python/bin/python " + str(HERE / "python.py")),
    "nats.js": ("javascript", "node --experimental-websocket --no-warnings javascript.mjs"),
    "nats.go": ("go", "go"),
    "jnats": ("java", "java -cp jnats:jnats/* Client"),
    "nats CLI": ("cli", "python3 " + str(HERE / "cli.py")),
}
MQTT_CLIENTS = {
    "paho-mqtt": ("mqtt-python", "python/bin/python " + str(HERE / "mqtt.py")),
    "mqtt.js": ("mqtt-javascript", "node --no-warnings mqtt.mjs"),
    "paho (Java)": ("mqtt-java", "java -cp mqtt-java:mqtt-java/* Mqtt"),
}
# Why something differs, by client (or `*`) and behaviour: "nats.js reconnect": "…". What differs
# without a reason fails the run.
REASONS = {}


def unpadded(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Identity:
    """A key pair that signs claims."""

    def __init__(self, prefix):
        self.seed = nkeys.encode_seed(os.urandom(32), prefix)
        self.keys = nkeys.from_seed(self.seed)
        self.id = self.keys.public_key.decode()

    def claim(self, subject, name, kind, **more):
        claims = {
            "jti": "", "iat": int(time.time()), "iss": self.id, "name": name, "sub": subject,
            "nats": {"type": kind, "version": 2, **more},
        }
        digest = hashlib.new("sha512_256", json.dumps(claims).encode()).digest()
        claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
        head = unpadded(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
        signed = head + "." + unpadded(json.dumps(claims).encode())
        return signed + "." + unpadded(self.keys.sign(signed.encode()))


def make_credentials(directory):
    """Certificates, an nkey and a chain of JWTs; returns what configurations refer to."""
    user = Identity(nkeys.PREFIX_BYTE_USER)
    (directory / "user.nk").write_bytes(user.seed)
    operator, account = Identity(nkeys.PREFIX_BYTE_OPERATOR), Identity(nkeys.PREFIX_BYTE_ACCOUNT)
    limits = dict.fromkeys(["subs", "data", "payload", "imports", "exports", "conn", "leaf"], -1)
    limits["wildcards"] = True
    chain = {
        "OPERATOR": operator.claim(operator.id, "operator", "operator"),
        "ACCOUNT": operator.claim(account.id, "account", "account", limits=limits),
    }
    jwt = account.claim(user.id, "user", "user", pub={}, sub={}, subs=-1, data=-1, payload=-1)
    (directory / "user.creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n")

    def openssl(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=directory)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=table ca", "-addext", "keyUsage=critical,keyCertSign,digitalSignature")
    for name in ["server", "client"]:
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (directory / "ext").write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")
    return {"DIR": str(directory), "NKEY": user.id, "ACCOUNT_ID": account.id, **chain}


def free_port():
    """One that no outgoing connection takes meanwhile: below the kernel's own range."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


class Refused(Exception):
    """The server does not start with this configuration."""


class Server:
    """One process; starts again on the port that it had."""

    def __init__(self, command, config):
        self.command, self.config, self.port = command, config, None
        self.start()

    def start(self):
        if self.port is None:
            self.port = free_port()
        words = [*self.command, "-a", "127.0.0.1", "-p", str(self.port), "-c", str(self.config)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        said = []
        for line in self.process.stderr:
            said.append(line.decode(errors="replace").strip())
            if "Server is ready" in said[-1]:
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return
        self.process.wait()
        raise Refused(said[-1] if said else "it ended without a word")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def lame_duck(self):
        self.process.send_signal(signal.SIGUSR2)


def start_servers(kind, command, behaviour, names):
    """The server of one behaviour, and where it needs one, another that it clusters with."""
    text = BEHAVIOURS[behaviour][1]
    routes = [free_port(), free_port()] if "$ROUTES" in text else [0]
    if "$STORE" in text:
        names["STORE"] = tempfile.mkdtemp(prefix="store", dir=names["DIR"])
    started = []
    for at, port in enumerate(routes):
        others = [f'"nats://127.0.0.1:{other}"' for other in routes if other != port]
        here = {**names, "ROUTE_PORT": port, "ROUTES": ", ".join(others)}
        for key in ["WS_PORT", "MQTT_PORT"]:
            if "$" + key in text:
                here[key] = names[key] = str(free_port())
        filled = re.sub(r"\$([A-Z_]+)", lambda found: str(here.get(found[1], found[0])), text)
        config = pathlib.Path(tempfile.mkdtemp(prefix=kind, dir=names["DIR"])) / f"{at}.conf"
        config.write_text(filled + "\n")
        try:
            started.append(Server(command, config))
        except Refused:
            for server in started:
                server.stop()
            raise
    return started


def run_client(words, behaviour, servers, directory, env):
    """What the program saw, or why it failed."""
    websocket = f"ws://127.0.0.1:{env.get('WS_PORT')}"
    env = {**os.environ, **env, "WS_URL": websocket, "URL": f"nats://localhost:{servers[0].port}", "DIR": env["DIR"]}
    program = subprocess.Popen(
        [*words, behaviour], cwd=directory, env=env, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = collections.deque(maxlen=50)
    reader = threading.Thread(target=lambda: told.extend(program.stderr), daemon=True)
    reader.start()
    timer = threading.Timer(PATIENCE, program.kill)
    timer.start()
    saw = []
    for line in program.stdout:
        if not line.startswith("!"):
            saw.append(line.strip())
            continue
        {"stop": servers[0].stop, "start": servers[0].start,
         "lame-duck": servers[0].lame_duck}[line[1:].strip()]()
        program.stdin.write("done\n")
        program.stdin.flush()
    status = program.wait()
    timer.cancel()
    reader.join(5)
    if status == NOT_ASKED:
        return "not asked", ""
    if status == 0:
        return "ok", "; ".join(saw)
    lines = [line.strip() for line in told if line.strip()]
    panic = [at for at, line in enumerate(lines) if re.match(r"panic|thread|\w*Error\b", line)]
    if panic:
        lines = [" ".join(lines[panic[-1]:][:2])]
    return "failed", (lines or [f"exit {status}"])[-1][:200]


def scrub(text, directory):
    """Ports, addresses and scratch paths differ from run to run."""
    text = text.replace(str(directory), "DIR")
    text = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:]+(\.\d+)?Z?", "TIME", text)
    return re.sub(r"(localhost|127\.0\.0\.1|::1|\[::1\]):\d+", r"\1:PORT", text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--only", action="append")
    parser.add_argument("--client", action="append")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--jobs", type=int, default=2, help="behaviours at the same time")
    parser.add_argument("--streams", action="store_true", help="only what needs JetStream")
    parser.add_argument("--mqtt", action="store_true", help="clients of MQTT instead of NATS")
    args = parser.parse_args()
    original = os.environ["NATS_SERVER"]
    ours = os.environ.get("SHARDCAST") or str(ROOT / "target/debug/shardcast")
    servers = {
        "nats-server": [original],
        "1 shard": [ours, "--shards", "1", "--no-pin"],
        "4 shards": [ours, "--shards", "4", "--no-pin"],
    }
    clients, absent = {}, []
    for name, (ready, command) in (MQTT_CLIENTS if args.mqtt else CLIENTS).items():
        if args.client and name not in args.client:
            continue
        if not (args.dir / f"{ready}.ready").exists():
            absent.append(name)
            continue
        words = shlex.split(command)
        inside = args.dir.absolute() / words[0]
        clients[name] = [str(inside) if inside.exists() else words[0], *words[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        names = make_credentials(pathlib.Path(scratch))
        versions = {
            name: subprocess.run([*words, "version"], cwd=args.dir, capture_output=True, text=True,
                                 env={**os.environ, **names, "URL": ""}).stdout.strip()
            for name, words in clients.items()
        }
        behaviours = args.only or [
            name for name, (_, config) in BEHAVIOURS.items()
            if name.startswith("mqtt-") == args.mqtt and (config is STREAMS or not args.streams)]
        results = {}

        def ask(behaviour, client):
            return side_by_side(servers, behaviour, clients[client], names, args.dir)

        # Most of the time is waited.
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            asked = [(one, client, pool.submit(ask, one, client)) for one in behaviours for client in clients]
            for behaviour, client, answer in asked:
                for server, result in answer.result():
                    results[behaviour, client, server] = result
                    print(f"{behaviour:18} {client:10} {server:11} {': '.join(result)[:160]}", flush=True)
    text, wrong = table(results, clients, versions, absent, servers, original)
    if not (args.no_write or args.only or args.client or args.streams or args.mqtt):
        (ROOT / "COMPATIBILITY.md").write_text(text)
    for line in wrong:
        print(line)
    asked = sum(result[0] != "not asked" for result in results.values()) // len(servers)
    print(f"{asked - len(wrong)} passed, {len(wrong)} failed")
    sys.exit(1 if wrong else 0)


def side_by_side(servers, behaviour, words, names, directory):
    """What a client saw of each server, all at the same time."""

    def one(server):
        # Ports and stores are each server's own.
        result = attempt(server, servers[server], behaviour, words, dict(names), directory)
        return server, (result[0], scrub(result[1], names["DIR"]))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(one, servers))


def attempt(server, command, behaviour, words, names, directory):
    try:
        started = start_servers(server.replace(" ", ""), command, behaviour, names)
    except Refused as refusal:
        return "refused", re.sub(r"^.*\.conf:\d+:\d+: ", "", str(refusal))
    try:
        return run_client(words, behaviour, started, directory, names)
    finally:
        for one in started:
            one.stop()


def difference(theirs, mine):
    """Where the two begin to differ."""
    if theirs == mine:
        return "the same"
    pairs = itertools.zip_longest(f"{theirs[0]}: {theirs[1]}".split("; "), f"{mine[0]}: {mine[1]}".split("; "))
    one, other = next((one, other) for one, other in pairs if one != other)
    at = max(0, len(os.path.commonprefix([one or "", other or ""])) - 100)
    return f"{(one or '')[at:][:400]!r} with nats-server, {(other or '')[at:][:400]!r} here"


def table(results, clients, versions, absent, servers, original):
    """The document, and what is wrong that no reason is known for."""
    said = subprocess.run([original, "-v"], capture_output=True, text=True)
    version = re.search(r"v[\d.]+", said.stdout + said.stderr)[0]
    ours = [server for server in servers if server != "nats-server"]
    notes, wrong, rows = [], [], []

    def note(text):
        if text not in notes:
            notes.append(text)
        return f"[{notes.index(text) + 1}]"

    def cell(behaviour, client):
        theirs = results[behaviour, client, "nats-server"]
        mine = [results[behaviour, client, server] for server in ours]
        reason = REASONS.get(f"{client} {behaviour}") or REASONS.get(f"* {behaviour}")
        if theirs[0] == "not asked":
            return "–"
        if all(one == theirs for one in mine):
            if theirs[0] == "ok":
                return "same"
            return "same, fails " + note(reason or f"with both: {theirs[1]}")
        if any(one[0] == "refused" for one in mine):
            return "**not yet** " + note(reason or f"shardcast does not start: {mine[0][1]}")
        if not reason:
            found = [f"{server}: {difference(theirs, one)}" for server, one in zip(ours, mine)]
            reason = f"not explained yet: {'; '.join(found)}"
            wrong.append(f"{behaviour} {client}: {reason}")
        return "differs " + note(reason)

    seen = [behaviour for behaviour in BEHAVIOURS if any(key[0] == behaviour for key in results)]
    for behaviour in seen:
        cells = [cell(behaviour, client) for client in clients]
        rows.append(f"| {behaviour} | {BEHAVIOURS[behaviour][0]} | {' | '.join(cells)} |")
    head = " | ".join(f"{name} {versions[name]}" for name in clients)
    lines = [
        "# Compatibility with official clients", "",
        "Made by `tests/clients/run`; do not edit. What each client saw of "
        f"nats-server {version}, of this broker on one shard and of it on four is compared.", "",
        "*same*: the behaviour holds, and what the client reports is the same, on all three; "
        "*–*: the client has no such thing, or its program does not ask.", "",
        f"| | | {head} |", "|---|---|" + "---|" * len(clients), *rows, "",
    ]
    lines += [f"{at}. {text}" for at, text in enumerate(notes, 1)]
    if absent:
        lines += ["", "Not tried, because it could not be had: " + ", ".join(absent) + "."]
    return "\n".join(lines).rstrip() + "\n", wrong


if __name__ == "__main__":
    main()
