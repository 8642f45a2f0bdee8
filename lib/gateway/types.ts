/** What the parts of the gateway tell each other. Times are milliseconds, shares lie in 0…1. */
import type { ControllerStatus } from '../controller/types.js';
import type { DispatchReason, EngineState } from '../dispatch/types.js';
import type { ServerKind, ServerState } from '../telemetry/types.js';

/** An engine of the fleet, as those see it who send to it: one DP rank of a server. */
export interface FleetEngine {
  /** The scheduler's number. Numbers never change, and are not given again. */
  readonly engine: number;
  /** The server's URL and the rank, `http://10.0.0.1:8000#3`: the same in every gateway. */
  readonly name: string;
  readonly server: FleetServer;
  /** Within its server, from 0: what a request is pinned to. */
  readonly rank: number;
}

/** A server process with its DP ranks. */
export interface FleetServer {
  /** Without a slash at its end. */
  readonly url: string;
  readonly kind: ServerKind;
  /** Whether requests name the rank that shall take them. A server of one rank needs no such header. */
  readonly pins: boolean;
  /** Added to every request, e.g. `authorization`. */
  readonly headers: Readonly<Record<string, string>>;
}

/** What the fleet needs to know of a request. */
export interface FleetRequest {
  /** Of this gateway alone, and not given again while the request lives. */
  id: string;
  promptTokens: number;
  /** [prompt] Where the prompt came as token ids: what KV events are looked up by. */
  promptTokenIds?: readonly number[];
  sessionKey?: string;
  /** What its experts are learned by, where somebody learns them. */
  affinityKey?: string;
  /** Of equal blocks of the prompt, each hash over its block and all before it. */
  prefixHashes?: BigUint64Array;
  /** Whether its first token will be told. */
  streams: boolean;
  arrivalMs: number;
}

/** A request on its engine. It ends once, with `finished` or `failed`; what is told after that is left out. */
export interface Assignment {
  readonly target: FleetEngine;
  readonly pressureMs: number;
  readonly reason: DispatchReason;
  /** In the gateway's queue. */
  readonly waitedMs: number;
  firstToken(): void;
  finished(): void;
  failed(): void;
}

/** What happens to requests on engines, for those who keep a copy of the ledger. */
export interface LedgerListener {
  dispatched(id: string, target: FleetEngine, request: FleetRequest): void;
  firstToken(id: string): void;
  ended(id: string, how: 'finished' | 'failed'): void;
}

/** Quantiles over the last minute; missing where there was no request. */
export interface Quantiles {
  p50?: number;
  p90?: number;
  p99?: number;
}

export interface EngineSnapshot {
  engine: number;
  name: string;
  server: string;
  rank: number;
  state: EngineState;
  /** The terms of its pressure for a request without prefill, ms. */
  backlogMs: number;
  kvMs: number;
  queueMs: number;
  moeMs: number;
  totalMs: number;
  /** What this gateway sent and has not seen the end of. */
  inFlight: number;
  /** Prefill that was sent and is not known to be done, by other gateways too as far as they tell. */
  inFlightPrefillMs: number;
  /** Of the last sample; missing until there is one. */
  kvUsage?: number;
  running?: number;
  waiting?: number;
  sampleAgeMs?: number;
  stale: boolean;
  /** Of all that were dispatched in the last minute. */
  dispatchShare: number;
  /** Since the start. */
  dispatched: number;
}

export interface ServerSnapshot {
  url: string;
  kind: ServerKind;
  /** Of its telemetry. */
  state: ServerState;
  reason: string;
  /** Failed requests made it stand aside until then; missing where it does not. */
  ejectedForMs?: number;
}

/** The whole gateway at one time: what `/dashboard/state` answers, as JSON. */
export interface GatewaySnapshot {
  version: string;
  timeMs: number;
  upMs: number;
  policy: string;
  draining: boolean;
  engines: EngineSnapshot[];
  servers: ServerSnapshot[];
  queue: { size: number; capacity: number; oldestMs: number };
  /** Over the last minute. */
  ttftMs: Quantiles;
  tpotMs: Quantiles;
  queueMs: Quantiles;
  requestsPerSecond: number;
  outputTokensPerSecond: number;
  /** Since the start. */
  totals: { requests: number; finished: number; failed: number; refused: number; retried: number };
  /** When the configuration in force was read, and what is wrong with a later one. */
  config: { loadedMs: number; error?: string };
  /** Where one places experts beside the gateway. */
  controller?: ControllerStatus;
}
