/**
 * Where the tokens of a layer go under a placement: tokens per slot, and how many of them cross a node or leave their GPU.
 * These are figures for people (imbalance, cross-node share, heat map), in floating point. What a plan is judged by, J and
 * its terms, always comes from the native core; a test holds the two against each other.
 */
import type { PlacementProblem, ReplicaChoice } from '../types.js';

export interface FlowInput {
  sources: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  replicaChoice: ReplicaChoice;
  /** `[layers][sources][experts]` */
  tokens: Uint32Array;
  /** `[sources][gpus]`, ns per token; decides who is near under `nearest`. */
  commCost: Float64Array;
  /** GPUs of one node, where the cluster has nodes of one size. */
  gpusPerNode?: number;
}

export interface LayerFlow {
  /** `[gpus * slotsPerGpu]`, tokens that reach each slot; 0 on an empty one. */
  slotTokens: Float64Array;
  /** `[gpus]` */
  gpuTokens: Float64Array;
  totalTokens: number;
  /** Tokens that leave their source's own GPUs. */
  remoteTokens: number;
  /** Tokens that leave their source's node; undefined where nodes are not known. */
  crossNodeTokens: number | undefined;
}

/** The GPUs a source DP rank runs on: sources lie over the GPUs in equal consecutive blocks. */
export function homeGpus(source: number, sources: number, gpus: number): [first: number, end: number] {
  const first = Math.floor((source * gpus) / sources);
  const end = Math.floor(((source + 1) * gpus) / sources);
  return [first, Math.max(end, first + 1)];
}

/** `row` is `[gpus * slotsPerGpu]`, the experts of layer `layer`'s slots, -1 on an empty one. */
export function layerFlow(input: FlowInput, layer: number, row: Int32Array): LayerFlow {
  const flow = emptyFlow(input);
  const slotsOf = slotsByExpert(input, row);
  const base = layer * input.sources * input.experts;
  for (let source = 0; source < input.sources; source++) {
    const [homeFirst, homeEnd] = homeGpus(source, input.sources, input.gpus);
    for (let expert = 0; expert < input.experts; expert++) {
      const tokens = input.tokens[base + source * input.experts + expert]!;
      if (tokens === 0) continue;
      flow.totalTokens += tokens;
      const serving = servingSlots(input, source, slotsOf[expert]!);
      const share = tokens / serving.length;
      for (const slot of serving) {
        const gpu = Math.floor(slot / input.slotsPerGpu);
        flow.slotTokens[slot]! += share;
        flow.gpuTokens[gpu]! += share;
        if (gpu < homeFirst || gpu >= homeEnd) flow.remoteTokens += share;
        if (crossesNode(input, homeFirst, homeEnd, gpu)) flow.crossNodeTokens! += share;
      }
    }
  }
  return flow;
}

/** How the load of a layer lies on its live GPUs. */
export interface Balance {
  /** Largest over mean load; 1 in an idle layer. */
  imbalance: number;
  /** `[gpus]`, load over that mean; 0 on dead GPUs and in an idle layer. */
  load: number[];
}

export function balanceOf(
  { computeCost, deadGpus = [] }: Pick<PlacementProblem, 'computeCost' | 'deadGpus'>,
  { gpuTokens }: LayerFlow,
): Balance {
  const dead = new Set(deadGpus);
  let largest = 0;
  let sum = 0;
  const load = Array.from(gpuTokens, (tokens, gpu) => {
    if (dead.has(gpu)) return 0;
    const cost = typeof computeCost === 'number' ? computeCost : computeCost[gpu]!;
    // Equal GPUs of no cost (an objective of communication alone) still have a balance of tokens worth showing.
    const own = (cost > 0 ? cost : 1) * tokens;
    largest = Math.max(largest, own);
    sum += own;
    return own;
  });
  if (sum === 0) return { imbalance: 1, load };
  const mean = sum / (gpuTokens.length - dead.size);
  return { imbalance: largest / mean, load: load.map((own) => own / mean) };
}

function emptyFlow(input: FlowInput): LayerFlow {
  return {
    slotTokens: new Float64Array(input.gpus * input.slotsPerGpu),
    gpuTokens: new Float64Array(input.gpus),
    totalTokens: 0,
    remoteTokens: 0,
    crossNodeTokens: input.gpusPerNode === undefined ? undefined : 0,
  };
}

function slotsByExpert(input: FlowInput, row: Int32Array): number[][] {
  const slotsOf: number[][] = Array.from({ length: input.experts }, () => []);
  for (let slot = 0; slot < input.gpus * input.slotsPerGpu; slot++) {
    const expert = row[slot]!;
    if (expert >= 0) slotsOf[expert]!.push(slot);
  }
  return slotsOf;
}

/** The replicas that serve one source: all of them under `even`, the nearest (with ties) under `nearest`. */
function servingSlots(input: FlowInput, source: number, slots: number[]): number[] {
  if (input.replicaChoice === 'even' || slots.length === 1) return slots;
  const costOf = (slot: number) =>
    input.commCost[source * input.gpus + Math.floor(slot / input.slotsPerGpu)]!;
  let least = Number.POSITIVE_INFINITY;
  for (const slot of slots) least = Math.min(least, costOf(slot));
  return slots.filter((slot) => costOf(slot) === least);
}

function crossesNode(input: FlowInput, homeFirst: number, homeEnd: number, gpu: number): boolean {
  if (input.gpusPerNode === undefined) return false;
  const node = Math.floor(gpu / input.gpusPerNode);
  return (
    node < Math.floor(homeFirst / input.gpusPerNode) || node > Math.floor((homeEnd - 1) / input.gpusPerNode)
  );
}
