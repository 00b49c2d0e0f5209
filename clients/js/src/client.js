/** The client: any number of requests at a time over one connection, in Node.js over TCP, TLS and websockets. */
import { randomBytes } from "node:crypto";
import mqtt from "mqtt";
import { fromFrame, EdgeError, Unavailable, UsageError } from "./errors.js";
import { Presence } from "./presence.js";
import { choicesOf } from "./reassembly.js";
import { checkIdentifier, RequestSession } from "./request.js";

const CONNECT_MS = 15_000;
/** After a request of a group was left before any member had answered: a member that answers then is told to stop. */
const LEFT_MS = 60_000;
/** Retained documents follow the acknowledgement of their subscription; brokers far away take a moment. */
const PRESENCE_MS = 1_000;
/** MQTT 5 is spoken so often to a broker that closes the connection without a word: old ones do that. */
const CLOSED_CONNECTS = 3;

/** Kinds of retained documents that say whether a device can be asked. */
const DOCUMENTS = ["status", "health", "info"];

export class EdgeClient {
  #connection;
  #options;
  #inboxes = new Map();
  #presence = new Presence();
  #watched = new Map();
  #closed = false;

  /**
   * @param {string} url mqtt://, mqtts://, ws:// or wss://, with host, port and path.
   * @param {object} [options] `name` of this program in topics (default: random), `root` of the topics, and what the
   *   mqtt package takes: `username`, `password`, `ca`, `cert`, `key`, `protocolVersion` …
   */
  static async connect(url, options = {}) {
    const client = new EdgeClient(url, options);
    await client.#open(url);
    return client;
  }

  /** Use `EdgeClient.connect`. */
  constructor(url, { name, root = "edge/v1", ...options } = {}) {
    if (!/^(mqtts?|wss?):\/\//.test(url)) throw new UsageError(`${url} is not mqtt://, mqtts://, ws:// or wss://`);
    this.name = checkIdentifier(name ?? `js-${randomBytes(6).toString("hex")}`, "name");
    this.root = root;
    this.#options = options;
  }

  async #open(url) {
    const versions = this.#options.protocolVersion === undefined ? [5, 5, 5, 4] : [this.#options.protocolVersion];
    let failure;
    for (let at = 0; at < versions.length; at++) {
      try {
        this.#connection = await attempt(url, { ...this.#options, protocolVersion: versions[at] }, this.name);
        failure = undefined;
        break;
      } catch (error) {
        failure = error;
        if (error.unsupported) at = Math.max(at, CLOSED_CONNECTS - 1);
        else if (!error.silent) break;
      }
    }
    if (failure !== undefined) throw new Unavailable(`no connection to ${hostOf(url)}: ${failure.message}`);
    this.#connection.on("message", (topic, payload) => this.#route(topic, payload));
    this.#connection.on("connect", () => this.#each((inbox) => inbox.reconnected()));
    this.#connection.on("error", () => {}); // Shown by what is asked; without a listener Node would end the process.
    await this.#subscribe(`${this.root}/c/${this.name}/r/+/+`, 1);
  }

