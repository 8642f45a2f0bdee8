/**
 * Placement follows dispatch: counts say how each source's tokens choose experts, the dispatcher knows how many tokens each source
 * gets. Rows are scaled so that both hold.
 */
import { describe, invalid } from '../checks.js';
import type { RoutingCounts } from '../import/counts.js';
import { typedArray } from '../validate.js';
import { sum } from './sum.js';

const MOST_COUNT = 2 ** 32 - 1;

/**
 * Counts `[layers][sources][experts]` whose rows add up, in each layer, to the sources' shares of the layer's total. `shares`:
 * `[sources]`, of whatever scale, such as tokens dispatched of late. Whole numbers, each within 1 of the exact one; the layer's
 * total stays. A source that has a share and was not counted gets the mean of the layer's sources. Where all shares are 0, counts
 * stay as they are. Where a count would not fit 32 bits, the layer is made as much smaller as it must be.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT (names the field)
 */
export function weighSources(
  counts: Pick<RoutingCounts, 'layers' | 'sources' | 'experts' | 'tokens'>,
  shares: ArrayLike<number>,
): Uint32Array {
  const { layers, sources, experts } = counts;
  const length = layers * sources * experts;
  const tokens = typedArray(
    'counts.tokens',
    counts.tokens,
    'Uint32Array',
    '[layers][sources][experts]',
    length,
  );
  const weights = checkShares(shares, sources);
  const out = Uint32Array.from(tokens);
  const all = sum(weights);
  if (all === 0) return out;
  for (let layer = 0; layer < layers; layer++) {
    const at = layer * sources * experts;
    weighLayer(out.subarray(at, at + sources * experts), weights, all, experts);
  }
  return out;
}

function checkShares(shares: ArrayLike<number>, sources: number): Float64Array {
  if (shares?.length !== sources) {
    throw invalid('shares', `${sources} numbers, one for each source`, describe(shares));
  }
  const weights = Float64Array.from(shares);
  const most = Math.max(...weights);
  weights.forEach((share, n) => {
    if (!(share >= 0 && share < Number.POSITIVE_INFINITY)) {
      throw invalid(`shares[${n}]`, 'a finite number of at least 0', describe(shares[n]));
    }
    // So that no sum of them is infinite.
    if (most > 0) weights[n] = share / most;
  });
  return weights;
}

/** `rows`: `[sources][experts]`. */
function weighLayer(rows: Uint32Array, weights: Float64Array, all: number, experts: number): void {
  const columns = new Float64Array(experts);
  for (let n = 0; n < rows.length; n++) columns[n % experts]! += rows[n]!;
  const total = sum(columns);
  if (total === 0) return;
  const shapes = Array.from(weights, (_, source) => {
    const row = rows.slice(source * experts, (source + 1) * experts);
    return row.some((count) => count > 0) ? row : columns;
  });
  const sums = shapes.map(sum);
  // The largest count that would come of it, if there were room for it.
  let most = 0;
  for (const [source, shape] of shapes.entries()) {
    for (const count of shape)
      most = Math.max(most, (count / sums[source]!) * ((total * weights[source]!) / all));
  }
  const fits = most < MOST_COUNT ? total : Math.floor((total * (MOST_COUNT - 1)) / most);
  const goals = apportion(weights, all, fits);
  for (const [source, shape] of shapes.entries()) {
    rows.set(apportion(shape, sums[source]!, goals[source]!), source * experts);
  }
}

/**
 * Whole numbers in proportion to `shape`, which adds up to `total`; they add up to `goal`. Each is the difference of two rounded
 * running sums, so it is within 1 of the exact one, and 0 where the shape is.
 */
function apportion(shape: ArrayLike<number>, total: number, goal: number): Float64Array {
  const parts = new Float64Array(shape.length);
  let running = 0;
  let before = 0;
  for (let n = 0; n < shape.length; n++) {
    running += shape[n]!;
    // Running sums of fractions may miss the end by a little; all of it must be given out.
    const upTo = running >= total ? goal : Math.round((running / total) * goal);
    parts[n] = upTo - before;
    before = upTo;
  }
  return parts;
}
