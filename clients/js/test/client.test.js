/** Against a real broker and an agent. Prompts are orders to the model's double: `count N`, `hold`, `reject`. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import mqtt from "mqtt";
import { EdgeClient, RequestInvalid, Unavailable, UsageError } from "../src/index.js";
import { startStage } from "./stage.js";

let stage;
before(async () => (stage = await startStage()));
after(async () => await stage.end());

const kitchen = { device: "kitchen-1" };

async function using(url, act, options) {
  const client = await EdgeClient.connect(url, options);
  try {
    await act(client);
  } finally {
    await client.close();
  }
}

for (const transport of ["mqtt", "ws"])
  for (const protocolVersion of [5, 4])
    test(`answers over ${transport}, MQTT ${protocolVersion === 5 ? "5" : "3.1.1"}`, async () => {
      await using(
        stage[transport],
        async (client) => {
          const done = await client.complete({ ...kitchen, prompt: "count 3" });
          assert.equal(done.choices[0].message.content, "0 1 2 ");
          assert.equal(done.choices[0].finish_reason, "stop");
          assert.equal(done.usage.completion_tokens, 3);
          assert.equal(done.model, "toy@1.0.0");
          let text = "";
          let last;
          for await (const each of client.stream({ ...kitchen, messages: [{ role: "user", content: "count 5" }] })) {
            text = (each.restart ? "" : text) + (each.choices[0].delta.content ?? "");
            last = each;
          }
          assert.equal(text, "0 1 2 3 4 ");
          assert.equal(last.choices[0].finish_reason, "stop");
          assert.equal(last.usage.completion_tokens, 5);
        },
        { protocolVersion },
      );
    });

test("many at a time over one connection, and any member of a group", async () => {
  await using(stage.mqtt, async (client) => {
    const counts = [...Array(20).keys()].map((each) => each + 1);
    const target = (count) => (count % 2 ? kitchen : { group: "kitchens" });
    const all = await Promise.all(counts.map((count) => client.complete({ ...target(count), prompt: `count ${count}` })));
    assert.deepEqual(all.map((each) => each.usage.completion_tokens), counts);
  });
});

test("a picture that is too large for a message goes in parts before its question", async () => {
  await using(stage.mqtt, async (client) => {
    const picture = Buffer.concat([Buffer.from("89504e470d0a1a0a", "hex"), Buffer.alloc(1_500_000, 7)]);
    const image = { type: "image_url", image_url: { url: `data:image/png;base64,${picture.toString("base64")}` } };
    const content = [image, { type: "text", text: "count 3" }];
    const done = await client.complete({ ...kitchen, messages: [{ role: "user", content }] });
    assert.equal(done.choices[0].message.content, "0 1 2 ");
  });
});

/** What the device stored as the end of a request: asked again with the same bytes it says so. */
async function endOf(request) {
  let end;
  await using(stage.mqtt, async (client) => {
    for await (const event of client.ask(request)) end = event.last;
  }, { name: "leaver" });
  return end.finish_reason;
}

const leaver = (act) => using(stage.mqtt, act, { name: "leaver" });

test("leaving the loop cancels on the device", async () => {
  const request = { ...kitchen, id: "left", prompt: "hold 5" };
  await leaver(async (client) => {
    for await (const event of client.ask(request)) if (event.type === "text") break;
  });
  assert.equal(await endOf(request), "cancelled");
});

test("an abort cancels on the device and throws the reason", async () => {
  const request = { ...kitchen, id: "aborted", prompt: "hold 5" };
  await leaver(async (client) => {
    const abort = new AbortController();
    await assert.rejects(
      async () => {
        for await (const event of client.ask({ ...request, signal: abort.signal }))
          if (event.type === "text") abort.abort(new Error("enough"));
      },
      /enough/,
    );
  });
  assert.equal(await endOf(request), "cancelled");
});

test("a time-out cancels on the device", async () => {
  const request = { ...kitchen, id: "late", prompt: "hold 5" };
  await leaver(async (client) => {
    await assert.rejects(
      async () => {
        for await (const chunk of client.stream({ ...request, timeoutMs: 5000 })) assert.equal(chunk.restart, false);
      },
      (error) => {
        assert.ok(error instanceof Unavailable);
        return /not complete within 5 s/.test(error.message);
      },
    );
  });
  assert.equal(await endOf(request), "cancelled");
});

test("closing the client cancels what is under way and says so", async () => {
  const request = { ...kitchen, id: "closed", prompt: "hold 5" };
  const client = await EdgeClient.connect(stage.mqtt, { name: "leaver" });
  const events = client.ask(request);
  assert.equal((await events.next()).value.type, "text");
  const rejected = assert.rejects(events.next(), /closed/);
  await client.close();
  await rejected;
  assert.equal(await endOf(request), "cancelled");
  await assert.rejects(client.complete({ ...kitchen, prompt: "count 1" }), UsageError);
});

