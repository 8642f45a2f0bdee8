/** What the dispatch side takes and gives. Times are milliseconds on one clock, the scheduler's; shares lie in 0…1. */
import type { BackendName } from '../types.js';

export type DispatchPolicy =
  | 'gimbal'
  | 'vllm'
  | 'total-tokens'
  | 'round-robin'
  | 'power-of-two'
  | 'least-load'
  | 'dynamo'
  | 'llm-d';

export type EngineRole = 'prefill' | 'decode' | 'both';
/** `draining` and `asleep` engines get nothing new; one that is `gone` does not count for its group either. */
export type EngineState = 'active' | 'draining' | 'asleep' | 'gone';

/** One DP rank. */
export interface EngineOptions {
  /** Engines that step together (DP attention with expert parallelism) share a name. Default: all of them do. */
  group?: string | number;
  /** Default `both`. */
  role?: EngineRole;
  /** The DP rank over all servers, and the server: kept for the caller, not looked at. */
  globalRank?: number;
  url?: string;
  /** Default: the scheduler's. */
  prefillTokensPerSecond?: number;
  /** What the engine's KV cache holds. With it, what was sent counts against the cache before a sample can show it. */
  kvTokens?: number;
}

/** What an engine says of itself at one time. */
export interface EngineSample {
  /** By its number. */
  engine: number;
  timeMs: number;
  /** Share of the KV cache in use. */
  kvUsage: number;
  running: number;
  waiting: number;
  /** Prefill that waiting requests still need, cached tokens not counted, where the engine says so. */
  waitingPrefillTokens?: number;
  /** A counter; where it falls, the engine has restarted. */
  preemptions?: number;
  /** How overloaded the GPUs are that the engine's tokens go to: 0 balanced, 1 twice the mean. */
  moePressure?: number;
}

/** What the placement side says of an engine; `expertPressure` works it out. */
export interface EngineExpertPressure {
  /** By its number. */
  engine: number;
  /** How overloaded the GPUs are that the engine's tokens go to: 0 balanced, 1 twice the mean, below 0 less than it. */
  moePressure: number;
  /** How much more time its tokens travel than the fleet's in the mean, as a share of that. Default 0. */
  commExcess?: number;
}

export interface DispatchRequest {
  id: string | number;
  promptTokens: number;
  /**
   * Of these, what the engine that gets it has cached, or what each engine has: [engines], e.g. of a KvEventFeed. Not given:
   * estimated by `prefixHashes`, else by `sessionKey`, else 0.
   */
  cachedTokens?: number | ArrayLike<number>;
  /** Requests of one session go on where the last one left off. */
  sessionKey?: string;
  /** A hash for each block of the prompt that covers the block and all before it; blocks are equal parts of the prompt. */
  prefixHashes?: readonly (number | bigint)[] | BigUint64Array;
  /**
   * `[engines]`: ms that the request's experts, and its way to them, would take from each engine, as far as it is known; only
   * differences count, and no more than the prefill that the request brings. `ExpertFingerprints` learns it.
   */
  expertMs?: ArrayLike<number>;
  /** Handed on; dispatch does not look at it. */
  priority?: number;
  /** Which part of its work the request is sent for, where prefill and decode are separate. Default `prefill`. */
  stage?: 'prefill' | 'decode';
  /** `false`: nobody will tell its first token. Default `true`. */
  streams?: boolean;
  /** Engines that shall not take it, e.g. since they have failed it before. */
  excluding?: readonly number[];
}

export type DispatchReason =
  /** The engine is the best by the policy. */
  | 'least-pressure'
  /** The same, but every engine is short of KV cache. */
  | 'all-short-of-kv'
  /** No engine has a sample that is fresh: the one with the least prefill in flight. */
  | 'no-fresh-sample'
  /** A stage of the caller's picked it. */
  | 'custom';

export interface Dispatched {
  engine: number;
  /** Under `gimbal`: ms, the request's own prefill included. Under another policy: its score, least is best. */
  pressure: number;
  reason: DispatchReason;
}

