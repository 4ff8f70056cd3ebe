"""Crashes of a server with clients of MQTT: what was promised to them holds.

    tests/crash_mqtt.py --harness CRASH_PY --mode kill|power --rounds N --work DIR --server 'COMMAND'

COMMAND has {port} and {dir}, as in the harness, and {config}. In a round two clients publish with
QoS 1 and 2 and a third retains; a session takes all of that, another one is away. At a random moment
the server is killed, or its disk loses its power. After the restart both sessions are there and get
what was acknowledged, before anything is sent again; then publishers go on as clients do: PUBLISH
with DUP, or PUBREL. In the end each message of QoS 1 was taken at least once, each of QoS 2 exactly
once, by both, and what is retained is the last that was acknowledged, or later. Clients keep their
own state over a crash. Prints one JSON object a round, and a summary.
"""

import argparse
import importlib.util
import json
import os
import random
import select
import socket
import struct
import sys
import threading
import time

PATIENCE = 90
WINDOW = 16


def packet(first, body):
    out, size = bytes([first]), len(body)
    while True:
        size, digit = size >> 7, size & 127
        out += bytes([digit | (128 if size else 0)])
        if not size:
            return out + body


def text(value):
    return struct.pack(">H", len(value)) + value.encode()


class Broken(Exception):
    """The connection has ended."""


class Wire:
    """A connection that has logged in."""

    def __init__(self, port, name, clean):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.attempt(port, name, clean)
                return
            except (OSError, Broken):
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def attempt(self, port, name, clean):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.bytes = b""
        self.send(packet(0x10, text("MQTT") + bytes([4, 2 if clean else 0, 0, 0]) + text(name)))
        first, body = self.next(PATIENCE)
        if first != 0x20 or body[1]:
            raise Broken(f"CONNACK {first:x} {body.hex()}")
        self.is_present = body[0] == 1

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Broken(str(error)) from error

    def next(self, seconds):
        """The next packet; None if none comes."""
        end = time.monotonic() + seconds
        while True:
            size = at = 0
            while at + 1 < len(self.bytes):
                digit = self.bytes[at + 1]
                size |= (digit & 127) << (7 * at)
                at += 1
                if digit < 128:
                    if len(self.bytes) < 1 + at + size:
                        break
                    body = self.bytes[1 + at:1 + at + size]
                    first, self.bytes = self.bytes[0], self.bytes[1 + at + size:]
                    return first, body
            if not select.select([self.socket], [], [], max(0, end - time.monotonic()))[0]:
                return None
            try:
                data = self.socket.recv(1 << 16)
            except OSError as error:
                raise Broken(str(error)) from error
            if not data:
                raise Broken("closed")
            self.bytes += data

    def close(self):
        self.socket.close()


class Publisher:
    """A client that publishes numbered messages with one QoS, and knows what has no answer."""

    def __init__(self, name, qos, topic, retain=False):
        self.name, self.qos, self.topic, self.retain = name, qos, topic, retain
        self.next, self.last_id = 0, 0
        # Packet id: number, and whether PUBREC has come.
        self.open, self.acked = {}, set()

    def message(self, ident, number, dup):
        first = 0x30 | self.qos << 1 | (8 if dup else 0) | self.retain
        topic = self.topic(number)
        return packet(first, text(topic) + struct.pack(">H", ident) + b"%s %d" % (self.name.encode(), number))

    def run(self, port, stop, counts):
        """Publishes until it is told to stop; then, unless the server ends, until all is answered."""
        try:
            wire = Wire(port, self.name, clean=False)
            for ident, (number, received) in sorted(self.open.items(), key=lambda it: it[1][0]):
                again = b"\x62\x02" + struct.pack(">H", ident) if received else self.message(ident, number, True)
                wire.send(again)
            end = time.monotonic() + PATIENCE
            while self.open or not stop.is_set():
                while not stop.is_set() and len(self.open) < WINDOW:
                    self.last_id = self.last_id % 65535 + 1
                    self.open[self.last_id] = (self.next, False)
                    wire.send(self.message(self.last_id, self.next, False))
                    self.next += 1
                found = wire.next(0.1)
                if found:
                    self.take(wire, *found, counts)
                if stop.is_set() and time.monotonic() > end:
                    raise RuntimeError(f"{self.name}: no answer for {sorted(self.open.items())[:5]}")
            wire.send(b"\xe0\x00")
            wire.close()
        except Broken:
            pass

    def take(self, wire, first, body, counts):
        ident = struct.unpack(">H", body[:2])[0]
        if ident not in self.open or not counts.is_set():
            return
        number, _ = self.open[ident]
        if first == 0x50:
            self.open[ident] = (number, True)
            wire.send(b"\x62\x02" + body[:2])
        elif first in (0x40, 0x70):
            del self.open[ident]
            self.acked.add(number)


