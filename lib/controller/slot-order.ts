/**
 * The order of experts inside a GPU. It changes nothing that costs time, but engines compare placements slot by slot: an expert that
 * stays on its GPU must stay in its slot, or it is copied for nothing.
 */

/**
 * `placement` with experts in the slots where `before` had them, as far as they stay on their GPU. Both `[layers][gpus][slotsPerGpu]`;
 * neither is changed.
 */
export function keepSlots(placement: Int32Array, before: Int32Array, slotsPerGpu: number): Int32Array {
  const kept = placement.slice();
  for (let first = 0; first < kept.length; first += slotsPerGpu) {
    keepSlotsOfGpu(kept.subarray(first, first + slotsPerGpu), before.subarray(first, first + slotsPerGpu));
  }
  return kept;
}

/** Every swap settles a slot for good, so a row is done after as many looks as it has slots. */
function keepSlotsOfGpu(row: Int32Array, before: Int32Array): void {
  for (let slot = 0; slot < row.length; slot++) {
    if (row[slot] === before[slot]) continue;
    const from = row.findIndex((expert, other) => expert === before[slot] && expert !== before[other]);
    if (from < 0) continue;
    row[from] = row[slot]!;
    row[slot] = before[slot]!;
  }
}

/** Slots that hold another expert than before: what an engine would copy. */
export function movedSlots(placement: Int32Array, before: Int32Array): number {
  return placement.reduce((moved, expert, slot) => moved + (expert === before[slot] ? 0 : 1), 0);
}
