/** What redundancy advice takes and gives. Bytes are bytes, shares lie in 0…1, times carry their unit. */
import type { ServedModel, ServingHardware } from '../simulator/hardware.js';
import type { ProfileTables } from '../simulator/tables.js';
import type { EngineSettings, SimulatedRouting } from '../simulator/types.js';
import type { Plan, PlanOptions, PlanProgress, ReplicaChoice } from '../types.js';

/**
 * What is served, in the mean, over the whole lockstep group. How many requests are under way is told by one of `concurrency`,
 * `requestsPerSecond` and `kvUse`.
 */
export interface ServedTraffic {
  /** Of a prompt, what is not found in a prefix cache. */
  inputTokens: number;
  /** At least 2: the prefill gives the first. */
  outputTokens: number;
  /** Requests that decode at once where memory has room for them. */
  concurrency?: number;
  /** By Little's law, at the step time of the leanest placement with memory to spare. */
  requestsPerSecond?: number;
  /** Measured share of the KV cache in use, beside `redundantExperts` now in force (default: the leanest). */
  kvUse?: number;
  redundantExperts?: number;
  /** KV tokens that a request holds while it decodes, in the mean. Default: the prompt and half of the answer. */
  kvTokensPerRequest?: number;
}

/** Tokens routed, `[layers][sources][experts]`, or the simulator's generative model with counts drawn from it. */
export type AdvisedRouting =
  | { kind: 'counts'; tokens: Uint32Array; layers: number; sources: number; experts: number }
  | (Omit<Extract<SimulatedRouting, { kind: 'generative' }>, 'stickiness' | 'halfLifeMs'> & {
      /** Tokens that each source sends. Default 65,536. */
      windowTokens?: number;
    });

export interface RedundancyOptions {
  /** A preset's name or figures of one's own, as of `simulate`. */
  model: string | ServedModel;
  hardware: string | ServingHardware;
  /** Default 1. */
  nodes?: number;
  gpusPerNode: number;
  /** Source DP ranks, which are the engines. Default: the counts' own, or one a GPU. */
  sources?: number;
  routing: AdvisedRouting;
  traffic: ServedTraffic;
  /** Redundant experts a layer to weigh. Default: the leanest, and whole slots more on each GPU while they fit. */
  candidates?: readonly number[];
  /** Default `even`. */
  replicaChoice?: ReplicaChoice;
  engine?: Pick<
    EngineSettings,
    'maxNumSeqs' | 'maxNumBatchedTokens' | 'allToAll' | 'asyncScheduling' | 'padUpToTokens'
  >;
  /** Of a GPU's memory, what the engine takes. Default 0.9. */
  memoryShare?: number;
  /** Of that, what is neither weights nor KV cache. Default 4e9. */
  activationBytes?: number;
  /** Measured kernels in place of fits, from `readProfileTables`. */
  tables?: ProfileTables;
  /** Splits of the counts into a half to plan on and a half to judge by; at least 2. Default 4. */
  splits?: number;
  /** What redundancy must win in throughput to be worth its while. Default 0.005. */
  leastGainShare?: number;
  /** Standard deviations over the splits that a gain must be worth. Default 2. */
  certainty?: number;
  /** Verify so many of the best candidates, and the leanest, by `simulate`. Default 0. */
  simulate?: number;
  plan?: Pick<PlanOptions, 'backend' | 'device' | 'effort' | 'threads'>;
  seed?: number;
  signal?: AbortSignal;
  /** Pieces of work done and in all; now and then, on the caller's thread. */
  onProgress?: (progress: PlanProgress) => void;
}

/** One number of redundant experts and what it is predicted to do. */
export interface RedundancyCandidate {
  redundantExperts: number;
  slotsPerGpu: number;
  /** HBM of a GPU for its slots beyond the leanest placement's, all layers. */
  extraBytes: number;
  /** What is left for the KV cache of an engine. */
  kvTokens: number;
  /** Requests that decode at once on an engine, in the mean. */
  batch: number;
  /** Of a mean step, and of it experts with their collectives. */
  stepMs: number;
  moeMs: number;
  /** Distinct experts whose weights a GPU reads in a layer of a step without prefill. */
  activeExperts: number;
  /** Largest over mean pairs of a GPU in such a step, mean over layers. */
  imbalance: number;
  /** By the plan on all counts: the busiest GPU's compute and communication, all layers, ns a token of the window. */
  loadMaxNs: number;
  commMaxNs: number;
  /** Of the group: what decides. */
  outputTokensPerSecond: number;
  /** The same as seen by one of the requests, those that wait for memory included. */
  msPerOutputToken: number;
  /** Throughput over that of the leanest placement, less 1; and its standard deviation over the splits. */
  gainShare: number;
  gainSpread: number;
  /** On all counts. */
  plan: Plan;
  /** By `simulate`, where it was asked for. */
  simulated?: { outputTokensPerSecond: number; msPerOutputToken: number; preemptions: number };
}

/** From a demand for KV memory on, what is advised. */
export interface DemandRange {
  /** KV tokens that an engine's requests want at once. */
  fromKvTokens: number;
  redundantExperts: number;
}

export interface RedundancyAdvice {
  redundantExperts: number;
  slotsPerGpu: number;
  /** Others by their predicted throughput, best first. */
  runnersUp: number[];
  /** Rising in redundant experts; the first is the leanest placement. */
  candidates: RedundancyCandidate[];
  /** Requests under way over the group, and what they want of an engine's KV cache. */
  concurrency: number;
  kvTokensWanted: number;
  /** Rising: the same concurrency with other demands for memory. The first is from the least demand looked at on. */
  demand: DemandRange[];
  /** What was assumed, in words. */
  notes: string[];
}
