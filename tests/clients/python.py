"""The behaviours of the table with nats-py. Called with the behaviour's name; see README.md."""

import asyncio
import os
import ssl
import sys
import time

import nats
from nats.errors import MaxPayloadError, NoRespondersError, SlowConsumerError

URL = os.environ["URL"]
DIR = os.environ["DIR"]
PATIENCE = 20


def saw(*what):
    print(*what, flush=True)


async def ask(order):
    print("!" + order, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def connect(url=URL, **options):
    options.setdefault("reconnect_time_wait", 0.1)
    options.setdefault("max_reconnect_attempts", 200)
    options.setdefault("error_cb", ignore)
    return await nats.connect(url, **options)


async def ignore(_):
    pass


async def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it does not happen")
        await asyncio.sleep(0.02)


async def works(nc, subject="it.works"):
    sub = await nc.subscribe(subject)
    await nc.flush()
    await nc.publish(subject, b"yes")
    assert (await sub.next_msg(PATIENCE)).data == b"yes"
    await sub.unsubscribe()


async def refused(**options):
    errors = []

    async def on_error(error):
        errors.append(str(error))

    try:
        await connect(error_cb=on_error, allow_reconnect=False, connect_timeout=5, **options)
    except Exception as error:
        errors.append(str(error))
    else:
        raise AssertionError("it was let in")
    return " ".join(errors).lower()


async def connect_info():
    nc = await connect(name="table")
    saw("max_payload", nc.max_payload, "headers", nc._server_info["headers"])
    await nc.flush()
    await works(nc)


async def verbose_pedantic():
    await works(await connect(verbose=True, pedantic=True))


async def no_echo():
    quiet, other = await connect(no_echo=True), await connect()
    mine, theirs = await quiet.subscribe("echo"), await other.subscribe("echo")
    # The first PING of nats-py may overtake the SUB.
    await other.flush()
    await other.flush()
    await quiet.publish("echo", b"1")
    await quiet.flush()
    assert (await theirs.next_msg(PATIENCE)).data == b"1"
    await other.publish("echo", b"2")
    await other.flush()
    saw("heard", (await mine.next_msg(PATIENCE)).data.decode())


async def publish_subscribe():
    a, b = await connect(), await connect()
    one, rest = await a.subscribe("log.*.disk"), await a.subscribe("log.>")
    await a.flush()
    for at in range(1000):
        await b.publish("log.x.disk", b"%d" % at)
    await b.publish("log.y", b"end")
    for at in range(1000):
        assert (await one.next_msg(PATIENCE)).data == b"%d" % at
        assert (await rest.next_msg(PATIENCE)).data == b"%d" % at
    saw("then", (await rest.next_msg(PATIENCE)).data.decode(), one.pending_msgs)


async def queue():
    members = [await connect() for _ in range(3)]
    got = []

    def member(at):
        async def heard(msg):
            got.append((at, msg.data))

        return heard

    for at, nc in enumerate(members):
        await nc.subscribe("work", queue="crew", cb=member(at))
        await nc.flush()
    sender = await connect()
    for at in range(300):
        await sender.publish("work", b"%d" % at)
    await sender.flush()
    await until(lambda: len(got) >= 300)
    for nc in members:
        await nc.flush()
    saw(len(got), len({data for _, data in got}), len({at for at, _ in got}))


async def request():
    server, client = await connect(), await connect()

    async def double(msg):
        await msg.respond(b"%d" % (2 * int(msg.data)))

    await server.subscribe("double", cb=double)
    await server.flush()
    answers = [int((await client.request("double", b"%d" % at)).data) for at in range(100)]
    assert answers == [2 * at for at in range(100)]
    old = await client.request("double", b"21", old_style=True)
    saw("old style", old.data.decode())


async def no_responders():
    nc = await connect()
    try:
        await nc.request("nobody.home", b"?", timeout=PATIENCE)
    except NoRespondersError:
        saw("no responders")


async def request_many():
    for at in range(5):
        nc = await connect()

        async def answer(msg, at=at):
            await msg.respond(b"%d" % at)

        await nc.subscribe("who", cb=answer)
        await nc.flush()
    client = await connect()
    inbox = client.new_inbox()
    sub = await client.subscribe(inbox)
    await client.publish("who", b"?", reply=inbox)
    saw(sorted([(await sub.next_msg(PATIENCE)).data.decode() for _ in range(5)]))


async def headers():
    nc = await connect()
    sub = await nc.subscribe("h")
    await nc.publish("h", b"body", headers={"Trace-Id": "abc", "Colour": "red green"})
    await nc.publish("h", b"", headers={"Only": "header"})
    first, second = await sub.next_msg(PATIENCE), await sub.next_msg(PATIENCE)
    saw(sorted(first.headers.items()), first.data, sorted(second.headers.items()), second.data)


async def unsubscribe_after():
    nc = await connect()
    sub = await nc.subscribe("few")
    await sub.unsubscribe(limit=3)
    for at in range(10):
        await nc.publish("few", b"%d" % at)
    await nc.flush()
    saw([(await sub.next_msg(PATIENCE)).data.decode() for _ in range(3)])
    await nc.publish("few", b"late")
    await nc.flush()
    saw("left", sub.pending_msgs)


async def drain():
    got, closed = [], asyncio.Event()

    async def slowly(msg):
        await asyncio.sleep(0.001)
        got.append(msg.data)

    async def on_closed():
        closed.set()

    nc, other = await connect(closed_cb=on_closed), await connect()
    await nc.subscribe("flood", cb=slowly)
    await nc.flush()
    for at in range(200):
        await other.publish("flood", b"x")
    await other.flush()
    await nc.flush()
    await nc.drain()
    await asyncio.wait_for(closed.wait(), PATIENCE)
    saw("drained", len(got), nc.is_closed)


async def max_payload():
    nc = await connect()
    sub = await nc.subscribe("big")
    await nc.publish("big", b"x" * nc.max_payload)
    assert len((await sub.next_msg(PATIENCE)).data) == nc.max_payload
    try:
        await nc.publish("big", b"x" * (nc.max_payload + 1))
    except MaxPayloadError:
        saw("refused above", nc.max_payload)
    await works(nc)


async def errors_of(act, text, **options):
    errors = []

    async def on_error(error):
        errors.append(str(error).lower())

    nc = await connect(error_cb=on_error, **options)
    await act(nc)
    await nc.flush()
    await until(lambda: any(text in error for error in errors))
    saw(text, nc.is_connected)
    return nc


async def permissions():
    async def act(nc):
        await nc.publish("secret", b"")
        await nc.flush()

    nc = await errors_of(act, "permissions violation for publish to", user="u", password="p")
    await works(nc, "open.x")

    async def listen(nc):
        await nc.subscribe("secret")

    nc = await errors_of(
        listen, "permissions violation for subscription to", user="u", password="p"
    )
    await works(nc, "open.x")


async def max_subscriptions():
    # It takes this error for the end of the connection.
    nc = await connect(allow_reconnect=False)
    for subject in "abc":
        await nc.subscribe(subject)
    await until(lambda: nc.is_closed)
    saw(str(nc.last_error).lower())


async def max_connections():
    first = await connect()
    # The text may be lost with nats-server, which closes over what the client sent.
    await refused()
    saw("refused")
    await works(first)


async def auth_password():
    await works(await connect(user="ann", password="secret"))


async def auth_token():
    await works(await connect(token="t0ken"))


async def auth_nkey():
    await works(await connect(nkeys_seed=f"{DIR}/user.nk"))


async def auth_jwt():
    await works(await connect(user_credentials=f"{DIR}/user.creds"))


async def auth_wrong():
    said = await refused(user="ann", password="wrong")
    assert "authorization violation" in said, said
    saw("authorization violation")


def context(with_certificate=False):
    found = ssl.create_default_context(cafile=f"{DIR}/ca.pem")
    if with_certificate:
        found.load_cert_chain(f"{DIR}/client.pem", f"{DIR}/client.key")
    return found


async def tls():
    await works(await connect(tls=context()))


async def tls_certificate():
    await works(await connect(tls=context(True)))
    await refused(tls=context())
    saw("refused without one")


async def websocket():
    nc = await connect(os.environ["WS_URL"])
    await works(nc)
    sub = await nc.subscribe("big")
    await nc.publish("big", bytes(100_000))
    saw(len((await sub.next_msg(PATIENCE)).data))


async def tls_first():
    await works(await connect(tls=context(), tls_handshake_first=True))


async def reconnect():
    events = []

    async def lost():
        events.append("lost")

    async def back():
        events.append("back")

    nc = await connect(disconnected_cb=lost, reconnected_cb=back)
    sub = await nc.subscribe("after")
    await nc.flush()
    await ask("stop")
    await until(lambda: "lost" in events)
    await nc.publish("after", b"buffered")
    await ask("start")
    await until(lambda: "back" in events)
    saw((await sub.next_msg(PATIENCE)).data.decode(), events)
    await works(nc)


async def closed():
    events = []

    async def on_lost():
        events.append("lost")

    async def on_closed():
        events.append("closed")

    nc = await connect(disconnected_cb=on_lost, closed_cb=on_closed, allow_reconnect=False)
    await nc.flush()
    await ask("stop")
    await until(lambda: "closed" in events)
    saw(events)


async def lame_duck():
    told = asyncio.Event()

    async def on_lame_duck():
        told.set()

    nc = await connect(lame_duck_mode_cb=on_lame_duck)
    await nc.flush()
    await ask("lame-duck")
    await asyncio.wait_for(told.wait(), PATIENCE)
    saw("told")


async def slow_consumer():
    errors, blocked = [], asyncio.Event()

    async def on_error(error):
        errors.append(error)

    async def wait(_):
        await blocked.wait()

    nc = await connect(error_cb=on_error)
    await nc.subscribe("fast", cb=wait, pending_msgs_limit=10)
    await nc.flush()
    for _ in range(100):
        await nc.publish("fast", b"x")
    await nc.flush()
    await until(lambda: any(isinstance(error, SlowConsumerError) for error in errors))
    blocked.set()
    saw("told")
    await works(nc)


async def discovered_servers():
    events = []

    async def on_discovered():
        events.append("discovered")

    async def on_back():
        events.append("back")

    nc = await connect(discovered_server_cb=on_discovered, reconnected_cb=on_back)
    await until(lambda: len(nc.servers) >= 2)
    await ask("stop")
    await until(lambda: "back" in events)
    await works(nc)
    saw("went on at the other")


async def jetstream():
    nc = await connect()
    try:
        await nc.jetstream(timeout=PATIENCE).account_info()
    except Exception as error:
        saw(type(error).__name__)


def main():
    import streams

    names = {"connect": "connect_info"}
    name = sys.argv[1].replace("-", "_")
    name = names.get(name, name)
    behaviour = globals().get(name) or getattr(streams, name, None)
    if sys.argv[1] == "version":
        import importlib.metadata

        print(importlib.metadata.version("nats-py"))
    elif behaviour is None:
        sys.exit(77)
    else:
        asyncio.run(asyncio.wait_for(behaviour(), 60 + 3 * int(os.environ.get("OBJECT_MB", 0))))
        os._exit(0)


if __name__ == "__main__":
    main()
