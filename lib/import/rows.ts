/**
 * What all placement readers share: the placement before the caller's options are applied, the bounds of its shape, and
 * the check of every single id.
 */

import { isInteger, type NumericArray, visit } from './array.js';
import { formatError, MAX_CELLS, MAX_EXPERTS, MAX_LAYERS, MAX_SLOTS, requireInteger } from './limits.js';
import type { PlacementFile } from './placement.js';

/** A placement before the caller's options are applied. */
export interface RawPlacement extends Omit<PlacementFile, 'layerIds' | 'slotsPerGpu'> {
  layerIds?: number[];
}

/** An expert id of a placement; -1 stands for an empty slot where the format has that. */
export function requireExpert(file: string, where: string, value: unknown, allowEmpty: boolean): number {
  return requireInteger(file, where, value, allowEmpty ? -1 : 0, MAX_EXPERTS - 1);
}

/** Throws unless a placement of this shape is within the bounds. */
export function requirePlacementShape(file: string, where: string, layers: number, slots: number): void {
  requireInteger(file, `${where}, layers`, layers, 1, MAX_LAYERS);
  requireInteger(file, `${where}, slots`, slots, 1, MAX_SLOTS);
  if (layers * slots > MAX_CELLS)
    throw formatError(file, where, `at most ${MAX_CELLS} slots`, `${layers} × ${slots}`);
}

/** The ids of an integer array [layers, slots], or [layers, gpus, slotsPerGpu]. */
export async function readIds(
  array: NumericArray,
  allowEmpty: boolean,
  signal?: AbortSignal,
): Promise<Int32Array> {
  if (!isInteger(array)) throw formatError(array.file, array.where, 'integer ids', `dtype ${array.kind}`);
  const [layers = 0, ...rest] = array.shape;
  const slots = rest.reduce((product, length) => product * length, 1);
  requirePlacementShape(array.file, array.where, layers, slots);
  const ids = new Int32Array(layers * slots);
  const set = (id: number, index: number) => {
    const where = () => `${array.where}, layer ${Math.floor(index / slots)}, slot ${index % slots}`;
    ids[index] = id >= 0 && id < MAX_EXPERTS ? id : requireExpert(array.file, where(), id, allowEmpty);
  };
  await visit(array, set, signal);
  return ids;
}
