"""The behaviours of MQTT with paho-mqtt. Called with the behaviour's name; see README.md."""

import os
import queue
import sys
import time

import paho.mqtt.client as mqtt

PATIENCE = 30
HOST, PORT = "127.0.0.1", int(os.environ.get("MQTT_PORT") or 0)
WS_PORT = int(os.environ.get("WS_PORT") or 0)


def saw(*what):
    print(*what, flush=True)


def ask(order):
    saw("!" + order)
    sys.stdin.readline()


class Client:
    """A client that keeps what it hears, and waits for what it asks."""

    def __init__(self, name, clean=True, transport="tcp", user=None, will=None, opens=True):
        version = mqtt.CallbackAPIVersion.VERSION2
        self.client = mqtt.Client(version, name, clean_session=clean, transport=transport)
        self.heard, self.answers, self.ends = queue.Queue(), queue.Queue(), queue.Queue()
        self.client.on_message = lambda _, __, message: self.heard.put(message)
        self.client.on_connect = lambda _, __, flags, code, ___: self.answers.put(
            (bool(flags.session_present), code.value))
        self.client.on_subscribe = lambda _, __, ___, codes, ____: self.answers.put(
            [code.value for code in codes])
        self.client.on_unsubscribe = lambda *_: self.answers.put("unsubscribed")
        self.client.on_publish = lambda *_: self.answers.put("published")
        self.client.on_disconnect = lambda *_: self.ends.put("ended")
        if transport == "websockets":
            self.client.ws_set_options(path="/mqtt")
        if user:
            self.client.username_pw_set(*user)
        if will:
            self.client.will_set(*will)
        self.port = WS_PORT if transport == "websockets" else PORT
        if opens:
            self.opened = self.open()

    def open(self):
        self.client.connect(HOST, self.port, keepalive=60)
        self.client.loop_start()
        return self.answers.get(timeout=PATIENCE)

    def subscribe(self, *filters):
        self.client.subscribe(list(filters))
        return self.answers.get(timeout=PATIENCE)

    def unsubscribe(self, name):
        self.client.unsubscribe(name)
        return self.answers.get(timeout=PATIENCE)

    def publish(self, topic, payload, qos=0, retain=False):
        self.client.publish(topic, payload, qos, retain)
        assert self.answers.get(timeout=PATIENCE) == "published"

    def take(self, count):
        got = [self.heard.get(timeout=PATIENCE) for _ in range(count)]
        return [(one.topic, one.payload.decode(), one.qos, one.retain) for one in got]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def break_off(self):
        """Ends without DISCONNECT."""
        self.client.loop_stop()
        self.client._sock_close()


def mqtt_messages():
    hearer, speaker = Client("hearer"), Client("speaker")
    saw(hearer.opened, hearer.subscribe(("a/+", 0), ("b/#", 1), ("c", 2), ("bad topic", 1)))
    for qos in (0, 1, 2):
        for topic in ("a/x", "b", "b/x/y", "c"):
            speaker.publish(topic, f"{topic} {qos}", qos)
    saw(sorted(hearer.take(12)))
    saw(hearer.unsubscribe("b/#"))
    speaker.publish("b", "gone", 1)
    speaker.publish("c", "last", 2)
    saw(hearer.take(1))


def mqtt_flood():
    hearer, speaker = Client("hearer"), Client("speaker")
    hearer.subscribe(("f/#", 2))
    for at in range(300):
        speaker.client.publish(f"f/{at % 3}", str(at), at % 3)
    for _ in range(300):
        speaker.answers.get(timeout=PATIENCE)
    numbers = [int(payload) for _, payload, _, _ in hearer.take(300)]
    saw(sorted(numbers) == list(range(300)))
    for qos in (1, 2):
        mine = [number for number in numbers if number % 3 == qos]
        saw(qos, mine == sorted(mine))


def mqtt_retained():
    speaker = Client("speaker")
    for name in ("one", "two"):
        speaker.publish("r/" + name, name, 1, True)
    speaker.publish("r/one", "one again", 2, True)
    hearer = Client("hearer")
    hearer.subscribe(("r/#", 1))
    saw(sorted(hearer.take(2)))
    speaker.publish("r/two", "", 0, True)
    saw(hearer.take(1))
    time.sleep(1)
    other = Client("other")
    other.subscribe(("r/+", 2))
    saw(other.take(1))


def mqtt_sessions():
    keeper = Client("keeper", clean=False)
    saw(keeper.opened, keeper.subscribe(("k/#", 2)))
    keeper.close()
    speaker = Client("speaker")
    for at in range(6):
        speaker.publish(f"k/{at}", str(at), at % 3)
    keeper = Client("keeper", clean=False)
    saw(keeper.opened, sorted(keeper.take(4)))
    taker = Client("keeper", clean=False)
    saw(taker.opened, keeper.ends.get(timeout=PATIENCE))
    keeper.client.loop_stop()
    speaker.publish("k/x", "to the taker", 1)
    saw(taker.take(1))
    taker.close()
    time.sleep(1.5)
    saw(Client("keeper").opened)


def mqtt_will():
    hearer = Client("hearer")
    hearer.subscribe(("w/#", 1))
    Client("polite", will=("w/polite", "never", 1, False)).close()
    Client("broken", will=("w/broken", "gone", 1, True)).break_off()
    saw(hearer.take(1))
    other = Client("other")
    other.subscribe(("w/#", 1))
    saw(other.take(1))


def mqtt_kill():
    keeper = Client("keeper", clean=False)
    keeper.subscribe(("k", 2))
    keeper.close()
    speaker = Client("speaker")
    speaker.publish("k", "one", 1, True)
    speaker.publish("k", "two", 2)
    speaker.client.loop_stop()
    ask("stop")
    ask("start")
    keeper = Client("keeper", clean=False)
    saw(keeper.opened, keeper.take(2))
    other = Client("other")
    other.subscribe(("k", 0))
    saw(other.take(1))


def mqtt_users():
    for user in (("u", "p"), ("u", "wrong"), None):
        client = Client("c", user=user)
        saw(user, client.opened)
        if client.opened[1] == 0:
            saw(client.subscribe(("open/a", 1), ("shut/a", 1)))
            client.publish("shut/a", "x", 1)
            client.publish("open/a", "x", 1)
            saw(client.take(1))
        client.client.loop_stop()


def mqtt_websocket():
    client = Client("ws", transport="websockets")
    saw(client.opened, client.subscribe(("a", 2)))
    client.publish("a", "x" * 100_000, 2)
    topic, payload, qos, retain = client.take(1)[0]
    saw(topic, len(payload), qos, retain)


def main():
    if sys.argv[1] == "version":
        import importlib.metadata

        return print(importlib.metadata.version("paho-mqtt"))
    behaviour = globals().get(sys.argv[1].replace("-", "_"))
    if behaviour is None:
        sys.exit(77)
    behaviour()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