  async #subscribe(filter, qos) {
    const granted = await this.#connection.subscribeAsync(filter, { qos }).catch((error) => {
      throw new Unavailable(`the broker refuses ${filter}: ${error.message}`);
    });
    if (granted.some((each) => each.qos >= 0x80)) throw new Unavailable(`the broker refuses ${filter}`);
  }

  #route(topic, payload) {
    if (!topic.startsWith(`${this.root}/`)) return;
    const levels = topic.slice(this.root.length + 1).split("/");
    if (levels[0] === "c" && levels.length === 5) {
      for (const inbox of this.#inboxes.get(levels[4]) ?? []) inbox.put(levels[3], payload);
    } else if (levels[0] === "d" && levels.length === 3 && DOCUMENTS.includes(levels[2])) {
      this.#presence.hear(levels[1], levels[2], document(payload));
    }
  }

  #each(act) {
    for (const inboxes of this.#inboxes.values()) for (const inbox of [...inboxes]) act(inbox);
  }

  /** Whether the broker lets us read it, once what it keeps has come. */
  #watch(filter) {
    let watched = this.#watched.get(filter);
    if (watched === undefined) {
      watched = this.#subscribe(filter, 1).then(() => pause(PRESENCE_MS).then(() => true), () => false);
      this.#watched.set(filter, watched);
    }
    return watched;
  }

  #watchAll() {
    return Promise.all(DOCUMENTS.map((kind) => this.#watch(`${this.root}/d/+/${kind}`)));
  }

  /** Devices that this broker knows, by name: {online, ready, reasons, active, groups}. */
  async devices() {
    await this.#watchAll();
    return this.#presence.all();
  }

  async #objection(target) {
    let readable;
    const all = this.#watchAll();
    all.then((granted) => (readable = granted.every(Boolean)));
    // Documents of a device that answers are enough: only a bad verdict waits for all of them.
    while (readable === undefined && !this.#presence.mayAnswer(target)) await pause(20);
    // Where the broker does not let us read them, or is away, nothing is known.
    return readable === false || !this.#connection.connected ? undefined : this.#presence.objection(target);
  }

  /** The whole answer, in the shape of OpenAI's chat.completion. Options as `ask` takes them. */
  async complete(request) {
    for await (const event of this.ask({ stream: request.group !== undefined, ...request }))
      if (event.type === "end") return completion(event);
    throw new EdgeError("the answer has no end"); // not reached: ask() ends with an end or throws
  }

  /**
   * The answer as it comes, in the shape of OpenAI's chat.completion.chunk. A chunk with `restart` makes the text
   * before it void. Leaving the loop cancels the request on the device.
   */
  async *stream(request) {
    for await (const event of this.ask(request)) {
      if (event.type === "text") {
        const delta = { content: event.text };
        if (event.reasoning !== undefined) delta.reasoning_content = event.reasoning;
        if (event.toolCalls !== undefined) delta.tool_calls = event.toolCalls;
        yield chunk(event.id, [{ index: event.index ?? 0, delta, finish_reason: null }], { restart: event.restart });
      }
      if (event.type === "end") {
        const ends = choicesOf(event.last).map(({ index, finish_reason }) => ({ index, delta: {}, finish_reason }));
        yield chunk(event.id, ends, { usage: event.last.usage, model: event.last.bundle });
      }
    }
  }

  /**
   * Send a request and yield its events: text, queued, refused, end.
   *
   * @param request the fields of docs/MQTT.md with `device` or `group`, and `timeoutMs` (600000), `retry` (true: wait
   *   out refusals that pass), `offline` ("refuse", or "wait" until it is back), `signal` (an AbortSignal).
   * Leaving the loop, an abort and a time-out cancel the request on the device.
   */
  async *ask({ device, group, timeoutMs = 600_000, retry = true, offline = "refuse", signal, ...fields }) {
    signal?.throwIfAborted();
    if (this.#closed) throw new UsageError("this client is closed");
    const body = { id: randomBytes(8).toString("hex"), ...fields };
    const { name, root } = this;
    const session = new RequestSession(body, { name, root, device, group, now: now(), timeoutMs, retry });
    if (offline !== "wait") {
      const objection = await this.#objection({ device, group });
      if (objection !== undefined) throw new Unavailable(objection, { type: "device_unavailable" });
      signal?.throwIfAborted();
    }
    const inbox = new Inbox(session);
    const inboxes = this.#inboxes.get(session.id) ?? new Set();
    this.#inboxes.set(session.id, inboxes.add(inbox));
    const onAbort = () => inbox.wake();
    signal?.addEventListener("abort", onAbort);
    let over = false;
    try {
      for (;;) {
        signal?.throwIfAborted();
        if (this.#closed) throw new Unavailable("the client was closed before the answer came");
        const event = inbox.events.shift();
        if (event !== undefined) {
          if (event.type === "end") {
            over = true;
            if (event.error !== undefined) throw fromFrame(event.error);
          }
          yield { ...event, id: session.id, device: session.device };
          if (over) return;
          continue;
        }
        for (const [topic, payload] of session.actions(now())) this.#publish(topic, payload);
        await inbox.wait(session.dueAt() - now());
      }
    } finally {
      signal?.removeEventListener("abort", onAbort);
      if (!over) this.#leave(session, inbox);
      else this.#forget(session, inbox);
    }
  }

  #forget(session, inbox) {
    const inboxes = this.#inboxes.get(session.id);
    inboxes?.delete(inbox);
    if (inboxes?.size === 0) this.#inboxes.delete(session.id);
  }

  /** Nobody wants the rest: the device need not compute it. */
  #leave(session, inbox) {
    if (session.device !== undefined || this.#closed) {
      if (session.device !== undefined) this.#publish(...session.control("cancel"));
      this.#forget(session, inbox);
      return;
    }
    const timer = setTimeout(() => this.#forget(session, inbox), LEFT_MS);
    timer.unref();
    inbox.put = (device) => {
      clearTimeout(timer);
      session.device = device;
      this.#publish(...session.control("cancel"));
      this.#forget(session, inbox);
    };
  }

  #publish(topic, payload) {
    // One that is lost with the connection is sent again: sessions look after that, not this package's queue.
    this.#connection.publish(topic, payload, { qos: 1 }, () => {});
  }

  /** End a request of our own; its last frame says `cancelled`. */
  async cancel(device, id) {
    await this.#control(device, id, "cancel");
  }

  /** Change sampling parameters of a request of our own; its events have `refused` if that is wrong. */
  async update(device, id, set) {
    await this.#control(device, id, "update", { set });
  }

  /** Ask for all text so far, or for the last frame, of a request of our own. */
  async resume(device, id) {
    await this.#control(device, id, "resume");
  }

  async #control(device, id, op, more = {}) {
    checkIdentifier(device, "device");
    checkIdentifier(id, "id");
    const payload = JSON.stringify({ id, op, ...more });
    await this.#connection.publishAsync(`${this.root}/d/${device}/control/${this.name}`, payload, { qos: 1 });
  }

  /** Cancel what is under way and end the connection. */
  async close() {
    if (this.#closed) return;
    for (const inboxes of this.#inboxes.values())
      for (const { session } of inboxes) if (session.device !== undefined) this.#publish(...session.control("cancel"));
    this.#closed = true;
    this.#each((inbox) => inbox.wake());
    await this.#connection.endAsync(!this.#connection.connected);
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }
}

/** Events of one request until they are taken. */
class Inbox {
  events = [];
  #wake = () => {};

  constructor(session) {
    this.session = session;
  }

  put(device, payload) {
    this.events.push(...this.session.feed(device, payload, now()));
    this.#wake();
  }

  reconnected() {
    this.session.reconnected(now());
    this.#wake();
  }

  wake() {
    this.#wake();
  }

  wait(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.max(0, Math.min(ms, 0x7fffffff)));
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      if (this.events.length > 0) this.#wake();
    });
  }
}

