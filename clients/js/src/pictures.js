/** Pictures that do not fit into a request: named by their digest in it, and sent in parts before it. Pure. */
import { createHash } from "node:crypto";
import { RequestInvalid } from "./errors.js";

/** A device takes no more in one request, all pictures together. */
export const MAX_PICTURE_BYTES = 6 << 20;
/** Sent at a time: brokers take messages of so many bytes nearly always. */
export const PART_BYTES = 256 << 10;

const DATA_URL = /^data:image\/(png|jpeg);base64,/i;

/**
 * The body with every picture named by its digest, and the pictures by their digests. What is no picture stays as it
 * is: the device says what is wrong with it.
 */
export function takeOut(body) {
  const pictures = new Map();
  if (!Array.isArray(body.messages)) return { body, pictures };
  const name = (part) => {
    const image = part?.image_url;
    const data = typeof image?.url === "string" ? read(image.url) : undefined;
    if (data === undefined) return part;
    const digest = createHash("sha256").update(data).digest("hex");
    pictures.set(digest, data);
    return { ...part, image_url: { ...image, url: `sha256:${digest}` } };
  };
  const messages = body.messages.map((message) =>
    Array.isArray(message?.content) ? { ...message, content: message.content.map(name) } : message,
  );
  const bytes = [...pictures.values()].reduce((sum, each) => sum + each.length, 0);
  if (bytes > MAX_PICTURE_BYTES)
    throw new RequestInvalid(
      `the pictures have ${bytes} bytes, a device takes ${MAX_PICTURE_BYTES} in a request: make them smaller`,
      { code: 413, field: "messages" },
    );
  return { body: { ...body, messages }, pictures };
}

/** The last two levels of the topic of each part of a picture, and what goes there. */
export function split(digest, data) {
  const count = Math.ceil(data.length / PART_BYTES);
  return Array.from({ length: count }, (_, at) => [
    `${digest}/${at + 1}-${count}`,
    data.subarray(at * PART_BYTES, (at + 1) * PART_BYTES),
  ]);
}

function read(url) {
  const head = DATA_URL.exec(url)?.[0];
  if (head === undefined) return undefined;
  const coded = url.slice(head.length);
  const data = Buffer.from(coded, "base64");
  return data.toString("base64") === coded ? data : undefined; // Buffer passes over what is no base64
}
