/** What a simulation takes and gives. Times are ms from the start of the trace, lengths are tokens, shares lie in 0…1. */
import type { DecisionReason, DecisionRules } from '../controller/decide.js';
import type { DispatchPolicy, DispatchStages, PressureWeights, QueuePolicy } from '../dispatch/types.js';
import type { Effort, PlacementProblem, PlanProgress, ReplicaChoice } from '../types.js';
import type { ServedModel, ServingHardware } from './hardware.js';
import type { ProfileTables } from './tables.js';

export interface SimulatedRequest {
  arrivalMs: number;
  inputTokens: number;
  /** At least 1; the prefill gives the first. */
  outputTokens: number;
  /** Requests of one session tend to be of one topic, */
  session?: string | number;
  /** and those of a tenant, where they have no session. */
  tenant?: string | number;
  /** A hash for each block of the prompt that covers the block and all before it; blocks are equal parts of the prompt. */
  prefixHashes?: readonly number[];
  /** What it is about, by number: with it, routing draws no topic of its own. */
  topic?: number;
}

/**
 * How tokens travel to experts and back. `allgather-reducescatter`: every rank gets every token, whatever the placement (vLLM's
 * default). `a2a-pairs`: a copy for each (token, expert) pair. `a2a-dedup`: a copy for each (token, GPU) pair, as DeepEP sends.
 */
export type SimulatedAllToAll = 'allgather-reducescatter' | 'a2a-pairs' | 'a2a-dedup';

export interface EngineSettings {
  /** Requests that run at once on a rank. Default 1024, on GPUs below the H100's class 256. */
  maxNumSeqs?: number;
  /** Tokens of a step on a rank: decodes first, prefill with what is left. Default 8192 and 2048. */
  maxNumBatchedTokens?: number;
  /** Of 16 tokens, on a rank. Default: what 0.9 of the memory leaves beside weights and 4 GB of activations. */
  kvBlocks?: number;
  /** Default `allgather-reducescatter`. */
  allToAll?: SimulatedAllToAll;
  /**
   * How a token finds a replica of its expert: `even`, all alike, or `nearest`, as SGLang's static choice: one on its rank's own
   * GPUs, else on its node, else any; equals evenly. Planners are told. Default `even`.
   */
  replicaChoice?: ReplicaChoice;
  /** Plan a step while the one before runs, as vLLM does: what arrives meanwhile waits one step more. Default true. */
  asyncScheduling?: boolean;
  /** Batches up to so many tokens are padded to the group's largest, as captured graphs need. Default 512, as vLLM's. */
  padUpToTokens?: number;
  /** Keep the KV blocks of prompts that bring hashes. Default true. */
  prefixCaching?: boolean;
  /** ms between a request's arrival and its place in an engine's queue: HTTP, templates, tokenisation. Default 3. */
  requestMs?: number;
  /** Engines' samples reach the dispatcher every so many ms. Default 100. */
  sampleEveryMs?: number;
  /** Samples tell how much prefill waits, as SGLang's do. Default false, as vLLM's. */
  tellsPrefill?: boolean;
}

/** Which experts a token goes to; all give `profiles`, distributions over experts that requests have. */
export type SimulatedRouting =
  | {
      /** logit = base of the layer + topic + persona + Gumbel noise, then the top k. */
      kind: 'generative';
      /** σ of the layers' base popularity. Default 0.4. */
      sigmaExperts?: number;
      /** σ of topics; personas have half of it. Default 0.5. */
      sigmaTopics?: number;
      /** Default 8. */
      topics?: number;
      /** Different kinds of request within a topic. Default 4. */
      personas?: number;
      /** Chance that a session's next request keeps its topic. Default 0.9. */
      stickiness?: number;
      /** The base popularity forgets half of itself in so many ms. Default: never. */
      halfLifeMs?: number;
    }
  | {
      /** Counts `[layers][sources][experts]`: each source is a topic. */
      kind: 'counts';
      tokens: ArrayLike<number>;
      layers: number;
      sources: number;
      experts: number;
    }
  | {
      /** Recorded choices, `[tokens][layers][topK]` expert ids; each recording is a topic. */
      kind: 'recorded';
      recordings: { ids: ArrayLike<number>; layers: number; topK: number }[];
    }
  | { kind: 'uniform' };

/** A planner of one's own: gets the problem of a lockstep group and gives `[layers][gpus * slotsPerGpu]`. */
export interface PlacementPlanner {
  name: string;
  plan(problem: PlacementProblem): Int32Array | Promise<Int32Array>;
}