class Hearer:
    """A session that takes everything, as clients do: QoS 2 at PUBREL."""

    def __init__(self, name):
        self.name, self.exact, self.heard = name, {}, {}
        # What came of each message, for whoever looks for a fault.
        self.came = {}

    def take(self, wire, first, body):
        if first >> 4 == 3:
            size = struct.unpack(">H", body[:2])[0]
            qos, rest = first >> 1 & 3, body[2 + size:]
            if qos:
                self.came.setdefault(rest[2:], []).append(f"{first:x} {rest[:2].hex()} {time.monotonic():.2f}")
            if qos == 2:
                self.exact[rest[:2]] = rest[2:]
                wire.send(b"\x50\x02" + rest[:2])
            elif qos == 1:
                self.count(rest[2:])
                wire.send(b"\x40\x02" + rest[:2])
        elif first == 0x62:
            if body in self.exact:
                self.came.setdefault(self.exact[body], []).append(f"62 {body.hex()} {time.monotonic():.2f}")
                self.count(self.exact.pop(body))
            wire.send(b"\x70\x02" + body)

    def count(self, payload):
        self.heard[payload] = self.heard.get(payload, 0) + 1

    def run(self, port, stop):
        try:
            wire = Wire(port, self.name, clean=False)
            while not stop.is_set():
                found = wire.next(0.1)
                if found:
                    self.take(wire, *found)
            wire.close()
        except Broken:
            pass

    def missing(self, publishers):
        return [f"{one.name} {n}" for one in publishers for n in one.acked if b"%s %d" % (one.name.encode(), n) not in self.heard]

    def drain(self, wire, publishers):
        """Takes until nothing that was acknowledged is missing. Returns what does not come."""
        end = time.monotonic() + PATIENCE
        while (missing := self.missing(publishers)) and time.monotonic() < end:
            found = wire.next(0.5)
            while found:
                self.take(wire, *found)
                found = wire.next(0)
        return missing

    def settle(self, wire, seconds):
        """Takes until nothing has come for a while: what comes again does so after ack_wait."""
        while found := wire.next(seconds):
            self.take(wire, *found)


def retained(port):
    wire, found = Wire(port, "reader", clean=True), {}
    wire.send(packet(0x82, b"\0\x01" + text("ret/#") + b"\x00"))
    while True:
        came = wire.next(1.5)
        if not came:
            wire.close()
            return found
        first, body = came
        if first >> 4 == 3:
            size = struct.unpack(">H", body[:2])[0]
            found[body[2:2 + size].decode()] = int(body[2 + size:].split()[1])


