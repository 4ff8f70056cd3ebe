"""Streams, key-value and object stores with the nats CLI: the behaviours that `cli.py` has not.

What is compared is all that a command prints, but times, speeds, sizes and made-up names."""

import hashlib
import os
import pathlib
import re
import subprocess
import time

from cli import PATIENCE, start

OBJECT_BYTES = int(os.environ.get("OBJECT_MB", "4")) << 20
# What differs from run to run.
MASKS = [
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d| [+-]\d{4} \w+| UTC)?", "TIME"),
    (r"\d\d:\d\d:\d\d(\.\d+)?", "TIME"),
    (r"\b(\d+(\.\d+)?(y|d|h|m|s|ms|µs|ns))+\b", "DURATION"),
    (r"\d+(\.\d+)? ?([KMGT]i?)?B\b", "BYTES"),
    (r"(DURATION|never|now) ago", "ago"),
    (r"Client ID: \d+", "Client ID"),
    (r"Server ID: \w+", "Server ID"),
    (r"(?m)^.*(Latency|latencies|msgs/sec|Progress|Elapsed).*$", ""),
    (r"[─-╿╭╮╰╯]+", " "),
    (r"[ \t\xa0]+", " "),
]


def masked(text):
    text = text.replace(os.environ["STORE"], "STORE").replace(os.environ["DIR"], "DIR")
    for pattern, instead in MASKS:
        text = re.sub(pattern, instead, text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def run(*words):
    process = start([], *words)
    try:
        text = process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0] + "it did not end"
    words = " ".join(words).replace(os.environ["STORE"], "STORE")
    print(words, process.returncode, masked(text), flush=True)


def cli_streams():
    run("stream", "add", "S", "--subjects=s.*", "--defaults", "--max-msgs-per-subject=3",
        "--description=one", "--allow-direct")
    run("stream", "add", "M", "--subjects=m", "--storage=memory", "--defaults", "--discard=new",
        "--max-msgs=2", "--retention=limits")
    run("stream", "add", "T", "--subjects=s.x", "--defaults")
    run("pub", "s.a", "{{Count}}", "--count=5", "--jetstream")
    run("pub", "s.b", "body", "-H", "K:v", "--jetstream")
    run("pub", "m", "{{Count}}", "--count=3", "--jetstream")
    run("pub", "nobody", "x", "--jetstream")
    for words in ["info S", "info S --json", "state S", "subjects S", "ls", "ls -n", "report",
                  "find --empty", "get S 4", "get S --last-for=s.b", "get S 1", "view S 2",
                  "gaps S", "info none"]:
        run("stream", *words.split())
    run("stream", "edit", "S", "-f", "--max-msgs=100", "--description=two")
    run("stream", "edit", "S", "-f", "--subjects=s.*", "--subjects=more")
    run("stream", "copy", "S", "C", "--subjects=c")
    run("account", "info")
    run("server", "check", "jetstream")
    run("stream", "add", "X", "--mirror=S", "--defaults")
    run("stream", "rmm", "S", "4", "-f")
    run("stream", "purge", "S", "-f", "--subject=s.a", "--keep=1")
    run("stream", "purge", "S", "-f")
    run("stream", "seal", "S", "-f")
    run("pub", "s.a", "x", "--jetstream")
    run("server", "check", "stream", "--stream=M")
    for name in ["X", "C", "M", "S", "S"]:
        run("stream", "rm", name, "-f")


