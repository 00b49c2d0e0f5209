// The openai package for Node.js against a gateway: node ask_node.mjs BASE_URL KEY; prints JSON.
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const ask = (content, more = {}) =>
  client.chat.completions.create({ model: "toy", messages: [{ role: "user", content }], ...more });

const whole = await ask("count 3");
const pieces = [];
let usage = null;
for await (const chunk of await ask("count 3", { stream: true, stream_options: { include_usage: true } })) {
  pieces.push(chunk.choices[0]?.delta?.content ?? "");
  usage = chunk.usage ?? usage;
}
const tools = [{ type: "function", function: { name: "say", parameters: { type: "object", properties: {} } } }];
const runner = client.chat.completions.stream({ model: "toy", messages: [{ role: "user", content: "say cellar" }], tools });
const called = (await runner.finalChatCompletion()).choices[0];
const left = await ask("hold 5", { model: "device:kitchen-1", stream: true });
for await (const _ of left) break; // ends it on the device
const error = await ask("hello", { model: "kitchen-1" }).catch((found) => found);
const models = [];
for await (const model of client.models.list()) models.push(model.id);
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed: pieces.join(""),
    usage: usage.completion_tokens,
    called: called.message.tool_calls.map((call) => [call.function.name, call.function.arguments]),
    reason: called.finish_reason,
    error: [error.status, error.code, error.param],
    models,
  }),
);
