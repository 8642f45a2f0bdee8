/**
 * The difference of two placements as moves: which expert has to come to which GPU, and who holds it already. Reordering
 * inside a GPU is no move; a second copy of what the GPU holds is none either.
 */

/** A placement with a shape; GPU ids mean the same in both, layers are matched by row. */
export interface PlacementView {
  layers: number;
  gpus: number;
  slotsPerGpu: number;
  /** `[layers][gpus * slotsPerGpu]`, -1 on an empty slot. */
  physicalToLogical: Int32Array;
}

export interface Move {
  expert: number;
  toGpu: number;
  /** GPUs that hold the expert before, the cheapest to send from first; empty where none does. */
  fromGpus: number[];
}

export interface LayerMoves {
  moves: Move[];
  /** (expert, GPU) pairs of the first placement that the second lacks. */
  dropped: number;
}

/** `distance` orders the candidate senders; without it they stand by number. */
export function movesBetween(
  before: PlacementView,
  after: PlacementView,
  distance?: (fromGpu: number, toGpu: number) => number,
): LayerMoves[] {
  return Array.from({ length: after.layers }, (_, layer) => {
    const held = holders(before, layer);
    const wanted = holders(after, layer);
    const moves: Move[] = [];
    for (const [expert, gpus] of [...wanted].sort(([a], [b]) => a - b)) {
      const had = held.get(expert) ?? new Set<number>();
      for (const toGpu of [...gpus].sort((a, b) => a - b)) {
        if (!had.has(toGpu)) moves.push({ expert, toGpu, fromGpus: senders(had, toGpu, distance) });
      }
    }
    return { moves, dropped: droppedPairs(held, wanted) };
  });
}

/** The GPUs of each expert in one layer. */
function holders(placement: PlacementView, layer: number): Map<number, Set<number>> {
  const width = placement.gpus * placement.slotsPerGpu;
  const held = new Map<number, Set<number>>();
  for (let slot = 0; slot < width; slot++) {
    const expert = placement.physicalToLogical[layer * width + slot]!;
    if (expert < 0) continue;
    const gpus = held.get(expert) ?? new Set<number>();
    gpus.add(Math.floor(slot / placement.slotsPerGpu));
    held.set(expert, gpus);
  }
  return held;
}

function senders(had: Set<number>, toGpu: number, distance?: (from: number, to: number) => number): number[] {
  const far = (gpu: number) => distance?.(gpu, toGpu) ?? 0;
  return [...had].sort((a, b) => far(a) - far(b) || a - b);
}

function droppedPairs(held: Map<number, Set<number>>, wanted: Map<number, Set<number>>): number {
  let dropped = 0;
  for (const [expert, gpus] of held) {
    for (const gpu of gpus) if (!wanted.get(expert)?.has(gpu)) dropped++;
  }
  return dropped;
}
