/**
 * From one placement to another on a running cluster: which experts travel between which GPUs, in which order, and through
 * which slots, so that no expert is ever without a live replica. The order is made by native/migration.
 */
import { binding, type NativePlacementPair } from './binding.js';
import { aboveZero, checkKeys, count, ordinal } from './checks.js';
import { runJob } from './job.js';
import { costs, deadGpus, typedArray } from './validate.js';

export interface MigrationProblem {
  layers: number;
  /** Logical experts per layer. */
  experts: number;
  /** GPUs of the placement wanted. */
  gpus: number;
  slotsPerGpu: number;
  /** `[layers][fromGpus * fromSlotsPerGpu]`, -1 on an empty slot: the placement in force. */
  from: Int32Array;
  /** Where they differ from `gpus` and `slotsPerGpu`. GPU ids mean the same in both; GPUs that leave can still send. */
  fromGpus?: number;
  fromSlotsPerGpu?: number;
  /** `[layers][gpus * slotsPerGpu]`, -1 on an empty slot: the placement wanted. */
  to: Int32Array;
  /** Neither send nor receive. */
  deadGpus?: number[];
  /** `[sources][gpus]`, as in a placement problem: among equally busy holders the nearest sends. */
  commCost?: Float64Array;
  /** Of `commCost`, in equal blocks over the GPUs. Default: one a GPU. */
  sources?: number;
  /**
   * Staging slots of each GPU, for all layers together. Default 4. With 1 every migration can be made; more may save
   * rounds, and no more are used than do.
   */
  stagingSlots?: number;
  /** Bytes of one expert in one layer. */
  expertBytes?: number;
}

/** Columns `[transfers]`, ordered by round, then receiver. Slots are counted within a GPU; staging slots come after its own. */
export interface Transfers {
  round: Int32Array;
  layer: Int32Array;
  expert: Int32Array;
  fromGpu: Int32Array;
  fromSlot: Int32Array;
  toGpu: Int32Array;
  /** Where it lands: `slotsPerGpu` of the schedule and above are staging slots. */
  toSlot: Int32Array;
}

/** Columns `[copies]`, in the order in which they are made: after `round` rounds, before the next. */
export interface LocalCopies {
  round: Int32Array;
  layer: Int32Array;
  gpu: Int32Array;
  fromSlot: Int32Array;
  toSlot: Int32Array;
}

/** Columns `[loads]`: slots for experts that no live GPU holds; each is free once `round` rounds and the copies then are over. */
export interface StorageLoads {
  round: Int32Array;
  layer: Int32Array;
  expert: Int32Array;
  toGpu: Int32Array;
  toSlot: Int32Array;
}

export interface MigrationSchedule {
  rounds: number;
  /** The most that one GPU has to send or receive, with senders chosen so that this is the least: no fewer rounds are possible. */
  lowerBound: number;
  transfers: Transfers;
  /** `[rounds + 1]`: round r is the transfers roundStart[r] up to roundStart[r + 1]. */
  roundStart: Int32Array;
  localCopies: LocalCopies;
  storageLoads: StorageLoads;
  /** The more of the two placements' slots; a GPU's staging slots are numbered from here on. */
  slotsPerGpu: number;
  /** `[max(fromGpus, gpus)]`, staging slots used at once. */
  stagingPeak: Int32Array;
  /** Of all transfers; where `expertBytes` is given. */
  transferBytes?: number;
  /** Of the busiest GPU's staging slots; where `expertBytes` is given. */
  stagingBytes?: number;
}

const KEYS = [
  'layers',
  'experts',
  'gpus',
  'slotsPerGpu',
  'from',
  'fromGpus',
  'fromSlotsPerGpu',
  'to',
  'deadGpus',
  'commCost',
  'sources',
  'stagingSlots',
  'expertBytes',
] as const satisfies (keyof MigrationProblem)[];

