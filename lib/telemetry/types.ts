/** What engines say of themselves, and what polling them takes. Times are milliseconds, shares lie in 0…1. */
import type { EngineSample } from '../dispatch/types.js';

export type ServerKind = 'vllm' | 'sglang';
export type ServerEndpoint = '/metrics' | '/v1/loads' | '/get_load';

/** One DP rank of a server, as its last answer has it. */
export interface EngineReading {
  /** As the server counts: from 0, or from its first global rank. */
  dpRank: number;
  /** Missing where the endpoint does not say (`/get_load`). */
  kvUsage?: number;
  running: number;
  waiting: number;
  /** Prefill that waiting requests still need, cached tokens not counted. */
  waitingPrefillTokens?: number;
  /** A counter. */
  preemptions?: number;
}

export interface VllmEngineReading extends EngineReading {
  kvUsage: number;
  /** Its weights are off the GPU: it answers, and serves nothing. False where the server does not say. */
  asleep: boolean;
}

export type SglangEngineReading = EngineReading;

export interface ReadMetricsOptions {
  /** What messages call the text, e.g. its URL. */
  source?: string;
  /** Only series of this model count. Default: all models; their requests add up, and the fullest KV cache counts. */
  modelName?: string;
}

export interface ReadLoadsOptions {
  /** What messages call the text, e.g. its URL. */
  source?: string;
  /** What the KV cache of one rank holds; `/get_load` tells tokens and no share of the cache. */
  kvTokens?: number;
}

/** A server process with its DP ranks. */
export interface TelemetryServer {
  /** The root that the endpoints are under. */
  url: string;
  kind: ServerKind;
  /** [ranks] The scheduler's number of each DP rank, in the order of the ranks; all of them. */
  engines: readonly number[];
  /**
   * Default: `/metrics` of vLLM; of SGLang `/v1/loads`, where that is not found `/metrics`, and where that is not found either
   * and `kvTokens` is given, `/get_load`.
   */
  endpoint?: ServerEndpoint;
  /** What the KV cache of one rank holds; `/get_load` needs it. */
  kvTokens?: number;
  /** E.g. `authorization`. */
  headers?: Readonly<Record<string, string>>;
}

/** `unknown` until the first answer. */
export type ServerState = 'unknown' | 'ok' | 'failing';

export interface ServerStatus {
  server: TelemetryServer;
  state: ServerState;
  /** What is read, or why nothing is. */
  reason: string;
  /** In a row, up to now. */
  failures: number;
  /** What the last answer came from; missing until there is one. */
  endpoint?: ServerEndpoint;
  /** Of the last samples; missing until there are some. */
  sampleTimeMs?: number;
}

export interface EnginePollerOptions {
  servers: readonly TelemetryServer[];
  /** From one request to the next. Default 100. */
  intervalMs?: number;
  /** For a whole answer. Default 1,000. */
  timeoutMs?: number;
  /** The longest time between requests to a server that fails. Default 5,000. */
  maxBackoffMs?: number;
  /** Of every wait, up or down, so that gateways do not ask in step; below 1. Default 0.1. */
  jitter?: number;
  /** Of the jitter. Gateways of one fleet should have different ones. Default 0. */
  seed?: number | bigint;
  /** ms; must be the scheduler's. Waits and timeouts do not go by it. Default: the time of day. */
  clock?: () => number;
  /** Default: Node's. */
  fetch?: typeof globalThis.fetch;
  /** All ranks of one server, at one time: when they were asked for. E.g. `(samples) => scheduler.observe(samples)`. */
  onSamples(samples: EngineSample[]): void;
  /** Called where the state changes. */
  onState?(server: TelemetryServer, state: 'ok' | 'failing', reason: string): void;
  /** Called where an engine falls asleep or wakes; until told otherwise it is awake. One that wakes may be draining still. */
  onSleep?(engine: number, asleep: boolean): void;
}
