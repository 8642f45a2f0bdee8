/**
 * Topology-aware pairwise swaps: start from a placement, exchange the experts of two slots wherever that saves
 * communication (source traffic × link cost) without lifting the busiest GPU above its start by more than a small
 * slack. Replica counts stay as they are, and moving experts costs nothing: both are blind spots of the method.
 */
import type { PlacementProblem } from '../../lib/types.js';
import { computeCosts, expertCommTimes, expertLoads } from './common.js';

export interface SwapOptions {
  /** How far the maximum load may rise above that of the start, relative. Default 0.01. */
  loadSlack?: number;
  /** Passes over all pairs of slots; it stops earlier when a pass finds nothing. Default 8. */
  sweeps?: number;
}

/** One layer under work. Share of a slot: the time of its expert's tokens over the expert's replicas. */
interface SwapState {
  slots: Int32Array;
  slotsPerGpu: number;
  gpus: number;
  cost: Float64Array;
  /** `[experts]`, tokens per replica */
  share: Float64Array;
  /** `[experts][gpus]`, communication time per replica */
  comm: Float64Array;
  /** `[experts][gpus]`, slots of g that hold e */
  held: Int32Array;
  /** `[gpus]` */
  load: Float64Array;
  loadLimit: number;
}

/** Improves a copy of `start` `[layers][gpus * slotsPerGpu]`. */
export function topologyAwareSwap(
  problem: PlacementProblem,
  start: Int32Array,
  options: SwapOptions = {},
): Int32Array {
  const { loadSlack = 0.01, sweeps = 8 } = options;
  const placement = start.slice();
  const width = problem.gpus * problem.slotsPerGpu;
  for (let layer = 0; layer < problem.layers; layer += 1) {
    const slots = placement.subarray(layer * width, (layer + 1) * width);
    const state = startState(problem, layer, slots, loadSlack);
    for (let sweep = 0; sweep < sweeps && sweepPairs(state); sweep += 1);
  }
  return placement;
}

function startState(
  problem: PlacementProblem,
  layer: number,
  slots: Int32Array,
  loadSlack: number,
): SwapState {
  const { experts, gpus, slotsPerGpu } = problem;
  const share = expertLoads(problem, layer);
  const comm = expertCommTimes(problem, layer);
  const cost = computeCosts(problem);
  const held = new Int32Array(experts * gpus);
  const replicas = new Int32Array(experts);
  for (const [slot, e] of slots.entries()) {
    if (e < 0) continue;
    replicas[e] = replicas[e]! + 1;
    const pair = e * gpus + Math.floor(slot / slotsPerGpu);
    held[pair] = held[pair]! + 1;
  }
  for (let e = 0; e < experts; e += 1) {
    share[e] = share[e]! / replicas[e]!;
    for (let g = 0; g < gpus; g += 1) comm[e * gpus + g] = comm[e * gpus + g]! / replicas[e]!;
  }
  const load = new Float64Array(gpus);
  for (const [slot, e] of slots.entries()) {
    const g = Math.floor(slot / slotsPerGpu);
    if (e >= 0) load[g] = load[g]! + cost[g]! * share[e]!;
  }
  const loadLimit = Math.max(...load) * (1 + loadSlack);
  return { slots, slotsPerGpu, gpus, cost, share, comm, held, load, loadLimit };
}

/** For each slot in turn, makes its best exchange; false when there was none at all. */
function sweepPairs(state: SwapState): boolean {
  let changed = false;
  for (let a = 0; a < state.slots.length; a += 1) {
    let best = -1;
    let bestSaving = 1e-9;
    for (let b = 0; b < state.slots.length; b += 1) {
      const saving = savingOf(state, a, b);
      if (saving > bestSaving) {
        best = b;
        bestSaving = saving;
      }
    }
    if (best >= 0) {
      exchange(state, a, best);
      changed = true;
    }
  }
  return changed;
}

/** Communication time saved by exchanging slots a and b; 0 where the exchange is not allowed. */
function savingOf(state: SwapState, a: number, b: number): number {
  const { slots, slotsPerGpu, gpus, cost, share, comm, held, load, loadLimit } = state;
  const ga = Math.floor(a / slotsPerGpu);
  const gb = Math.floor(b / slotsPerGpu);
  const ea = slots[a]!;
  const eb = slots[b]!;
  if (ga === gb || ea < 0 || eb < 0 || ea === eb) return 0;
  const saving =
    comm[ea * gpus + ga]! + comm[eb * gpus + gb]! - comm[ea * gpus + gb]! - comm[eb * gpus + ga]!;
  if (saving <= 0 || held[ea * gpus + gb]! > 0 || held[eb * gpus + ga]! > 0) return 0;
  const gain = share[eb]! - share[ea]!;
  if (load[ga]! + cost[ga]! * gain > loadLimit || load[gb]! - cost[gb]! * gain > loadLimit) return 0;
  return saving;
}

function exchange(state: SwapState, a: number, b: number): void {
  const { slots, slotsPerGpu, gpus, cost, share, held, load } = state;
  const ga = Math.floor(a / slotsPerGpu);
  const gb = Math.floor(b / slotsPerGpu);
  const ea = slots[a]!;
  const eb = slots[b]!;
  const shift = (e: number, g: number, by: 1 | -1): void => {
    held[e * gpus + g] = held[e * gpus + g]! + by;
    load[g] = load[g]! + by * cost[g]! * share[e]!;
  };
  shift(ea, ga, -1);
  shift(eb, gb, -1);
  shift(ea, gb, 1);
  shift(eb, ga, 1);
  slots[a] = eb;
  slots[b] = ea;
}
