/** The node in a real Node-RED, against a real broker and an agent whose model is a double: `count N`, `hold N`. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import mqtt from "mqtt";
import { startStage } from "../../js/test/stage.js";
import { startNodeRed } from "./node-red.mjs";

let stage;
let red;
let watch;
const heard = [];
let news = () => {};

/** Questions come and answers leave through MQTT nodes of the same broker. */
function flow({ port }, changes = {}) {
  const out = (name) => [
    { id: `n-${name}-pack`, type: "function", z: "n-tab", func: PACK, outputs: 1, wires: [[`n-${name}-out`]] },
    { id: `n-${name}-out`, type: "mqtt out", z: "n-tab", topic: `test/${name}`, qos: "1", broker: "n-broker", wires: [] },
  ];
  const mqttIn = (name, datatype, next) => ({
    id: `n-${name}-in`, type: "mqtt in", z: "n-tab", topic: `test/${name}`, qos: "1", datatype, broker: "n-broker", wires: [[next]],
  });
  return [
    { id: "n-tab", type: "tab", label: "test" },
    { id: "n-broker", type: "mqtt-broker", broker: "127.0.0.1", port, autoConnect: true, protocolVersion: "5", keepalive: "60", cleansession: true },
    mqttIn("ask", "json", "n-edge"),
    mqttIn("reset", "utf8", "n-change"),
    { id: "n-change", type: "change", z: "n-tab", rules: [{ t: "set", p: "reset", pt: "msg", to: "true", tot: "bool" }], wires: [["n-edge"]] },
    {
      id: "n-edge", type: "edge-bundle", z: "n-tab", name: "", broker: "n-broker", target: "device", to: "kitchen-1", system: "",
      maxTokens: "", temperature: "", timeout: "60", offline: "refuse", root: "edge/v1",
      wires: [["n-piece-pack", "n-join"], ["n-whole-pack"]], ...changes,
    },
    { id: "n-join", type: "join", z: "n-tab", mode: "auto", wires: [["n-joined-pack"]] },
    { id: "n-catch", type: "catch", z: "n-tab", scope: ["n-edge"], wires: [["n-error-pack"]] },
    ...["piece", "whole", "joined", "error"].flatMap(out),
  ];
}

const PACK = `const { payload, restart, complete, choice, device, id, usage, finish_reason, model, error, error_details } = msg;
return { payload: JSON.stringify({ payload, restart, complete, choice, device, id, usage, finish_reason, model, error: error?.message, error_details }) };`;

before(async () => {
  stage = await startStage();
  watch = await mqtt.connectAsync(stage.mqtt);
  await watch.subscribeAsync("test/#", { qos: 1 });
  watch.on("message", (topic, payload) => {
    heard.push({ topic: topic.slice(5), ...(topic === "test/ask" || topic === "test/reset" ? {} : JSON.parse(payload)) });
    news();
  });
  red = await startNodeRed(flow({ port: new URL(stage.mqtt).port }));
  await untilAnswered({ id: "q0", prompt: "count 1" });
});
after(async () => {
  await red?.end();
  await watch?.endAsync();
  await stage?.end();
});

async function until(condition) {
  for (;;) {
    const found = condition();
    if (found) return found;
    await new Promise((resolve) => (news = resolve));
  }
}

/** What came of the question with this id. */
const of = (topic, id) => heard.filter((each) => each.topic === topic && each.id === id);
const errors = (words) => heard.find((each) => each.topic === "error" && each.error.includes(words));

async function ask(question) {
  await watch.publishAsync("test/ask", JSON.stringify(question), { qos: 1 });
}

/** Ask until there is an answer: the flow's MQTT nodes connect in their own time. */
async function untilAnswered(question) {
  for (let number = 0; ; number++) {
    const id = `${question.id}-${number}`;
    await ask({ ...question, id });
    const whole = await Promise.race([until(() => of("whole", id)[0]), new Promise((resolve) => setTimeout(resolve, 500))]);
    if (whole !== undefined) return whole;
  }
}

test("a question comes out in pieces, joined, and whole", async () => {
  await ask({ id: "q1", messages: [{ role: "user", content: "count 4" }] });
  const whole = await until(() => of("whole", "q1")[0]);
  assert.equal(whole.payload, "0 1 2 3 ");
  assert.equal(whole.finish_reason, "stop");
  assert.equal(whole.device, "kitchen-1");
  assert.equal(whole.model, "toy@1.0.0");
  assert.equal(whole.usage.completion_tokens, 4);
  const pieces = await until(() => of("piece", "q1").at(-1)?.complete && of("piece", "q1"));
  assert.equal(pieces.map((each) => each.payload).join(""), "0 1 2 3 ");
  assert.equal((await until(() => of("joined", "q1")[0])).payload, "0 1 2 3 ");
});

test("several answers are several sequences, each joined and whole by itself", async () => {
  await ask({ id: "q6", messages: [{ role: "user", content: "count 3" }], n: 2 });
  const wholes = await until(() => of("whole", "q6").length === 2 && of("whole", "q6"));
  assert.deepEqual(wholes.map(({ choice, payload }) => [choice, payload]), [[0, "0 1 2 "], [1, "0.1 1.1 2.1 !"]]);
  const joined = await until(() => of("joined", "q6").length === 2 && of("joined", "q6"));
  assert.deepEqual(joined.map(({ payload }) => payload).sort(), ["0 1 2 ", "0.1 1.1 2.1 !"]);
  for (const { choice, payload } of wholes) {
    const pieces = of("piece", "q6").filter((each) => each.choice === choice);
    assert.equal(pieces.map((each) => each.payload).join(""), payload);
  }
});

test("a group, by the message", async () => {
  await ask({ id: "q2", group: "kitchens", prompt: "count 2" });
  const whole = await until(() => of("whole", "q2")[0]);
  assert.equal(whole.payload, "0 1 ");
  assert.match(whole.device, /^kitchen-[12]$/);
});

test("what cannot be answered goes to a catch node", async () => {
  await ask({ device: "kitchen1", prompt: "count 1" });
  await until(() => errors("no device kitchen1 is known to this broker; did you mean kitchen-1?"));
  await ask({ group: "kitchen", prompt: "count 1" });
  await until(() => errors("no device of a group kitchen is known to this broker; did you mean kitchens?"));
  await ask({ prompt: "count 1", temprature: 1 });
  assert.equal((await until(() => errors("temprature"))).error_details.field, "temprature");
  await ask(7);
  await until(() => errors("msg.payload must be"));
});

test("a piece is there before the answer is whole, and reset ends it on the device", async () => {
  await ask({ id: "q3", prompt: "hold 9" });
  assert.equal((await until(() => of("piece", "q3")[0])).payload, "0 ");
  await watch.publishAsync("test/reset", "x", { qos: 1 });
  await stage.order("cancelled kitchen-1 1");
  assert.deepEqual(of("whole", "q3"), []);
});

test("deploying another flow ends it on the device, and the new flow answers", async () => {
  await ask({ id: "q4", prompt: "hold 9" });
  await until(() => of("piece", "q4")[0]);
  await red.deploy(flow({ port: new URL(stage.mqtt).port }, { system: "Be brief.", maxTokens: "2" }));
  await stage.order("cancelled kitchen-1 2");
  const whole = await untilAnswered({ id: "q5", messages: [{ role: "user", content: "count 5" }] });
  assert.equal(whole.payload, "0 1 ", "max_tokens of the node");
});
