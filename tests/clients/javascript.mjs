// The behaviours of the table with nats.js. Called with the behaviour's name; see README.md.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import * as nats from "@nats-io/transport-node";
import { behaviours as ofStreams } from "./streams.mjs";

const { URL: url, DIR: dir } = process.env;
const PATIENCE = 20_000;
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const saw = (...what) => console.log(...what.map((one) => JSON.stringify(one)));
const text = (data) => new TextDecoder().decode(data);

async function ask(order) {
  console.log("!" + order);
  await lines.next();
}

function connect(options = {}) {
  return nats.connect({
    servers: url, reconnectTimeWait: 100, maxReconnectAttempts: 200, ...options,
  });
}

async function until(condition) {
  const deadline = Date.now() + PATIENCE;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error("it does not happen");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/// Everything that the connection tells, as it comes.
function events(nc) {
  const seen = [];
  (async () => {
    for await (const status of nc.status()) seen.push(status);
  })();
  return seen;
}

async function take(sub, count) {
  const got = [];
  for await (const message of sub) {
    got.push(message);
    if (got.length === count) return got;
  }
  throw new Error(`the subscription ended after ${got.length}`);
}

async function works(nc, subject = "it.works") {
  const sub = nc.subscribe(subject, { max: 1, timeout: PATIENCE });
  await nc.flush();
  nc.publish(subject, "yes");
  const [message] = await take(sub, 1);
  if (message.string() !== "yes") throw new Error("it does not work");
}

async function refused(options = {}) {
  try {
    await connect({ ...options, reconnect: false, timeout: 5000 });
  } catch (error) {
    return String(error.message + " " + (error.cause?.message ?? "")).toLowerCase();
  }
  throw new Error("it was let in");
}

async function errorsOf(act, wanted, options = {}) {
  const nc = await connect(options);
  const seen = events(nc);
  await act(nc);
  await nc.flush();
  const told = (status) =>
    status.type === "error" && status.error.message.toLowerCase().includes(wanted);
  await until(() => seen.some(told));
  saw(wanted, nc.isClosed());
  return nc;
}

const read = (name) => readFileSync(`${dir}/${name}`);
const tls = (more = {}) => ({ tls: { caFile: `${dir}/ca.pem`, ...more } });
const withCertificate = { certFile: `${dir}/client.pem`, keyFile: `${dir}/client.key` };

const behaviours = {
  "connect": async () => {
    const nc = await connect({ name: "table" });
    saw("max_payload", nc.info.max_payload, "headers", nc.info.headers);
    await nc.flush();
    await nc.rtt();
    await works(nc);
  },
  "verbose-pedantic": async () => works(await connect({ verbose: true, pedantic: true })),
  "no-echo": async () => {
    const quiet = await connect({ noEcho: true });
    const other = await connect();
    const mine = quiet.subscribe("echo", { max: 1 });
    const theirs = other.subscribe("echo", { max: 1 });
    await quiet.flush();
    await other.flush();
    quiet.publish("echo", "1");
    await quiet.flush();
    if ((await take(theirs, 1))[0].string() !== "1") throw new Error("not heard");
    other.publish("echo", "2");
    saw("heard", (await take(mine, 1))[0].string());
  },
  "publish-subscribe": async () => {
    const [a, b] = [await connect(), await connect()];
    const [one, rest] = [a.subscribe("log.*.disk"), a.subscribe("log.>")];
    await a.flush();
    for (let at = 0; at < 1000; at++) b.publish("log.x.disk", String(at));
    b.publish("log.y", "end");
    for (const sub of [one, rest]) {
      const got = (await take(sub, 1000)).map((message) => message.string());
      if (got.some((body, at) => body !== String(at))) throw new Error("out of order");
    }
    saw("in order", rest.getReceived());
  },
  "queue": async () => {
    const got = [];
    for (let at = 0; at < 3; at++) {
      const nc = await connect();
      nc.subscribe("work", { queue: "crew", callback: (_, msg) => got.push([at, msg.string()]) });
      await nc.flush();
    }
    const sender = await connect();
    for (let at = 0; at < 300; at++) sender.publish("work", String(at));
    await sender.flush();
    await until(() => got.length >= 300);
    saw(got.length, new Set(got.map((g) => g[1])).size, new Set(got.map((g) => g[0])).size);
  },
  "request": async () => {
    const [server, client] = [await connect(), await connect()];
    server.subscribe("double", { callback: (_, msg) => msg.respond(String(2 * msg.string())) });
    await server.flush();
    for (let at = 0; at < 100; at++) {
      const answer = await client.request("double", String(at), { timeout: PATIENCE });
      if (answer.string() !== String(2 * at)) throw new Error("another answer");
    }
    const old = await client.request("double", "21", { timeout: PATIENCE, noMux: true });
    saw("without multiplexing", old.string());
  },
  "no-responders": async () => {
    const nc = await connect();
    for (const noMux of [false, true]) {
      const error = await nc.request("nobody.home", "?", { timeout: PATIENCE, noMux }).then(
        () => new Error("answered"), (error) => error);
      saw(error.name, error.cause?.name ?? "");
    }
  },
  "request-many": async () => {
    for (let at = 0; at < 5; at++) {
      const nc = await connect();
      nc.subscribe("who", { callback: (_, msg) => msg.respond(String(at)) });
      await nc.flush();
    }
    const client = await connect();
    const got = [];
    const options = { strategy: "count", maxMessages: 5, maxWait: PATIENCE };
    for await (const answer of await client.requestMany("who", "?", options)) {
      got.push(answer.string());
    }
    saw(got.sort());
  },
  "headers": async () => {
    const nc = await connect();
    const sub = nc.subscribe("h");
    const headers = nats.headers();
    headers.append("Trace-Id", "abc");
    headers.append("Colour", "red");
    headers.append("Colour", "green blue");
    nc.publish("h", "body", { headers });
    nc.publish("h", "", { headers });
    for (const message of await take(sub, 2)) {
      saw(message.headers.keys(), message.headers.values("Colour"), message.string());
    }
  },
  "unsubscribe-after": async () => {
    const nc = await connect();
    const sub = nc.subscribe("few", { max: 3 });
    for (let at = 0; at < 10; at++) nc.publish("few", String(at));
    await nc.flush();
    const got = [];
    for await (const message of sub) got.push(message.string());
    saw(got, nc.stats().inMsgs);
  },
  "drain": async () => {
    const [nc, other] = [await connect(), await connect()];
    let got = 0;
    const sub = nc.subscribe("flood");
    const reading = (async () => {
      for await (const _ of sub) {
        await new Promise((resolve) => setTimeout(resolve, 1));
        got += 1;
      }
    })();
    await nc.flush();
    for (let at = 0; at < 200; at++) other.publish("flood", "x");
    await other.flush();
    await nc.flush();
    await nc.drain();
    await reading;
    saw("drained", got, nc.isClosed());
  },
  "max-payload": async () => {
    const nc = await connect();
    const most = nc.info.max_payload;
    const sub = nc.subscribe("big");
    nc.publish("big", new Uint8Array(most));
    if ((await take(sub, 1))[0].data.length !== most) throw new Error("cut");
    try {
      nc.publish("big", new Uint8Array(most + 1));
    } catch (error) {
      saw("refused above", most, error.name);
    }
    await works(nc);
  },
  "permissions": async () => {
    const user = { user: "u", pass: "p" };
    const publishing = await errorsOf(
      (nc) => nc.publish("secret"), "permissions violation for publish to", user);
    await works(publishing, "open.x");
    const nc = await connect(user);
    const sub = nc.subscribe("secret");
    await nc.flush();
    const error = await sub.closed.then((error) => error);
    saw(error?.name, error?.operation);
    await works(nc, "open.x");
  },
  "max-subscriptions": async () => {
    const act = (nc) => ["a", "b", "c"].forEach((subject) => nc.subscribe(subject));
    await errorsOf(act, "maximum subscriptions exceeded");
  },
  "max-connections": async () => {
    const first = await connect();
    // The text may be lost with nats-server, which closes over what the client sent.
    await refused();
    saw("refused");
    await works(first);
  },
  "auth-password": async () => works(await connect({ user: "ann", pass: "secret" })),
  "auth-token": async () => works(await connect({ token: "t0ken" })),
  "auth-nkey": async () => {
    const authenticator = nats.nkeyAuthenticator(read("user.nk"));
    await works(await connect({ authenticator }));
  },
  "auth-jwt": async () => {
    const authenticator = nats.credsAuthenticator(read("user.creds"));
    await works(await connect({ authenticator }));
  },
  "auth-wrong": async () => {
    const said = await refused({ user: "ann", pass: "wrong" });
    if (!said.includes("authorization violation")) throw new Error(said);
    saw("authorization violation");
  },
  "tls": async () => works(await connect(tls())),
  "tls-certificate": async () => {
    await works(await connect(tls(withCertificate)));
    await refused(tls());
    saw("refused without one");
  },
  "websocket": async () => {
    const nc = await nats.wsconnect({ servers: process.env.WS_URL });
    await works(nc);
    const sub = nc.subscribe("big");
    nc.publish("big", new Uint8Array(100000));
    const [message] = await take(sub, 1);
    saw(message.data.length);
  },
  "tls-first": async () => works(await connect(tls({ handshakeFirst: true }))),
  "reconnect": async () => {
    const nc = await connect();
    const seen = events(nc);
    const told = (type) => seen.some((status) => status.type === type);
    const sub = nc.subscribe("after");
    await nc.flush();
    await ask("stop");
    await until(() => told("disconnect"));
    nc.publish("after", "buffered");
    await ask("start");
    await until(() => told("reconnect"));
    await nc.flush();
    const late = new Promise((resolve) => setTimeout(() => resolve("nothing"), 1000));
    saw(await Promise.race([take(sub, 1).then(([message]) => message.string()), late]));
    await works(nc);
  },
  "closed": async () => {
    const nc = await connect({ reconnect: false });
    await nc.flush();
    await ask("stop");
    await nc.closed();
    saw("closed", nc.isClosed());
  },
  "lame-duck": async () => {
    const nc = await connect();
    const seen = events(nc);
    await nc.flush();
    await ask("lame-duck");
    await until(() => seen.some((status) => status.type === "ldm"));
    saw("told");
  },
  "slow-consumer": async () => {
    const nc = await connect();
    const seen = events(nc);
    const sub = nc.subscribe("fast", { slow: 10 });
    for (let at = 0; at < 100; at++) nc.publish("fast", "x");
    await nc.flush();
    await until(() => seen.some((status) => status.type === "slowConsumer"));
    saw("told", (await take(sub, 100)).length);
    await works(nc);
  },
  "discovered-servers": async () => {
    const nc = await connect();
    const seen = events(nc);
    await until(() => nc.info.connect_urls?.length >= 2);
    await ask("stop");
    await until(() => seen.some((status) => status.type === "reconnect"));
    await works(nc);
    saw("went on at the other");
  },
};

Object.assign(behaviours, ofStreams({ connect, saw, ask, until, text }));
const behaviour = behaviours[process.argv[2]];
if (process.argv[2] === "version") {
  const path = new globalThis.URL("node_modules/@nats-io/transport-node/package.json", import.meta.url);
  console.log(JSON.parse(readFileSync(path)).version);
} else if (!behaviour) {
  process.exit(77);
} else {
  await behaviour();
}
process.exit(0);
