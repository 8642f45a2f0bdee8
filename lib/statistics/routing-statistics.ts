/**
 * What is routed where, while it happens: counts for planPlacement from what engines tell of the tokens they serve. Counting is
 * native (native/model/statistics.h), the formulas of decay and shrinkage are native/spec/statistics.h.
 */
import { binding, type NativeStatistics } from '../binding.js';
import { checkKeys, describe, invalid } from '../checks.js';
import { mismatch } from '../errors.js';
import type { RoutingCounts } from '../import/counts.js';
import { isTypedArray, typedArray } from '../validate.js';
import { driftOf } from './drift.js';
import type {
  Drift,
  DriftOptions,
  RoutingConfidence,
  RoutingObservation,
  RoutingStatisticsOptions,
  SummedCounts,
} from './types.js';
import {
  BUCKETS,
  type CheckedStatistics,
  checkChoices,
  checkDrift,
  checkObservation,
  checkSame,
  checkStatistics,
  checkSummed,
  ownMemory,
  upTo,
} from './validate.js';

const MOST_PUSHED = 2 ** 31 - 1;
const MOST_COUNT = 2 ** 32 - 1;
const ALL = -1;
/** What RestoreFailure of native/model/statistics.h means, by number. */
const RESTORE_FAILURES = [
  undefined,
  ['length', 'as many bytes as a snapshot of this shape has'],
  ['magic', 'a snapshot of routing statistics'],
  ['version', 'version 1'],
  ['shape', 'the layers, sources and experts of these statistics'],
  ['window', 'the window or half-life of these statistics'],
  ['checksum', 'the checksum of its content'],
  ['content', 'counts and times that belong together'],
] as const;

/**
 * Online counts of (token, expert) pairs for each layer and source DP rank, over a window that fades (`halfLifeTokens`) or slides
 * (`windowTokens`). Time is counted in observed tokens of all sources together: so sources must be sampled at equal rates, and what
 * they send keeps its proportions. Synchronous; the memory is taken when it is made and never grows.
 *
 * A fading window weighs a token by 2^-(age / halfLifeTokens), in steps of a 64th of a half-life (1.1 %). A sliding one drops a
 * 16th at a time: it holds between 15/16 of `windowTokens`, rounded up to a multiple of 16, and all.
 */
