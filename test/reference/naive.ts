/**
 * The objective straight from its definition, in plain float64: token by token group, slot by slot, nothing
 * incremental. It shares no code with the planner; tests and benches compare against it.
 *
 * Ties of `nearest` are decided on the costs as given: where two costs differ by less than the planner's fixed point
 * can hold, the two may disagree.
 */
import type { PlacementProblem, Weights } from '../../lib/types.js';

export const DEFAULT_WEIGHTS: Required<Weights> = { load: 1, commMax: 1, commTotal: 0.1, migration: 1 };

export interface NaiveLayer {
  objective: number;
  loadMax: number;
  commMax: number;
  commTotal: number;
  sourceMax: number;
  migrations: number;
  /** `[gpus]`, ns */
  load: Float64Array;
  /** `[gpus]`, ns */
  comm: Float64Array;
  /** `[sources]`, ns */
  source: Float64Array;
}

/** One result per layer of `placement` `[layers][gpus * slotsPerGpu]`. */
export function evaluateNaive(problem: PlacementProblem, placement: Int32Array): NaiveLayer[] {
  const width = problem.gpus * problem.slotsPerGpu;
  if (placement.length !== problem.layers * width) {
    throw new RangeError(
      `placement: expected ${problem.layers * width} slots but received ${placement.length}`,
    );
  }
  return Array.from({ length: problem.layers }, (_, layer) =>
    evaluateLayerNaive(problem, layer, placement.subarray(layer * width, (layer + 1) * width)),
  );
}

/** `slots` is the placement of this layer alone, `[gpus * slotsPerGpu]`. */
export function evaluateLayerNaive(problem: PlacementProblem, layer: number, slots: Int32Array): NaiveLayer {
  const { sources, experts, gpus } = problem;
  const load = new Float64Array(gpus);
  const comm = new Float64Array(gpus);
  const source = new Float64Array(sources);
  const hosts = gpusOfExperts(problem, slots);
  for (let s = 0; s < sources; s += 1) {
    for (let e = 0; e < experts; e += 1) {
      const tokens = problem.tokens[(layer * sources + s) * experts + e]!;
      const serving = servingReplicas(problem, s, hosts[e]!);
      if (serving.length === 0) throw new Error(`layer ${layer}: expert ${e} has no live replica`);
      for (const g of serving) {
        const arriving = tokens / serving.length;
        const commTime = problem.commCost[s * gpus + g]! * arriving;
        load[g] = load[g]! + computeCostOf(problem, g) * arriving;
        comm[g] = comm[g]! + commTime;
        source[s] = source[s]! + commTime;
      }
    }
  }
  const loadMax = Math.max(...load);
  const commMax = Math.max(...comm);
  const commTotal = comm.reduce((sum, value) => sum + value, 0);
  const migrations = newPairs(problem, layer, slots);
  const weights = { ...DEFAULT_WEIGHTS, ...problem.weights };
  const objective =
    weights.load * loadMax +
    weights.commMax * commMax +
    (weights.commTotal * commTotal) / gpus +
    weights.migration * (problem.migrationCost ?? 0) * migrations;
  return {
    objective,
    loadMax,
    commMax,
    commTotal,
    sourceMax: Math.max(...source),
    migrations,
    load,
    comm,
    source,
  };
}

export function computeCostOf(problem: PlacementProblem, gpu: number): number {
  return typeof problem.computeCost === 'number' ? problem.computeCost : problem.computeCost[gpu]!;
}

/** Mean over max of the live GPUs' load; 1 where there is none. */
export function balanceOf(problem: PlacementProblem, load: Float64Array): number {
  const live = [...load].filter((_, g) => !(problem.deadGpus ?? []).includes(g));
  const max = Math.max(...live);
  return max === 0 ? 1 : live.reduce((sum, value) => sum + value, 0) / live.length / max;
}

/** Per expert, the GPU of each of its slots; a GPU that holds two slots appears twice. */
function gpusOfExperts(problem: PlacementProblem, slots: Int32Array): number[][] {
  const hosts: number[][] = Array.from({ length: problem.experts }, () => []);
  for (const [slot, e] of slots.entries()) {
    if (e >= 0) hosts[e]!.push(Math.floor(slot / problem.slotsPerGpu));
  }
  return hosts;
}