class Test:
    def __init__(self, options, harness):
        self.options = options
        self.host = harness.Host(options)
        self.publishers = [Publisher("p1", 1, lambda n: f"t/1/{n % 3}"), Publisher("p2", 2, lambda n: f"t/2/{n % 3}")]
        self.retainer = Publisher("p3", 1, lambda n: f"ret/{n % 4}", retain=True)
        self.here, self.away = Hearer("here"), Hearer("away")
        self.port = options.mqtt_port

    def begin(self):
        for hearer in (self.here, self.away):
            wire = Wire(self.port, hearer.name, clean=False)
            wire.send(packet(0x82, b"\0\x01" + text("t/#") + b"\x02"))
            while (found := wire.next(PATIENCE)) and found[0] != 0x90:
                pass
            if not found or found[1][2] != 2:
                raise RuntimeError("the filter is refused")
            wire.send(b"\xe0\x00")
            wire.close()
        self.host.settle()

    def start(self, run, *args):
        thread = threading.Thread(target=run, args=args, daemon=True)
        thread.start()
        return thread

    def crash(self, seconds, model):
        stop, counts = threading.Event(), threading.Event()
        counts.set()
        model.on_crash = counts.clear
        threads = [self.start(one.run, self.port, stop, counts) for one in [*self.publishers, self.retainer]]
        threads.append(self.start(self.here.run, self.port, stop))
        time.sleep(seconds)
        # Whatever is answered from here on does not count.
        counts.clear()
        self.host.crash(model)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)

    def check(self):
        wrong, wires = {}, {}
        for hearer in (self.here, self.away):
            wire = wires[hearer] = Wire(self.port, hearer.name, clean=False)
            if not wire.is_present:
                wrong[f"{hearer.name}_lost"] = 1
            if missing := hearer.drain(wire, self.publishers):
                wrong[f"{hearer.name}_missing"] = missing[:5]
        kept = retained(self.port)
        for topic in sorted({f"ret/{n % 4}" for n in self.retainer.acked}):
            last = max(n for n in self.retainer.acked if f"ret/{n % 4}" == topic)
            if kept.get(topic, -1) < last:
                wrong[topic] = [kept.get(topic), last]
        stop, counts = threading.Event(), threading.Event()
        counts.set()
        stop.set()
        for one in [*self.publishers, self.retainer]:
            one.run(self.port, stop, counts)
            if one.open:
                wrong[f"{one.name}_open"] = len(one.open)
        for hearer, wire in wires.items():
            if missing := hearer.drain(wire, self.publishers):
                wrong[f"{hearer.name}_missing_at_last"] = missing[:5]
            hearer.settle(wire, 1.5 * self.options.ack_wait)
            twice = [one.decode() for one, count in hearer.heard.items() if one.startswith(b"p2") and count > 1]
            if twice:
                wrong[f"{hearer.name}_twice"] = {one: hearer.came[one.encode()] for one in twice[:5]}
            hearer.heard, hearer.came = {one: 1 for one in hearer.heard}, {}
            wire.send(b"\xe0\x00")
            wire.close()
        return wrong


def main():
    parser = argparse.ArgumentParser()
    for name in ("harness", "mode", "work", "server"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=18430)
    parser.add_argument("--label", default="")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    spec = importlib.util.spec_from_file_location("crash", options.harness)
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    options.mqtt_port, options.ack_wait = options.port + 1, 2
    more = {"disk": 512, "mount_options": "noatime", "start_limit": PATIENCE, "keep": False, "settle": True}
    vars(options).update(more)
    config = options.work + ".conf"
    with open(config, "w") as file:
        file.write(f'server_name: m, mqtt {{ listen: "127.0.0.1:{options.mqtt_port}", ack_wait: "{options.ack_wait}s" }}\n')
    options.server = options.server.replace("{config}", config)
    random.seed(options.seed)
    test, bad, messages = Test(options, harness), 0, 0
    try:
        test.host.start()
        test.begin()
        for at in range(options.rounds):
            test.crash(random.uniform(0.1, 1.2), harness.Model())
            test.host.start()
            wrong = test.check()
            bad += bool(wrong)
            acked = {one.name: len(one.acked) for one in [*test.publishers, test.retainer]}
            messages = sum(acked.values())
            print(json.dumps({"round": at, **acked, "wrong": wrong}), flush=True)
    finally:
        test.host.end()
        os.unlink(config)
    print(json.dumps({"summary": f"MQTT, {options.label}", "mode": options.mode, "seed": options.seed,
                      "rounds": options.rounds, "messages": messages, "bad_rounds": bad}), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
