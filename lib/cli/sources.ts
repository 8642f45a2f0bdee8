/**
 * The sources that counts have against those the cluster has. Where they differ, equal consecutive blocks decide: one source
 * of the counts is spread evenly over a block of ranks, or a block of recorded ranks is added up into one. No token is lost
 * or made: remainders of a division go round the ranks.
 */
import { plural } from '../report/format.js';
import { InputError } from './exit.js';

export interface SourceCounts {
  layers: number;
  sources: number;
  experts: number;
  /** `[layers][sources][experts]` */
  tokens: Uint32Array;
}

const LARGEST_COUNT = 2 ** 32 - 1;

/** `hasSources` is false where the counts are `[layers][experts]` only, so that their one source is the sum of all. */
export function mapSources(
  counts: SourceCounts,
  sources: number,
  hasSources: boolean,
): { tokens: Uint32Array; note: string | undefined } {
  if (!hasSources) {
    return {
      tokens: sources === counts.sources ? counts.tokens : spread(counts, sources),
      note:
        sources === 1
          ? undefined
          : `The counts do not say which source sent them: each of the ${sources} sources is taken to be the mean, so the plan can place for balance but not for who sends what.`,
    };
  }
  if (counts.sources === sources) return { tokens: counts.tokens, note: undefined };
  if (sources % counts.sources === 0) {
    const block = sources / counts.sources;
    return {
      tokens: spread(counts, sources),
      note: `The counts have ${plural(counts.sources, 'source')}, the topology ${sources}: each is spread evenly over a block of ${block} consecutive ranks.`,
    };
  }
  if (counts.sources % sources === 0) {
    const block = counts.sources / sources;
    return {
      tokens: merge(counts, sources),
      note: `The counts have ${plural(counts.sources, 'source')}, the topology ${sources}: each block of ${block} consecutive sources is added up into one rank.`,
    };
  }
  throw new InputError(
    `counts: expected a number of sources that divides the topology's ${sources}, or is a multiple of it, but received ${counts.sources}`,
    {
      field: 'counts',
      expected: `a divisor or multiple of ${sources} sources`,
      received: String(counts.sources),
      remedy: `give --sources with the number of DP ranks that the counts are of (${counts.sources}), or a topology of as many ranks`,
    },
  );
}

function spread(counts: SourceCounts, sources: number): Uint32Array {
  const { layers, experts } = counts;
  const block = sources / counts.sources;
  const tokens = new Uint32Array(layers * sources * experts);
  for (let layer = 0; layer < layers; layer++) {
    for (let source = 0; source < sources; source++) {
      const from = (layer * counts.sources + Math.floor(source / block)) * experts;
      const to = (layer * sources + source) * experts;
      for (let expert = 0; expert < experts; expert++) {
        const count = counts.tokens[from + expert]!;
        const extra = (source + expert) % block < count % block ? 1 : 0;
        tokens[to + expert] = Math.floor(count / block) + extra;
      }
    }
  }
  return tokens;
}

function merge(counts: SourceCounts, sources: number): Uint32Array {
  const { layers, experts } = counts;
  const block = counts.sources / sources;
  const tokens = new Uint32Array(layers * sources * experts);
  for (let row = 0; row < layers * counts.sources; row++) {
    for (let expert = 0; expert < experts; expert++) {
      const at = Math.floor(row / block) * experts + expert;
      const sum = tokens[at]! + counts.tokens[row * experts + expert]!;
      if (sum > LARGEST_COUNT) {
        throw new InputError(
          `counts: expected sums below 2^32 but a block of ${block} sources sends ${sum} tokens to expert ${expert}`,
          { field: 'counts', remedy: 'use a shorter statistics window' },
        );
      }
      tokens[at] = sum;
    }
  }
  return tokens;
}