export type SimulatedPlacement = 'static' | 'eplb' | 'swift' | 'periodic' | 'gimbal' | 'oracle';

export interface SimulatedPolicy {
  /** The product's scheduler under this policy, or with stages of one's own. Default `gimbal`. */
  dispatch?: DispatchPolicy | DispatchStages;
  /** The order in which an engine takes waiting requests. Default `gimbal`. */
  queue?: QueuePolicy;
  /**
   * `static`: the contiguous placement that engines start with. Every so many steps: `eplb`, vLLM's rule; `swift`, a few swaps as
   * vLLM-Ascend has them; `periodic`, the product's planner; or a planner of one's own. `gimbal`: the product's controller, which
   * looks at sampled statistics and decides. `oracle`: the best placement for what is about to come, moved for nothing. Default
   * `gimbal`.
   */
  placement?: SimulatedPlacement | PlacementPlanner;
  /** Tell the dispatcher each engine's MoE pressure and its excess of communication, every second; it counts by `weights`. Default false. */
  feedback?: boolean;
  /**
   * Learn which experts tenants, or else sessions, choose, and weigh engines by it. Default: where it wins, over an all-to-all
   * between several nodes, and not for rivals' dispatch.
   */
  affinity?: boolean;
  /**
   * Share of the requests that go to the engine of their topic, its number modulo the engines, whatever `dispatch` would say: what
   * gives each engine traffic of its own kind. The others go by `dispatch`. Default 0.
   */
  rankStickiness?: number;
  /** Hold prefill back at the gateway, and release it so that lockstep ranks prefill together. Default: no. */
  pacing?: PacingSettings | false;
  /** Of the scheduler's terms, under `gimbal`. */
  weights?: PressureWeights;
  /** Queue aging, tokens a second. Default: the queue's own. */
  agingTokensPerSecond?: number;
}

/**
 * How much prefill an engine may have before it that is released and not done: `leastTokens`, or where the gateway holds much,
 * `backlogShare` of what it holds for each engine, up to `mostTokens`.
 */
export interface PacingSettings {
  /** Default 2048. */
  leastTokens?: number;
  /** Default 0.25. */
  backlogShare?: number;
  /** Default: none. */
  mostTokens?: number;
}

/** The product's controller as it is simulated, under `gimbal`. */
export interface SimulatedController {
  /** ms between two looks. Default 10,000. */
  lookEveryMs?: number;
  /** Of requests, those whose routing the engines tell, when they end. Default 0.05. */
  sampleShare?: number;
  /** Of the statistics, observed tokens. Default: as RoutingStatistics has it. */
  halfLifeTokens?: number;
  /** Of the statistics: how much the mean over the sources weighs. Default: as RoutingStatistics has it. */
  priorTokens?: number;
  /** Of the decision. Default: the controller's. */
  rules?: DecisionRules;
  /** Of the plans. Default `balanced`. */
  effort?: Effort;
}

export interface Rearrangement {
  /** Steps of a lockstep group between plans, where they are made by steps. Default 3000. */
  everySteps?: number;
  /** Of these, the last ones whose routing counts. Default 1000. */
  windowSteps?: number;
  /** `[layers][gpus * slotsPerGpu]`: the placement that engines start with. Default: contiguous. */
  initial?: Int32Array;
  /** Plan once more at this step, so that the start is not all contiguous. Default: none. */
  firstStep?: number;
  /** `stall`: engines stand still while weights move. `overlap`: weights move beside the work. Default: by the planner. */
  transfer?: 'stall' | 'overlap';
  /** ms that each layer takes in a stall beyond the transfer itself. Default 10. */
  layerStallMs?: number;
  /** ms of a whole stall, in place of what transfer and layers give. */
  stallMs?: number;
  /** Share of the links that an overlapped transfer takes. Default 0.25. */
  linkShare?: number;
  /** Physical experts beyond the logical ones, over a lockstep group. Default 0. */
  redundantExperts?: number;
  /** Most moves of one plan of the product's planner. Default: none. */
  migrationBudget?: number;
  controller?: SimulatedController;
  /** ms between two plans of the oracle. Default 10,000. */
  oracleEveryMs?: number;
}

/** A GPU that is lost for a while, or for good. */
export interface GpuFailure {
  atMs: number;
  /** Of all GPUs, in the order of the engines. */
  gpu: number;
  /** When it is back, empty. Default: never. */
  backMs?: number;
}

