/** What devices say of themselves, from their retained documents. Pure. */

/** Of devices that a client remembers; the rest are counted as not known. */
export const MAX_DEVICES = 10_000;

export class Presence {
  #devices = new Map();

  /** A retained document of `device`; null where it was removed. */
  hear(device, kind, document) {
    let known = this.#devices.get(device);
    if (known === undefined) {
      if (document === null || this.#devices.size >= MAX_DEVICES) return;
      known = {};
      this.#devices.set(device, known);
    }
    known[kind] = document ?? undefined;
    if (known.status === undefined && known.health === undefined) this.#devices.delete(device);
  }

  get size() {
    return this.#devices.size;
  }

  /** {online, ready, reasons, active} of each device by name. */
  all() {
    return Object.fromEntries([...this.#devices].map(([name, known]) => [name, view(known)]));
  }

  get(device) {
    const known = this.#devices.get(device);
    return known === undefined ? undefined : view(known);
  }

  /** Why `device` cannot be asked now, as a sentence; undefined if it may be, or nothing is known. */
  objection(device) {
    if (this.#devices.size === 0) return undefined;
    const known = this.get(device);
    if (known === undefined) {
      const near = nearest(device, this.#devices.keys());
      return `no device ${device} is known to this broker${near === undefined ? "" : `; did you mean ${near}?`}`;
    }
    if (!known.online) return `the device ${device} is offline`;
    if (!known.ready && known.reasons.includes("no_model")) return `the device ${device} has no model`;
    return undefined;
  }
}

function view(known) {
  const health = known.health ?? {};
  return {
    online: known.status?.online === true,
    ready: health.ready === true,
    reasons: Array.isArray(health.reasons) ? health.reasons.filter((each) => typeof each === "string") : [],
    active: typeof health.active === "number" ? health.active : 0,
  };
}

/** The name with the smallest edit distance, if at most a third of its letters differ. */
export function nearest(name, names) {
  let best;
  let least = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const each of names) {
    const distance = edits(name.toLowerCase(), each.toLowerCase(), least);
    if (distance < least) [best, least] = [each, distance];
  }
  return best;
}

function edits(a, b, limit) {
  if (Math.abs(a.length - b.length) >= limit) return limit;
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next[j] = Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length];
}
