/**
 * The difference of two placements as moves: which expert has to come to which GPU, and who holds it already. Reordering
 * inside a GPU is no move; a second copy of what the GPU holds is none either. native/migration finds it.
 */
import { binding, type NativeMoves } from '../binding.js';
import { runJob } from '../job.js';
import { checkPair, type MigrationProblem } from '../migration.js';

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

/** Of a topology: what sending costs. */
export type Distances = Pick<MigrationProblem, 'commCost' | 'sources'> & { gpus: number };

/**
 * The problem of coming from one placement to the other. With a topology, GPUs that the second placement does not use are
 * there all the same; its costs order the candidate senders, which otherwise stand by number.
 */
export function migrationBetween(
  before: PlacementView,
  after: PlacementView,
  distances?: Distances,
): MigrationProblem {
  const gpus = distances?.gpus ?? after.gpus;
  return {
    layers: after.layers,
    experts: 1 + Math.max(0, largest(before.physicalToLogical), largest(after.physicalToLogical)),
    gpus,
    slotsPerGpu: after.slotsPerGpu,
    from: before.physicalToLogical,
    fromGpus: before.gpus,
    fromSlotsPerGpu: before.slotsPerGpu,
    to: widened(after, gpus),
    ...(distances?.commCost === undefined ? {} : { commCost: distances.commCost }),
    ...(distances?.sources === undefined ? {} : { sources: distances.sources }),
  };
}

export async function movesBetween(
  before: PlacementView,
  after: PlacementView,
  distances?: Distances,
): Promise<LayerMoves[]> {
  const pair = checkPair(migrationBetween(before, after, distances));
  const native = await runJob(() => binding().placementMoves(pair));
  return layersOf(native);
}

function layersOf({ layer, expert, toGpu, holderStart, holders, dropped }: NativeMoves): LayerMoves[] {
  const layers = Array.from(dropped, (pairs): LayerMoves => ({ moves: [], dropped: pairs }));
  for (let move = 0; move < layer.length; move++) {
    const fromGpus = Array.from(holders.subarray(holderStart[move], holderStart[move + 1]));
    layers[layer[move]!]!.moves.push({ expert: expert[move]!, toGpu: toGpu[move]!, fromGpus });
  }
  return layers;
}

function largest(experts: Int32Array): number {
  return experts.reduce((most, expert) => Math.max(most, expert), -1);
}

/** With empty GPUs at the end of every layer. */
function widened(placement: PlacementView, gpus: number): Int32Array {
  const { layers, slotsPerGpu, physicalToLogical } = placement;
  const width = placement.gpus * slotsPerGpu;
  const wide = new Int32Array(layers * gpus * slotsPerGpu).fill(-1);
  for (let layer = 0; layer < layers; layer++) {
    wide.set(physicalToLogical.subarray(layer * width, (layer + 1) * width), layer * gpus * slotsPerGpu);
  }
  return wide;
}
