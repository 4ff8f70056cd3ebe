"""Streams, key-value and object stores with nats-py: the behaviours that `python.py` has not."""

import asyncio
import hashlib
import io
import os

from nats.errors import TimeoutError as NoMessages
from nats.js import api, errors

from python import PATIENCE, ask, connect, saw

OBJECT_BYTES = int(os.environ.get("OBJECT_MB", "4")) << 20


async def streams_of(**options):
    return (await connect()).jetstream(timeout=PATIENCE, **options)


async def fails(act):
    """How the server refuses."""
    try:
        await act
    except errors.APIError as error:
        parts = [getattr(error, name, None) for name in ("code", "err_code", "description")]
        return (type(error).__name__, *parts)
    except Exception as error:
        return type(error).__name__
    return "it went well"


async def fill(js, subject, count):
    for at in range(count):
        await js.publish(subject, b"%d" % at)


async def take(sub, count):
    """The next messages of a push consumer."""
    return [await sub.next_msg(PATIENCE) for _ in range(count)]


def state(info):
    found = info.state
    return found.messages, found.first_seq, found.last_seq, found.consumer_count


async def streams():
    js = await streams_of()
    info = await js.add_stream(
        name="S", subjects=["s.*"], max_msgs_per_subject=3, allow_direct=True,
        allow_rollup_hdrs=True, description="one")
    saw(sorted((key, value) for key, value in info.config.as_dict().items() if value))
    saw(await fails(js.add_stream(name="S", subjects=["t.*"])))
    saw(await fails(js.add_stream(name="T", subjects=["s.one"])))
    saw(await fails(js.add_stream(name="bad.name", subjects=["b"])))
    saw(await fails(js.stream_info("none")))
    ack = await js.publish("s.a", b"1", headers={"Nats-Msg-Id": "x"})
    again = await js.publish("s.a", b"1", headers={"Nats-Msg-Id": "x"})
    saw(ack.stream, ack.seq, ack.duplicate, again.seq, again.duplicate)
    wrong = {"Nats-Expected-Last-Sequence": "7"}
    saw(await fails(js.publish("s.a", b"", headers=wrong)))
    saw(await fails(js.publish("s.a", b"", stream="T")))
    saw(await fails(js.publish("nobody", b"")))
    await fill(js, "s.b", 5)
    await js.publish("s.c", b"h", headers={"Colour": "red"})
    saw(state(await js.stream_info("S")))
    saw((await js.stream_info("S", subjects_filter=">")).state.subjects)
    for message in [
        await js.get_msg("S", 6), await js.get_msg("S", subject="s.b"),
        await js.get_msg("S", subject="s.c", direct=True),
        await js.get_msg("S", 2, subject="s.b", next=True, direct=True),
    ]:
        saw(message.seq, message.subject, message.data, message.headers)
    saw(await fails(js.get_msg("S", 2)), await fails(js.get_msg("S", 2, direct=True)))
    saw(await js.delete_msg("S", 6), await fails(js.delete_msg("S", 6)))
    await js.publish("s.b", b"all", headers={"Nats-Rollup": "sub"})
    saw(state(await js.stream_info("S")))
    info = await js.update_stream(name="S", subjects=["s.*", "more"], max_msgs=4, allow_direct=True)
    saw(info.config.subjects, info.config.max_msgs, state(info))
    await fill(js, "more", 6)
    saw(state(await js.stream_info("S")))
    await js.purge_stream("S", subject="more", keep=1)
    saw(state(await js.stream_info("S")))
    await js.purge_stream("S")
    saw(state(await js.stream_info("S")))
    await js.add_stream(
        name="M", subjects=["m"], storage="memory", max_msgs=2, discard="new", no_ack=False)
    await fill(js, "m", 2)
    saw(await fails(js.publish("m", b"3")))
    saw(sorted(one.config.name for one in await js.streams_info()), await js.find_stream_name_by_subject("m"))
    found = await js.account_info()
    saw(found.streams, found.consumers)
    saw(await js.delete_stream("S"), await fails(js.delete_stream("S")))


