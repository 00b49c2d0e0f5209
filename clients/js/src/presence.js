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
    if (known.status === undefined && known.health === undefined && known.info === undefined) this.#devices.delete(device);
  }

  get size() {
    return this.#devices.size;
  }

  /** {online, ready, reasons, active, groups} of each device by name. */
  all() {
    return Object.fromEntries([...this.#devices].map(([name, known]) => [name, view(known)]));
  }

  get(device) {
    const known = this.#devices.get(device);
    return known === undefined ? undefined : view(known);
  }

  /** Whether what is known is enough to ask at once: that it is online, and that it has a model. */
  mayAnswer({ device, group }) {
    const names = device !== undefined ? [device] : Object.keys(this.#members(group));
    return names.some((name) => {
      const known = this.#devices.get(name);
      return known?.health !== undefined && view(known).online && hasModel(view(known));
    });
  }

  /** Why the device or group cannot be asked now, as a sentence; undefined if it can. */
  objection({ device, group }) {
    return device !== undefined ? this.#ofDevice(device) : this.#ofGroup(group);
  }

  #ofDevice(name) {
    const known = this.get(name);
    if (known === undefined) return this.#unknown("device", name, [...this.#devices.keys()]);
    if (!known.online) return `the device ${name} is offline`;
    return hasModel(known) ? undefined : `the device ${name} has no model`;
  }

  #ofGroup(name) {
    const members = this.#members(name);
    const online = Object.values(members).filter((each) => each.online);
    if (Object.keys(members).length === 0)
      return this.#unknown("group", name, [...new Set(Object.values(this.all()).flatMap((each) => each.groups))]);
    if (online.some(hasModel)) return undefined;
    if (online.length > 0) return `no device of the group ${name} that is online has a model`;
    return `every device of the group ${name} is offline: ${Object.keys(members).slice(0, 8).join(", ")}`;
  }

  #members(group) {
    return Object.fromEntries(Object.entries(this.all()).filter(([, each]) => each.groups.includes(group)));
  }

  #unknown(what, name, known) {
    if (this.#devices.size === 0)
      return `the ${what} ${name} is not known: no device has reported to this broker where this user may read it`;
    const near = nearest(name, known);
    const missing = what === "device" ? `no device ${name} is known` : `no device of a group ${name} is known`;
    return `${missing} to this broker${near === undefined ? "" : `; did you mean ${near}?`}`;
  }
}

// Without a health document nobody says that it cannot answer.
const hasModel = (device) => device.ready || !device.reasons.includes("no_model");

function view(known) {
  const health = known.health ?? {};
  return {
    online: known.status?.online === true,
    ready: health.ready === true,
    reasons: Array.isArray(health.reasons) ? health.reasons.filter((each) => typeof each === "string") : [],
    active: typeof health.active === "number" ? health.active : 0,
    groups: Array.isArray(known.info?.groups) ? known.info.groups.filter((each) => typeof each === "string") : [],
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
