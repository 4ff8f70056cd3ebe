"""The behaviours of the table with the nats CLI. Called with the behaviour's name; see README.md.

What is compared is how each command ends, and the names of all that it shows: figures differ."""

import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

NATS = pathlib.Path("nats").absolute()
PATIENCE = 60
APP, SYS = ["--user", "app", "--password", "a"], ["--user", "sys", "--password", "s"]


def start(user, *words):
    scratch = os.environ["DIR"]
    env = {**os.environ, "HOME": scratch, "XDG_CONFIG_HOME": scratch, "NO_COLOR": "1"}
    line = [NATS, "-s", os.environ["URL"], *user, "--timeout=3s", *words]
    return subprocess.Popen(line, env=env, text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def shown(text):
    """What a command's output speaks of, without figures; of a document, its parts."""
    try:
        return sorted(json.loads(text.strip().splitlines()[0]))
    except (ValueError, IndexError):
        labels = re.findall(r"^\W*([A-Z][A-Za-z ]+?)(?=:| *│)", text, re.MULTILINE)
        return list(dict.fromkeys(labels))


def run(user, *words):
    process = start(user, *words)
    try:
        text = process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0] + "it did not end"
    print(" ".join(words), process.returncode, shown(text))


def until_answered(subject):
    deadline = time.monotonic() + PATIENCE
    while start(APP, "request", subject, "").wait() and time.monotonic() < deadline:
        pass


def messages():
    replier, listener = start(APP, "reply", "svc", "--echo"), start(APP, "sub", "a.>", "--count=7")
    until_answered("svc")
    run(APP, "rtt")
    run(APP, "pub", "a.b", "hello", "-H", "K:v")
    run(APP, "pub", "a.b", "--count=5", "{{Count}}")
    run(APP, "request", "svc", "question")
    run(APP, "request", "svc", "--count=3", "question")
    run(APP, "request", "nobody", "question")
    run(APP, "trace", "a.b", "x", "--deliver")
    run(APP, "trace", "svc", "x")
    run(APP, "trace", "nobody", "x")
    print("sub", listener.wait(PATIENCE))
    replier.kill()


def server():
    run(APP, "account", "info")
    run(SYS, "account", "report", "connections")
    run(SYS, "account", "report", "statistics")
    for words in ["list", "ping --count=1"]:
        run(SYS, "server", *words.split())
    for report in ["connections", "accounts", "health", "cpu", "mem", "routes", "gateways",
                   "leafnodes", "jetstream"]:
        run(SYS, "server", "report", report)
    for request in ["variables", "connections", "subscriptions", "routes", "gateways",
                    "leafnodes", "jetstream", "jetstream-health"]:
        run(SYS, "server", "request", request)
    run(SYS, "server", "request", "connections", "--subscriptions", "--filter-account=APP")


def checks():
    replier = start(APP, "reply", "svc", "--echo")
    until_answered("svc")
    run(APP, "server", "check", "connection")
    run(SYS, "server", "check", "server", "--name=s")
    run(APP, "server", "check", "request", "--subject=svc")
    run(APP, "server", "check", "jetstream")
    replier.kill()


def bench():
    few = ["--msgs=2000", "--no-progress"]
    for kind in [["pub"], ["pub", "--size=64KB"]]:
        run(APP, "bench", *kind, "flood", *few)
    listener = start(APP, "bench", "sub", "flood", *few)
    while listener.poll() is None:
        start(APP, "bench", "pub", "flood", *few).wait()
    print("sub", listener.returncode)
    service = start(APP, "bench", "service", "serve", "svc", "--no-progress")
    until_answered("svc")
    run(APP, "bench", "service", "request", "svc", "--msgs=200", "--no-progress")
    run(APP, "latency", f"--server-b={os.environ['URL']}", "--rate=100", "--duration=1s")
    service.kill()


def events():
    watcher, told = start(SYS, "events", "--all", "--json"), set()

    def listen():
        for line in watcher.stdout:
            told.update(re.findall(r"io\.nats\.server\.advisory\.v1\.(\w+)", line))

    threading.Thread(target=listen, daemon=True).start()
    deadline = time.monotonic() + PATIENCE
    # What comes before it listens it is not told of.
    while len(told) < 2 and time.monotonic() < deadline:
        start(APP, "rtt").wait()
    watcher.kill()
    print(sorted(told))


def main():
    import cli_streams

    name = sys.argv[1].replace("-", "_")
    own = name.removeprefix("cli_") if name.startswith("cli_") else ""
    if sys.argv[1] == "version":
        said = subprocess.run([NATS, "--version"], capture_output=True, text=True).stdout
        print(said.strip().lstrip("v"))
    elif behaviour := globals().get(own) or getattr(cli_streams, name, None):
        behaviour()
    else:
        sys.exit(77)


if __name__ == "__main__":
    main()
