/** Every error of this package; `code` and `type` are those of docs/MQTT.md where a device sent them. */
export class EdgeError extends Error {
  constructor(message, { code, type, field, details, retryAfterMs } = {}) {
    super(message);
    this.name = new.target.name;
    this.code = code;
    this.type = type;
    this.field = field;
    this.details = details ?? [];
    this.retryAfterMs = retryAfterMs;
  }
}

/** The call itself is wrong: neither or both of device and group, a name that is no identifier. */
export class UsageError extends EdgeError {}

/** The request is at fault (400, 404, 409, 410, 413): `field` names where. */
export class RequestInvalid extends EdgeError {}

/** No answer now: no broker, an unknown or offline device, no model, a full queue (429, 503), or the time is up. */
export class Unavailable extends EdgeError {}

/** The device failed at the request (500). */
export class DeviceFailed extends EdgeError {}

/** The error of a last frame as one of ours. */
export function fromFrame(error) {
  const { code, type, field, details, message } = error;
  const more = { code, type, field, details, retryAfterMs: error.retry_after_ms };
  if (code === 429 || code === 503) return new Unavailable(`the device cannot answer now: ${message}`, more);
  if (code >= 500) return new DeviceFailed(`the device failed: ${message}`, more);
  return new RequestInvalid(`the device refuses the request: ${message}`, more);
}
