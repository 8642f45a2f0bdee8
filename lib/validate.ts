/**
 * The border for what a caller gives: every field is checked here before native code sees it, and every error names the
 * field, what was expected and what came. Nothing here looks at each token; the native side checks what it counts with.
 */
import { types } from 'node:util';
import type { NativeOptions, NativeProblem } from './binding.js';
import {
  aboveZero,
  atLeastZero,
  boolean,
  checkBackend,
  checkFunction,
  checkKeys,
  checkSeed,
  count,
  describe,
  invalid,
  oneOf,
} from './checks.js';
import { mismatch } from './errors.js';
import type { Effort, PlacementProblem, PlanOptions, ReplicaChoice, Weights } from './types.js';

const PROBLEM_KEYS = [
  'layers',
  'sources',
  'experts',
  'gpus',
  'slotsPerGpu',
  'tokens',
  'computeCost',
  'commCost',
  'replicaChoice',
  'weights',
  'migrationCost',
  'migrationBudget',
  'incumbent',
  'incumbentGpus',
  'incumbentSlotsPerGpu',
  'deadGpus',
  'allowDuplicates',
  'layerIds',
] as const satisfies (keyof PlacementProblem)[];
/** What `topology()` returns besides; allowed so that a problem can be written `{ ...topology(…), layers, … }`. */
const TOPOLOGY_KEYS = ['nodes', 'gpusPerNode', 'explanation'];
const WEIGHT_KEYS = ['load', 'commMax', 'commTotal', 'migration'] as const satisfies (keyof Weights)[];
const OPTION_KEYS = [
  'backend',
  'device',
  'effort',
  'walkers',
  'rounds',
  'seed',
  'threads',
  'timeLimitMs',
  'signal',
  'onProgress',
] as const satisfies (keyof PlanOptions)[];
const EVALUATE_KEYS = ['backend', 'device', 'threads', 'signal'] as const satisfies (keyof PlanOptions)[];

export const EFFORTS = ['fast', 'balanced', 'thorough'] as const satisfies readonly Effort[];
export const REPLICA_CHOICES: readonly ReplicaChoice[] = ['even', 'nearest'];

/** The options of `evaluatePlacements`. */
export type EvaluateOptions = Pick<PlanOptions, (typeof EVALUATE_KEYS)[number]>;

export function checkProblem(problem: PlacementProblem): NativeProblem {
  checkKeys('problem', problem, [...PROBLEM_KEYS, ...TOPOLOGY_KEYS], PROBLEM_KEYS);
  const layers = count('layers', problem.layers);
  const sources = count('sources', problem.sources);
  const experts = count('experts', problem.experts);
  const gpus = count('gpus', problem.gpus);
  const slotsPerGpu = count('slotsPerGpu', problem.slotsPerGpu);
  const { replicaChoice = 'even', migrationCost = 0, migrationBudget } = problem;
  const { deadGpus: dead = [], allowDuplicates = false } = problem;
  checkSize('slots', '[layers][gpus * slotsPerGpu]', layers * gpus * slotsPerGpu);
  const checked = {
    layers,
    sources,
    experts,
    gpus,
    slotsPerGpu,
    tokens: typedArray(
      'tokens',
      problem.tokens,
      'Uint32Array',
      '[layers][sources][experts]',
      layers * sources * experts,
    ),
    computeCost: computeCost(problem.computeCost, gpus),
    commCost: costs('commCost', problem.commCost, '[sources][gpus]', sources * gpus),
    replicaChoice: oneOf('replicaChoice', replicaChoice, REPLICA_CHOICES),
    weights: weights(problem.weights),
    migrationCost: atLeastZero('migrationCost', migrationCost),
    migrationBudget: migrationBudget === undefined ? -1 : budget(migrationBudget),
    deadGpus: deadGpus(dead, gpus),
    allowDuplicates: boolean('allowDuplicates', allowDuplicates),
    ...incumbent(problem, layers, gpus, slotsPerGpu),
  };
  if (problem.layerIds !== undefined) layerIds(problem.layerIds, layers);
  return checked;
}

