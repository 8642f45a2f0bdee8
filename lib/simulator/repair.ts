/** A placement after GPUs have gone or come back, where nobody plans: as little is loaded as can be. */
import type { PlacementProblem } from '../types.js';

/** `placement` with -1 on the slots of the dead. `[layers][gpus * slotsPerGpu]` */
export function withoutGpus(
  placement: Int32Array,
  { gpus, slotsPerGpu }: Pick<PlacementProblem, 'gpus' | 'slotsPerGpu'>,
  dead: ReadonlySet<number>,
): Int32Array {
  return placement.map((expert, n) => (dead.has(Math.floor(n / slotsPerGpu) % gpus) ? -1 : expert));
}

/**
 * Empty slots of live GPUs get what `initial` had there. Then each expert without a replica takes a slot of the expert that has the
 * most of them, on the GPU that has lost the fewest so far.
 */
export function repaired(problem: PlacementProblem, initial: Int32Array): Int32Array {
  const { layers, gpus, slotsPerGpu, experts, deadGpus = [], incumbent } = problem;
  const width = gpus * slotsPerGpu;
  const dead = new Set(deadGpus);
  const placement = incumbent!.map((expert, n) =>
    expert < 0 && !dead.has(Math.floor(n / slotsPerGpu) % gpus) ? initial[n]! : expert,
  );
  for (let layer = 0; layer < layers; layer++) {
    revive(placement.subarray(layer * width, (layer + 1) * width), experts, gpus, slotsPerGpu);
  }
  return placement;
}

function revive(slots: Int32Array, experts: number, gpus: number, slotsPerGpu: number): void {
  const replicas = new Int32Array(experts);
  for (const expert of slots) if (expert >= 0) replicas[expert]! += 1;
  const taken = new Int32Array(gpus);
  for (let expert = 0; expert < experts; expert++) {
    if (replicas[expert]! > 0) continue;
    let best = -1;
    for (const [slot, held] of slots.entries()) {
      if (held < 0 || replicas[held]! < 2) continue;
      const more = best < 0 ? 1 : replicas[held]! - replicas[slots[best]!]!;
      const own = taken[Math.floor(slot / slotsPerGpu)]!;
      if (more > 0 || (more === 0 && own < taken[Math.floor(best / slotsPerGpu)]!)) best = slot;
    }
    if (best < 0) throw new RangeError('expected as many live slots as experts');
    replicas[slots[best]!]! -= 1;
    slots[best] = expert;
    replicas[expert] = 1;
    taken[Math.floor(best / slotsPerGpu)]! += 1;
  }
}
