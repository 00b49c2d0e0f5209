import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { Reassembly } from "../src/reassembly.js";

const cases = JSON.parse(readFileSync(new URL("../../../tests/clients/reassembly.json", import.meta.url)));

for (const { name, frames, found } of cases)
  test(`frames: ${name}`, () => {
    const reassembly = new Reassembly();
    const seen = frames.flatMap((frame) =>
      reassembly.feed(typeof frame === "string" ? frame : JSON.stringify(frame)).map(short),
    );
    assert.deepEqual(seen, found);
  });

function short(event) {
  if (event.type === "text") {
    const { text, index, reasoning, toolCalls: calls } = event;
    return { [event.restart ? "restart" : "text"]: text, ...(index && { index }), ...(reasoning && { reasoning }), ...(calls && { calls }) };
  }
  if (event.type === "queued") return { queued: event.position };
  if (event.type === "refused") return { refused: event.op };
  return event.error === undefined ? { end: event.last.text } : { error: event.error.type };
}