function servingReplicas(problem: PlacementProblem, source: number, hosts: number[]): number[] {
  if (problem.replicaChoice !== 'nearest') return hosts;
  const cost = (g: number): number => problem.commCost[source * problem.gpus + g]!;
  const least = Math.min(...hosts.map(cost));
  return hosts.filter((g) => cost(g) === least);
}

/** Distinct (expert, GPU) pairs that the incumbent lacks; 0 where there is no incumbent. */
function newPairs(problem: PlacementProblem, layer: number, slots: Int32Array): number {
  if (problem.incumbent === undefined) return 0;
  const had = incumbentPairs(problem, layer);
  const has = new Set<number>();
  for (const [slot, e] of slots.entries()) {
    const g = Math.floor(slot / problem.slotsPerGpu);
    if (e >= 0 && !had.has(e * problem.gpus + g)) has.add(e * problem.gpus + g);
  }
  return has.size;
}

/** Keys `expert * gpus + gpu` of the pairs that the incumbent holds on GPUs of the problem. */
export function incumbentPairs(problem: PlacementProblem, layer: number): Set<number> {
  const pairs = new Set<number>();
  if (problem.incumbent === undefined) return pairs;
  const gpus = problem.incumbentGpus ?? problem.gpus;
  const slotsPerGpu = problem.incumbentSlotsPerGpu ?? problem.slotsPerGpu;
  for (let g = 0; g < Math.min(gpus, problem.gpus); g += 1) {
    for (let k = 0; k < slotsPerGpu; k += 1) {
      const e = problem.incumbent[layer * gpus * slotsPerGpu + g * slotsPerGpu + k]!;
      if (e >= 0) pairs.add(e * problem.gpus + g);
    }
  }
  return pairs;
}

/** Every hard constraint that `placement` breaks, in words; empty where it is valid. The budget is not looked at. */
export function violations(problem: PlacementProblem, placement: Int32Array): string[] {
  const { layers, gpus, slotsPerGpu } = problem;
  const found: string[] = [];
  if (placement.length !== layers * gpus * slotsPerGpu) {
    return [`expected ${layers * gpus * slotsPerGpu} slots but received ${placement.length}`];
  }
  for (let layer = 0; layer < layers; layer += 1) {
    const slots = placement.subarray(layer * gpus * slotsPerGpu, (layer + 1) * gpus * slotsPerGpu);
    found.push(...layerViolations(problem, layer, slots).map((text) => `layer ${layer}: ${text}`));
  }
  return found;
}

function layerViolations(problem: PlacementProblem, layer: number, slots: Int32Array): string[] {
  const { experts, gpus, slotsPerGpu } = problem;
  const found: string[] = [];
  const replicas = new Int32Array(experts);
  for (let g = 0; g < gpus; g += 1) {
    const dead = (problem.deadGpus ?? []).includes(g);
    const onGpu = new Int32Array(experts);
    for (let k = 0; k < slotsPerGpu; k += 1) {
      const e = slots[g * slotsPerGpu + k]!;
      if (dead ? e !== -1 : e < 0 || e >= experts) {
        found.push(
          `GPU ${g} slot ${k}: expected ${dead ? '-1 (dead)' : `0…${experts - 1}`} but received ${e}`,
        );
      } else if (!dead) {
        replicas[e] = replicas[e]! + 1;
        onGpu[e] = onGpu[e]! + 1;
      }
    }
    for (let e = 0; e < experts; e += 1) {
      const allowed = problem.allowDuplicates
        ? slotsPerGpu
        : Math.max(1, incumbentCopies(problem, layer, e, g));
      if (onGpu[e]! > allowed)
        found.push(`GPU ${g}: ${onGpu[e]} replicas of expert ${e}, allowed ${allowed}`);
    }
  }
  for (let e = 0; e < experts; e += 1) if (replicas[e] === 0) found.push(`expert ${e} has no live replica`);
  return found;
}

/** Slots of GPU `gpu` that hold `expert` in the incumbent. */
function incumbentCopies(problem: PlacementProblem, layer: number, expert: number, gpu: number): number {
  const gpus = problem.incumbentGpus ?? problem.gpus;
  const slotsPerGpu = problem.incumbentSlotsPerGpu ?? problem.slotsPerGpu;
  if (problem.incumbent === undefined || gpu >= gpus) return 0;
  const start = layer * gpus * slotsPerGpu + gpu * slotsPerGpu;
  return problem.incumbent.subarray(start, start + slotsPerGpu).filter((e) => e === expert).length;
}
