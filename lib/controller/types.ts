/** What the controller takes and tells. Times are ms on the controller's clock, the time of day unless told otherwise. */
import type { Registry } from 'prom-client';
import type { PlacementFormat } from '../export/placement.js';
import type { RoutingStatistics } from '../statistics/routing-statistics.js';
import type { PlacementProblem, PlanOptions } from '../types.js';
import type { DecisionReason, DecisionRules } from './decide.js';

/** The problem without what changes from look to look. */
export type PlacedModel = Omit<
  PlacementProblem,
  | 'tokens'
  | 'incumbent'
  | 'incumbentGpus'
  | 'incumbentSlotsPerGpu'
  | 'deadGpus'
  | 'migrationCost'
  | 'migrationBudget'
>;

/** What an apply hook gets: a placement to put in force, whole. */
export interface PlacementChange {
  /** Names the change; the same for a change that is tried again after a restart. Grows from change to change. */
  planId: string;
  /** The placement that is to be in force, and the one that is now. `[layers][gpus * slotsPerGpu]`, -1 on dead GPUs' slots. */
  placement: Int32Array;
  /** `[layers][previousGpus * previousSlotsPerGpu]` */
  previous: Int32Array;
  previousPlanId: string;
  previousGpus: number;
  previousSlotsPerGpu: number;
  layers: number;
  gpus: number;
  slotsPerGpu: number;
  /** The file in the engine's format, where one is written. */
  file?: string;
  /** Back to where it was, since it could not be put in force. */
  isRollback: boolean;
  /** Of the lease; 0 without one. Who gets it refuses a change whose token is below the greatest that it has seen. */
  fencingToken: number;
}

/** Puts placements in force. Must be idempotent by planId: after a crash it is asked again. */
export interface ApplyHook {
  /** Resolves once the engines have it; rejects where they do not, or it is not known. */
  apply(change: PlacementChange, signal: AbortSignal): Promise<void>;
  /** Which plan is in force; undefined where that cannot be told. Asked before each look, and after each `apply`. */
  verify?(signal: AbortSignal): Promise<string | undefined>;
}

/** Who may act. One that is lost is contended for again; every time it is won its token is greater. */
export interface Lease {
  /** Starts to contend. `onChange` hears of the token when it is won, and of undefined when it is lost. */
  open(onChange: (token: number | undefined) => void): void;
  /** Undefined while another holds it, and as soon as it may have run out by the monotonic clock. */
  readonly token: number | undefined;
  /** Gives it back and stops contending. */
  close(): Promise<void>;
}

/** What moving experts costs the engines. */
export interface MigrationCosts {
  /** Of one expert in one layer. */
  expertBytes: number;
  /** Of the link by which a GPU gets experts, in GB/s (10^9 bytes). Default 25. */
  linkGBps?: number;
  /** Whether the engines stand still while experts move, or go on with what is left of the links. Default `stall`. */
  transfer?: 'stall' | 'overlap';
  /** Under `overlap`: the share of the links that moving takes, 0…1. Default 0.25. */
  linkShare?: number;
  /** For which engines stand still besides: once a change, and under `stall` for each layer in which something moves. Defaults 0 and 10. */
  stallMs?: number;
  layerStallMs?: number;
  /** Staging slots of each GPU, for the schedule. Default 4. */
  stagingSlots?: number;
}

/** The part of a pino logger that is used. */
export interface ControllerLogger {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

export interface ControllerClock {
  /** The time of day, ms: what is kept over restarts. It may jump. */
  wallMs(): number;
  /** Never goes back: all intervals are measured by it. */
  monotonicMs(): number;
}

export interface ControllerOptions {
  problem: PlacedModel;
  statistics: RoutingStatistics;
  /** The placement that engines start with, where no state is kept yet. `[layers][gpus * slotsPerGpu]`. */
  initial: Int32Array;
  apply: ApplyHook;
  /** Kept over restarts: replaced as a whole by every change. */
  stateFile: string;
  /** What moving costs. */
  migration: MigrationCosts;
  rules?: DecisionRules;
  plan?: Pick<PlanOptions, 'backend' | 'device' | 'effort' | 'seed' | 'threads' | 'timeLimitMs'>;
  /** Only report what would have been done. */
  shadow?: boolean;
  /** Between two looks. Default 10,000. */
  intervalMs?: number;
  /** For `apply`, and for `verify`. Defaults 120,000 and 10,000. */
  applyTimeoutMs?: number;
  verifyTimeoutMs?: number;
  /** Tokens that the engines serve a second, over all sources. Default: as the statistics grow. */
  tokensPerSecond?: number | (() => number | undefined);
  /** Share of the tokens that the statistics see, 0…1: what the default of `tokensPerSecond` is divided by. Default 1. */
  sampledShare?: number;
  /** Variance of a count over its mean: 1 if every token chose by itself. Default 8. */
  overdispersion?: number;
  /** Draws of the counts by which the gain's spread is found, at least 2. Default 16. */
  resamples?: number;
  /** Written before each change, in `exportFormat` (default `json`). */
  exportFile?: string;
  exportFormat?: PlacementFormat;
  /** Where the statistics are kept over restarts: written after each change and at the stop. Not kept by default. */
  statisticsFile?: string;
  lease?: Lease;
  logger?: ControllerLogger;
  registry?: Registry;
  onDecision?: (record: DecisionRecord) => void;
  clock?: ControllerClock;
}

/** One look and what came of it. */
export interface DecisionRecord {
  atMs: number;
  decision: 'committed' | 'kept' | 'would-commit' | 'failed' | 'rolled-back';
  reason: DecisionReason | 'error';
  detail?: string;
  planId?: string;
  /** Predicted for the horizon, where it came to that. */
  gainMs?: number;
  /** Standard deviation of `gainMs`, and how much less it is than the same counts showed that the plan was made for. */
  spreadMs?: number;
  optimismMs?: number;
  costMs?: number;
  gainShare?: number;
  migrations?: number;
  /** Of the migration's schedule. */
  rounds?: number;
  transferBytes?: number;
  stagingBytes?: number;
}

/** As JSON: what `/controller/status` answers and the live page shows. */
export interface ControllerStatus {
  state: 'stopped' | 'waiting-for-lease' | 'watching' | 'planning' | 'applying' | 'rolling-back';
  shadow: boolean;
  planId: string;
  planAgeMs: number;
  deadGpus: number[];
  layers: number;
  gpus: number;
  slotsPerGpu: number;
  /** Failures in a row, and the lease's token where it is held. */
  failures: number;
  fencingToken?: number;
  /** Largest over mean load of a GPU under the placement in force, by layer, from the latest look. `[layers]` */
  imbalance: number[];
  /** Share of the layer's load on each GPU over the mean, from the latest look: the heat map. `[layers][gpus]` */
  load: number[][];
  /** The plan that the latest look made, where it was not committed. */
  preview?: { gainMs: number; gainShare: number; costMs: number; migrations: number; reason: DecisionReason };
  /** Newest first, bounded. */
  decisions: DecisionRecord[];
  /** Newest first, bounded: plans that were put in force. */
  history: { planId: string; atMs: number; migrations: number; gainShare: number }[];
}
