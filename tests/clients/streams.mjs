// Streams, key-value and object stores with nats.js: the behaviours that javascript.mjs has not.

import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { Objm } from "@nats-io/obj";
import { createHash } from "node:crypto";
import * as nats from "@nats-io/transport-node";

const PATIENCE = 20_000;
const OBJECT_BYTES = Number(process.env.OBJECT_MB ?? 4) << 20;
const nanos = (millis) => millis * 1_000_000;
const pause = (millis) => new Promise((resolve) => setTimeout(resolve, millis));

/// The behaviours, with what javascript.mjs has for all of them.
export function behaviours({ connect, saw, ask, until, text }) {
  async function open() {
    const nc = await connect();
    const jsm = await jetstreamManager(nc, { timeout: PATIENCE });
    return { nc, jsm, js: jetstream(nc, { timeout: PATIENCE }) };
  }

  /// How the server refuses.
  async function fails(act) {
    try {
      await act();
    } catch (error) {
      const api = error.apiError?.();
      return api ? [api.code, api.err_code, api.description] : [error.name, error.message];
    }
    return "it went well";
  }

  async function fill(js, subject, count) {
    for (let at = 0; at < count; at++) await js.publish(subject, String(at));
  }

  async function collect(iterator, count = Infinity) {
    const got = [];
    for await (const one of iterator) {
      got.push(one);
      if (got.length === count) break;
    }
    return got;
  }

  /// What is fetched, each confirmed.
  async function fetched(consumer, options) {
    const got = [];
    for await (const message of await consumer.fetch({ expires: PATIENCE, ...options })) {
      if (!await message.ackAck()) throw new Error("not confirmed");
      got.push(message.seq);
    }
    return got;
  }

  const state = ({ state }) => [state.messages, state.first_seq, state.last_seq, state.num_deleted ?? 0];
  const stateOf = async (jsm, name) => state(await jsm.streams.info(name));
  const inOrder = (found, from, count) =>
    found.length === count && found.every((one, at) => one === from + at);
  const sorted = (object) => Object.entries(object).sort();

  return {
    "streams": async () => {
      const { jsm, js } = await open();
      const info = await jsm.streams.add({
        name: "S", subjects: ["s.*"], max_msgs_per_subject: 3, allow_direct: true,
        allow_rollup_hdrs: true, allow_msg_ttl: true, allow_atomic: true, compression: "s2",
      });
      saw(sorted(info.config));
      saw(await fails(() => jsm.streams.add({ name: "S", subjects: ["t"] })));
      saw(await fails(() => jsm.streams.add({ name: "T", subjects: ["s.one"] })));
      saw(await fails(() => jsm.streams.add({ name: "T", subjects: ["t"], max_consumers: -5, num_replicas: 7 })));
      saw(await fails(() => jsm.streams.info("none")));
      const ack = await js.publish("s.a", "1", { msgID: "x" });
      const again = await js.publish("s.a", "1", { msgID: "x" });
      saw(ack, again);
      for (const expect of [
        { lastSequence: 7 }, { lastSubjectSequence: 7 }, { lastMsgID: "y" }, { streamName: "T" },
      ]) saw(await fails(() => js.publish("s.a", "", { expect })));
      saw(await fails(() => js.publish("nobody", "")));
      await fill(js, "s.b", 5);
      await js.publish("s.c", "short", { ttl: "1h" });
      saw(await stateOf(jsm, "S"), sorted((await jsm.streams.info("S", { subjects_filter: ">" })).state.subjects));
      const batch = await js.startBatch("s.d", "one");
      batch.add("s.d", "two");
      const committed = await batch.commit("s.e", "three");
      saw(committed.count, committed.seq, await stateOf(jsm, "S"));
      for (const found of [
        await jsm.streams.getMessage("S", { seq: 6 }),
        await jsm.streams.getMessage("S", { last_by_subj: "s.b" }),
        await jsm.direct.getMessage("S", { seq: 2, next_by_subj: "s.b" }),
        await jsm.direct.getMessage("S", { last_by_subj: "s.c" }),
        await jsm.direct.getMessage("S", { seq: 2 }),
      ]) saw(found && [found.seq, found.subject, found.string(), found.header.get("Nats-TTL")]);
      const many = await collect(await jsm.direct.getBatch("S", { seq: 1, batch: 4 }));
      saw(many.map((one) => [one.seq, one.subject, one.pending]));
      const last = await collect(await jsm.direct.getLastMessagesFor("S", { multi_last: ["s.>"] }));
      saw(last.map((one) => [one.seq, one.subject, one.string()]));
      saw(await jsm.streams.deleteMessage("S", 6), await fails(() => jsm.streams.deleteMessage("S", 6)));
      saw(await jsm.streams.purge("S", { filter: "s.b", keep: 1 }), await stateOf(jsm, "S"));
      saw(await jsm.streams.purge("S", { seq: 9 }), await stateOf(jsm, "S"));
      const changed = await jsm.streams.update("S", { subjects: ["s.*", "more"], max_msgs: 4, description: "new" });
      saw(changed.config.description, changed.config.subjects, state(changed));
      saw(await fails(() => jsm.streams.update("S", { retention: "workqueue" })));
      await fill(js, "more", 6);
      saw(await stateOf(jsm, "S"), await jsm.streams.find("more"));
      await jsm.streams.add({ name: "M", subjects: ["m"], storage: "memory", max_msgs: 2, discard: "new" });
      await fill(js, "m", 2);
      saw(await fails(() => js.publish("m", "3")), (await jsm.streams.names().next()).sort());
      const account = await jsm.getAccountInfo();
      saw(account.streams, account.consumers, account.limits);
      saw(await jsm.streams.delete("S"), await fails(() => jsm.streams.delete("S")));
    },
    "streams-pull": async () => {
      const { jsm, js } = await open();
      await jsm.streams.add({ name: "S", subjects: ["s.>"] });
      await fill(js, "s.a", 200);
      const info = await jsm.consumers.add("S", { durable_name: "D", ack_policy: AckPolicy.Explicit });
      saw(sorted(info.config), info.num_pending);
      const consumer = await js.consumers.get("S", "D");
      saw(inOrder(await fetched(consumer, { max_messages: 70 }), 1, 70));
      const limited = [];
      // It fails when the next message is too much.
      saw(await fails(async () => {
        for await (const message of await consumer.fetch({ max_bytes: 800, expires: 1000 })) {
          await message.ackAck();
          limited.push(message.seq);
        }
      }));
      saw(limited.length > 2 && inOrder(limited, 71, limited.length));
      const rest = [];
      const messages = await consumer.consume({ max_messages: 30 });
      for await (const message of messages) {
        message.ack();
        rest.push(message.seq);
        if (message.seq === 200) break;
      }
      saw(inOrder(rest, 71 + limited.length, 130 - limited.length));
      saw(await consumer.next({ expires: 1000 }));
      await jsm.consumers.add("S", { durable_name: "F", ack_policy: "explicit", filter_subjects: ["s.b", "s.c.*"] });
      const waiting = fetched(await js.consumers.get("S", "F"), { max_messages: 3, idle_heartbeat: 500 });
      await pause(1200);
      for (const subject of ["s.b", "s.a", "s.c.d", "s.c", "s.b"]) await js.publish(subject, "");
      saw(await waiting);
      saw(await fails(() => jsm.consumers.add("S", { durable_name: "D", ack_policy: "none" }, { action: "create" })));
      saw(await fails(() => jsm.consumers.update("S", "D", { filter_subject: "elsewhere" })));
      const changed = await jsm.consumers.update("S", "D", { max_ack_pending: 7, description: "few" });
      saw(changed.config.max_ack_pending, changed.config.description);
      await jsm.consumers.add("S", { durable_name: "P", ack_policy: "explicit" });
      const paused = await js.consumers.get("S", "P");
      saw((await jsm.consumers.pause("S", "P", new Date(Date.now() + 3_600_000))).paused);
      saw(await paused.next({ expires: 1000 }), (await jsm.consumers.resume("S", "P")).paused);
      saw((await paused.next({ expires: PATIENCE })).seq);
      const listed = await jsm.consumers.list("S").next();
      saw(listed.map((one) => one.name).sort());
      saw(await jsm.consumers.delete("S", "F"), await fails(() => jsm.consumers.delete("S", "F")));
      saw(await fails(() => js.consumers.get("S", "F")));
      const reset = await jsm.consumers.reset("S", "P", 5);
      saw(reset.reset_seq, (await paused.next()).seq);
    },
    "streams-push": async () => {
      const { jsm, js, nc } = await open();
      await jsm.streams.add({ name: "S", subjects: ["s.>"] });
      await fill(js, "s.a", 100);
      await jsm.consumers.add("S", {
        durable_name: "D", ack_policy: "explicit", deliver_subject: "to.d", flow_control: true,
        idle_heartbeat: nanos(500),
      });
      const consumer = await js.consumers.getPushConsumer("S", "D");
      const got = [];
      const messages = await consumer.consume({
        callback: (message) => {
          message.ack();
          got.push(message.seq);
        },
      });
      const told = [];
      (async () => {
        for await (const status of messages.status()) told.push(status.type);
      })();
      await until(() => got.length === 100);
      saw(inOrder(got, 1, 100), (await consumer.info()).push_bound);
      await until(() => told.includes("heartbeat"));
      for (const deliver_policy of ["last", "new", "by_start_sequence"]) {
        const opt_start_seq = deliver_policy === "by_start_sequence" ? 98 : undefined;
        const deliver_subject = nats.createInbox();
        const sub = nc.subscribe(deliver_subject);
        await jsm.consumers.add("S", { ack_policy: "none", deliver_policy, opt_start_seq, deliver_subject });
        const { seq } = await js.publish("s.b", "fresh");
        const seen = [];
        for await (const message of sub) {
          seen.push(Number(message.reply.split(".")[5]));
          if (seen.at(-1) === seq) break;
        }
        saw(deliver_policy, seen);
      }
      const crew = { durable_name: "Q", deliver_subject: "to.q", deliver_group: "crew" };
      await jsm.consumers.add("S", { ...crew, ack_policy: "explicit", deliver_policy: "new", headers_only: true });
      const parts = [0, 0];
      for (const at of [0, 1]) {
        const member = await js.consumers.getPushConsumer("S", "Q");
        await member.consume({
          callback: (message) => {
            message.ack();
            parts[at] += message.headers.get("Nats-Msg-Size") >= 1 && message.data.length === 0;
          },
        });
      }
      await fill(js, "s.c", 200);
      await until(() => parts[0] + parts[1] === 200);
      saw(parts[0] > 0, parts[1] > 0);
    },
    "streams-ordered": async () => {
      const { jsm, js } = await open();
      await jsm.streams.add({ name: "S", subjects: ["s.>"] });
      const acks = Array.from({ length: 3000 }, (_, at) => js.publish(`s.${at % 7}`, "x".repeat(100)));
      saw(inOrder((await Promise.all(acks)).map((ack) => ack.seq), 1, 3000));
      const pulled = await js.consumers.get("S");
      const got = [];
      for await (const message of await pulled.consume()) {
        got.push(message.seq);
        if (message.info.pending === 0) break;
      }
      saw(inOrder(got, 1, 3000));
      const filtered = await js.consumers.get("S", {
        filter_subjects: "s.3", deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: 1000,
      });
      const some = await collect(await filtered.fetch({ max_messages: 100, expires: PATIENCE }));
      saw(some[0].seq, some.length, some.at(-1).seq);
      const pushed = await js.consumers.getPushConsumer("S");
      const seen = [];
      for await (const message of await pushed.consume()) {
        seen.push(message.seq);
        if (message.info.pending === 0) break;
      }
      saw(inOrder(seen, 1, 3000));
    },
    "streams-acks": async () => {
      const { jsm, js } = await open();
      await jsm.streams.add({ name: "S", subjects: ["s"] });
      await fill(js, "s", 8);
      await jsm.consumers.add("S", {
        durable_name: "D", ack_policy: "explicit", ack_wait: nanos(1500), max_deliver: 3,
      });
      const consumer = await js.consumers.get("S", "D");
      const by = {};
      for (const one of await collect(await consumer.fetch({ max_messages: 7 }))) by[one.seq] = one;
      by[1].ack();
      saw(await by[2].ackAck());
      by[3].nak();
      by[4].nak(500);
      by[5].term("no use");
      by[6].ack();
      for (let at = 0; at < 8; at++) {
        by[7].working();
        await pause(250);
      }
      by[7].ack();
      const counts = {};
      while (!(counts[3] === 3 && counts[4] === 3 && counts[8] === 3)) {
        for await (const one of await consumer.fetch({ max_messages: 10, expires: 1000 })) {
          counts[one.seq] = one.info.deliveryCount;
        }
      }
      saw(counts, await consumer.next({ expires: 2000 }));
      const info = await consumer.info();
      saw(info.num_ack_pending, info.num_redelivered, info.num_pending, info.delivered.stream_seq);
      await jsm.consumers.add("S", { durable_name: "A", ack_policy: "all" });
      const every = await js.consumers.get("S", "A");
      await (await collect(await every.fetch({ max_messages: 6 }))).at(-1).ackAck();
      const after = await every.info();
      saw(after.ack_floor.stream_seq, after.num_ack_pending);
    },
    "streams-kill": async () => {
      const { jsm, js, nc } = await open();
      await jsm.streams.add({ name: "S", subjects: ["s"] });
      const acks = await Promise.all(Array.from({ length: 500 }, (_, at) => js.publish("s", `${at}`)));
      saw(inOrder(acks.map((ack) => ack.seq), 1, 500));
      await jsm.consumers.add("S", { durable_name: "D", ack_policy: "explicit" });
      let back = false;
      (async () => {
        for await (const status of nc.status()) back ||= status.type === "reconnect";
      })();
      await ask("stop");
      await ask("start");
      await until(() => back);
      saw(await stateOf(jsm, "S"));
      saw(inOrder(await fetched(await js.consumers.get("S", "D"), { max_messages: 500 }), 1, 500));
    },
    "key-value": async () => {
      const [one, other] = [await open(), await open()];
      const kvm = new Kvm(one.js);
      const bucket = await kvm.create("b", { history: 3, description: "words", markerTTL: 3_600_000 });
      const seen = await new Kvm(other.js).open("b");
      const changes = (await seen.watch())[Symbol.asyncIterator]();
      // Each change is read before the next is made: what the history has no room for any
      // more is not told to a watcher that comes late.
      const told = async () => {
        const { value: one } = await changes.next();
        saw(one.key, one.string(), one.revision, one.operation, one.isUpdate);
      };
      for (let at = 0; at < 5; at++) {
        await bucket.put("a.x", String(at));
        await told();
      }
      saw(await bucket.create("new", "n"), await fails(() => bucket.create("new", "m")));
      await told();
      saw(await bucket.update("new", "o", 6), await fails(() => bucket.update("new", "p", 6)));
      await told();
      await bucket.delete("a.x");
      await told();
      await bucket.put("gone", "?");
      await told();
      await bucket.purge("gone");
      await told();
      saw(await bucket.create("a.x", "again"), await fails(() => bucket.delete("a.x", { previousSeq: 3 })));
      await told();
      for (const key of ["a.x", "gone"]) {
        const history = await collect(await seen.history({ key }));
        saw(history.map((one) => [one.revision, one.string(), one.operation, one.delta]));
      }
      saw((await collect(await seen.keys())).sort(), await collect(await seen.keys("a.*")));
      const gone = await seen.get("gone");
      saw((await seen.get("a.x", { revision: 5 }))?.string(), gone?.operation, await seen.get("never"));
      const updates = await seen.watch({ key: "fresh", include: "updates" });
      await bucket.create("fresh", "f");
      saw((await collect(updates, 1)).map((one) => [one.key, one.operation]));
      await bucket.purgeDeletes(-1);
      const status = await seen.status();
      saw(status.values, status.history, status.ttl, status.bucket, status.description);
      saw(await bucket.destroy(), await fails(() => seen.get("new")));
    },
    "objects": async () => {
      const [one, other] = [await open(), await open()];
      const bucket = await new Objm(one.js).create("o", { description: "things" });
      const seen = await new Objm(other.js).open("o");
      const changes = (await seen.watch())[Symbol.asyncIterator]();
      const told = async () => {
        const { value: one } = await changes.next();
        saw(one?.name, one?.size);
      };
      const content = new Uint8Array(OBJECT_BYTES).map((_, at) => (at / 7) % 251);
      const info = await bucket.putBlob({ name: "thing", description: "big" }, content);
      saw(info.name, info.size, info.chunks, info.digest);
      await told();
      const hash = (data) => createHash("sha256").update(data).digest("hex");
      saw(hash(await seen.getBlob("thing")) === hash(content));
      for (const content of ["first", "second"]) {
        await bucket.putBlob({ name: "small" }, new TextEncoder().encode(content));
        await told();
      }
      saw(text(await seen.getBlob("small")));
      await bucket.link("link", info);
      saw((await seen.getBlob("link")).length === content.length);
      await bucket.update("small", { name: "renamed", description: "new" });
      saw((await seen.list()).map((one) => [one.name, one.description]).sort());
      saw((await bucket.delete("thing")).success, await seen.get("thing"), (await seen.info("thing")).deleted);
      const status = await seen.status();
      saw(status.size < 3000, status.sealed, status.description);
      saw((await bucket.seal()).sealed, await fails(() => bucket.putBlob({ name: "late" }, content)));
      saw(await bucket.destroy());
    },
  };
}
