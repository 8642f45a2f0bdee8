/**
 * Loads the native addon, once, and says what to do where it cannot. The types here are the whole border: what crosses it
 * is already checked and complete (validate.ts), and what comes back is turned into the public shapes by the callers.
 */
import * as path from 'node:path';
import nodeGypBuild from 'node-gyp-build';
import type { PressureWeights } from './dispatch/types.js';
import { GimbalError } from './errors.js';
import type { MigrationSchedule } from './migration.js';
import type { BackendInfo, BackendName, Effort, Evaluation, ReplicaChoice, Weights } from './types.js';

/** A checked problem with its defaults filled in, except the weights', which the native side knows. */
export interface NativeProblem {
  layers: number;
  sources: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  /** `[layers][sources][experts]` */
  tokens: Uint32Array;
  /** `[gpus]`, ns */
  computeCost: Float64Array;
  /** `[sources][gpus]`, ns */
  commCost: Float64Array;
  replicaChoice: ReplicaChoice;
  weights: Weights;
  migrationCost: number;
  /** -1: no limit. */
  migrationBudget: number;
  /** `[layers][incumbentGpus * incumbentSlotsPerGpu]` */
  incumbent: Int32Array | undefined;
  incumbentGpus: number;
  incumbentSlotsPerGpu: number;
  deadGpus: Int32Array;
  allowDuplicates: boolean;
}

/** Checked options; 0 where the native side chooses. */
export interface NativeOptions {
  backend: 'auto' | BackendName;
  /** The CUDA device's number. */
  device: number;
  effort: Effort;
  walkers: number;
  rounds: number;
  seed: bigint;
  threads: number;
  timeLimitMs: number;
}

/** A problem in native memory. Opaque. */
export type NativeProblemHandle = object & { readonly __handle: unique symbol };

/** Checked. */
export interface NativeScoreOptions {
  backend: 'auto' | BackendName;
  device: number;
}

export interface NativeScores {
  /** `[requests][engines]`, NaN where an engine may not take a request. */
  pressureMs: Float64Array;
  /** `[requests]` */
  best: Int32Array;
  backend: BackendName;
  backendReason?: string;
}

export interface NativeJob<T> {
  promise: Promise<T>;
  cancel(): void;
}

export interface NativePlan {
  physicalToLogical: Int32Array;
  replicaCount: Int32Array;
  /** `[layers][9]`: the numbers of LayerPlan in the order of its fields. */
  layers: Float64Array;
  objective: number;
  lowerBound: number;
  gap: number;
  migrations: number;
  forcedMigrations: number;
  backend: BackendName;
  backendDetail: string;
  backendReason?: string;
  seed: bigint;
  walkers: number;
  rounds: number;
  elapsedMs: number;
  kernelMs?: number;
}

export interface NativePlanner {
  plan(
    problem: NativeProblem | NativeProblemHandle,
    options: NativeOptions,
    onProgress?: (done: number, total: number) => void,
  ): NativeJob<NativePlan>;
  /** `candidates`: `[count][layers][gpus * slotsPerGpu]`. */
  evaluate(
    problem: NativeProblem | NativeProblemHandle,
    candidates: Int32Array,
    count: number,
    options: NativeOptions,
  ): NativeJob<Evaluation>;
  close(): void;
}

/** native/addon/dispatch.h. Times are ms; policies, roles and states are numbers of lists in dispatch/validate.ts. */
export interface NativeScheduler {
  /** [engine, ticket, reason, score] of the last decision. */
  readonly decision: Float64Array;
  addEngine(group: number, role: number, prefillTokensPerSecond: number, kvTokens: number): number;
  setState(engine: number, state: number): void;
  restarted(engine: number, nowMs: number): void;
  /** -1 where tokens or preemptions are not known. */
  observe(
    engine: number,
    timeMs: number,
    kvUsage: number,
    running: number,
    waiting: number,
    waitingPrefillTokens: number,
    preemptions: number,
    moePressure: number,
    nowMs: number,
  ): void;
  setExpertPressure(
    engine: number,
    moePressure: number,
    commExcess: number,
    timeMs: number,
    nowMs: number,
  ): void;
  dispatch(...request: NativeDispatch): void;
  /** Requests in columns, [requests] each; fills `decisions` [requests][4]. */
  dispatchBatch(
    promptTokens: Float64Array,
    cachedTokens: Float64Array,
    streams: Uint8Array,
    decisions: Float64Array,
    nowMs: number,
  ): void;
  dispatchTo(engine: number, ...request: NativeDispatch): void;
  /** Fills `scores` [engines], µs, NaN for engines that are left out; with `all`, only for those that may not take it. */
  scores(...request: [...NativeDispatch, all: boolean, scores: Float64Array]): void;
  /** Requests in columns, [requests] each. The ledger counts as it is at the call. */
  scoreBatch(
    promptTokens: Float64Array,
    cachedTokens: Float64Array,
    stages: Uint8Array,
    sessionKeys: readonly (string | undefined)[],
    prefixHashes: readonly (BigUint64Array | undefined)[],
    cachedByEngine: readonly (Uint32Array | undefined)[],
    expertMs: readonly (Float64Array | undefined)[],
    nowMs: number,
    options: NativeScoreOptions,
  ): NativeJob<NativeScores>;
  firstToken(ticket: number, nowMs: number): void;
  progress(ticket: number, prefilledTokens: number, nowMs: number): void;
  finished(ticket: number, nowMs: number): void;
  failed(ticket: number, nowMs: number): void;
  /** Fills `into` [8]: backlog, kv, queue, moe, total and prefill in flight in ms, requests in flight, 1 where stale. */
  report(engine: number, nowMs: number, into: Float64Array): void;
}

