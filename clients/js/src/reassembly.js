/**
 * From frames to one answer, pure. The same rules as the Python client's; both are held against
 * tests/clients/reassembly.json.
 *
 * Events: {type: "text", text, restart}, {type: "queued", position, estimateMs}, {type: "refused", op, error} and, as
 * the end, {type: "end", last} or {type: "end", error}.
 */
export class Reassembly {
  constructor() {
    this.shown = "";
    this.next = 0;
    this.attempt = 1;
    this.broken = false;
  }

  /** The request was turned away and begins again, with frames from 0 on; what was shown is still shown. */
  askedAgain() {
    this.next = 0;
    this.attempt = 1;
    this.broken = false;
  }

  /** What is new after this frame (a string or bytes); nothing for what is no frame. */
  feed(payload) {
    let frame;
    try {
      frame = JSON.parse(typeof payload === "string" ? payload : new TextDecoder("utf-8", { fatal: true }).decode(payload));
    } catch {
      return [];
    }
    if (frame === null || typeof frame !== "object" || Array.isArray(frame)) return [];
    if (isObject(frame.control)) {
      const { op, error } = frame.control;
      return typeof op === "string" && isError(error) ? [{ type: "refused", op, error }] : [];
    }
    if ("error" in frame) return isError(frame.error) ? [{ type: "end", error: frame.error, raw: frame }] : [];
    if ("finish_reason" in frame) return isLast(frame) ? this.#end(frame) : [];
    if (!Number.isInteger(frame.s)) return [];
    if ("estimate_ms" in frame) {
      if (!Number.isFinite(frame.estimate_ms) || !Number.isInteger(frame.position)) return [];
      this.next = Math.max(this.next, frame.s + 1);
      return [{ type: "queued", position: frame.position, estimateMs: frame.estimate_ms }];
    }
    if (typeof frame.d !== "string" || !Number.isInteger(frame.n)) return [];
    return this.#piece(frame.s, frame.d, frame.attempt);
  }

  #piece(sequence, text, attempt) {
    const begins = Number.isInteger(attempt);
    // A device that restarted counts from 0 again.
    const newer = begins && attempt > this.attempt;
    if (sequence < this.next && !newer) return [];
    this.attempt = begins ? attempt : this.attempt;
    // Something is missing in between: the last frame will have it.
    if (sequence > this.next && !begins) this.broken = true;
    this.next = sequence + 1;
    if (begins) {
      this.broken = false;
      const goesOn = text.startsWith(this.shown);
      const piece = goesOn
        ? { type: "text", text: text.slice(this.shown.length), restart: false }
        : { type: "text", text, restart: this.shown !== "" };
      this.shown = text;
      return piece.text || piece.restart ? [piece] : [];
    }
    if (this.broken) return [];
    this.shown += text;
    return text ? [{ type: "text", text, restart: false }] : [];
  }

  #end(last) {
    const found = [];
    if (!last.text.startsWith(this.shown)) found.push({ type: "text", text: last.text, restart: true });
    else if (last.text.length > this.shown.length)
      found.push({ type: "text", text: last.text.slice(this.shown.length), restart: false });
    this.shown = last.text;
    found.push({ type: "end", last, raw: last });
    return found;
  }
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isError = (value) =>
  isObject(value) && Number.isInteger(value.code) && typeof value.type === "string" && typeof value.message === "string";
const isLast = (frame) =>
  typeof frame.text === "string" && typeof frame.finish_reason === "string" && isObject(frame.usage) &&
  isObject(frame.timing) && typeof frame.bundle === "string" && Number.isInteger(frame.attempt);
