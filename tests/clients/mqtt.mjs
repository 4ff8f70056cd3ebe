// The behaviours of MQTT with mqtt.js. Called with the behaviour's name; see README.md.

import mqtt from "mqtt";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const PATIENCE = 30_000;
const url = () => `mqtt://127.0.0.1:${process.env.MQTT_PORT}`;
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const pause = (millis) => new Promise((resolve) => setTimeout(resolve, millis));
const saw = (...what) => console.log(what.map((one) => JSON.stringify(one)).join(" "));

async function ask(order) {
  console.log("!" + order);
  await lines.next();
}

/// A client that keeps what it hears.
class Client {
  heard = [];
  ended = false;

  static async open(clientId, options = {}, at = url()) {
    const self = new Client();
    const wanted = { clientId, clean: true, reconnectPeriod: 0, connectTimeout: PATIENCE, ...options };
    self.client = mqtt.connect(at, wanted);
    self.client.on("message", (topic, payload, packet) =>
      self.heard.push([topic, payload.toString(), packet.qos, packet.retain]));
    self.client.on("close", () => self.ended = true);
    self.opened = await new Promise((resolve) => {
      self.client.once("connect", (packet) => resolve([packet.sessionPresent, packet.returnCode]));
      self.client.once("error", (error) => resolve(["refused", error.code ?? error.message]));
    });
    return self;
  }

  async subscribe(filters) {
    const asked = Object.fromEntries(Object.entries(filters).map(([one, qos]) => [one, { qos }]));
    return new Promise((resolve) => this.client.subscribe(asked, (_, __, packet) => resolve(packet?.granted ?? [])));
  }

  async publish(topic, payload, qos = 0, retain = false) {
    await this.client.publishAsync(topic, payload, { qos, retain });
  }

  async take(count) {
    const end = Date.now() + PATIENCE;
    while (this.heard.length < count) {
      if (Date.now() > end) throw new Error(`only ${JSON.stringify(this.heard)}`);
      await pause(10);
    }
    return this.heard.splice(0, count);
  }

  async untilEnd() {
    for (const end = Date.now() + PATIENCE; !this.ended; await pause(10)) {
      if (Date.now() > end) throw new Error("the connection stays");
    }
    return "ended";
  }

  async close() {
    await this.client.endAsync();
  }
}

const behaviours = {
  async "mqtt-messages"() {
    const [hearer, speaker] = [await Client.open("hearer"), await Client.open("speaker")];
    saw(hearer.opened, await hearer.subscribe({ "a/+": 0, "b/#": 1, c: 2, "bad topic": 1 }));
    for (const qos of [0, 1, 2]) {
      for (const topic of ["a/x", "b", "b/x/y", "c"]) await speaker.publish(topic, `${topic} ${qos}`, qos);
    }
    saw((await hearer.take(12)).sort());
    await hearer.client.unsubscribeAsync("b/#");
    await speaker.publish("b", "gone", 1);
    await speaker.publish("c", "last", 2);
    saw(await hearer.take(1));
  },

  async "mqtt-flood"() {
    const [hearer, speaker] = [await Client.open("hearer"), await Client.open("speaker")];
    await hearer.subscribe({ "f/#": 2 });
    await Promise.all(Array.from({ length: 300 }, (_, at) => speaker.publish(`f/${at % 3}`, `${at}`, at % 3)));
    const numbers = (await hearer.take(300)).map(([, payload]) => Number(payload));
    const order = (all) => all.every((one, at) => at === 0 || all[at - 1] < one);
    saw(order([...numbers].sort((a, b) => a - b)));
    for (const qos of [1, 2]) saw(qos, order(numbers.filter((one) => one % 3 === qos)));
  },

  async "mqtt-retained"() {
    const speaker = await Client.open("speaker");
    for (const name of ["one", "two"]) await speaker.publish("r/" + name, name, 1, true);
    await speaker.publish("r/one", "one again", 2, true);
    const hearer = await Client.open("hearer");
    await hearer.subscribe({ "r/#": 1 });
    saw((await hearer.take(2)).sort());
    await speaker.publish("r/two", "", 0, true);
    saw(await hearer.take(1));
    await pause(1000);
    const other = await Client.open("other");
    await other.subscribe({ "r/+": 2 });
    saw(await other.take(1));
  },

  async "mqtt-sessions"() {
    let keeper = await Client.open("keeper", { clean: false });
    saw(keeper.opened, await keeper.subscribe({ "k/#": 2 }));
    await keeper.close();
    const speaker = await Client.open("speaker");
    for (let at = 0; at < 6; at++) await speaker.publish(`k/${at}`, `${at}`, at % 3);
    keeper = await Client.open("keeper", { clean: false });
    saw(keeper.opened, (await keeper.take(4)).sort());
    const taker = await Client.open("keeper", { clean: false });
    saw(taker.opened, await keeper.untilEnd());
    await speaker.publish("k/x", "to the taker", 1);
    saw(await taker.take(1));
    await taker.close();
    await pause(1500);
    saw((await Client.open("keeper")).opened);
  },

  async "mqtt-will"() {
    const hearer = await Client.open("hearer");
    await hearer.subscribe({ "w/#": 1 });
    const will = (topic, payload, retain) => ({ will: { topic, payload, qos: 1, retain } });
    await (await Client.open("polite", will("w/polite", "never", false))).close();
    (await Client.open("broken", will("w/broken", "gone", true))).client.stream.destroy();
    saw(await hearer.take(1));
    const other = await Client.open("other");
    await other.subscribe({ "w/#": 1 });
    saw(await other.take(1));
  },

  async "mqtt-kill"() {
    let keeper = await Client.open("keeper", { clean: false });
    await keeper.subscribe({ k: 2 });
    await keeper.close();
    const speaker = await Client.open("speaker");
    await speaker.publish("k", "one", 1, true);
    await speaker.publish("k", "two", 2);
    await ask("stop");
    await ask("start");
    keeper = await Client.open("keeper", { clean: false });
    saw(keeper.opened, await keeper.take(2));
    const other = await Client.open("other");
    await other.subscribe({ k: 0 });
    saw(await other.take(1));
  },

  async "mqtt-users"() {
    for (const user of [{ username: "u", password: "p" }, { username: "u", password: "wrong" }, {}]) {
      const client = await Client.open("c", user);
      saw(user, client.opened);
      if (client.opened[1] !== 0) continue;
      saw(await client.subscribe({ "open/a": 1, "shut/a": 1 }));
      await client.publish("shut/a", "x", 1);
      await client.publish("open/a", "x", 1);
      saw(await client.take(1));
    }
  },

  async "mqtt-websocket"() {
    const client = await Client.open("ws", {}, `ws://127.0.0.1:${process.env.WS_PORT}/mqtt`);
    saw(client.opened, await client.subscribe({ a: 2 }));
    await client.publish("a", "x".repeat(100_000), 2);
    const [[topic, payload, qos, retain]] = await client.take(1);
    saw(topic, payload.length, qos, retain);
  },
};

const name = process.argv[2];
if (name === "version") {
  console.log(createRequire(import.meta.url)("mqtt/package.json").version);
} else if (!behaviours[name]) {
  process.exit(77);
} else {
  await behaviours[name]();
}
process.exit(0);
