import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import test from "node:test";
import { MAX_PICTURE_BYTES, PART_BYTES } from "../src/pictures.js";
import { nearest, Presence } from "../src/presence.js";
import { MAX_PARTS_SENT, RequestSession, SILENCE_MS } from "../src/request.js";

const options = { name: "me", root: "edge/v1", device: "box", now: 0, timeoutMs: 60_000, retry: true };
const topics = (actions) => actions.map(([topic]) => topic.split("/").slice(2).join("/"));

test("a request is sent once, again after silence and after a broken connection, with the same bytes", () => {
  const session = new RequestSession({ id: "q1", prompt: "hi" }, options);
  const [[topic, payload]] = session.actions(0);
  assert.equal(topic, "edge/v1/d/box/generate/me");
  assert.deepEqual(session.actions(1), []);
  assert.equal(session.dueAt(), SILENCE_MS);
  const again = session.actions(SILENCE_MS);
  assert.deepEqual(topics(again), ["d/box/generate/me", "d/box/control/me"]);
  assert.equal(again[0][1], payload);
  session.reconnected(SILENCE_MS + 1);
  assert.equal(session.actions(SILENCE_MS + 1).length, 2);
});

test("to a group it is sent again only after silence, since another connection would ask another device", () => {
  const session = new RequestSession({ id: "q1", prompt: "hi" }, { ...options, device: undefined, group: "g" });
  assert.equal(session.actions(0)[0][0], "edge/v1/g/g/generate/me");
  session.reconnected(1);
  assert.deepEqual(session.actions(1), []);
  session.feed("box-2", '{"s":0,"d":"a","n":1,"attempt":1}', 2);
  session.reconnected(3);
  assert.equal(session.actions(3)[0][0], "edge/v1/d/box-2/generate/me");
});

test("a busy device is asked again when it says", () => {
  const session = new RequestSession({ id: "q1", prompt: "hi" }, options);
  session.actions(0);
  const busy = '{"s":0,"error":{"code":429,"type":"queue_full","message":"full","retry_after_ms":700},"attempt":1}';
  assert.deepEqual(session.feed("box", busy, 100), []);
  assert.deepEqual(session.actions(799), []);
  assert.equal(session.actions(800).length, 1);
});

test("a time-out says whether text had come", () => {
  const silent = new RequestSession({ id: "q1", prompt: "hi" }, options);
  assert.throws(() => silent.actions(60_000), /no answer from box within 60 s; is it online\?/);
  const streaming = new RequestSession({ id: "q1", prompt: "hi" }, options);
  streaming.feed("box", '{"s":0,"d":"a","n":1,"attempt":1}', 2);
  assert.throws(() => streaming.actions(60_000), /the answer of box was not complete within 60 s/);
});

/** A part of a message, and the file in it, which begins as a PNG does. */
function picture(byte, size) {
  const data = Buffer.concat([Buffer.from("89504e470d0a1a0a", "hex"), Buffer.alloc(size, byte)]);
  const url = `data:image/png;base64,${data.toString("base64")}`;
  return { data, part: { type: "image_url", image_url: { url, detail: "low" } } };
}

const shown = (...pictures) => ({ id: "q1", messages: [{ role: "user", content: pictures.map(({ part }) => part) }] });
const missing = '{"s":0,"error":{"code":404,"type":"picture_missing","message":"gone"},"attempt":1}';

