/**
 * A placement file fitted to what it is used with: its shape completed from the cluster where the format does not tell, its
 * rows brought into the order of the counts' layers.
 */
import path from 'node:path';
import type { PlacementFormat } from '../export/placement.js';
import { type PlacementFile, readPlacement, selectLayers } from '../import/placement.js';
import { plural } from '../report/format.js';
import { InputError, UsageError } from './exit.js';
import type { PlacementView } from './moves.js';

export interface NamedPlacement extends PlacementView {
  /** The file's name, for tables. */
  name: string;
  layerIds: Int32Array | undefined;
  notes: string[];
}

export interface PlacementNeeds {
  format?: PlacementFormat | undefined;
  signal?: AbortSignal;
  /** Of the cluster; used where the file does not tell. */
  gpus?: number | undefined;
  experts?: number | undefined;
  /** Rows wanted, with their model layers where these are known. */
  layers?: number;
  layerIds?: Int32Array | undefined;
}

export async function loadPlacement(file: string, needs: PlacementNeeds): Promise<NamedPlacement> {
  const { format, experts, signal } = needs;
  // The cluster's GPUs are not asked of the file: a placement of fewer GPUs is a fine incumbent.
  const read = await readPlacement(file, {
    ...(format === undefined ? {} : { format }),
    ...(experts === undefined ? {} : { experts }),
    ...(signal === undefined ? {} : { signal }),
  });
  const gpus = gpusOf(file, read, needs.gpus);
  const { layers, layerIds } = needs;
  const chosen =
    layers === undefined
      ? read
      : selectLayers(read, layerIds === undefined ? { layers } : { layers, layerIds }, file);
  return {
    name: path.basename(file),
    layers: chosen.layers,
    gpus,
    slotsPerGpu: chosen.slots / gpus,
    physicalToLogical: chosen.physicalToLogical,
    layerIds: chosen.layerIds,
    notes: read.notes.map((note) => `${path.basename(file)}: ${note}`),
  };
}

function gpusOf(file: string, read: PlacementFile, clusterGpus: number | undefined): number {
  const gpus = read.gpus ?? clusterGpus;
  if (gpus === undefined) {
    throw new UsageError(
      `${file}: the format ${read.format} does not say how many GPUs its ${read.slots} slots lie on`,
      'give --topology or --gpus',
    );
  }
  if (read.slots % gpus === 0) return gpus;
  throw new InputError(
    `${file}: expected slots that divide evenly over ${plural(gpus, 'GPU')} but received ${read.slots} slots a layer`,
    { field: file, expected: `a multiple of ${gpus}`, received: `${read.slots} slots` },
  );
}

/** GPUs that hold nothing in any layer: dead ones, when the placement was made. */
export function emptyGpus(placement: PlacementView): number[] {
  const { layers, gpus, slotsPerGpu, physicalToLogical } = placement;
  const holds = new Uint8Array(gpus);
  for (let slot = 0; slot < layers * gpus * slotsPerGpu; slot++) {
    if (physicalToLogical[slot]! >= 0) holds[Math.floor(slot / slotsPerGpu) % gpus] = 1;
  }
  return Array.from(holds.keys()).filter((gpu) => holds[gpu] === 0);
}

/** Every expert of every layer has a slot; an engine could not serve what lacks one. */
export function checkHoldsAll(file: string, placement: NamedPlacement, experts: number): void {
  const width = placement.gpus * placement.slotsPerGpu;
  for (let layer = 0; layer < placement.layers; layer++) {
    const held = new Set(placement.physicalToLogical.subarray(layer * width, (layer + 1) * width));
    for (let expert = 0; expert < experts; expert++) {
      if (held.has(expert)) continue;
      throw new InputError(
        `${file}: layer ${placement.layerIds?.[layer] ?? layer}: expected a slot for each of ${experts} experts but expert ${expert} has none`,
        {
          field: file,
          expected: `a slot for each of ${experts} experts`,
          received: `none for expert ${expert}`,
        },
      );
    }
  }
}