async def streams_pull():
    js = await streams_of()
    await js.add_stream(name="S", subjects=["s.>"])
    await fill(js, "s.a", 200)
    sub = await js.pull_subscribe("s.>", "D", config=api.ConsumerConfig(max_ack_pending=500))
    got = []
    while len(got) < 200:
        batch = await sub.fetch(70, timeout=PATIENCE)
        for message in batch:
            await message.ack_sync(PATIENCE)
        got += [int(message.data) for message in batch]
    saw(got == list(range(200)), await fails(sub.fetch(1, timeout=0.2)))
    info = await sub.consumer_info()
    saw(info.name, info.num_pending, info.num_ack_pending, info.ack_floor.stream_seq)
    saw(sorted((key, value) for key, value in info.config.as_dict().items() if value))
    filtered = await js.pull_subscribe("s.b", "F")
    late = asyncio.create_task(filtered.fetch(3, timeout=PATIENCE, heartbeat=0.5))
    await asyncio.sleep(0.8)
    for at in range(3):
        await js.publish("s.a", b"other")
        await js.publish("s.b", b"b%d" % at)
    saw([message.data for message in await late])
    few = await js.pull_subscribe("s.a", "P", config=api.ConsumerConfig(max_ack_pending=2))
    held = await few.fetch(2, timeout=PATIENCE)
    saw(len(held), await fails(few.fetch(2, timeout=0.2)))
    await held[0].ack()
    saw((await few.fetch(1, timeout=PATIENCE))[0].metadata.sequence.stream)
    saw(sorted(one.name for one in await js.consumers_info("S")))
    same = api.ConsumerConfig(durable_name="D", ack_policy=api.AckPolicy.NONE)
    saw(await fails(js.add_consumer("S", same)))
    saw(await js.delete_consumer("S", "F"), await fails(js.delete_consumer("S", "F")))
    saw(await fails(js.consumer_info("S", "F")))
    queue = await js.add_stream(name="W", subjects=["w"], retention="workqueue")
    await fill(js, "w", 3)
    work = await js.pull_subscribe("w", "W1")
    one = api.ConsumerConfig(durable_name="W2", ack_policy=api.AckPolicy.EXPLICIT)
    saw(queue.config.retention, await fails(js.add_consumer("W", one)))
    for message in await work.fetch(3, timeout=PATIENCE):
        await message.ack_sync(PATIENCE)
    saw(state(await js.stream_info("W")))


async def streams_push():
    js = await streams_of()
    await js.add_stream(name="S", subjects=["s.>"])
    await fill(js, "s.a", 100)
    sub = await js.subscribe("s.>", durable="D", manual_ack=True, idle_heartbeat=1, flow_control=True)
    first = await take(sub, 100)
    for message in first:
        await message.ack_sync(PATIENCE)
    saw([int(message.data) for message in first] == list(range(100)))
    info = await sub.consumer_info()
    saw(info.push_bound, info.num_ack_pending, info.config.flow_control, info.config.idle_heartbeat)
    await sub.unsubscribe()
    last = await js.subscribe("s.>", deliver_policy=api.DeliverPolicy.LAST)
    new = await js.subscribe("s.>", deliver_policy=api.DeliverPolicy.NEW)
    by_start = api.ConsumerConfig(
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=98)
    start = await js.subscribe("s.>", config=by_start)
    headers = await js.subscribe("s.>", config=api.ConsumerConfig(headers_only=True))
    await js.publish("s.b", b"fresh")
    saw([message.data for message in await take(last, 2) + await take(new, 1)])
    saw([message.metadata.sequence.stream for message in await take(start, 4)])
    saw([(message.data, message.headers) for message in await take(headers, 2)])
    members = [
        await js.subscribe("s.>", queue="crew", manual_ack=True) for _ in range(2)]
    got = []
    while len(got) < 101:
        for member in members:
            try:
                message = await member.next_msg(0.05)
            except NoMessages:
                continue
            await message.ack()
            got.append(message.metadata.sequence.stream)
    saw(sorted(got) == list(range(1, 102)))
    saw(await fails(js.subscribe("s.>", durable="crew", queue="other")))


async def streams_ordered():
    js = await streams_of()
    await js.add_stream(name="S", subjects=["s.>"])
    waiting = [await js.publish_async(f"s.{at % 7}", b"%d" % at * 20) for at in range(3000)]
    saw([ack.seq for ack in await asyncio.gather(*waiting)] == list(range(1, 3001)))
    everything = await js.subscribe("s.>", ordered_consumer=True)
    some = await js.subscribe("s.3", ordered_consumer=True)
    got = [message.metadata.sequence.stream for message in await take(everything, 3000)]
    saw(got == list(range(1, 3001)))
    got = [message.metadata.sequence.stream for message in await take(some, 428)]
    saw(got == list(range(4, 3001, 7))[:428])


async def streams_acks():
    js = await streams_of()
    await js.add_stream(name="S", subjects=["s"])
    await fill(js, "s", 8)
    config = api.ConsumerConfig(ack_wait=1.5, max_deliver=3)
    sub = await js.pull_subscribe("s", "D", config=config)
    by = {message.metadata.sequence.stream: message for message in await sub.fetch(7, timeout=PATIENCE)}
    await by[1].ack()
    saw((await by[2].ack_sync(PATIENCE)).data)
    await by[3].nak()
    await by[4].nak(delay=0.5)
    await by[5].term()
    nc = js._nc
    inbox = await nc.subscribe(nc.new_inbox())
    await nc.publish(by[6].reply, b"+NXT", reply=inbox.subject)
    following = await inbox.next_msg(PATIENCE)
    saw(following.metadata.sequence.stream, following.metadata.num_delivered)
    counts = {}
    # 7 is in progress for longer than it may wait; 3, 4 and 8 come until they came three times.
    for _ in range(8):
        await by[7].in_progress()
        await asyncio.sleep(0.25)
    await by[7].ack()
    while counts.get(8, 0) < 3 or counts.get(4, 0) < 3 or counts.get(3, 0) < 3:
        for message in await sub.fetch(10, timeout=5):
            meta = message.metadata
            counts[meta.sequence.stream] = meta.num_delivered
    saw(sorted(counts.items()), await fails(sub.fetch(1, timeout=2)))
    info = await sub.consumer_info()
    saw(info.num_ack_pending, info.num_redelivered, info.num_pending, info.delivered.stream_seq)
    every = await js.pull_subscribe("s", "A", config=api.ConsumerConfig(ack_policy=api.AckPolicy.ALL))
    await (await every.fetch(8, timeout=PATIENCE))[5].ack_sync(PATIENCE)
    info = await every.consumer_info()
    saw(info.ack_floor.stream_seq, info.num_ack_pending)


