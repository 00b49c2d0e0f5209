/**
 * One request from the first word to the last frame: what to send when. Pure: clock and frames are handed in.
 *
 * A request is sent again, with the same bytes, whenever it may have been lost: the device answers an id once, however
 * often it is sent. After a broken connection `resume` asks for the text that went by meanwhile.
 */
import { RequestInvalid, Unavailable, UsageError } from "./errors.js";
import { split, takeOut } from "./pictures.js";
import { Reassembly } from "./reassembly.js";

/** Without any frame for so long, the device is asked again. */
export const SILENCE_MS = 15_000;
/** Before asking a busy device again, where it does not say when. */
export const RETRY_MS = 1_000;
/** A device reads no larger request. */
export const MAX_REQUEST_BYTES = 1 << 20;
/** How often a request's pictures are sent: a device that loses them again and again has no room for them. */
export const MAX_PARTS_SENT = 3;

const IDENTIFIER = /^[A-Za-z0-9_.-]{1,64}$/;

export function checkIdentifier(value, what) {
  if (typeof value !== "string" || !IDENTIFIER.test(value))
    throw new UsageError(`${what} must be 1 to 64 of A-Z a-z 0-9 _ . -`, { field: what });
  return value;
}

export class RequestSession {
  constructor(body, { name, root, device, group, now, timeoutMs, retry }) {
    if ((device === undefined) === (group === undefined)) throw new UsageError("name either a device or a group");
    checkIdentifier(device ?? group, device === undefined ? "group" : "device");
    if (body === null || typeof body !== "object" || Array.isArray(body))
      throw new UsageError("a request is an object with messages or a prompt");
    this.id = body.id;
    checkIdentifier(this.id, "id");
    let bytes;
    this.pictures = new Map();
    [this.payload, bytes] = written(body);
    if (bytes > MAX_REQUEST_BYTES && device !== undefined) {
      const taken = takeOut(body);
      this.pictures = taken.pictures;
      [this.payload, bytes] = written(taken.body);
    }
    this.partsDue = this.pictures.size > 0;
    this.partsSent = 0;
    if (bytes > MAX_REQUEST_BYTES)
      throw new RequestInvalid(`the request has ${bytes} bytes, a device takes ${MAX_REQUEST_BYTES}: shorten it`, {
        code: 413,
      });
    this.device = device;
    this.group = group;
    this.name = name;
    this.root = root;
    this.timeoutMs = timeoutMs;
    this.retry = retry;
    this.deadline = now + timeoutMs;
    this.askAt = now;
    this.resumeAt = undefined;
    this.heard = now;
    this.reassembly = new Reassembly();
  }

  /** Where the request goes: to the device that answers it, once that is known. */
  get topic() {
    return this.device === undefined
      ? `${this.root}/g/${this.group}/generate/${this.name}`
      : `${this.root}/d/${this.device}/generate/${this.name}`;
  }

  /** Topic and payload of a control message, once the device is known. */
  control(op, more = {}) {
    return [`${this.root}/d/${this.device}/control/${this.name}`, JSON.stringify({ id: this.id, op, ...more })];
  }

  /** The connection was gone: frames may be lost, and the request, too. */
  reconnected(now) {
    // To a group it would be another request for another device; the broker still has ours.
    if (this.device !== undefined) this.askAt = this.resumeAt = now;
  }

  /** Topics and payloads to send now. Throws Unavailable when the time is up. */
  actions(now) {
    if (now >= this.deadline) {
      throw new Unavailable(this.#late(), { type: "timeout" });
    }
    if (now - this.heard >= SILENCE_MS) {
      this.heard = now;
      // Brokers drop what a member of a group had not acknowledged when it vanished: another one shall answer.
      this.askAt = now;
      this.resumeAt = this.device === undefined ? undefined : now;
    }
    const found = [];
    if (this.askAt !== undefined && this.askAt <= now) {
      this.askAt = undefined;
      found.push(...this.#parts(), [this.topic, this.payload]);
    }
    if (this.resumeAt !== undefined && this.resumeAt <= now) {
      this.resumeAt = undefined;
      found.push(this.control("resume"));
    }
    return found;
  }

  /** Pictures that do not fit into the request, where the device does not have them. */
  #parts() {
    if (!this.partsDue) return [];
    this.partsDue = false;
    this.partsSent += 1;
    const start = `${this.root}/d/${this.device}/picture/${this.name}`;
    const parts = [...this.pictures].flatMap(([digest, data]) => split(digest, data));
    return parts.map(([levels, piece]) => [`${start}/${levels}`, piece]);
  }

  /** That the time is up, and how far it came. */
  #late() {
    const within = `within ${this.timeoutMs / 1000} s`;
    const { shown } = this.reassembly;
    if (shown !== "") return `the answer of ${this.device} was not complete ${within}: ${shown.length} characters had come`;
    if (this.turnedAway !== undefined) return `${this.device} could not answer ${within}: ${this.turnedAway.message}`;
    if (this.position !== undefined)
      return `${this.device} had not begun to answer ${within}: ${this.position} requests were before this one`;
    return `no answer from ${this.device ?? `the group ${this.group}`} ${within}; is it online?`;
  }

  /** When actions() has something to do again. */
  dueAt() {
    const times = [this.deadline, this.heard + SILENCE_MS, this.askAt, this.resumeAt];
    return Math.min(...times.filter((time) => time !== undefined));
  }

  /** Events of a frame that `device` sent for this id. */
  feed(device, payload, now) {
    if (this.device !== undefined && device !== this.device) return this.#hearAnother(payload);
    this.heard = now;
    this.device = device;
    const found = this.reassembly.feed(payload);
    for (const each of found) if (each.type === "queued") this.position = each.position;
    const error = found.at(-1)?.error;
    if (error?.type === "picture_missing" && this.pictures.size > 0 && this.partsSent < MAX_PARTS_SENT) {
      this.partsDue = true;
      this.askAt = now;
      this.reassembly.askedAgain();
      return [];
    }
    if (this.retry && found.at(-1)?.type === "end" && mayPass(error)) {
      const wait = error.retry_after_ms === undefined ? RETRY_MS : Math.max(50, error.retry_after_ms);
      this.turnedAway = error;
      if (now + wait < this.deadline) {
        this.askAt = this.heard = now + wait;
        this.reassembly.askedAgain();
        return [];
      }
    }
    return found;
  }

  /** Another device than the one we listen to: of a group, its whole answer is as good; else it has no say. */
  #hearAnother(payload) {
    if (this.group === undefined) return [];
    const end = new Reassembly().feed(payload).at(-1);
    return end?.last === undefined ? [] : this.reassembly.feed(payload);
  }
}

/** As JSON, and how many bytes that has. */
function written(body) {
  let text;
  try {
    text = JSON.stringify(body);
  } catch (error) {
    throw new RequestInvalid(`the request cannot be written as JSON: ${error.message}`);
  }
  return [text, new TextEncoder().encode(text).length];
}

function mayPass(error) {
  return error !== undefined && (error.code === 429 || error.code === 503) && error.type !== "interrupted";
}
