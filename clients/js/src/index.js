export { EdgeClient } from "./client.js";
export { DeviceFailed, EdgeError, RequestInvalid, Unavailable, UsageError } from "./errors.js";
