/**
 * The counts that advice is given by: as they came or drawn from the generative model, and split at random into two halves, of
 * which one is planned on and the other judges the plan. Seeded.
 */
import { invalid } from '../checks.js';
import { Random } from '../random.js';
import type { ServedModel } from '../simulator/hardware.js';
import { Routing } from '../simulator/routing.js';
import type { CheckedAdvice } from './check.js';

const STREAM = { window: 401, split: 402 };
/** Above it a binomial draw is a rounded normal one. */
const EXACT_DRAWS = 32;
/** Counts that are only judged by are scaled by up to so much, lest few are rounded away, and stay below a limit. */
const SCALE = { most: 256, limit: 2 ** 31 };

export interface Counts {
  /** `[layers][sources][experts]` */
  tokens: Uint32Array;
  layers: number;
  sources: number;
  experts: number;
}

export function countsOf(
  { routing, shape, seed }: Pick<CheckedAdvice, 'routing' | 'shape' | 'seed'>,
  model: ServedModel,
): Counts {
  if (routing.kind === 'counts') return layersWithTraffic(routing);
  const { windowTokens, ...generative } = routing;
  const { tables } = new Routing(generative, model, seed);
  const { layers, experts, profiles, chance } = tables;
  const sources = shape.ranks;
  const random = new Random(seed, STREAM.window);
  const tokens = new Uint32Array(layers * sources * experts);
  for (let layer = 0; layer < layers; layer++) {
    for (let e = 0; e < experts; e++) {
      let sum = 0;
      for (let profile = 0; profile < profiles; profile++)
        sum += chance[(profile * layers + layer) * experts + e]!;
      const mean = (windowTokens * sum) / profiles;
      for (let source = 0; source < sources; source++) {
        const drawn = Math.round(mean + Math.sqrt(mean) * random.normal());
        tokens[(layer * sources + source) * experts + e] = Math.max(0, drawn);
      }
    }
  }
  return { tokens, layers, sources, experts };
}

/** Layers in which nothing was routed cost nothing, and are left out. */
function layersWithTraffic({ tokens, layers, sources, experts }: Counts): Counts {
  const width = sources * experts;
  const rows = Array.from({ length: layers }, (_, layer) =>
    tokens.subarray(layer * width, (layer + 1) * width),
  );
  const kept = rows.filter((row) => row.some((count) => count > 0));
  if (kept.length === 0) throw invalid('options.routing.tokens', 'some traffic', 'none');
  const joined = new Uint32Array(kept.length * width);
  for (const [n, row] of kept.entries()) joined.set(row, n * width);
  return { tokens: joined, layers: kept.length, sources, experts };
}

/** `[experts]` of a source in a layer; of one that sent nothing there the mean of all, and where none did the same to each. */
export function sharesOf({ tokens, sources, experts }: Counts, layer: number, source: number): Uint32Array {
  const row = (s: number) =>
    tokens.subarray((layer * sources + s) * experts, (layer * sources + s + 1) * experts);
  const own = row(source);
  if (own.some((count) => count > 0)) return own;
  const mean = Uint32Array.from({ length: experts }, (_, e) => {
    let sum = 0;
    for (let s = 0; s < sources; s++) sum += row(s)[e]!;
    return Math.ceil(sum / sources);
  });
  return mean.some((count) => count > 0) ? mean : mean.fill(1);
}

/** Each token counted goes to one half or the other, whatever the others do. */
export function splitCounts({ tokens, ...rest }: Counts, seed: number, split: number): [Counts, Counts] {
  const random = new Random(seed, STREAM.split + split);
  const first = tokens.map((count) => halfOf(count, random));
  return [
    { ...rest, tokens: first },
    { ...rest, tokens: tokens.map((count, n) => count - first[n]!) },
  ];
}

function halfOf(count: number, random: Random): number {
  if (count > EXACT_DRAWS) {
    const drawn = Math.round(count / 2 + (Math.sqrt(count) / 2) * random.normal());
    return Math.min(count, Math.max(0, drawn));
  }
  let bits = count === 0 ? 0 : random.uint32() >>> (EXACT_DRAWS - count);
  let half = 0;
  for (; bits !== 0; bits &= bits - 1) half += 1;
  return half;
}

/**
 * The counts that a plan is judged by, without what chance alone spreads their experts by: the sums of a layer's experts are drawn
 * to their mean by the part of their variance that Poisson counts would have (empirical Bayes). Or every placement that averages
 * over more experts would seem to win, where all that differs is noise.
 */
export function withoutChance(counts: Counts): Counts {
  const { layers, sources, experts } = counts;
  const tokens = counts.tokens.slice();
  for (let layer = 0; layer < layers; layer++) {
    const own = tokens.subarray(layer * sources * experts, (layer + 1) * sources * experts);
    const sums = new Float64Array(experts);
    for (let n = 0; n < own.length; n++) sums[n % experts]! += own[n]!;
    const mean = sums.reduce((total, sum) => total + sum, 0) / experts;
    const variance = sums.reduce((total, sum) => total + (sum - mean) ** 2, 0) / Math.max(1, experts - 1);
    const kept = variance > mean ? 1 - mean / variance : 0;
    const most = sums.reduce((a, b) => Math.max(a, b));
    const scale = Math.min(SCALE.most, SCALE.limit / Math.max(1, most));
    for (let n = 0; n < own.length; n++) {
      const sum = sums[n % experts]!;
      const drawn = mean + kept * (sum - mean);
      own[n] = Math.round(scale * (sum > 0 ? (own[n]! * drawn) / sum : drawn / sources));
    }
  }
  return { ...counts, tokens };
}