test("pictures that do not fit go in parts before the request, and again where the device lacks them", () => {
  const small = picture(1, 100);
  const large = picture(2, 4 * PART_BYTES);
  const session = new RequestSession(shown(small, large), options);
  const first = session.actions(0);
  const digest = ({ data }) => createHash("sha256").update(data).digest("hex");
  const names = [`${digest(small)}/1-1`, ...[1, 2, 3, 4, 5].map((part) => `${digest(large)}/${part}-5`)];
  assert.deepEqual(topics(first), [...names.map((name) => `d/box/picture/me/${name}`), "d/box/generate/me"]);
  assert.deepEqual(Buffer.concat(first.slice(1, -1).map(([, piece]) => piece)), large.data);
  const [{ content }] = JSON.parse(first.at(-1)[1]).messages;
  const named = [small, large].map((each) => ({ url: `sha256:${digest(each)}`, detail: "low" }));
  assert.deepEqual(content.map((part) => part.image_url), named);
  assert.deepEqual(topics(session.actions(SILENCE_MS)), ["d/box/generate/me", "d/box/control/me"], "they are there");
  for (let sent = 1; sent < MAX_PARTS_SENT; sent++) {
    assert.deepEqual(session.feed("box", missing, SILENCE_MS + 1), []);
    assert.deepEqual(session.actions(SILENCE_MS + 1), first);
  }
  assert.equal(session.feed("box", missing, SILENCE_MS + 2).at(-1).error.type, "picture_missing");
});

test("pictures that fit travel within the request, and a group gets nothing else", () => {
  const [[, payload], ...more] = new RequestSession(shown(picture(1, 100)), options).actions(0);
  assert.match(payload, /data:image\/png/);
  assert.deepEqual(more, []);
  const refused = (body, more, words) =>
    assert.throws(() => new RequestSession(body, { ...options, ...more }), (error) => error.message.includes(words));
  refused(shown(picture(1, 1 << 20)), { device: undefined, group: "g" }, "shorten it");
  refused(shown(picture(1, MAX_PICTURE_BYTES)), {}, "6291456 in a request: make them smaller");
  const broken = { type: "image_url", image_url: { url: `data:image/png;base64,${"?".repeat(1 << 20)}` } };
  refused(shown({ part: broken }), {}, "shorten it");
});

test("what cannot be sent is refused before it is", () => {
  const refused = (body, more, words) =>
    assert.throws(() => new RequestSession(body, { ...options, ...more }), (error) => error.message.includes(words));
  refused({ id: "q 1" }, {}, "id must be");
  refused({ id: "q1" }, { device: "a/b" }, "device must be");
  refused({ id: "q1" }, { device: undefined }, "either a device or a group");
  refused({ id: "q1" }, { group: "g" }, "either a device or a group");
  refused({ id: "q1", prompt: "x".repeat(1 << 20) }, {}, "shorten it");
  refused({ id: "q1", seed: 1n }, {}, "cannot be written as JSON");
});

test("presence objects to what cannot answer", () => {
  const presence = new Presence();
  const why = (device) => presence.objection({ device });
  assert.match(why("kitchen-1"), /no device has reported to this broker/);
  const say = (device, status, reasons, groups = []) => {
    presence.hear(device, "status", status);
    presence.hear(device, "health", { ready: reasons.length === 0, reasons });
    presence.hear(device, "info", { groups });
  };
  say("kitchen-1", { online: true }, [], ["kitchens"]);
  say("attic", { online: false }, [], ["attics"]);
  say("bare", { online: true }, ["no_model"], ["spare"]);
  say("loading", { online: true }, ["loading"]);
  assert.equal(why("kitchen-1"), undefined);
  assert.equal(why("loading"), undefined);
  assert.match(why("kitchen1"), /did you mean kitchen-1\?$/);
  assert.match(why("zzzz"), /no device zzzz is known to this broker$/);
  assert.match(why("attic"), /offline/);
  assert.match(why("bare"), /no model/);
  const whyGroup = (group) => presence.objection({ group });
  assert.equal(whyGroup("kitchens"), undefined);
  assert.match(whyGroup("kitchen"), /no device of a group kitchen is known to this broker; did you mean kitchens\?$/);
  assert.match(whyGroup("attics"), /every device of the group attics is offline: attic$/);
  assert.match(whyGroup("spare"), /no device of the group spare that is online has a model/);
  presence.hear("unheard", "status", { online: true });
  assert.equal(presence.mayAnswer({ device: "unheard" }), false, "its health comes yet");
  assert.equal(why("unheard"), undefined);
  for (const kind of ["status", "health", "info"]) presence.hear("attic", kind, null);
  assert.match(why("attic"), /no device attic is known/);
  assert.equal(nearest("KITCHEN-1", ["kitchen-1", "kitchen-22"]), "kitchen-1");
});