def cli_consumers():
    run("stream", "add", "S", "--subjects=s.*", "--defaults")
    run("pub", "s.a", "{{Count}}", "--count=20", "--jetstream")
    run("consumer", "add", "S", "D", "--pull", "--defaults", "--max-pending=5", "--description=d")
    run("consumer", "add", "S", "P", "--target=to.p", "--deliver=last", "--ack=none",
        "--replay=instant", "--defaults", "--heartbeat=1s", "--flow-control")
    run("consumer", "add", "S", "F", "--pull", "--filter=s.b", "--defaults", "--deliver=new",
        "--backoff=linear", "--backoff-steps=2", "--backoff-min=1s", "--backoff-max=5s",
        "--max-deliver=5")
    run("consumer", "add", "S", "G", "--pull", "--defaults", "--pinned-groups=g", "--pinned-ttl=1m")
    for words in ["info S D", "info S D --json", "info S P", "info S F", "state S D", "ls S",
                  "ls S -n", "report S", "info S none", "next S D", "next S D --count=3",
                  "next S D --no-ack", "find S --pull"]:
        run("consumer", *words.split())
    run("consumer", "edit", "S", "D", "--max-pending=7", "--description=e", "-f")
    run("consumer", "copy", "S", "D", "E", "--max-pending=3")
    run("consumer", "pause", "S", "D", "1h", "-f")
    run("consumer", "info", "S", "D")
    run("consumer", "resume", "S", "D", "-f")
    run("consumer", "reset", "S", "E", "--seq=5", "-f")
    run("consumer", "next", "S", "E")
    run("server", "check", "consumer", "--stream=S", "--consumer=D")
    for name in ["D", "P", "F", "E", "E"]:
        run("consumer", "rm", "S", name, "-f")


def cli_key_value():
    run("kv", "add", "B", "--history=3", "--description=words")
    for words in ["put B a.x 1", "put B a.x 2", "create B a.x 3", "create B new n", "get B a.x",
                  "get B a.x --raw", "get B a.x --revision=1 --raw", "update B a.x u 2",
                  "update B a.x v 2", "history B a.x", "ls B", "ls", "ls B -v --display-value",
                  "revert B a.x 1 -f", "get B a.x --raw", "del B new -f", "get B new",
                  "purge B a.x -f", "history B a.x", "history B new", "info B", "compact B -f",
                  "edit B --description=changed", "info B", "get none x", "del B -f", "info B"]:
        run("kv", *words.split())
    run("kv", "add", "W", "--history=5")
    run("kv", "put", "W", "k", "first")
    watcher, seen = start([], "kv", "watch", "W"), []
    deadline = time.monotonic() + PATIENCE
    for value in ["first", "2", "3"]:
        if value != "first":
            start([], "kv", "put", "W", "k", value).wait()
        while time.monotonic() < deadline and not any(f"k: {value}" in line for line in seen):
            seen.append(watcher.stdout.readline())
    watcher.kill()
    print(masked("".join(seen)))


def cli_objects():
    scratch = pathlib.Path(os.environ["STORE"]) / "files"
    scratch.mkdir()
    thing, got = scratch / "thing", scratch / "got"
    thing.write_bytes(hashlib.shake_128(b"object").digest(OBJECT_BYTES))
    run("object", "add", "O", "--description=things", "--storage=file")
    run("object", "put", "O", str(thing), "--name=thing", "--no-progress", "--description=big")
    run("object", "put", "O", str(thing), "--name=thing", "--no-progress", "-f")
    run("object", "get", "O", "thing", f"--output={got}", "--no-progress", "-f")
    print(got.read_bytes() == thing.read_bytes())
    for words in ["info O", "info O thing", "info O none", "ls", "ls O", "edit O --description=new",
                  "del O thing -f", "info O thing", "ls O", "seal O -f", "info O", "del O -f", "info O"]:
        run("object", *words.split())


def cli_js_bench():
    few = ["--msgs=3000", "--no-progress"]
    for words in [
        ["pub", "sync", "bench.a", "--create", "--msgs=200", "--no-progress"],
        ["pub", "async", "bench.a", "--batch=100", "--purge", *few],
        ["pub", "async", "bench.a", "--clients=4", "--size=4KB", *few],
        ["ordered", *few], ["consume", *few], ["consume", "--acks=all", "--clients=2", *few],
        ["fetch", "--batch=100", *few], ["get", "sync", "--msgs=300", "--no-progress"],
    ]:
        process = start([], "bench", "js", *words)
        text = process.communicate(timeout=PATIENCE)[0]
        print(" ".join(words), process.returncode, re.findall(r"[Ee]rror.*", text))
        if process.returncode:
            print(masked(text))
    info = start([], "stream", "info", "benchstream", "--json").communicate()[0]
    print(re.findall(r'"messages": \d+', info))