/**
 * Orders the moves between two placements into rounds, in each of which a GPU sends at most one expert and receives at most one.
 *
 * While a round runs, the engine serves by the placement that the round started with; between rounds, on all GPUs at once,
 * local copies are made and the new placement takes effect. The same problem gives the same schedule on every machine. The
 * arrays must not change until the promise has settled.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT (names the field; also where `to` lacks an expert), GIMBAL_INFEASIBLE (field
 *   `stagingSlots`: not enough of them, and how many are), GIMBAL_BINDING (no addon); and the reason of `options.signal` once
 *   that aborts.
 */
export async function scheduleMigration(
  problem: MigrationProblem,
  options: { signal?: AbortSignal } = {},
): Promise<MigrationSchedule> {
  checkKeys('options', options, ['signal']);
  const pair = checkPair(problem);
  const { stagingSlots = 4, expertBytes } = problem;
  ordinal('stagingSlots', stagingSlots);
  if (expertBytes !== undefined) aboveZero('expertBytes', expertBytes);
  const native = await runJob(() => binding().scheduleMigration(pair, stagingSlots), options.signal);
  const schedule = { ...native, roundStart: roundStart(native.transfers.round, native.rounds) };
  if (expertBytes === undefined) return schedule;
  return {
    ...schedule,
    transferBytes: native.transfers.round.length * expertBytes,
    stagingBytes: Math.max(0, ...native.stagingPeak) * expertBytes,
  };
}

/** Checks all but `stagingSlots` and `expertBytes`. Also for the command line, which lists moves without ordering them. */
export function checkPair(problem: MigrationProblem): NativePlacementPair {
  checkKeys('problem', problem, KEYS);
  const layers = count('layers', problem.layers);
  const experts = count('experts', problem.experts);
  const gpus = count('gpus', problem.gpus);
  const slotsPerGpu = count('slotsPerGpu', problem.slotsPerGpu);
  const fromGpus = count('fromGpus', problem.fromGpus ?? gpus);
  const fromSlotsPerGpu = count('fromSlotsPerGpu', problem.fromSlotsPerGpu ?? slotsPerGpu);
  const fromLength = layers * fromGpus * fromSlotsPerGpu;
  const toLength = layers * gpus * slotsPerGpu;
  return {
    layers,
    experts,
    gpus,
    slotsPerGpu,
    fromGpus,
    fromSlotsPerGpu,
    from: typedArray('from', problem.from, 'Int32Array', '[layers][fromGpus * fromSlotsPerGpu]', fromLength),
    to: typedArray('to', problem.to, 'Int32Array', '[layers][gpus * slotsPerGpu]', toLength),
    deadGpus: deadGpus(problem.deadGpus ?? [], Math.max(fromGpus, gpus)),
    distance: distances(problem, fromGpus, gpus),
  };
}

/**
 * `[fromGpus][gpus]`: the costs as ranks, so that only integers cross the border. A sender costs what its source costs; GPUs
 * that leave have none and count as farthest. Empty where no costs are given.
 */
function distances({ commCost, sources }: MigrationProblem, fromGpus: number, gpus: number): Int32Array {
  const rows = sources === undefined ? gpus : count('sources', sources);
  if (commCost === undefined) return new Int32Array(0);
  const cost = costs('commCost', commCost, '[sources][gpus]', rows * gpus);
  const rankOf = new Map([...new Set(cost)].sort((a, b) => a - b).map((value, rank) => [value, rank]));
  const distance = new Int32Array(fromGpus * gpus).fill(rankOf.size);
  for (let from = 0; from < Math.min(fromGpus, gpus); from++) {
    const row = Math.floor((from * rows) / gpus);
    for (let to = 0; to < gpus; to++) distance[from * gpus + to] = rankOf.get(cost[row * gpus + to]!)!;
  }
  return distance;
}

function roundStart(roundOf: Int32Array, rounds: number): Int32Array {
  const start = new Int32Array(rounds + 1);
  for (const round of roundOf) start[round + 1] = start[round + 1]! + 1;
  for (let round = 0; round < rounds; round++) start[round + 1] = start[round + 1]! + start[round]!;
  return start;
}
