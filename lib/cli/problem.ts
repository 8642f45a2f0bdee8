/**
 * From the words of the command line to a placement problem: counts, cluster and incumbent read, fitted to each other, and
 * every choice made on the way noted in words.
 */

import path from 'node:path';
import type { PlacementFormat } from '../export/placement.js';
import { type CountsFormat, countsFormats, type RoutingCounts, readCounts } from '../import/counts.js';
import { hardware, type ModelShape, models } from '../presets.js';
import { plural } from '../report/format.js';
import type { BackendName, PlacementProblem, ReplicaChoice, Weights } from '../types.js';
import { type Cluster, type ClusterOptions, readCluster } from './cluster.js';
import { RemediedError, UsageError } from './exit.js';
import type { SlotsOption } from './options.js';
import { loadPlacement, type NamedPlacement } from './placement-file.js';
import { mapSources } from './sources.js';

export interface ProblemOptions extends ClusterOptions {
  counts: string[];
  countsFormat?: CountsFormat;
  replicaChoice: ReplicaChoice;
  weights?: Weights;
  incumbent?: string;
  incumbentFormat?: PlacementFormat;
  migrationCost?: number;
  deadGpus?: number[];
  backend: 'auto' | BackendName;
  threads?: number;
}

/** All of a problem but its slots, which differ between the placements that one evaluates. */
export interface LoadedProblem {
  /** `slotsPerGpu` is still to be set; see `withSlots`. */
  base: Omit<PlacementProblem, 'slotsPerGpu'>;
  cluster: Cluster;
  incumbent: NamedPlacement | undefined;
  /** Layers of the whole model, where known; exports to SGLang need it. */
  modelLayers: number | undefined;
  /** What the counts are of, for titles. */
  subject: string;
  notes: string[];
}

export function countsFormatNames(): CountsFormat[] {
  return Object.keys(countsFormats) as CountsFormat[];
}

export function modelNames(): string[] {
  return Object.keys(models);
}

export function hardwareNames(): string[] {
  return Object.keys(hardware);
}

export async function loadProblem(options: ProblemOptions, signal: AbortSignal): Promise<LoadedProblem> {
  if (options.migrationCost !== undefined) needIncumbent('--migration-cost', options);
  const counts = await readCounts(options.counts, {
    signal,
    ...(options.countsFormat === undefined ? {} : { format: options.countsFormat }),
  });
  signal.throwIfAborted();
  const cluster = await readCluster(options, counts);
  const { gpus, sources, computeCost, commCost } = cluster.topology;
  checkDeadGpus(options.deadGpus ?? [], gpus);
  const mapped = mapSources(counts, sources, counts.sources > 1);
  const layerIds = layerIdsOf(counts, cluster.model);
  const incumbent = await loadIncumbent(options, counts, cluster, layerIds);
  const notes = [...counts.notes, ...cluster.notes];
  if (mapped.note !== undefined) notes.push(mapped.note);
  if (incumbent !== undefined) notes.push(...incumbent.notes);
  const base: LoadedProblem['base'] = {
    layers: counts.layers,
    sources,
    experts: counts.experts,
    gpus,
    tokens: mapped.tokens,
    computeCost,
    commCost,
    replicaChoice: options.replicaChoice,
    ...(options.weights === undefined ? {} : { weights: options.weights }),
    ...(options.migrationCost === undefined ? {} : { migrationCost: options.migrationCost }),
    ...(options.deadGpus === undefined ? {} : { deadGpus: options.deadGpus }),
    ...(layerIds === undefined ? {} : { layerIds }),
    ...(incumbent === undefined
      ? {}
      : {
          incumbent: incumbent.physicalToLogical,
          incumbentGpus: incumbent.gpus,
          incumbentSlotsPerGpu: incumbent.slotsPerGpu,
        }),
  };
  return {
    base,
    cluster,
    incumbent,
    modelLayers: modelLayersOf(counts, cluster.model, layerIds),
    subject: cluster.model?.name ?? path.basename(options.counts[0]!),
    notes,
  };
}

export function needIncumbent(option: string, options: ProblemOptions): void {
  if (options.incumbent !== undefined) return;
  throw new UsageError(`${option} needs --incumbent: without a placement in force nothing moves`);
}

