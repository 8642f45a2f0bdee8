/** How the load lies on the GPUs under a placement, for the heat map: figures for people, by the flow of the reports. */
import { type FlowInput, layerFlow } from '../report/flow.js';
import type { PlacementProblem } from '../types.js';
import { Slices } from './slices.js';

export interface Heat {
  /** `[layers]`, largest over mean load of the live GPUs. */
  imbalance: number[];
  /** `[layers][gpus]`, load over that mean; 0 on dead GPUs. */
  load: number[][];
}

export async function heatOf(problem: PlacementProblem, placement: Int32Array): Promise<Heat> {
  const { layers, gpus, slotsPerGpu, computeCost, replicaChoice = 'even' } = problem;
  const dead = new Set(problem.deadGpus);
  const live = Array.from({ length: gpus }, (_, gpu) => gpu).filter((gpu) => !dead.has(gpu));
  const input: FlowInput = { ...problem, replicaChoice };
  const slices = new Slices();
  const heat: Heat = { imbalance: [], load: [] };
  for (let layer = 0; layer < layers; layer++) {
    const row = placement.subarray(layer * gpus * slotsPerGpu, (layer + 1) * gpus * slotsPerGpu);
    const { gpuTokens } = layerFlow(input, layer, row);
    const load = Array.from(gpuTokens, (tokens, gpu) => {
      // Of GPUs that cost nothing the tokens are shown.
      return tokens * ((typeof computeCost === 'number' ? computeCost : computeCost[gpu]!) || 1);
    });
    const mean = live.reduce((sum, gpu) => sum + load[gpu]!, 0) / live.length;
    heat.load.push(load.map((value) => (mean === 0 ? 0 : value / mean)));
    heat.imbalance.push(mean === 0 ? 1 : Math.max(...live.map((gpu) => load[gpu]!)) / mean);
    await slices.pause();
  }
  return heat;
}
