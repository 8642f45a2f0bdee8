/**
 * The EPLB family's planner in our own words: replicate the expert with the heaviest replicas until the slots are
 * used, then pack heaviest first onto the lightest GPU that has room. It looks at loads only: sources, links, unequal
 * GPUs and the incumbent are unknown to it, and it may put two replicas of an expert on one GPU.
 */
import type { PlacementProblem } from '../../types.js';
import { emptyPlacement, expertLoads, liveGpusOf } from './common.js';

/** Assigns `weights` to `packs` packs of `capacity` items: heaviest first, to the lightest pack with room. `[items]` */
export function packHeaviestFirst(weights: ArrayLike<number>, packs: number, capacity: number): Int32Array {
  const order = Array.from({ length: weights.length }, (_, i) => i).sort(
    (a, b) => weights[b]! - weights[a]! || a - b,
  );
  const packOf = new Int32Array(weights.length);
  const load = new Float64Array(packs);
  const used = new Int32Array(packs);
  for (const item of order) {
    let lightest = -1;
    for (let pack = 0; pack < packs; pack += 1) {
      if (used[pack]! < capacity && (lightest < 0 || load[pack]! < load[lightest]!)) lightest = pack;
    }
    packOf[item] = lightest;
    load[lightest] = load[lightest]! + weights[item]!;
    used[lightest] = used[lightest]! + 1;
  }
  return packOf;
}

/** The item in each of `slots` slots: every item once, then again and again the one with the heaviest replicas. */
export function replicateHeaviest(
  weights: ArrayLike<number>,
  slots: number,
): { items: Int32Array; counts: Int32Array } {
  const items = new Int32Array(slots);
  const counts = new Int32Array(weights.length).fill(1);
  for (let slot = 0; slot < slots; slot += 1) {
    if (slot < weights.length) {
      items[slot] = slot;
      continue;
    }
    let heaviest = 0;
    for (let i = 1; i < weights.length; i += 1) {
      if (weights[i]! / counts[i]! > weights[heaviest]! / counts[heaviest]!) heaviest = i;
    }
    items[slot] = heaviest;
    counts[heaviest] = counts[heaviest]! + 1;
  }
  return { items, counts };
}

/** Replicates and packs `experts` (ids) over `gpus` (ids), writing their slots of one layer. */
function fillGpus(
  slots: Int32Array,
  slotsPerGpu: number,
  experts: readonly number[],
  loads: Float64Array,
  gpus: readonly number[],
): void {
  const { items, counts } = replicateHeaviest(
    experts.map((e) => loads[e]!),
    gpus.length * slotsPerGpu,
  );
  const share = Float64Array.from(items, (i) => loads[experts[i]!]! / counts[i]!);
  const packOf = packHeaviestFirst(share, gpus.length, slotsPerGpu);
  const used = new Int32Array(gpus.length);
  for (const [item, pack] of packOf.entries()) {
    slots[gpus[pack]! * slotsPerGpu + used[pack]!] = experts[items[item]!]!;
    used[pack] = used[pack]! + 1;
  }
}

/** All GPUs as one group. `[layers][gpus * slotsPerGpu]` */
export function eplbGlobal(problem: PlacementProblem): Int32Array {
  const placement = emptyPlacement(problem);
  const live = liveGpusOf(problem);
  const experts = Array.from({ length: problem.experts }, (_, e) => e);
  const width = problem.gpus * problem.slotsPerGpu;
  for (let layer = 0; layer < problem.layers; layer += 1) {
    const slots = placement.subarray(layer * width, (layer + 1) * width);
    fillGpus(slots, problem.slotsPerGpu, experts, expertLoads(problem, layer), live);
  }
  return placement;
}

export interface HierarchicalOptions {
  nodes: number;
  /** Equal blocks of consecutive experts that stay together on a node. */
  groups: number;
}

/**
 * Expert groups packed onto nodes, then each node replicates and packs its own experts. As in the original, the
 * global rule serves where groups do not divide over the nodes; so it does where a GPU is dead.
 */
export function eplbHierarchical(problem: PlacementProblem, options: HierarchicalOptions): Int32Array {
  const { nodes, groups } = options;
  const { layers, experts, gpus, slotsPerGpu } = problem;
  const divides = groups % nodes === 0 && experts % groups === 0 && gpus % nodes === 0;
  if (!divides || liveGpusOf(problem).length < gpus) return eplbGlobal(problem);
  const groupSize = experts / groups;
  const gpusPerNode = gpus / nodes;
  const width = gpus * slotsPerGpu;
  const placement = emptyPlacement(problem);
  for (let layer = 0; layer < layers; layer += 1) {
    const loads = expertLoads(problem, layer);
    const groupLoads = new Float64Array(groups);
    for (const [e, load] of loads.entries()) {
      const group = Math.floor(e / groupSize);
      groupLoads[group] = groupLoads[group]! + load;
    }
    const nodeOfGroup = packHeaviestFirst(groupLoads, nodes, groups / nodes);
    const slots = placement.subarray(layer * width, (layer + 1) * width);
    for (let node = 0; node < nodes; node += 1) {
      const own = Array.from({ length: experts }, (_, e) => e).filter(
        (e) => nodeOfGroup[Math.floor(e / groupSize)] === node,
      );
      const nodeGpus = Array.from({ length: gpusPerNode }, (_, i) => node * gpusPerNode + i);
      fillGpus(slots, slotsPerGpu, own, loads, nodeGpus);
    }
  }
  return placement;
}