export type NativeDispatch = [
  promptTokens: number,
  /** -1: not known. */
  cachedTokens: number,
  stage: number,
  streams: boolean,
  nowMs: number,
  sessionKey: string | undefined,
  prefixHashes: BigUint64Array | undefined,
  /** [engines] Counts before `cachedTokens`. */
  cachedByEngine: Uint32Array | undefined,
  /** [engines] */
  expertMs: Float64Array | undefined,
];

export interface NativeSchedulerOptions {
  policy: number;
  weights: Required<PressureWeights>;
  staleAfterMs: number;
  expertsStaleAfterMs: number;
  gateways: number;
  seed: bigint;
}

/** Requests are known by the number that push() returned. */
export interface NativeQueue {
  push(prefillTokens: number, arrivalMs: number, nowMs: number): number;
  /** -1 where none waits. */
  peek(nowMs: number): number;
  pop(nowMs: number): number;
  update(request: number, prefillTokens: number): void;
  remove(request: number): void;
}

/** native/addon/statistics.h. Where counting is refused, the place in the array comes back, else -1. */
export interface NativeStatistics {
  readonly tokensSeen: number;
  readonly memoryBytes: number;
  /** `topk`: [tokens][layers][k]. */
  observe(source: number, topk: Uint8Array | Uint16Array, tokens: number, k: number): number;
  /** `counts`: [layers][sources][experts] of the sources from `firstSource` on. */
  observeCounts(firstSource: number, sources: number, counts: Uint32Array, k: number): number;
  /** Fills `into` [layers][sources][experts]. */
  counts(priorTokens: number, into: Uint32Array): number;
  /** Fills `into` [layers][sources]. */
  tokens(into: Float64Array): void;
  /** Fills `into` [15][layers][experts], oldest first; of all sources with -1. Returns how many there are. */
  wholeBuckets(source: number, into: Float64Array): number;
  /** All with -1. */
  reset(source: number): void;
  snapshot(): Uint8Array;
  /** 0, or a RestoreFailure of native/model/statistics.h. */
  restore(bytes: Uint8Array): number;
}

/** Two placements, checked. native/addon/migration.h. */
export interface NativePlacementPair {
  layers: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  fromGpus: number;
  fromSlotsPerGpu: number;
  /** `[layers][fromGpus * fromSlotsPerGpu]` */
  from: Int32Array;
  /** `[layers][gpus * slotsPerGpu]` */
  to: Int32Array;
  deadGpus: Int32Array;
  /** `[fromGpus][gpus]`, ranks; or empty. */
  distance: Int32Array;
}

/** Columns `[moves]`, by layer, expert and GPU. */
export interface NativeMoves {
  layer: Int32Array;
  expert: Int32Array;
  toGpu: Int32Array;
  /** `[moves + 1]`: move m's holders are holderStart[m] up to holderStart[m + 1], the nearest first. */
  holderStart: Int32Array;
  holders: Int32Array;
  /** `[layers]` */
  dropped: Int32Array;
}

export interface NativeBinding {
  NativeStatistics: new (
    layers: number,
    sources: number,
    experts: number,
    fades: boolean,
    windowTokens: number,
  ) => NativeStatistics;
  NativeScheduler: new (options: NativeSchedulerOptions) => NativeScheduler;
  /** Hashes of a text by blocks of so many units of UTF-16, each with all before it, for texts of one name; returns how many. */
  hashBlocks(text: string, name: string, blockUnits: number, into: BigUint64Array): number;
  NativeQueue: new (policy: number, agingTokensPerSecond: number) => NativeQueue;
  backends(): BackendInfo[];
  /** `kept`: how many sets of buffers stay between calls. */
  NativePlanner: new (
    kept: number,
  ) => NativePlanner;
  holdProblem(problem: NativeProblem): NativeJob<NativeProblemHandle>;
  placementMoves(pair: NativePlacementPair): NativeJob<NativeMoves>;
  releaseProblem(handle: NativeProblemHandle): void;
  scheduleMigration(
    pair: NativePlacementPair,
    stagingSlots: number,
  ): NativeJob<Omit<MigrationSchedule, 'roundStart' | 'transferBytes' | 'stagingBytes'>>;
}

const PACKAGE_ROOT = path.join(__dirname, '..');
let loaded: NativeBinding | undefined;

/** The addon. Loading is put off to the first use, so that what needs no native code works without it. */
export function binding(): NativeBinding {
  loaded ??= load(PACKAGE_ROOT);
  return loaded;
}

/** Exported for the tests. */
export function load(root: string): NativeBinding {
  try {
    return nodeGypBuild(root) as NativeBinding;
  } catch (cause) {
    throw bindingError(root, cause);
  }
}

function bindingError(root: string, cause: unknown): GimbalError {
  const platform = `${process.platform}-${process.arch}, Node ${process.versions.node}`;
  const reason = cause instanceof Error ? cause.message.trim() : String(cause);
  const message = [
    `the native addon cannot be loaded on ${platform}: ${reason}`,
    `Tried: ${triedFile(root)}`,
    'What helps:',
    '- where install scripts may not run and no prebuild fits this platform: npm rebuild gimbal-moe',
    '- in a checkout: npm run build:native (it says what it tries, and why)',
    '- a build needs a C++20 compiler, and CMake or else Python 3 and make',
    '- after a change of operating system, C library or processor: build again',
  ].join('\n');
  return new GimbalError('GIMBAL_BINDING', message, {
    field: 'binding',
    expected: `an addon for ${platform}`,
    received: reason,
    cause,
  });
}

function triedFile(root: string): string {
  try {
    return nodeGypBuild.path(root);
  } catch {
    return `build/Release and prebuilds in ${root}; neither has a file for this platform`;
  }
}