/** The pressure of an engine by term, all in ms, for a request without prefill. */
export interface EnginePressure {
  engine: number;
  backlogMs: number;
  kvMs: number;
  queueMs: number;
  moeMs: number;
  totalMs: number;
  /** Prefill that was sent here and is not known to be done. */
  inFlightPrefillMs: number;
  /** Requests that were sent here and have not ended. */
  inFlight: number;
  /** Its last sample is older than `staleAfterMs`, or there is none. */
  stale: boolean;
  state: EngineState;
}

export interface PressureWeights {
  /** Of the terms; 0 leaves one out. Defaults 1, */
  backlog?: number;
  kv?: number;
  queue?: number;
  /** and 0 of the MoE term and of `commExcess`, which is a part of it: docs/MODEL.md, Feedback, says why. */
  moe?: number;
  comm?: number;
  /** Of `expertMs`. Default 1. */
  affinity?: number;
  /** The KV term at half a cache; it is kvMs · k / (1 − k). Default 150. */
  kvMs?: number;
  /** The share of the cache from which on an engine counts as short of it, and the term grows no more. Default 0.9. */
  kvLimit?: number;
  /** What a waiting request counts for beyond its prefill, and what one does that decodes. Defaults 2 and 0.2. */
  waitingMs?: number;
  runningMs?: number;
}

export interface ScoreOptions {
  /** Default `auto`: the CPU, for a score's way back from a GPU takes about as long as a core takes to make it. */
  backend?: 'auto' | BackendName;
  /** Which CUDA device. Default 0. */
  device?: number;
}

/** What many requests would meet on every engine. */
export interface Scores {
  engines: number;
  /** `[requests][engines]`: as `pressureMs` of a `Candidate`; NaN where the engine may not take the request. */
  pressureMs: Float64Array;
  /**
   * `[requests]`: the engine with the least pressure, of equals the least number, among those that are fresh and have room in
   * the KV cache, else those that are fresh, else all that may take the request; −1 for none.
   */
  best: Int32Array;
  backend: BackendName;
  /** Under `auto`: why no GPU was taken. */
  backendReason?: string;
}

/** An engine as the stages see it: its pressure by term, and what the request would find there in all. */
export interface Candidate extends EnginePressure {
  /** ms, the request's own prefill included. */
  pressureMs: number;
}

/** Stages of the caller's in place of ours, under `gimbal`. Each is called on the caller's thread, within `dispatch`. */
export interface DispatchStages {
  /** Which of the engines that may take the request do so; ours has let through what is fresh and not short of KV cache. */
  filter?(candidates: readonly Candidate[], request: DispatchRequest): readonly Candidate[];
  /** Less is better. Default: `pressureMs`. */
  score?(candidate: Candidate, request: DispatchRequest): number;
  /** The number of the engine. Default: the least score, equals in turn. */
  pick?(scored: readonly { candidate: Candidate; score: number }[], request: DispatchRequest): number;
}

export interface SchedulerOptions {
  /** How many, or what they are like. Numbers of engines are positions in this list; later ones come by `addEngine`. */
  engines: number | readonly EngineOptions[];
  /** Default `gimbal`. */
  policy?: DispatchPolicy;
  /** What an engine prefills, measured under load. Default 20,000. */
  prefillTokensPerSecond?: number;
  weights?: PressureWeights;
  /** Default 3,000. */
  staleAfterMs?: number;
  /** After which what `setExpertPressure` has told is forgotten. Default 30,000. */
  expertsStaleAfterMs?: number;
  /** How many schedulers send to these engines, this one included. Default 1. */
  gateways?: number;
  /** Of ties and draws. Gateways of one fleet should have different ones. Default 0. */
  seed?: number | bigint;
  /** ms; must be the clock of the samples. Default: the time of day. */
  clock?: () => number;
  stages?: DispatchStages;
}

export type QueuePolicy = 'gimbal' | 'fcfs' | 'spf' | 'hrrn';

export interface RequestQueueOptions {
  /** Default `gimbal`: the shortest remaining prefill first, with aging. */
  policy?: QueuePolicy;
  /** How much prefill a second of waiting makes up for. Default 4,000. */
  agingTokensPerSecond?: number;
  clock?: () => number;
}

export interface QueuedRequest {
  id: string | number;
  prefillTokens: number;
  /** Default: now. A time to come counts as now, one more than a minute ago as a minute ago. */
  arrivalMs?: number;
}
