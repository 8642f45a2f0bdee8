/** How the load lies on the GPUs under a placement, for the heat map: figures for people, by the flow of the reports. */
import { balanceOf, type FlowInput, layerFlow } from '../report/flow.js';
import type { PlacementProblem } from '../types.js';
import { Slices } from './slices.js';

export interface Heat {
  /** `[layers]`, largest over mean load of the live GPUs. */
  imbalance: number[];
  /** `[layers][gpus]`, load over that mean; 0 on dead GPUs. */
  load: number[][];
}

export async function heatOf(problem: PlacementProblem, placement: Int32Array): Promise<Heat> {
  const { layers, gpus, slotsPerGpu, replicaChoice = 'even' } = problem;
  const slots = gpus * slotsPerGpu;
  const input: FlowInput = { ...problem, replicaChoice };
  const slices = new Slices();
  const heat: Heat = { imbalance: [], load: [] };
  for (let layer = 0; layer < layers; layer++) {
    const row = placement.subarray(layer * slots, (layer + 1) * slots);
    const { imbalance, load } = balanceOf(problem, layerFlow(input, layer, row));
    heat.imbalance.push(imbalance);
    heat.load.push(load);
    await slices.pause();
  }
  return heat;
}