async def streams_kill():
    js = await streams_of()
    await js.add_stream(name="S", subjects=["s"])
    waiting = [await js.publish_async("s", b"%d" % at) for at in range(500)]
    acked = [ack.seq for ack in await asyncio.gather(*waiting)]
    sub = await js.pull_subscribe("s", "D")
    for message in await sub.fetch(100, timeout=PATIENCE):
        await message.ack_sync(PATIENCE)
    await ask("stop")
    await ask("start")
    js = await streams_of()
    saw(acked == list(range(1, 501)), state(await js.stream_info("S")))
    sub = await js.pull_subscribe("s", "D")
    left = set(range(101, 501))
    # nats-server may send again what it had confirmed.
    while left:
        for message in await sub.fetch(100, timeout=PATIENCE):
            await message.ack()
            left.discard(message.metadata.sequence.stream)
    saw("the rest came")


async def key_value():
    js, other = await streams_of(), await streams_of()
    bucket = await js.create_key_value(bucket="b", history=3, description="words")
    seen = await other.key_value("b")
    watch = await seen.watchall()
    saw(await watch.updates())

    # Each change is read before the next is made: what the history has no room for any more
    # is not told to a watcher that comes late.
    async def told():
        entry = await watch.updates(PATIENCE)
        saw(entry.key, entry.value, entry.revision, entry.operation, entry.delta)

    for at in range(5):
        await bucket.put("a.x", b"%d" % at)
        await told()
    saw(await bucket.create("new", b"n"), await fails(bucket.create("new", b"m")))
    await told()
    saw(await bucket.update("new", b"o", last=6), await fails(bucket.update("new", b"p", last=6)))
    await told()
    await bucket.delete("a.x")
    await told()
    await bucket.put("gone", b"?")
    await told()
    await bucket.purge("gone")
    await told()
    saw(await bucket.create("a.x", b"again"))
    await told()
    saw([(one.revision, one.value, one.operation) for one in await seen.history("a.x")])
    saw([(one.revision, one.value, one.operation) for one in await seen.history("gone")])
    saw(sorted(await seen.keys()))
    entry = await seen.get("new")
    saw(entry.value, entry.revision, (await seen.get("a.x", revision=5)).value)
    saw(await fails(seen.get("gone")), await fails(seen.get("never")))
    some = await seen.watch("a.*")
    entry = await some.updates()
    saw(entry.key, entry.value, await some.updates())
    await bucket.purge_deletes(olderthan=-1)
    status = await seen.status()
    saw(status.values, status.history, status.ttl, status.bucket)
    saw(await js.delete_key_value("b"), await fails(js.key_value("b")))


async def objects():
    js, other = await streams_of(), await streams_of()
    bucket = await js.create_object_store("o", config=api.ObjectStoreConfig(description="things"))
    seen = await other.object_store("o")
    watch = await seen.watch()
    saw(await watch.updates())

    async def told():
        entry = await watch.updates(PATIENCE)
        saw(entry.name, entry.size)

    content = hashlib.shake_128(b"object").digest(OBJECT_BYTES)
    info = await bucket.put("thing", io.BytesIO(content), meta=api.ObjectMeta(description="big"))
    saw(info.name, info.size, info.chunks, info.digest)
    await told()
    got = await seen.get("thing")
    saw(got.data == content, got.info.digest == info.digest)
    await bucket.put("small", b"first")
    await told()
    await bucket.put("small", b"second")
    await told()
    saw((await seen.get("small")).data)
    await bucket.update_meta("small", api.ObjectMeta(name="small", description="new"))
    saw(sorted((one.name, one.description) for one in await seen.list()))
    await bucket.delete("thing")
    saw(await fails(seen.get("thing")), (await seen.get_info("thing", show_deleted=True)).deleted)
    status = await seen.status()
    saw(status.size < 3000, status.sealed, status.description)
    await bucket.seal()
    saw((await seen.status()).sealed, await fails(bucket.put("late", b"")))
    saw(await js.delete_object_store("o"), await fails(js.object_store("o")))