test("a request that was left before a member of the group had answered is cancelled by whichever answers", async () => {
  const listener = await mqtt.connectAsync(stage.mqtt);
  await listener.subscribeAsync("edge/v1/c/leaver/r/+/groupless", { qos: 1 });
  const end = new Promise((resolve) =>
    listener.on("message", (_topic, payload) => {
      const frame = JSON.parse(payload);
      if (frame.finish_reason !== undefined) resolve(frame.finish_reason);
    }),
  );
  await leaver(async (client) => {
    await client.devices(); // The members are known: it is asked at once.
    const abort = new AbortController();
    const asked = client.complete({ group: "kitchens", id: "groupless", prompt: "hold 5", signal: abort.signal });
    setTimeout(() => abort.abort(), 0);
    await assert.rejects(asked, { name: "AbortError" });
    assert.equal(await end, "cancelled");
  });
  await listener.endAsync();
});

test("calls of functions and thoughts come beside the text", async () => {
  await using(stage.mqtt, async (client) => {
    const tools = [{ type: "function", function: { name: "read", parameters: { type: "object" } } }];
    const request = { ...kitchen, messages: [{ role: "user", content: "now cellar" }], tools, tool_choice: "required" };
    const { finish_reason, message } = (await client.complete(request)).choices[0];
    const call = { id: "call_1", type: "function", function: { name: "read", arguments: '{"word": "cellar"}' } };
    assert.equal(finish_reason, "tool_calls");
    assert.deepEqual(message, { role: "assistant", content: "", reasoning_content: "Hm, well.", tool_calls: [call] });
    let [thought, joined] = ["", ""];
    for await (const { choices } of client.stream(request)) {
      thought += choices[0].delta.reasoning_content ?? "";
      for (const each of choices[0].delta.tool_calls ?? []) joined += each.function.arguments ?? "";
    }
    assert.deepEqual([thought, joined], ["Hm, well.", call.function.arguments]);
    const result = { role: "tool", tool_call_id: "call_1", content: "11" };
    const more = await client.complete({ ...request, messages: [...request.messages, message, result] });
    assert.equal(more.choices[0].message.tool_calls[0].function.arguments, '{"word": "11"}');
  });
});

test("what a device refuses names the field, and every fault with a suggestion", async () => {
  await using(stage.mqtt, async (client) => {
    await assert.rejects(client.complete({ ...kitchen, prompt: "count 1", temprature: 1, top_p: 7 }), (error) => {
      assert.ok(error instanceof RequestInvalid);
      assert.equal(error.code, 400);
      assert.deepEqual(new Set(error.details.map((each) => each.field)), new Set(["temprature", "top_p"]));
      return error.details.some((each) => each.suggestion === "temperature");
    });
    await assert.rejects(client.complete({ ...kitchen, prompt: "reject" }), /too long/);
    const half = await client.complete({ ...kitchen, prompt: "count 1 \ud83d" }).catch((error) => error);
    assert.equal(half.code, 400);
  });
});

test("misspelt, unknown, modelless and offline devices are named at once", async () => {
  await using(stage.mqtt, async (client) => {
    const why = (device) => client.complete({ device, prompt: "count 1" }).catch((error) => error.message);
    assert.equal(await why("kitchen1"), "no device kitchen1 is known to this broker; did you mean kitchen-1?");
    assert.equal(await why("empty-1"), "the device empty-1 has no model");
    const group = await client.complete({ group: "kitchen", prompt: "count 1" }).catch((error) => error.message);
    assert.equal(group, "no device of a group kitchen is known to this broker; did you mean kitchens?");
    await stage.order("stop kitchen-2");
    while ((await client.devices())["kitchen-2"].online) await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(await why("kitchen-2"), "the device kitchen-2 is offline");
    const devices = await client.devices();
    assert.deepEqual(Object.keys(devices).sort(), ["empty-1", "kitchen-1", "kitchen-2"]);
    assert.equal(devices["kitchen-1"].ready, true);
  });
});

test("a broker that is killed and comes back costs nothing", async () => {
  await using(stage.mqtt, async (client) => {
    const seen = [];
    let restarted;
    for await (const event of client.ask({ ...kitchen, prompt: "hold 4" })) {
      seen.push(event);
      if (event.type === "text" && restarted === undefined)
        restarted = stage.order("restart broker").then(() => stage.order("release"));
    }
    await restarted;
    assert.equal(seen.at(-1).last.text, "0 1 2 3 ");
    const text = seen.filter((each) => each.type === "text").reduce((all, each) => (each.restart ? "" : all) + each.text, "");
    assert.equal(text, "0 1 2 3 ");
  });
});

test("control of a request by id", async () => {
  await using(stage.mqtt, async (client) => {
    await client.cancel("kitchen-1", "never-asked");
    await assert.rejects(client.update("kitchen-1", "a b", {}), UsageError);
  });
});

test("no broker is said without the password", async () => {
  await assert.rejects(EdgeClient.connect("mqtt://user:secret@127.0.0.1:1"), (error) => {
    assert.ok(error instanceof Unavailable);
    assert.doesNotMatch(error.message, /secret/);
    return /no connection to 127.0.0.1:1/.test(error.message);
  });
  await assert.rejects(EdgeClient.connect("http://127.0.0.1"), UsageError);
  await assert.rejects(EdgeClient.connect(stage.mqtt, { name: "a b" }), UsageError);
});
