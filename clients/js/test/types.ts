// What a program in TypeScript writes; `npm run types` checks it.
import { EdgeClient, RequestInvalid, Unavailable } from "edge-bundle";

const client = await EdgeClient.connect("mqtts://broker.example", { name: "shop", username: "shop", password: "…" });
try {
  const done = await client.complete({ device: "kitchen-1", messages: [{ role: "user", content: "Hello" }] });
  const text: string = done.choices[0]!.message.content;
  console.log(text, done.usage.cached_tokens, done.timing.first_token_ms?.toFixed(1));
  for await (const chunk of client.stream({ group: "kitchens", prompt: "Once", signal: AbortSignal.timeout(1000) }))
    process.stdout.write(chunk.choices[0]?.delta.content ?? "");
  for await (const event of client.ask({ device: "kitchen-1", prompt: "Once" })) {
    if (event.type === "queued") console.log(event.position);
    if (event.type === "end") console.log(event.last.finish_reason);
  }
  // @ts-expect-error: either a device or a group
  await client.complete({ device: "a", group: "b", prompt: "x" });
  // @ts-expect-error: no such field
  await client.complete({ device: "a", promt: "x" });
} catch (error) {
  if (error instanceof RequestInvalid) console.error(error.field, error.details);
  if (error instanceof Unavailable) console.error(error.retryAfterMs);
} finally {
  await client.close();
}