export function checkPlanOptions(options: PlanOptions = {}): NativeOptions {
  checkKeys('options', options, OPTION_KEYS);
  checkListeners(options);
  const { effort = 'balanced', seed = 0 } = options;
  const { walkers, rounds, threads, timeLimitMs } = options;
  return {
    ...checkBackend(options),
    effort: oneOf('options.effort', effort, EFFORTS),
    walkers: walkers === undefined ? 0 : count('options.walkers', walkers),
    rounds: rounds === undefined ? 0 : count('options.rounds', rounds),
    threads: threads === undefined ? 0 : count('options.threads', threads),
    timeLimitMs: timeLimitMs === undefined ? 0 : aboveZero('options.timeLimitMs', timeLimitMs),
    seed: checkSeed(seed),
  };
}

export function checkEvaluateOptions(options: EvaluateOptions = {}): NativeOptions {
  checkKeys('options', options, EVALUATE_KEYS);
  return checkPlanOptions(options);
}

/** How many candidates the array holds. `field` names it in errors. */
export function checkCandidates(field: string, candidates: unknown, slotCount: number): number {
  if (!isTypedArray(candidates, 'Int32Array')) {
    throw invalid(field, 'an Int32Array [candidates][layers][gpus * slotsPerGpu]', describe(candidates));
  }
  if (isDetached(candidates)) throw invalid(field, 'an attached buffer', 'one that was transferred away');
  if (candidates.length % slotCount !== 0) {
    throw invalid(
      field,
      `a multiple of ${slotCount} entries ([candidates][layers][gpus * slotsPerGpu])`,
      `${candidates.length}`,
    );
  }
  return candidates.length / slotCount;
}

function budget(value: unknown): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
    throw invalid('migrationBudget', 'a safe integer of at least 0', describe(value));
  }
  return value;
}

function checkListeners({ signal, onProgress }: PlanOptions): void {
  if (signal !== undefined && !isAbortSignal(signal)) {
    throw invalid('options.signal', 'an AbortSignal', describe(signal));
  }
  if (onProgress !== undefined) checkFunction('options.onProgress', onProgress);
}

function isAbortSignal(value: unknown): value is AbortSignal {
  const signal = value as AbortSignal | null;
  return typeof signal?.aborted === 'boolean' && typeof signal.addEventListener === 'function';
}

function weights(value: unknown): Weights {
  if (value === undefined) return {};
  checkKeys('weights', value, WEIGHT_KEYS);
  const given = value as Weights;
  const checked: Weights = {};
  for (const key of WEIGHT_KEYS) {
    if (given[key] !== undefined) checked[key] = atLeastZero(`weights.${key}`, given[key]);
  }
  return checked;
}

function computeCost(value: unknown, gpus: number): Float64Array {
  if (typeof value === 'number') return new Float64Array(gpus).fill(atLeastZero('computeCost', value));
  if (isTypedArray(value, 'Float64Array')) return costs('computeCost', value, '[gpus]', gpus);
  throw invalid('computeCost', 'a number or a Float64Array [gpus]', describe(value));
}

export function costs(field: string, value: unknown, shape: string, length: number): Float64Array {
  const given = typedArray(field, value, 'Float64Array', shape, length);
  // Another thread may write shared memory between the check and the use: check a copy.
  const array = types.isSharedArrayBuffer(given.buffer) ? Float64Array.from(given) : given;
  // A plain loop: at 512 GPUs there are 262,144 of these, on the JS thread.
  for (let i = 0; i < array.length; i++) {
    if (!(array[i]! >= 0 && array[i]! < Number.POSITIVE_INFINITY)) {
      throw invalid(`${field}[${i}]`, 'a finite number of at least 0', `${array[i]}`);
    }
  }
  return array;
}

