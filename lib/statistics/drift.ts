/**
 * Whether routing has changed: a permutation test over batches. The window's whole buckets are batches of equally many tokens,
 * the newest third of them against the others. If nothing changed, any third could as well be the newest, so the chi-square
 * distance that is observed is ranked among those of all choices of so many batches. That is exact however unlike requests are,
 * as long as batches are exchangeable: each must hold many requests. Layers are judged together, by the greatest ratio among
 * them (Westfall and Young, Resampling-Based Multiple Testing, 1993), so the rate of false alarms is that of a call.
 *
 * In floating point and not in native/spec, since nothing of it becomes a count or a plan; and by additions, products and quotients
 * alone, so that it is equal on every machine.
 */
import type { Drift, DriftOptions, LayerDrift } from './types.js';

const NOT_READY: Drift = { ready: false, drifted: false, batches: 0, recent: 0, orders: 0, layers: [] };
/** Of squared differences of shares, in relative terms: below it is rounding. */
const ROUNDING = 1e-24;

/**
 * `buckets`: [count][layers][experts], pairs, oldest first. Buckets in which some layer has nothing are left out, as they are
 * where counts come in dumps larger than a bucket.
 */
export function driftOf(
  buckets: Float64Array,
  count: number,
  layers: number,
  experts: number,
  { falseAlarmRate, leastDistance }: Required<DriftOptions>,
): Drift {
  const shares = sharesOf(buckets, count, layers, experts);
  const batches = shares.length / (layers * experts);
  const recent = Math.floor(batches / 3);
  const orders = choose(batches, recent);
  if (orders < 1 / falseAlarmRate) return { ...NOT_READY, batches, recent };
  const ratios = new Float64Array(layers * orders);
  const found: LayerDrift[] = [];
  const greatest = new Float64Array(orders);
  for (let layer = 0; layer < layers; layer++) {
    const of = { shares, batches, layers, experts, layer };
    const own = ratios.subarray(layer * orders, (layer + 1) * orders);
    rankable(gram(of), batches, recent, own);
    own.forEach((ratio, order) => {
      if (ratio > greatest[order]!) greatest[order] = ratio;
    });
    found.push({ layer, distance: distance(of, recent), ratio: own[orders - 1]!, pValue: 1, drifted: false });
  }
  for (const one of found) {
    one.pValue = greatest.reduce((sum, ratio) => sum + (ratio >= one.ratio ? 1 : 0), 0) / orders;
    one.drifted = one.pValue <= falseAlarmRate && one.distance >= leastDistance;
  }
  const drifted = found.some((one) => one.drifted);
  return { ready: true, drifted, batches, recent, orders, layers: found };
}

/** [batches][layers][experts]: pairs over their sum in the batch and layer. */
function sharesOf(buckets: Float64Array, count: number, layers: number, experts: number): Float64Array {
  const shares = new Float64Array(count * layers * experts);
  const size = layers * experts;
  let batches = 0;
  for (let bucket = 0; bucket < count; bucket++) {
    let empty = false;
    for (let layer = 0; layer < layers && !empty; layer++) {
      const from = bucket * size + layer * experts;
      const into = batches * size + layer * experts;
      let pairs = 0;
      for (let e = 0; e < experts; e++) pairs += buckets[from + e]!;
      for (let e = 0; e < experts; e++) shares[into + e] = buckets[from + e]! / pairs;
      empty = pairs === 0;
    }
    if (!empty) batches++;
  }
  return shares.subarray(0, batches * size);
}

interface LayerShares {
  shares: Float64Array;
  batches: number;
  layers: number;
  experts: number;
  layer: number;
}

/** Where a batch's shares of the layer begin. */
const startOf = ({ layers, experts, layer }: LayerShares, batch: number) =>
  (batch * layers + layer) * experts;

/**
 * [batches][batches]: products of the batches' differences from their mean, each expert's over its mean share. The chi-square
 * distance between the mean of some batches and that of the others is the sum over pairs of those batches, but for a factor.
 */
function gram(of: LayerShares): Float64Array {
  const { shares, batches, experts } = of;
  const products = new Float64Array(batches * batches);
  const differences = new Float64Array(batches);
  for (let e = 0; e < experts; e++) {
    let mean = 0;
    for (let b = 0; b < batches; b++) mean += shares[startOf(of, b) + e]!;
    if (mean === 0) continue;
    mean /= batches;
    for (let b = 0; b < batches; b++) differences[b] = shares[startOf(of, b) + e]! - mean;
    for (let b = 0; b < batches; b++) {
      const scaled = differences[b]! / mean;
      for (let c = 0; c <= b; c++) products[b * batches + c]! += scaled * differences[c]!;
    }
  }
  return products;
}

/**
 * Fills `ratios` [orders] with the statistic of every choice of `recent` batches over the mean of all, the choice of the newest
 * last; zeros where all batches are alike.
 */
function rankable(products: Float64Array, batches: number, recent: number, ratios: Float64Array): void {
  const chosen = Array.from({ length: recent }, (_, i) => i);
  for (let order = 0; order < ratios.length; order++) {
    let sum = 0;
    for (let i = 0; i < recent; i++) {
      const row = chosen[i]! * batches;
      sum += products[row + chosen[i]!]!;
      for (let j = 0; j < i; j++) sum += 2 * products[row + chosen[j]!]!;
    }
    ratios[order] = sum;
    nextChoice(chosen, batches);
  }
  const mean = ratios.reduce((sum, value) => sum + value, 0) / ratios.length;
  for (let order = 0; order < ratios.length; order++) {
    ratios[order] = mean > ROUNDING ? ratios[order]! / mean : 0;
  }
}

/** The next choice in lexical order: the newest batches come last. */
function nextChoice(chosen: number[], batches: number): void {
  let at = chosen.length - 1;
  while (at >= 0 && chosen[at] === batches - chosen.length + at) at--;
  if (at < 0) return;
  chosen[at]!++;
  for (let i = at + 1; i < chosen.length; i++) chosen[i] = chosen[i - 1]! + 1;
}

/** Total variation between the mean shares of the newest `recent` batches and of the others. */
function distance(of: LayerShares, recent: number): number {
  const { shares, batches, experts } = of;
  let sum = 0;
  for (let e = 0; e < experts; e++) {
    let [before, since] = [0, 0];
    for (let b = 0; b < batches; b++) {
      const share = shares[startOf(of, b) + e]!;
      if (b < batches - recent) before += share;
      else since += share;
    }
    sum += Math.abs(since / recent - before / (batches - recent));
  }
  return sum / 2;
}

function choose(n: number, k: number): number {
  let ways = 1;
  for (let i = 1; i <= k; i++) ways = (ways * (n - k + i)) / i;
  return ways;
}
