/**
 * The Node-RED node: a message in is a question, messages out are the answer as it comes, and the whole one.
 *
 * The connection is that of clients/js, one for each broker of Node-RED's own configuration.
 */
const TLS_OPTIONS = ["ca", "cert", "key", "passphrase", "rejectUnauthorized", "servername", "ALPNProtocols"];
const IDENTIFIER = /^[A-Za-z0-9_.-]{1,64}$/;

module.exports = function (RED) {
  /** Of each broker's configuration node; a promise, so that questions at the same time share one. */
  const clients = new Map();

  function connect(broker, root) {
    const key = `${broker.id} ${root}`;
    let found = clients.get(key);
    if (found === undefined) {
      found = open(broker, root);
      clients.set(key, found);
      // The next question tries again.
      found.catch(() => clients.delete(key));
      broker.once("close", () => {
        clients.delete(key);
        found.then((client) => client.close()).catch(() => {});
      });
    }
    return found;
  }

  async function open(broker, root) {
    const { EdgeClient } = await import("edge-bundle");
    const { username, password, ...rest } = broker.options;
    const options = { root };
    if (username) Object.assign(options, { username, password });
    // Brokers hold users to topics that have their names (docs/MQTT.md, "Access").
    if (IDENTIFIER.test(username ?? "")) options.name = username;
    for (const each of TLS_OPTIONS) if (rest[each] !== undefined) options[each] = rest[each];
    return await EdgeClient.connect(broker.brokerurl, options);
  }

  function EdgeBundleNode(config) {
    RED.nodes.createNode(this, config);
    const broker = RED.nodes.getNode(config.broker);
    const asked = new Set();
    const show = () =>
      this.status(asked.size > 0 ? { fill: "blue", shape: "dot", text: [...asked].at(-1).text } : {});

    this.on("input", async (msg, send, done) => {
      if (msg.reset) {
        for (const each of asked) if (isFor(each, msg)) each.abort.abort();
        return done();
      }
      const each = { id: msg._msgid, text: "asking", abort: new AbortController() };
      asked.add(each);
      show();
      try {
        if (broker === null || broker === undefined) throw new Error("choose a broker for this node");
        const request = toRequest(config, msg);
        const client = await connect(broker, config.root || "edge/v1");
        await answer(client, { ...request, signal: each.abort.signal }, msg, send, (text) => {
          each.text = text;
          show();
        });
        asked.delete(each);
        show();
        done();
      } catch (error) {
        asked.delete(each);
        if (each.abort.signal.aborted) {
          show();
          return done();
        }
        this.status({ fill: "red", shape: "ring", text: short(error.message) });
        // What a catch node may want to look at.
        msg.error_details = { code: error.code, type: error.type, field: error.field, details: error.details };
        done(error);
      }
    });

    this.on("close", () => {
      for (const each of asked) each.abort.abort();
    });
  }

  RED.nodes.registerType("edge-bundle", EdgeBundleNode);
};

/** `reset` alone is for everything, with `id` for the request of this name. */
function isFor(each, msg) {
  return msg.reset === true || msg.reset === each.id;
}

/**
 * The first output gets pieces that a join node can put together, the second one the whole answer. Of several answers
 * (`n`) each is a sequence and a whole of its own; `choice` is its number.
 */
async function answer(client, request, msg, send, show) {
  /** Pieces of each answer. */
  const sent = new Map();
  const parts = (id, choice, more) => ({
    id: choice === 0 ? id : `${id}-${choice}`, index: sent.get(choice) ?? 0, type: "string", ch: "", ...more,
  });
  for await (const event of client.ask(request)) {
    const { id, device } = event;
    if (event.type === "queued") show(`${event.position} before it`);
    if (event.type === "text" && (event.text || event.restart)) {
      const choice = event.index ?? 0;
      const piece = { ...msg, payload: event.text, restart: event.restart, device, id, choice, parts: parts(id, choice) };
      sent.set(choice, piece.parts.index + 1);
      show(`answering (${[...sent.values()].reduce((all, more) => all + more)})`);
      send([piece, null]);
    }
    if (event.type === "end") {
      const { last } = event;
      const { parts: _, ...kept } = msg;
      for (const each of last.choices ?? [{ ...last, index: 0 }]) {
        const choice = each.index;
        const end = parts(id, choice, { count: (sent.get(choice) ?? 0) + 1 });
        send([
          { ...msg, payload: "", restart: false, device, id, choice, complete: true, parts: end },
          {
            ...kept, payload: each.text, device, id, choice, model: last.bundle, usage: last.usage,
            finish_reason: each.finish_reason, tool_calls: each.tool_calls, timing: last.timing,
          },
        ]);
      }
    }
  }
}

/** What is asked: the node's settings, and over them what the message brings. */
function toRequest(config, msg) {
  const request = {};
  for (const [name, value] of [["max_tokens", config.maxTokens], ["temperature", config.temperature]])
    if (value !== "" && value !== undefined && value !== null) request[name] = Number(value);
  const { payload } = msg;
  if (typeof payload === "string") request.messages = [{ role: "user", content: payload }];
  else if (Array.isArray(payload)) request.messages = payload;
  else if (payload !== null && typeof payload === "object" && !Buffer.isBuffer(payload)) Object.assign(request, payload);
  else throw new Error("msg.payload must be a text, a list of messages, or an object with the fields of a request");
  if (config.system && Array.isArray(request.messages) && request.messages[0]?.role !== "system")
    request.messages = [{ role: "system", content: config.system }, ...request.messages];
  const target = msg.device ?? request.device;
  const group = msg.group ?? request.group;
  delete request.device;
  delete request.group;
  if (target !== undefined) request.device = target;
  else if (group !== undefined) request.group = group;
  else if (config.to) request[config.target === "group" ? "group" : "device"] = config.to;
  else throw new Error("name a device or a group: in the node, or as msg.device or msg.group");
  if (config.timeout) request.timeoutMs = Number(config.timeout) * 1000;
  if (config.offline === "wait") request.offline = "wait";
  return request;
}

function short(text) {
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}