export function deadGpus(value: unknown, gpus: number): Int32Array {
  if (!Array.isArray(value)) throw invalid('deadGpus', 'an array of GPU ids', describe(value));
  const seen = new Set<number>();
  value.forEach((gpu, i) => {
    if (!Number.isInteger(gpu) || gpu < 0 || gpu >= gpus) {
      throw invalid(`deadGpus[${i}]`, `a GPU id of 0 to ${gpus - 1}`, describe(gpu));
    }
    if (seen.has(gpu)) throw invalid(`deadGpus[${i}]`, 'each GPU at most once', `${gpu} again`);
    seen.add(gpu);
  });
  return Int32Array.from(value);
}

function incumbent(problem: PlacementProblem, layers: number, gpus: number, slotsPerGpu: number) {
  const given = problem.incumbent !== undefined;
  for (const key of ['incumbentGpus', 'incumbentSlotsPerGpu'] as const) {
    if (!given && problem[key] !== undefined) {
      throw invalid(key, 'nothing where there is no incumbent', describe(problem[key]));
    }
  }
  const { incumbentGpus = gpus, incumbentSlotsPerGpu = slotsPerGpu } = problem;
  count('incumbentGpus', incumbentGpus);
  count('incumbentSlotsPerGpu', incumbentSlotsPerGpu);
  const shape = '[layers][incumbentGpus * incumbentSlotsPerGpu]';
  const length = layers * incumbentGpus * incumbentSlotsPerGpu;
  return {
    incumbent: given ? typedArray('incumbent', problem.incumbent, 'Int32Array', shape, length) : undefined,
    incumbentGpus,
    incumbentSlotsPerGpu,
  };
}

function layerIds(value: unknown, layers: number): void {
  const ids = typedArray('layerIds', value, 'Int32Array', '[layers]', layers);
  const rowOf = new Map<number, number>();
  ids.forEach((id, row) => {
    if (id < 0) throw invalid(`layerIds[${row}]`, 'a layer of at least 0', `${id}`);
    const other = rowOf.get(id);
    if (other !== undefined) {
      throw invalid(`layerIds[${row}]`, 'each layer at most once', `${id}, also at ${other}`);
    }
    rowOf.set(id, row);
  });
}

/** Throws where the slots of a layer leave an expert out. */
export function everyExpert(field: string, slots: Int32Array, experts: number): void {
  const held = new Set(slots);
  for (let expert = 0; expert < experts; expert++) {
    if (!held.has(expert)) throw invalid(field, 'a slot for every expert', `none for expert ${expert}`);
  }
}

interface TypedArrays {
  Uint8Array: Uint8Array;
  Uint16Array: Uint16Array;
  Uint32Array: Uint32Array;
  Int32Array: Int32Array;
  Float64Array: Float64Array;
}

export function typedArray<K extends keyof TypedArrays>(
  field: string,
  value: unknown,
  type: K,
  shape: string,
  length: number,
): TypedArrays[K] {
  checkSize(field, shape, length);
  if (!isTypedArray(value, type)) throw invalid(field, `${type} ${shape}`, describe(value));
  if (isDetached(value)) throw invalid(field, 'an attached buffer', 'one that was transferred away');
  if (value.length !== length) {
    throw invalid(field, `${length} elements, ${shape}`, `${value.length} elements`);
  }
  return value;
}

/** Not `instanceof`: an array may come from another realm, as in test runners that use contexts. */
export function isTypedArray<K extends keyof TypedArrays>(value: unknown, type: K): value is TypedArrays[K] {
  return types.isTypedArray(value) && value[Symbol.toStringTag] === type;
}

/** Keeps products of counts within what a typed array can hold, so that no size below is inexact. */
function checkSize(field: string, shape: string, length: number): void {
  if (length > 2 ** 32) {
    throw mismatch('GIMBAL_OUT_OF_RANGE', field, `at most 2^32 elements, ${shape}`, `${length}`);
  }
}

function isDetached(array: TypedArrays[keyof TypedArrays]): boolean {
  if (array.byteLength > 0 || types.isSharedArrayBuffer(array.buffer)) return false;
  try {
    new Uint8Array(array.buffer);
    return false;
  } catch {
    return true;
  }
}
