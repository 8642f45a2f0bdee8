/** What placements of a lockstep group cost, by the product's own topology: the planner is to see the cluster that is simulated. */
import { topology } from '../topology.js';
import type { PlacementProblem } from '../types.js';
import type { ServedModel, ServingHardware } from './hardware.js';
import type { GroupShape } from './step-time.js';

export type PlacementCosts = Pick<PlacementProblem, 'computeCost' | 'commCost'>;

export function placementCosts(
  model: ServedModel,
  hardware: ServingHardware,
  { ranks, tensorParallel, nodes, allToAll }: GroupShape,
): PlacementCosts {
  const { computeCost, commCost } = topology({
    nodes,
    gpusPerNode: (ranks * tensorParallel) / nodes,
    model,
    hardware,
    sources: ranks,
    allToAll: allToAll === 'allgather-reducescatter' ? allToAll : 'all-to-all',
  });
  return { computeCost, commCost };
}