export interface SimulationOptions {
  trace: readonly SimulatedRequest[];
  /** A preset's name or figures of one's own. */
  model: string | ServedModel;
  hardware: string | ServingHardware;
  /** Data-parallel engines in all. */
  dp: number;
  /** GPUs of an engine. Default 1. */
  tp?: number;
  /** GPUs over which the experts are spread; dp · tp / ep groups step apart. Default dp · tp. */
  ep?: number;
  /** Over which the GPUs are spread in order. Default 1. */
  nodes?: number;
  engine?: EngineSettings;
  routing?: SimulatedRouting;
  policy?: SimulatedPolicy;
  rearrangement?: Rearrangement;
  /** One GPU's must not overlap. */
  failures?: readonly GpuFailure[];
  /** MoE layers whose experts are simulated, each of which then stands for several. Default: all. */
  simulatedLayers?: number;
  /** Measured kernels in place of fits, from `readProfileTables`. */
  tables?: ProfileTables;
  /** What counts as good: for goodput. Default 1000 and 50. */
  slo?: { ttftMs?: number; tpotMs?: number };
  /** Width of a point of the time series, ms. Default: a hundredth of the trace, at least 1000. */
  seriesEveryMs?: number;
  seed?: number;
  signal?: AbortSignal;
  /** Requests finished and in all; now and then, on the caller's thread. */
  onProgress?: (progress: PlanProgress) => void;
}

export interface RequestOutcome {
  arrivalMs: number;
  firstTokenMs: number;
  finishMs: number;
  engine: number;
}

export interface Distribution {
  mean: number;
  p50: number;
  p90: number;
  p95: number;
  p99: number;
}

export interface SimulationSummary {
  ttftMs: Distribution;
  /** ms a token after the first; of requests with more than one. */
  tpotMs: Distribution;
  e2eMs: Distribution;
  /** Over the time from the first arrival to the last finish. */
  requestsPerSecond: number;
  outputTokensPerSecond: number;
  /** Requests a second that met both limits of `slo`. */
  goodputPerSecond: number;
  /** Share of requests that met them. */
  goodShare: number;
}

/** Each array has a value for each point. */
export interface SimulationSeries {
  /** Start of each point. */
  timeMs: number[];
  /** Largest over mean tokens of a step over the engines of a group, weighted by step time. */
  engineImbalance: number[];
  /** Largest over mean (token, expert) pairs over the GPUs of a group, mean over layers, weighted by step time. */
  expertImbalance: number[];
  stepMs: number[];
  running: number[];
  waiting: number[];
  /** Experts that began to move to another GPU. */
  migrations: number[];
  /** `[engines][points]` */
  kvUsage: number[][];
}

export interface SimulationCounters {
  steps: number;
  /** GPU time in which an engine's rank did a dummy batch because another one worked. */
  dummySteps: number;
  preemptions: number;
  prefillTokens: number;
  /** Of prompts, found in the prefix cache. */
  cachedTokens: number;
  decodeTokens: number;
  /** Tokens computed twice because of preemption. */
  recomputedTokens: number;
  rearrangements: number;
  /** (expert, GPU) pairs that were new. */
  migrations: number;
  stallMs: number;
  /** What steps waited for experts and their collectives. */
  moeMs: number;
  /** For experts alone; and what it had been, were every step's work even over the GPUs. */
  expertMs: number;
  evenExpertMs: number;
  /** Requests that were sent again, since their engine was lost. */
  resentRequests: number;
  /** KV blocks in use when everything had ended; 0 unless the simulator is wrong. */
  leakedBlocks: number;
}

/** A look of the simulated controller at which it could have acted. */
export interface SimulatedDecision {
  atMs: number;
  group: number;
  rearranged: boolean;
  reason: DecisionReason;
  /** Of the plan, where one was made: new (expert, GPU) pairs, and the share of the experts' time that it promised to save. */
  migrations?: number;
  gainShare?: number;
}

export interface SimulationResult {
  requests: RequestOutcome[];
  summary: SimulationSummary;
  series: SimulationSeries;
  counters: SimulationCounters;
  /** `[layers][gpus]` mean pairs a step and GPU of group 0, over its mean: for a heat map. */
  expertLoad: number[][];
  /** Of the controller, under `gimbal`. */
  decisions: SimulatedDecision[];
  kvBlocks: number;
  /** What was assumed, in words. */
  notes: string[];
}