function checkDeadGpus(deadGpus: readonly number[], gpus: number): void {
  const wrong = deadGpus.find((gpu) => gpu >= gpus);
  if (wrong === undefined) return;
  throw new UsageError(`--dead-gpus: expected GPUs from 0 to ${gpus - 1} but received ${wrong}`);
}

/** The counts' own; else the model's, when the counts have a row for each of its layers, or each of its MoE layers (its last). */
function layerIdsOf(counts: RoutingCounts, model: ModelShape | undefined): Int32Array | undefined {
  if (counts.layerIds !== undefined) return counts.layerIds;
  if (model === undefined || ![model.layers, model.moeLayers].includes(counts.layers)) return undefined;
  return Int32Array.from({ length: counts.layers }, (_, row) => model.layers - counts.layers + row);
}

function modelLayersOf(
  counts: RoutingCounts,
  model: ModelShape | undefined,
  layerIds: Int32Array | undefined,
): number | undefined {
  if (counts.modelLayers !== undefined) return counts.modelLayers;
  // A model whose last layer is below the counts' is not theirs; its costs were taken, its layers are not.
  const last = Math.max(-1, ...(layerIds ?? []));
  return layerIds !== undefined && model !== undefined && model.layers > last ? model.layers : undefined;
}

async function loadIncumbent(
  options: ProblemOptions,
  counts: RoutingCounts,
  cluster: Cluster,
  layerIds: Int32Array | undefined,
): Promise<NamedPlacement | undefined> {
  if (options.incumbent === undefined) return undefined;
  return loadPlacement(options.incumbent, {
    format: options.incumbentFormat,
    gpus: cluster.topology.gpus,
    experts: counts.experts,
    layers: counts.layers,
    layerIds,
  });
}

/** Slots a GPU: as asked, else as the incumbent has them, else the fewest that hold every expert. */
export function slotsPerGpu(
  option: SlotsOption | undefined,
  { base, incumbent }: Pick<LoadedProblem, 'base' | 'incumbent'>,
): { slotsPerGpu: number; note?: string } {
  const { gpus, experts } = base;
  const live = gpus - (base.deadGpus?.length ?? 0);
  if (live === 0) {
    throw new RemediedError(
      'GIMBAL_INFEASIBLE',
      `deadGpus: expected at least one live GPU but all ${gpus} are dead`,
      {
        field: 'deadGpus',
        remedy: 'give fewer --dead-gpus',
      },
    );
  }
  const fewest = Math.ceil(experts / live);
  if (option === undefined && incumbent !== undefined)
    return enough(incumbent.slotsPerGpu, live, fewest, base);
  if (option === undefined) {
    const note = `No --slots: ${plural(fewest * gpus, 'slot')} (${fewest} a GPU) are taken, the fewest that hold all ${experts} experts.`;
    return { slotsPerGpu: fewest, note };
  }
  if ('perGpu' in option) return enough(option.perGpu, live, fewest, base);
  return enough(dividedSlots(option.total, gpus, fewest), live, fewest, base);
}

function dividedSlots(total: number, gpus: number, fewest: number): number {
  if (total % gpus === 0) return total / gpus;
  const below = Math.floor(total / gpus);
  const meant =
    total < gpus
      ? `${total}/gpu if ${total} are one GPU's`
      : [below, below + 1].map((each) => `${each * gpus} (${each} a GPU)`).join(' or ');
  throw new UsageError(
    `--slots: expected a number of slots that divides evenly over ${plural(gpus, 'GPU')} but received ${total}`,
    `--slots counts the physical experts of all GPUs together: give ${meant}; ${fewest * gpus} is the fewest that hold every expert`,
  );
}

function enough(
  slots: number,
  live: number,
  fewest: number,
  { gpus, experts, deadGpus }: Pick<PlacementProblem, 'gpus' | 'experts' | 'deadGpus'>,
): { slotsPerGpu: number } {
  if (slots * live >= experts) return { slotsPerGpu: slots };
  const dead = deadGpus?.length ? ` on the ${live} live GPUs` : '';
  throw new RemediedError(
    'GIMBAL_INFEASIBLE',
    `slots: expected at least ${experts} slots, one for each expert, but received ${slots * live}${dead} (${slots} a GPU)`,
    {
      field: 'slots',
      expected: `at least ${experts}`,
      received: String(slots * live),
      remedy: `--slots ${fewest * gpus} or --slots ${fewest}/gpu is the fewest that hold every expert`,
    },
  );
}
