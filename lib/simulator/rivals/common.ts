/** What every rival planner needs of a problem: its live GPUs, its loads, and an empty placement that fits. */
import type { PlacementProblem } from '../../types.js';

/** Ids of the GPUs that are not dead, ascending. */
export function liveGpusOf(problem: PlacementProblem): number[] {
  const dead = new Set(problem.deadGpus ?? []);
  return Array.from({ length: problem.gpus }, (_, g) => g).filter((g) => !dead.has(g));
}

/** `[layers][gpus * slotsPerGpu]`, all −1. */
export function emptyPlacement(problem: PlacementProblem): Int32Array {
  const live = liveGpusOf(problem).length * problem.slotsPerGpu;
  if (live < problem.experts) {
    throw new RangeError(`slotsPerGpu: expected at least ${problem.experts} live slots but received ${live}`);
  }
  return new Int32Array(problem.layers * problem.gpus * problem.slotsPerGpu).fill(-1);
}

/** `[experts]`, tokens of all sources in `layer`. */
export function expertLoads(problem: PlacementProblem, layer: number): Float64Array {
  const { sources, experts, tokens } = problem;
  const loads = new Float64Array(experts);
  for (let s = 0; s < sources; s += 1) {
    const row = (layer * sources + s) * experts;
    for (let e = 0; e < experts; e += 1) loads[e] = loads[e]! + tokens[row + e]!;
  }
  return loads;
}

/** `[experts][gpus]`, communication time if all of e's tokens went to g. */
export function expertCommTimes(problem: PlacementProblem, layer: number): Float64Array {
  const { sources, experts, gpus, tokens, commCost } = problem;
  const times = new Float64Array(experts * gpus);
  for (let s = 0; s < sources; s += 1) {
    for (let e = 0; e < experts; e += 1) {
      const count = tokens[(layer * sources + s) * experts + e]!;
      if (count === 0) continue;
      for (let g = 0; g < gpus; g += 1) {
        times[e * gpus + g] = times[e * gpus + g]! + count * commCost[s * gpus + g]!;
      }
    }
  }
  return times;
}

/** `[gpus]`, ns per token. */
export function computeCosts(problem: PlacementProblem): Float64Array {
  const { computeCost, gpus } = problem;
  return typeof computeCost === 'number' ? new Float64Array(gpus).fill(computeCost) : computeCost;
}
