/**
 * The figures of one placement that people compare: per layer and over all layers. Costs come from the native evaluation,
 * shares and imbalance from the token flow.
 */
import type { Evaluation, PlacementProblem } from '../types.js';
import { balanceOf, type FlowInput, type LayerFlow, layerFlow } from './flow.js';

export interface LayerFigures {
  /** The model layer where known, else the row. */
  layer: number;
  /** ns over the statistics window, as are loadMax, commMax and commMean. */
  objective: number;
  loadMax: number;
  commMax: number;
  /** Communication of a GPU, averaged over the GPUs. */
  commMean: number;
  /** Largest load over mean load of the live GPUs; 1 is perfect, and what an idle layer gets. */
  imbalance: number;
  /** Share of tokens that leave their source's GPUs. */
  remoteShare: number;
  /** Share of tokens that leave their source's node; null where nodes are not known. */
  crossNodeShare: number | null;
  /** (expert, GPU) pairs that the incumbent lacks; 0 without an incumbent. */
  migrations: number;
}

export interface Totals {
  /** Sums over the layers, ns. */
  objective: number;
  loadMax: number;
  commMax: number;
  commMean: number;
  /** Means over the layers that have traffic. */
  imbalanceMean: number;
  imbalanceWorst: number;
  /** The layer of `imbalanceWorst`. */
  worstLayer: number;
  /** Over all tokens. */
  remoteShare: number;
  crossNodeShare: number | null;
  migrations: number;
}

/** A placement ready to be shown: its map, the flow of every layer, and the figures. */
export interface PlacementFigures {
  name: string;
  gpus: number;
  slotsPerGpu: number;
  /** `[layers][gpus * slotsPerGpu]` */
  physicalToLogical: Int32Array;
  flows: LayerFlow[];
  layers: LayerFigures[];
  totals: Totals;
}

/**
 * `problem` must have the placement's own shape; `evaluation` holds this placement as its candidate number `candidate`.
 */
export function placementFigures(
  name: string,
  problem: PlacementProblem,
  physicalToLogical: Int32Array,
  evaluation: Evaluation,
  options: { gpusPerNode?: number; candidate?: number } = {},
): PlacementFigures {
  const input = flowInput(problem, options.gpusPerNode);
  const slots = problem.gpus * problem.slotsPerGpu;
  const first = (options.candidate ?? 0) * problem.layers;
  const flows: LayerFlow[] = [];
  const layers: LayerFigures[] = [];
  for (let layer = 0; layer < problem.layers; layer++) {
    const row = physicalToLogical.subarray(layer * slots, (layer + 1) * slots);
    const flow = layerFlow(input, layer, row);
    flows.push(flow);
    layers.push({
      layer: problem.layerIds?.[layer] ?? layer,
      objective: evaluation.objective[first + layer]!,
      loadMax: evaluation.loadMax[first + layer]!,
      commMax: evaluation.commMax[first + layer]!,
      commMean: evaluation.commTotal[first + layer]! / problem.gpus,
      imbalance: balanceOf(problem, flow).imbalance,
      remoteShare: share(flow.remoteTokens, flow.totalTokens),
      crossNodeShare:
        flow.crossNodeTokens === undefined ? null : share(flow.crossNodeTokens, flow.totalTokens),
      migrations: evaluation.migrations[first + layer]!,
    });
  }
  const { gpus, slotsPerGpu } = problem;
  return { name, gpus, slotsPerGpu, physicalToLogical, flows, layers, totals: totals(layers, flows) };
}

function flowInput(problem: PlacementProblem, gpusPerNode: number | undefined): FlowInput {
  return {
    sources: problem.sources,
    experts: problem.experts,
    gpus: problem.gpus,
    slotsPerGpu: problem.slotsPerGpu,
    replicaChoice: problem.replicaChoice ?? 'even',
    tokens: problem.tokens,
    commCost: problem.commCost,
    ...(gpusPerNode === undefined ? {} : { gpusPerNode }),
  };
}

function totals(layers: LayerFigures[], flows: LayerFlow[]): Totals {
  const total: Totals = {
    objective: 0,
    loadMax: 0,
    commMax: 0,
    commMean: 0,
    imbalanceMean: 1,
    imbalanceWorst: 1,
    worstLayer: layers[0]?.layer ?? 0,
    remoteShare: 0,
    crossNodeShare: null,
    migrations: 0,
  };
  let busyLayers = 0;
  let imbalanceSum = 0;
  for (const [index, figures] of layers.entries()) {
    for (const key of ['objective', 'loadMax', 'commMax', 'commMean', 'migrations'] as const) {
      total[key] += figures[key];
    }
    if (flows[index]!.totalTokens === 0) continue;
    busyLayers++;
    imbalanceSum += figures.imbalance;
    if (figures.imbalance <= total.imbalanceWorst) continue;
    total.imbalanceWorst = figures.imbalance;
    total.worstLayer = figures.layer;
  }
  if (busyLayers > 0) total.imbalanceMean = imbalanceSum / busyLayers;
  const tokens = sum(flows, (flow) => flow.totalTokens);
  total.remoteShare = share(
    sum(flows, (flow) => flow.remoteTokens),
    tokens,
  );
  if (flows.every((flow) => flow.crossNodeTokens !== undefined)) {
    total.crossNodeShare = share(
      sum(flows, (flow) => flow.crossNodeTokens ?? 0),
      tokens,
    );
  }
  return total;
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0);
}

function share(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole;
}
