/**
 * The public shapes of the placement side. Arrays are flat and row-major; each comment gives the shape and the unit.
 */

/** How a token finds one of an expert's replicas; must match what the engine does. */
export type ReplicaChoice = 'even' | 'nearest';

/** Dimensionless weights of the objective J; every term is a time, so weights of 1 add times. */
export interface Weights {
  /** Weight of the busiest GPU's compute time. */
  load?: number;
  /** Weight of the busiest GPU's communication time. */
  commMax?: number;
  /** Weight of the mean communication time over the GPUs. */
  commTotal?: number;
  /** Weight of `migrationCost` per new (expert, GPU) pair. */
  migration?: number;
}

export interface PlacementProblem {
  layers: number;
  /** Source DP ranks. */
  sources: number;
  /** Logical experts per layer. */
  experts: number;
  /** GPUs (EP ranks). */
  gpus: number;
  /** Physical experts each GPU holds. */
  slotsPerGpu: number;
  /** `[layers][sources][experts]`, tokens in the statistics window. May be backed by a SharedArrayBuffer. */
  tokens: Uint32Array;
  /** ns per token of one expert: one number for all GPUs, or `[gpus]`. */
  computeCost: number | Float64Array;
  /** `[sources][gpus]`, ns to send one token there and its result back; 0 on the source's own GPU. */
  commCost: Float64Array;
  replicaChoice?: ReplicaChoice;
  weights?: Weights;
  /** ns per new (expert, GPU) pair, amortised over the planning horizon and prorated to the statistics window. */
  migrationCost?: number;
  /** New pairs allowed over all layers, beyond those that dead GPUs force. */
  migrationBudget?: number;
  /** `[layers][incumbentGpus * incumbentSlotsPerGpu]`, -1 for an empty slot: the placement in force. */
  incumbent?: Int32Array;
  /** The incumbent's GPUs, where they differ from `gpus` (elastic scaling). */
  incumbentGpus?: number;
  /** The incumbent's slots per GPU, where they differ from `slotsPerGpu`. */
  incumbentSlotsPerGpu?: number;
  deadGpus?: number[];
  /** Allow a new second replica of an expert on one GPU. Default false. */
  allowDuplicates?: boolean;
  /** `[layers]`, the model layer of each row, for exporters. */
  layerIds?: Int32Array;
}

export type BackendName = 'cpu' | 'cuda';
export type Effort = 'fast' | 'balanced' | 'thorough';

export interface PlanProgress {
  done: number;
  total: number;
}

export interface PlanOptions {
  backend?: 'auto' | BackendName;
  /** Which CUDA device, numbered as the driver does (`CUDA_VISIBLE_DEVICES` counts). Default 0. */
  device?: number;
  effort?: Effort;
  /** Independent searches per layer; default from `effort`. */
  walkers?: number;
  /** Search rounds per walker; in one round every GPU is the focus once. Default from `effort`. */
  rounds?: number;
  /** Non-negative safe integer or bigint below 2^64. */
  seed?: number | bigint;
  /** Worker threads; changes the time, never the plan. Default: the machine's cores. */
  threads?: number;
  /** Wall-clock limit; stops between rounds only, and the plan then says how many rounds it ran. */
  timeLimitMs?: number;
  signal?: AbortSignal;
  onProgress?: (progress: PlanProgress) => void;
}

export interface LayerPlan {
  /** ns over the statistics window, as are loadMax, commMax, commTotal, sourceMax and lowerBound. */
  objective: number;
  loadMax: number;
  commMax: number;
  commTotal: number;
  /** The busiest sender's communication; reported, not part of the objective. */
  sourceMax: number;
  /** New (expert, GPU) pairs, the forced ones included. */
  migrations: number;
  /** Of `migrations`, those that dead or new GPUs force; outside the budget. */
  forcedMigrations: number;
  /** Proved: no placement of this layer costs less. */
  lowerBound: number;
  /** objective / lowerBound − 1; 0 where both are 0. */
  gap: number;
}

export interface Plan {
  /** `[layers][gpus * slotsPerGpu]`, −1 on a dead GPU's slots. */
  physicalToLogical: Int32Array;
  /** `[layers][experts]` */
  replicaCount: Int32Array;
  layers: LayerPlan[];
  objective: number;
  lowerBound: number;
  gap: number;
  migrations: number;
  forcedMigrations: number;
  backend: BackendName;
  /** What the backend chose by itself, e.g. the vector width of the CPU. */
  backendDetail: string;
  /** Under `auto`, where no GPU was taken: why not. */
  backendReason?: string;
  seed: number | bigint;
  walkers: number;
  rounds: number;
  elapsedMs: number;
  /** On a GPU: how long its kernels took, by its own clock; copies and the bounds that are proved meanwhile do not count. */
  kernelMs?: number;
}

export interface Evaluation {
  /** Each `[candidates][layers]`; ns, ns, ns, ns, count. */
  objective: Float64Array;
  loadMax: Float64Array;
  commMax: Float64Array;
  commTotal: Float64Array;
  migrations: Float64Array;
  /** These as in a plan, for all candidates; absent where there were none. */
  backend?: BackendName;
  backendReason?: string;
  kernelMs?: number;
}

/** One GPU. */
export interface DeviceInfo {
  name: string;
  /** E.g. "9.0". */
  computeCapability: string;
  multiprocessors: number;
  memoryBytes: number;
  clockMhz: number;
  memoryClockMhz: number;
  memoryBusBits: number;
  /** The newest CUDA that the driver can serve, e.g. "13.0". */
  driver: string;
  /** The CUDA that the plug-in was built with. */
  runtime: string;
}

export interface BackendInfo {
  name: BackendName;
  available: boolean;
  description: string;
  /** Why not, where it is not available. */
  reason?: string;
  /** Of `cuda`, where it is available: the GPUs by their numbers (`device` in the options). */
  devices?: DeviceInfo[];
}
