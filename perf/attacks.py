#!/usr/bin/env python3
"""What another client's PING takes while somebody attacks the server that it is connected to.

    python3 perf/attacks.py PORT PID [NAME ...]

PORT is that of any NATS server on this machine without authorization, PID its process, NAME one or
more of the functions below; all of them by default. A process of its own sends a PING every
millisecond or when the last was answered, whichever is later. For each attack a line tells how many
PINGs were answered, their median, p99, p99.9 and maximum in milliseconds, how often the attack was
repeated, and the most memory that the server has had so far. Measure where nothing else runs: on
two cores one shard has one of them, and the attack and the PINGs share the other.
"""

import socket
import subprocess
import sys
import time

PORT, PID = int(sys.argv[1]), int(sys.argv[2])
SECONDS = 6
MIB = 1024

PINGS = f"""
import socket, time
s = socket.create_connection(("127.0.0.1", {PORT}))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.recv(65536)
s.sendall(b'CONNECT {{"verbose":false}}\\r\\n')
times, end = [], time.time() + {SECONDS}
while time.time() < end:
    began = time.perf_counter()
    s.sendall(b"PING\\r\\n")
    while b"PONG" not in s.recv(4096):
        pass
    times.append((time.perf_counter() - began) * 1000)
    time.sleep(0.001)
times.sort()
ranks = [times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.99, 0.999, 1)]
print(f"{{len(times):5d}} PINGs " + " ".join(f"{{ms:8.3f}}" for ms in ranks))
"""


def connect():
    client = socket.create_connection(("127.0.0.1", PORT))
    client.settimeout(20)
    client.recv(65536)
    client.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
    return client


def sync(client):
    """Waits until the server has handled what the client has sent, or has given it up."""
    client.sendall(b"PING\r\n")
    tail = b""
    while b"PONG\r\n" not in tail:
        some = client.recv(1 << 20)
        if not some:
            return
        tail = (tail + some)[-1000:]


def subscriber(subscriptions):
    client = connect()
    client.sendall(b"".join(b"SUB %s %d\r\n" % pair for pair in subscriptions))
    sync(client)
    return client


def publish(wire, patience=3):
    """Somebody new publishes all of this, and is waited for."""
    client = connect()
    client.settimeout(patience)
    try:
        client.sendall(wire)
        sync(client)
    except (OSError, TimeoutError):
        pass
    client.close()


def who_does_not_read():
    """95 KB of short messages to 20 connections of 1,000 subscriptions that read nothing."""
    pairs = [(subject, sid) for sid in range(500) for subject in (b"a", b"b")]
    held = [subscriber([(s, 2 * sid + (s == b"b")) for s, sid in pairs]) for _ in range(20)]
    return held, lambda _: publish(b"PUB a 2\r\nxx\r\nPUB b 2\r\nxx\r\n" * 3800)


def wildcards():
    """Subjects that are new each time, past 8,192 filters that all have to be tried."""
    tokens = lambda way: b".".join(b"*" if way >> bit & 1 else b"a" for bit in range(13))
    held = [subscriber([(tokens(way), way) for way in range(8192)])]
    one = lambda number: b"PUB %s%d 0\r\n\r\n" % (b"a." * 12, number)
    return held, lambda round: publish(b"".join(map(one, range(2800 * round, 2800 * (round + 1)))))


def fan_out():
    """3,000 subjects to each of 10,000 subscriptions."""
    held = [subscriber([(b">", sid) for sid in range(1000)]) for _ in range(10)]
    one = lambda number: b"PUB c.%d 0\r\n\r\n" % number
    return held, lambda round: publish(b"".join(map(one, range(3000 * round, 3000 * (round + 1)))))


def second_connect():
    """200,000 subscriptions, which a second CONNECT as somebody else ends."""

    def attack(_):
        client = subscriber([(b"d.%d" % sid, sid) for sid in range(200_000)])
        client.sendall(b'CONNECT {"verbose":false,"pedantic":false,"user":"x"}\r\n')
        sync(client)
        client.close()

    return [], attack


def resident_max():
    with open(f"/proc/{PID}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def measure(attack):
    held, act = attack()
    time.sleep(0.5)
    pings = subprocess.Popen([sys.executable, "-c", PINGS], stdout=subprocess.PIPE, text=True)
    began, rounds = time.time(), 0
    while time.time() - began < SECONDS - 1:
        act(rounds)
        rounds += 1
    line = pings.communicate()[0].strip()
    print(f"{attack.__name__:18s} {line}  {rounds:5d} times  {resident_max() // MIB} MiB", flush=True)
    for client in held:
        client.close()
    time.sleep(1)


ATTACKS = {attack.__name__: attack for attack in (who_does_not_read, wildcards, fan_out, second_connect)}
for name in sys.argv[3:] or ATTACKS:
    measure(ATTACKS[name])
