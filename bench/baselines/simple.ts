/** The two placements that plan nothing: in id order, and at random. */
import type { PlacementProblem } from '../../lib/types.js';
import { Random } from '../random.js';
import { randomPlacement } from '../workloads.js';
import { emptyPlacement, liveGpusOf } from './common.js';

/** Experts in id order over the live slots, starting again from 0 for the redundant ones: what engines start with. */
export function contiguous(problem: PlacementProblem): Int32Array {
  const { layers, experts, gpus, slotsPerGpu } = problem;
  const placement = emptyPlacement(problem);
  for (let layer = 0; layer < layers; layer += 1) {
    for (const [order, g] of liveGpusOf(problem).entries()) {
      for (let k = 0; k < slotsPerGpu; k += 1) {
        placement[(layer * gpus + g) * slotsPerGpu + k] = (order * slotsPerGpu + k) % experts;
      }
    }
  }
  return placement;
}

/** Every expert once, redundant slots to random experts, no two replicas on a GPU; each layer drawn anew. */
export function random(problem: PlacementProblem, seed: number): Int32Array {
  const placement = emptyPlacement(problem);
  const width = problem.gpus * problem.slotsPerGpu;
  for (let layer = 0; layer < problem.layers; layer += 1) {
    placement.set(randomPlacement(problem, new Random(seed, layer), problem.deadGpus ?? []), layer * width);
  }
  return placement;
}
