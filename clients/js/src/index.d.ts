import type { IClientOptions } from "mqtt";

export interface ConnectOptions extends Omit<IClientOptions, "clientId" | "clean"> {
  /** Of this program, in topics: 1 to 64 of A-Z a-z 0-9 _ . - (default: random). */
  name?: string;
  /** Default: edge/v1. */
  root?: string;
}

export type Role = "system" | "developer" | "user" | "assistant" | "tool";
/** `url` is data:image/png;base64,… or data:image/jpeg;base64,…; pictures that do not fit into a request go in parts. */
export interface Image {
  url: string;
  detail?: "auto" | "low" | "high";
}
export type Part = { type: "text"; text: string } | { type: "image_url"; image_url: Image };
export interface ToolCall {
  id: string;
  type: "function";
  /** `arguments` is a JSON object, as text. */
  function: { name: string; arguments: string };
}
export interface ToolCallDelta {
  index: number;
  id?: string;
  type?: "function";
  function: { name?: string; arguments?: string };
}
export interface Tool {
  type: "function";
  function: { name: string; description?: string; parameters?: object; strict?: boolean };
}
export interface Message {
  role: Role;
  content?: string | Part[] | null;
  name?: string;
  tool_calls?: ToolCall[];
  tool_call_id?: string;
  reasoning_content?: string;
}

export type ResponseFormat =
  | { type: "text" | "json_object" }
  | { type: "json_schema"; json_schema: { name?: string; schema: object } }
  | { type: "regex"; regex: string };

/** The fields of docs/MQTT.md. */
export interface Fields {
  id?: string;
  messages?: Message[];
  prompt?: string;
  max_tokens?: number;
  n?: number;
  min_tokens?: number;
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  seed?: number;
  stop?: string | string[];
  logprobs?: boolean;
  top_logprobs?: number;
  logit_bias?: Record<string, number>;
  response_format?: ResponseFormat;
  tools?: Tool[];
  tool_choice?: "auto" | "none" | "required" | { type: "function"; function: { name: string } };
  parallel_tool_calls?: boolean;
  stream?: boolean;
  num_beams?: number;
  repetition_penalty?: number;
  no_repeat_ngram_size?: number;
  adapter?: string;
  priority?: number;
  deadline_ms?: number;
  supersede_key?: string;
}

export type Target = { device: string; group?: never } | { device?: never; group: string };
export type AskOptions = Fields &
  Target & {
    /** Default: 600000. */
    timeoutMs?: number;
    /** Wait out refusals that pass (429, 503). Default: true. */
    retry?: boolean;
    /** What becomes of a request to a device that is offline, unknown or without a model. Default: refuse. */
    offline?: "refuse" | "wait";
    signal?: AbortSignal;
  };

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  cached_tokens: number;
}
export interface Timing {
  queue_ms: number;
  first_token_ms?: number;
  total_ms: number;
}
export interface TopLogprob {
  token: string;
  id: number;
  logprob: number;
  bytes: number[] | null;
}
export interface TokenLogprob extends TopLogprob {
  top_logprobs: TopLogprob[];
}
export type FinishReason = "stop" | "length" | "tool_calls" | "cancelled" | "deadline";

export interface Completion {
  id: string;
  object: "chat.completion";
  created: number;
  /** The bundle that answered, NAME@VERSION. */
  model: string;
  choices: {
    index: number;
    message: { role: "assistant"; content: string; reasoning_content?: string; tool_calls?: ToolCall[] };
    finish_reason: FinishReason;
    logprobs?: { content: TokenLogprob[] };
  }[];
  usage: Usage;
  timing: Timing;
  attempt: number;
}

export interface Chunk {
  id: string;
  object: "chat.completion.chunk";
  choices: {
    index: number;
    delta: { content?: string; reasoning_content?: string; tool_calls?: ToolCallDelta[] };
    finish_reason: FinishReason | null;
  }[];
  /** What came before is void: another attempt begins. */
  restart: boolean;
  model?: string;
  usage?: Usage;
}

export interface Fault {
  code: number;
  type: string;
  message: string;
  field?: string;
  details?: { message: string; field?: string; suggestion?: string }[];
  retry_after_ms?: number;
}
export interface LastFrame {
  s: number;
  text: string;
  finish_reason: FinishReason;
  usage: Usage;
  timing: Timing;
  attempt: number;
  bundle: string;
  logprobs?: TokenLogprob[];
  reasoning_content?: string;
  tool_calls?: ToolCall[];
}
export type AskEvent = { id: string; device?: string } & (
  | { type: "text"; text: string; restart: boolean; index?: number; reasoning?: string; toolCalls?: ToolCallDelta[] }
  | { type: "queued"; position: number; estimateMs: number }
  | { type: "refused"; op: string; error: Fault }
  | { type: "end"; last: LastFrame; raw: object }
);

export interface Device {
  online: boolean;
  ready: boolean;
  reasons: string[];
  active: number;
  groups: string[];
}

export class EdgeClient {
  static connect(url: string, options?: ConnectOptions): Promise<EdgeClient>;
  private constructor();
  readonly name: string;
  readonly root: string;
  complete(request: AskOptions): Promise<Completion>;
  stream(request: AskOptions): AsyncGenerator<Chunk, void, undefined>;
  ask(request: AskOptions): AsyncGenerator<AskEvent, void, undefined>;
  devices(): Promise<Record<string, Device>>;
  cancel(device: string, id: string): Promise<void>;
  update(device: string, id: string, set: Partial<Fields>): Promise<void>;
  resume(device: string, id: string): Promise<void>;
  close(): Promise<void>;
}

export class EdgeError extends Error {
  readonly code?: number;
  readonly type?: string;
  readonly field?: string;
  readonly details: { message: string; field?: string; suggestion?: string }[];
  readonly retryAfterMs?: number;
}
export class UsageError extends EdgeError {}
export class RequestInvalid extends EdgeError {}
export class Unavailable extends EdgeError {}
export class DeviceFailed extends EdgeError {}
