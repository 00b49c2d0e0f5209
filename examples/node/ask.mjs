// Asks a device and prints the answer as it comes: node ask.mjs "Say hello."
import { EdgeClient } from "edge-bundle";

const client = await EdgeClient.connect(process.env.EDGE_BROKER ?? "mqtt://127.0.0.1:1883");
try {
  const request = {
    device: process.env.EDGE_DEVICE ?? "kitchen-1",
    messages: [{ role: "user", content: process.argv[2] ?? "Say hello." }],
    max_tokens: 100,
    timeoutMs: 120_000,
  };
  for await (const chunk of client.stream(request)) {
    if (chunk.restart) process.stdout.write("\n[again] "); // what came before is void
    process.stdout.write(chunk.choices[0].delta.content ?? "");
  }
  process.stdout.write("\n");
} catch (error) {
  console.error(`${error.type ?? error.name}: ${error.message}`);
  process.exitCode = 1;
} finally {
  await client.close();
}
