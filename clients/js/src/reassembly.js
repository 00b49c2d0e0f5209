/**
 * From frames to one answer, pure. The same rules as the Python client's; both are held against
 * tests/clients/reassembly.json.
 *
 * Events: {type: "text", text, restart, index?, reasoning?, toolCalls?}, {type: "queued", position, estimateMs}, {type: "refused", op, error} and, as
 * the end, {type: "end", last} or {type: "end", error}.
 */
export class Reassembly {
  #so = new Map();
  /** Answers that began again since a frame was missed. */
  #whole = new Set();

  constructor() {
    this.next = 0;
    this.attempt = 1;
    this.broken = false;
  }

  /** The text so far, of the first answer. */
  get shown() {
    return this.#of(0).text;
  }

  #of(index) {
    if (!this.#so.has(index)) this.#so.set(index, nothing());
    return this.#so.get(index);
  }

  /** The request was turned away and begins again, with frames from 0 on; what was shown is still shown. */
  askedAgain() {
    this.next = 0;
    this.attempt = 1;
    this.broken = false;
    this.#whole.clear();
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
    const calls = frame.tool_calls ?? [];
    if (!Array.isArray(calls) || !calls.every(isDelta)) return [];
    const { index = 0 } = frame;
    if (!Number.isInteger(index) || index < 0 || index >= MAX_CHOICES) return [];
    return this.#piece(frame.s, index, add(nothing(), frame.d, String(frame.reasoning_content ?? ""), calls), calls, frame.attempt);
  }

  #piece(sequence, index, more, calls, attempt) {
    const begins = Number.isInteger(attempt);
    // A device that restarted counts from 0 again.
    const newer = begins && attempt > this.attempt;
    if (sequence < this.next && !newer) return [];
    this.attempt = begins ? attempt : this.attempt;
    // Something is missing in between: the last frame will have it.
    if (sequence > this.next && !begins) {
      this.broken = true;
      this.#whole.clear();
    }
    this.next = sequence + 1;
    if (begins) {
      this.#whole.add(index);
      return this.#become(index, more);
    }
    if (this.broken && !this.#whole.has(index)) return [];
    add(this.#of(index), more.text, more.reasoning, calls);
    return news(event(index, more.text, more.reasoning, calls));
  }

  #end(last) {
    const found = choicesOf(last).flatMap((choice) => {
      const calls = choice.tool_calls ?? [];
      const whole = { text: choice.text, reasoning: String(choice.reasoning_content ?? ""), calls: [] };
      whole.calls = calls.map(({ id, function: { name, arguments: text } }) => ({ id, name, arguments: text }));
      return this.#become(choice.index, whole);
    });
    return [...found, { type: "end", last, raw: last }];
  }

  /** What `whole` has beyond what was shown: all of it, as a restart, where it begins otherwise. */
  #become(number, whole) {
    const so = this.#of(number);
    this.#so.set(number, whole);
    const goesOn =
      whole.text.startsWith(so.text) && whole.reasoning.startsWith(so.reasoning) && so.calls.length <= whole.calls.length &&
      so.calls.every(({ id, name, arguments: text }, index) => {
        const other = whole.calls[index];
        return id === other.id && name === other.name && other.arguments.startsWith(text);
      });
    if (!goesOn) return [event(number, whole.text, whole.reasoning, rest([], whole.calls), true)];
    const reasoning = whole.reasoning.slice(so.reasoning.length);
    return news(event(number, whole.text.slice(so.text.length), reasoning, rest(so.calls, whole.calls)));
  }
}

const nothing = () => ({ text: "", reasoning: "", calls: [] });

function add(so, text, reasoning, calls) {
  so.text += text;
  so.reasoning += reasoning;
  for (const { index, id, function: { name, arguments: more = "" } } of calls) {
    while (so.calls.length <= index && index < MAX_CALLS) so.calls.push({ id: "", name: "", arguments: "" });
    const call = so.calls[index];
    if (call === undefined) continue;
    call.id ||= id ?? "";
    call.name ||= name ?? "";
    call.arguments += more;
  }
  return so;
}

/** The calls of `whole` beyond those of `so`, as OpenAI streams them. */
function rest(so, whole) {
  return whole.flatMap(({ id, name, arguments: text }, index) => {
    const mine = so[index];
    if (mine === undefined) return [{ index, id, type: "function", function: { name, arguments: text } }];
    return text === mine.arguments ? [] : [{ index, function: { arguments: text.slice(mine.arguments.length) } }];
  });
}

function event(index, text, reasoning, calls, restart = false) {
  const found = { type: "text", text, restart };
  if (index > 0) found.index = index;
  if (reasoning) found.reasoning = reasoning;
  if (calls.length > 0) found.toolCalls = calls;
  return found;
}

const news = (found) => (found.text || found.restart || found.reasoning || found.toolCalls ? [found] : []);

/** In one message, as docs/MQTT.md has it. */
const MAX_CALLS = 128;
/** From one prompt. */
const MAX_CHOICES = 16;

/** The answers of a last frame: one, unless several were asked for. */
export function choicesOf(last) {
  return last.choices ?? [{ ...last, index: 0 }];
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isError = (value) =>
  isObject(value) && Number.isInteger(value.code) && typeof value.type === "string" && typeof value.message === "string";
const isDelta = (call) => isObject(call) && Number.isInteger(call.index) && call.index >= 0 && isObject(call.function);
const isCall = (call) =>
  isObject(call) && typeof call.id === "string" && isObject(call.function) && typeof call.function.name === "string" &&
  typeof call.function.arguments === "string";
const isChoice = (choice) =>
  isObject(choice) && Number.isInteger(choice.index) && choice.index >= 0 && choice.index < MAX_CHOICES &&
  typeof choice.text === "string" && typeof choice.finish_reason === "string" && hasCalls(choice);
const hasCalls = ({ tool_calls: calls }) => calls === undefined || (Array.isArray(calls) && calls.every(isCall));
const isLast = (frame) =>
  (frame.choices === undefined || (Array.isArray(frame.choices) && frame.choices.every(isChoice))) &&
  hasCalls(frame) &&
  typeof frame.text === "string" && typeof frame.finish_reason === "string" && isObject(frame.usage) &&
  isObject(frame.timing) && typeof frame.bundle === "string" && Number.isInteger(frame.attempt);
