/**
 * Counts as they might have come out instead: each drawn anew with its own mean and a variance of `overdispersion` times that, as a
 * multiple of a Poisson number. Tokens of one request choose alike, so counts vary more than if every token chose by itself.
 */
import type { Random } from '../random.js';
import type { Slices } from './slices.js';

/** Cells between two looks at the time: a fraction of a millisecond. */
const CELLS = 4096;
/** From here on the Poisson numbers are drawn from the normal distribution, which is within a percent of them. */
const NORMAL_FROM = 24;
const MOST_COUNT = 2 ** 32 - 1;

/** `counts`: any shape. */
export async function resample(
  counts: Uint32Array,
  overdispersion: number,
  random: Random,
  slices: Slices,
): Promise<Uint32Array> {
  const drawn = new Uint32Array(counts.length);
  for (let from = 0; from < counts.length; from += CELLS) {
    const end = Math.min(counts.length, from + CELLS);
    for (let at = from; at < end; at++) {
      const events = poisson(counts[at]! / overdispersion, random);
      drawn[at] = Math.min(MOST_COUNT, Math.round(events * overdispersion));
    }
    await slices.pause();
  }
  return drawn;
}

function poisson(mean: number, random: Random): number {
  if (mean === 0) return 0;
  if (mean >= NORMAL_FROM) return Math.max(0, mean + Math.sqrt(mean) * random.normal());
  return random.poisson(mean);
}
