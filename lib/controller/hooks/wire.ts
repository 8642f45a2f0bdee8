/** A change as JSON, for hooks that hand it to another program. docs/CONTROLLER.md describes it. */
import type { PlacementChange } from '../types.js';

export interface WireChange {
  version: 1;
  planId: string;
  previousPlanId: string;
  fencingToken: number;
  isRollback: boolean;
  layers: number;
  gpus: number;
  slotsPerGpu: number;
  previousGpus: number;
  previousSlotsPerGpu: number;
  file?: string;
  /** `[layers][gpus * slotsPerGpu]` */
  physicalToLogical: number[][];
  /** `[layers][previousGpus * previousSlotsPerGpu]` */
  previousPhysicalToLogical: number[][];
}

export function toWire(change: PlacementChange): WireChange {
  const { placement, previous, file, ...rest } = change;
  return {
    version: 1,
    ...rest,
    ...(file !== undefined && { file }),
    physicalToLogical: rows(placement, change.layers),
    previousPhysicalToLogical: rows(previous, change.layers),
  };
}

function rows(placement: Int32Array, layers: number): number[][] {
  const slots = placement.length / layers;
  return Array.from({ length: layers }, (_, layer) =>
    Array.from(placement.subarray(layer * slots, (layer + 1) * slots)),
  );
}