export class RoutingStatistics {
  readonly #native: NativeStatistics;
  readonly #shape: CheckedStatistics;

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option), GIMBAL_OUT_OF_RANGE (too large), GIMBAL_BINDING */
  constructor(options: RoutingStatisticsOptions) {
    this.#shape = checkStatistics(options);
    this.#native = construct(this.#shape);
  }

  /** Tokens observed so far, whatever their age. */
  get tokensSeen(): number {
    return this.#native.tokensSeen;
  }

  /** Bytes of native memory: 72 for each of layers × sources × (experts + 1), and 8 for each of sources × experts. */
  get memoryBytes(): number {
    return this.#native.memoryBytes;
  }

  /**
   * Counts the experts that tokens of a source chose. Ids are checked before anything is counted.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT (names the field, or the place in `topk` that is no expert)
   */
  observe(observation: RoutingObservation): void {
    const topk = checkObservation(observation, this.#shape);
    const { source, tokens, k } = observation;
    const wrong = this.#native.observe(source, topk, tokens, k);
    if (wrong < 0) return;
    const row = Math.floor(wrong / k);
    const { layers, experts } = this.#shape;
    const place = `(token ${Math.floor(row / layers)}, layer ${row % layers})`;
    throw invalid(
      `observation.topk[${wrong}]`,
      `an expert of 0 to ${experts - 1}`,
      `${topk[wrong]} ${place}`,
    );
  }

  /**
   * Counts pairs of a source that were summed elsewhere, as the newest tokens, all of one age: push them in pieces that are short
   * beside the window. A source's tokens are the pairs of its fullest layer / k.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT, GIMBAL_OUT_OF_RANGE (2^31 pairs or more in a layer)
   */
  observeCounts(summed: SummedCounts): void {
    const { counts, k } = checkSummed(summed, this.#shape);
    this.#push('counts.counts', summed.source, 1, counts, k);
  }

  /**
   * Counts a table of all sources, as `readCounts` gives it from a recorder's dump, as the newest tokens, all of one age. A dump
   * that is summed over its sources cannot tell them apart and is refused, unless there is but one.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT, GIMBAL_OUT_OF_RANGE (2^31 pairs or more of a source in a layer)
   */
  observeTable(
    table: Pick<RoutingCounts, 'layers' | 'sources' | 'experts' | 'tokens'>,
    options: { k?: number } = {},
  ): void {
    const { layers, sources, experts } = this.#shape;
    checkKeys('options', options, ['k']);
    const k = checkChoices('options.k', options.k);
    checkSame('table.layers', table.layers, layers);
    checkSame('table.experts', table.experts, experts);
    if (table.sources === 1 && sources > 1) {
      throw invalid('table.sources', `${sources}`, '1: counts that are summed over the ranks');
    }
    checkSame('table.sources', table.sources, sources);
    const length = layers * sources * experts;
    const shape = '[layers][sources][experts]';
    const tokens = typedArray('table.tokens', table.tokens, 'Uint32Array', shape, length);
    this.#push('table.tokens', 0, sources, ownMemory(tokens), k);
  }

  #push(field: string, first: number, sources: number, counts: Uint32Array, k: number): void {
    const wrong = this.#native.observeCounts(first, sources, counts, k);
    if (wrong < 0) return;
    const expected = `at most ${MOST_PUSHED} pairs of a source in a layer`;
    throw mismatch('GIMBAL_OUT_OF_RANGE', `${field}[${wrong}]`, expected, 'more up to there');
  }

  /**
   * `[layers][sources][experts]`, the window's pairs for `planPlacement`, rounded to whole ones. Thin sources are shrunk towards the
   * layer's mean over the sources:
   *
   *   Z · own + (1 − Z) · mean,  Z = mean tokens of a source / (mean tokens of a source + priorTokens)
   *
   * which is the credibility estimate of Poisson counts with a Gamma prior (Bühlmann and Gisler, A Course in Credibility Theory,
   * 2005). What all sources together send to an expert stays the same. `confidence()` says how much of a row is the prior's.
   *
   * @throws GimbalError GIMBAL_OUT_OF_RANGE (a count of 2^32 or more, which only summed counts can reach)
   */
  counts(): Uint32Array {
    const { layers, sources, experts, priorTokens } = this.#shape;
    const counts = new Uint32Array(layers * sources * experts);
    const beyond = this.#native.counts(priorTokens, counts);
    if (beyond < 0) return counts;
    const place = `layer ${Math.floor(beyond / (sources * experts))}, source ${Math.floor(beyond / experts) % sources}, expert ${beyond % experts}`;
    const remedy = 'more: push fewer pairs, or use a shorter window';
    throw mismatch('GIMBAL_OUT_OF_RANGE', `counts, ${place}`, `at most ${MOST_COUNT}`, remedy);
  }

  confidence(): RoutingConfidence {
    const { layers, sources, priorTokens } = this.#shape;
    const tokens = new Float64Array(layers * sources);
    this.#native.tokens(tokens);
    const own = (observed: number) => (observed === 0 ? 0 : observed / (observed + priorTokens));
    const least = Array.from({ length: sources }, (_, source) => {
      let fewest = Number.POSITIVE_INFINITY;
      for (let at = source; at < tokens.length; at += sources) fewest = Math.min(fewest, tokens[at]!);
      return fewest;
    });
    const sourcesWhere = (test: (fewest: number) => boolean) =>
      [...least.keys()].filter((source) => test(least[source]!));
    return {
      layers: Float64Array.from({ length: layers }, (_, layer) => {
        const row = tokens.subarray(layer * sources, (layer + 1) * sources);
        return own(row.reduce((sum, value) => sum + value, 0) / sources);
      }),
      tokens,
      shrinkShare: tokens.map((observed) => 1 - own(observed)),
      unobserved: sourcesWhere((fewest) => fewest === 0),
      thin: sourcesWhere((fewest) => fewest > 0 && fewest < priorTokens),
    };
  }

  /**
   * Whether the experts' shares have changed lately, layer by layer (drift.ts has the test). It compares the newest third of the last
   * batches with the others: batches of a 16th of a sliding window, or a quarter of a half-life, of which the last 15 are kept. With
   * the default rate of false alarms it takes 10 whole batches to be ready. The rate is that of one call; calls within a batch see
   * the same data.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT
   */
  drift(options: DriftOptions = {}): Drift {
    const { layers, sources, experts } = this.#shape;
    const checked = checkDrift(options, sources);
    const buckets = new Float64Array((BUCKETS - 1) * layers * experts);
    const count = this.#native.wholeBuckets(checked.source, buckets);
    return driftOf(buckets, count, layers, experts, checked);
  }

  /**
   * Forgets what a source sent, as if it had sent nothing, or everything. After the former `drift()` over all sources sees the source
   * appear anew.
   */
  reset(source?: number): void {
    if (source !== undefined) upTo('source', source, 0, this.#shape.sources - 1);
    this.#native.reset(source ?? ALL);
  }

  /** The whole state, for `restore` in statistics of the same shape and window. */
  snapshot(): Uint8Array {
    return this.#native.snapshot();
  }

  /**
   * Takes the state of a snapshot in place of its own. All of it is checked before anything changes.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT (no bytes), GIMBAL_FORMAT (not a snapshot, another version, shape or window, damaged)
   */
  restore(bytes: Uint8Array): void {
    if (!isTypedArray(bytes, 'Uint8Array')) throw invalid('snapshot', 'a Uint8Array', describe(bytes));
    const own = ownMemory(typedArray('snapshot', bytes, 'Uint8Array', '[bytes]', bytes.length));
    const failure = RESTORE_FAILURES[this.#native.restore(own)];
    if (failure === undefined) return;
    const [part, expected] = failure;
    const received = part === 'length' ? `${bytes.length} bytes` : 'another';
    throw mismatch('GIMBAL_FORMAT', `snapshot, ${part}`, expected, received);
  }
}

function construct({ layers, sources, experts, fades, windowTokens }: CheckedStatistics): NativeStatistics {
  const { NativeStatistics } = binding();
  try {
    return new NativeStatistics(layers, sources, experts, fades, windowTokens);
  } catch (cause) {
    const shape = 'options.layers * sources * experts';
    const received = cause instanceof Error ? cause.message : String(cause);
    throw mismatch('GIMBAL_OUT_OF_RANGE', shape, 'a size that memory has room for', received, cause);
  }
}