function attempt(url, options, name) {
  return new Promise((resolve, reject) => {
    const connection = mqtt.connect(url, {
      clean: true, connectTimeout: CONNECT_MS, reconnectPeriod: 1_000, ...options,
      // NATS refuses dots here, although it takes them in topics.
      clientId: `${name.replaceAll(".", ":")}-${randomBytes(4).toString("hex")}`,
    });
    // Only our own listeners go: the package listens to itself, too.
    const stop = () => {
      clearTimeout(timer);
      connection.off("connect", onConnect).off("error", onError).off("close", onClose);
    };
    const fail = (message, more = {}) => {
      stop();
      connection.on("error", () => {});
      connection.end(true);
      reject(Object.assign(new Error(message), more));
    };
    const onConnect = () => {
      stop();
      resolve(connection);
    };
    const onError = (error) =>
      fail(error.message || error.code || String(error), { unsupported: error.code === 1 || error.code === 0x84 });
    const onClose = () => fail("it closed the connection instead of answering", { silent: true });
    const timer = setTimeout(() => fail(`no answer within ${CONNECT_MS / 1000} s`), CONNECT_MS);
    connection.on("connect", onConnect).on("error", onError).on("close", onClose);
  });
}

function completion({ id, last }) {
  const choices = choicesOf(last).map((each) => {
    const message = { role: "assistant", content: each.text };
    for (const extra of ["reasoning_content", "tool_calls"]) if (each[extra] !== undefined) message[extra] = each[extra];
    const choice = { index: each.index, message, finish_reason: each.finish_reason };
    if (each.logprobs !== undefined) choice.logprobs = { content: each.logprobs };
    return choice;
  });
  return {
    id, object: "chat.completion", created: Math.floor(Date.now() / 1000), model: last.bundle, choices,
    usage: last.usage, timing: last.timing, attempt: last.attempt,
  };
}

function chunk(id, choices, more) {
  return { id, object: "chat.completion.chunk", choices, restart: false, ...more };
}

function document(payload) {
  try {
    const found = JSON.parse(payload.toString());
    return found !== null && typeof found === "object" ? found : null;
  } catch {
    return null;
  }
}

/** Without user and password. */
function hostOf(url) {
  try {
    return new URL(url).host;
  } catch {
    return url;
  }
}

const now = () => performance.now();
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
