/** What the controller takes and tells. Times are ms on the controller's clock, the time of day unless told otherwise. */
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
  previous: Int32Array;
  previousPlanId: string;
  layers: number;
  gpus: number;
  slotsPerGpu: number;
  /** The file in the engine's format, where one is written. */
  file?: string;
  /** Back to where it was, since it could not be put in force. */
  isRollback: boolean;
}

/** Puts placements in force. Must be idempotent by planId: after a crash it is asked again. */
export interface ApplyHook {
  /** Resolves once the engines have it; rejects where they do not, or it is not known. */
  apply(change: PlacementChange, signal: AbortSignal): Promise<void>;
  /** Which plan is in force; undefined where that cannot be told. Asked after `apply` failed or timed out, and at the start. */
  verify?(signal: AbortSignal): Promise<string | undefined>;
}

export interface ControllerOptions {
  problem: PlacedModel;
  statistics: RoutingStatistics;
  /** The placement that engines start with, where no state is kept yet. `[layers][gpus * slotsPerGpu]`. */
  initial: Int32Array;
  apply: ApplyHook;
  /** Kept over restarts: replaced as a whole by every change. */
  stateFile: string;
  rules?: DecisionRules;
  plan?: Pick<PlanOptions, 'backend' | 'device' | 'effort' | 'seed' | 'threads' | 'timeLimitMs'>;
  /** Only report what would have been done. */
  shadow?: boolean;
  /** Between two looks. Default 10,000. */
  intervalMs?: number;
  /** For `apply`, and for `verify`. Defaults 120,000 and 10,000. */
  applyTimeoutMs?: number;
  verifyTimeoutMs?: number;
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
  costMs?: number;
  gainShare?: number;
  migrations?: number;
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
