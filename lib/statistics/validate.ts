/** The border of the routing statistics: what native code counts without a further look. */
import { types } from 'node:util';
import { atLeastZero, checkKeys, count, describe, invalid, ordinal } from '../checks.js';
import { mismatch } from '../errors.js';
import { MAX_EXPERTS, MAX_SOURCES } from '../import/limits.js';
import { isTypedArray, typedArray } from '../validate.js';
import type { DriftOptions, RoutingObservation, RoutingStatisticsOptions, SummedCounts } from './types.js';

/** As native/model/statistics.h has them. */
const MOST_WINDOW_TOKENS = 2 ** 27;
export const MOST_CHOICES = 32;
export const BUCKETS = 16;
/** So that a bucket has a token. */
const LEAST_HALF_LIFE = BUCKETS / 4;
const DEFAULT_HALF_LIFE = 2 ** 20;
/** Cells of layers × sources × experts; each takes 72 bytes. */
const MOST_CELLS = 2 ** 24;

export interface CheckedStatistics {
  layers: number;
  sources: number;
  experts: number;
  priorTokens: number;
  fades: boolean;
  windowTokens: number;
}

export function checkStatistics(options: RoutingStatisticsOptions): CheckedStatistics {
  checkKeys('options', options, [
    'layers',
    'sources',
    'experts',
    'halfLifeTokens',
    'windowTokens',
    'priorTokens',
  ]);
  const { halfLifeTokens, windowTokens, priorTokens } = options;
  const layers = count('options.layers', options.layers);
  const sources = upTo('options.sources', options.sources, 1, MAX_SOURCES);
  const experts = upTo('options.experts', options.experts, 1, MAX_EXPERTS);
  if (layers * sources * experts > MOST_CELLS) {
    const shape = 'options.layers * sources * experts';
    throw mismatch('GIMBAL_OUT_OF_RANGE', shape, `at most ${MOST_CELLS}`, `${layers * sources * experts}`);
  }
  if (halfLifeTokens !== undefined && windowTokens !== undefined) {
    throw invalid('options.windowTokens', 'nothing beside halfLifeTokens', describe(windowTokens));
  }
  const fades = windowTokens === undefined;
  return {
    layers,
    sources,
    experts,
    priorTokens: priorTokens === undefined ? experts : ordinal('options.priorTokens', priorTokens),
    fades,
    windowTokens: fades
      ? upTo(
          'options.halfLifeTokens',
          halfLifeTokens ?? DEFAULT_HALF_LIFE,
          LEAST_HALF_LIFE,
          MOST_WINDOW_TOKENS,
        )
      : upTo('options.windowTokens', windowTokens, BUCKETS, MOST_WINDOW_TOKENS),
  };
}

/** Returns the choices in memory that no other thread writes. */
export function checkObservation(
  observation: RoutingObservation,
  { layers, sources, experts }: CheckedStatistics,
): Uint8Array | Uint16Array {
  checkKeys('observation', observation, ['source', 'topk', 'tokens', 'k', 'layers']);
  const { source, topk, tokens, k } = observation;
  upTo('observation.source', source, 0, sources - 1);
  ordinal('observation.tokens', tokens);
  upTo('observation.k', k, 1, Math.min(MOST_CHOICES, experts));
  checkSame('observation.layers', observation.layers, layers);
  const type = isTypedArray(topk, 'Uint16Array') ? 'Uint16Array' : 'Uint8Array';
  if (type === 'Uint8Array' && !isTypedArray(topk, type)) {
    throw invalid('observation.topk', 'a Uint8Array or Uint16Array [tokens][layers][k]', describe(topk));
  }
  const length = tokens * layers * k;
  return ownMemory(typedArray('observation.topk', topk, type, '[tokens][layers][k]', length));
}

export function checkSummed(
  summed: SummedCounts,
  { layers, sources, experts }: CheckedStatistics,
): { counts: Uint32Array; k: number } {
  checkKeys('counts', summed, ['source', 'counts', 'k', 'layers', 'experts']);
  upTo('counts.source', summed.source, 0, sources - 1);
  checkSame('counts.layers', summed.layers, layers);
  checkSame('counts.experts', summed.experts, experts);
  const k = checkChoices('counts.k', summed.k);
  const shape = '[layers][experts]';
  const counts = typedArray('counts.counts', summed.counts, 'Uint32Array', shape, layers * experts);
  return { counts: ownMemory(counts), k };
}

export function checkChoices(field: string, k: number | undefined): number {
  return k === undefined ? 1 : upTo(field, k, 1, MOST_CHOICES);
}

export function checkDrift(options: DriftOptions, sources: number): Required<DriftOptions> {
  checkKeys('options', options, ['source', 'falseAlarmRate', 'leastDistance']);
  const { source, falseAlarmRate = 0.01, leastDistance = 0.02 } = options;
  if (source !== undefined) upTo('options.source', source, 0, sources - 1);
  if (!(falseAlarmRate > 0 && falseAlarmRate < 1)) {
    throw invalid('options.falseAlarmRate', 'a number between 0 and 1', describe(falseAlarmRate));
  }
  if (atLeastZero('options.leastDistance', leastDistance) > 1) {
    throw invalid('options.leastDistance', 'a number of 0 to 1', describe(leastDistance));
  }
  return { source: source ?? -1, falseAlarmRate, leastDistance };
}

export function checkSame(field: string, given: number | undefined, own: number): void {
  if (given !== undefined && given !== own) throw invalid(field, `${own}`, describe(given));
}

export function upTo(field: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > most) {
    throw invalid(field, `an integer of ${least} to ${most}`, describe(value));
  }
  return value;
}

/** Another thread may write shared memory between native code's check and its use: a copy of that. */
export function ownMemory<T extends Uint8Array | Uint16Array | Uint32Array>(array: T): T {
  return types.isSharedArrayBuffer(array.buffer) ? (array.slice() as T) : array;
}
