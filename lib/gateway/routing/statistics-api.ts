/**
 * The statistics over HTTP, beside the other pages for operators: counts that an engine's side pushes come in, and what is known of
 * routing goes out.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { mismatch } from '../../errors.js';
import { decodePushedCounts } from '../../statistics/pushed-counts.js';
import type { RoutingStatistics } from '../../statistics/routing-statistics.js';
import type { RoutingStatisticsOptions } from '../../statistics/types.js';
import type { AdminPages } from '../admin.js';
import { comesBy, READING, sendError, sendJson } from '../answers.js';
import { readBody, refusalOf } from '../body.js';
import { Pushes, type PushResult } from './pushes.js';

export const STATISTICS_PATH = '/v1/statistics';
export const COUNTS_PATH = '/v1/statistics/counts';
export const PUSHER_HEADER = 'x-gimbal-pusher';
export const SEQUENCE_HEADER = 'x-gimbal-sequence';

/** Of a count in JSON, with its comma and a space. */
const JSON_COUNT_BYTES = 12;
const HEAD_BYTES = 4096;
const PUSHER = /^[\x21-\x7e]{1,128}$/;

export const PUSH_RESULTS = ['counted', 'duplicate', 'late', 'refused'] as const;

export interface StatisticsApiParts {
  shape: Pick<RoutingStatisticsOptions, 'layers' | 'sources' | 'experts'>;
  statistics: RoutingStatistics;
  onPush(result: (typeof PUSH_RESULTS)[number]): void;
}

export class StatisticsApi implements AdminPages {
  readonly paths = [STATISTICS_PATH, COUNTS_PATH];
  readonly #parts: StatisticsApiParts;
  readonly #pushes = new Pushes();

  constructor(parts: StatisticsApiParts) {
    this.#parts = parts;
  }

  async serve(request: IncomingMessage, response: ServerResponse, path: string): Promise<void> {
    if (path === COUNTS_PATH) {
      if (comesBy(['POST'], request, response, path)) await this.#serveCounts(request, response);
    } else if (comesBy(READING, request, response, path)) sendJson(response, 200, this.#told());
  }

  async #serveCounts(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const bytes = await readBody(request, this.#mostBytes());
      const result = this.#push(bytes, request);
      this.#parts.onPush(result);
      sendJson(response, 200, { result, tokensSeen: this.#parts.statistics.tokensSeen });
    } catch (error) {
      if (response.destroyed) return;
      const refusal = refusalOf(error, 'invalid_counts');
      if (refusal === undefined) throw error;
      this.#parts.onPush('refused');
      sendError(response, refusal);
    }
  }

  /** Nothing is counted where it throws, and the same push may come again. */
  #push(bytes: Buffer, { headers }: IncomingMessage): PushResult {
    const numbered = numberOf(headers[PUSHER_HEADER], headers[SEQUENCE_HEADER]);
    const pushed = decodePushedCounts(bytes);
    const result = numbered === undefined ? 'counted' : this.#pushes.judge(...numbered);
    if (result !== 'counted') return result;
    this.#parts.statistics.observeCounts(pushed);
    if (numbered !== undefined) this.#pushes.accept(...numbered);
    return result;
  }

  #mostBytes(): number {
    const { layers, experts } = this.#parts.shape;
    return HEAD_BYTES + layers * experts * JSON_COUNT_BYTES;
  }

  #told(): object {
    const { statistics, shape } = this.#parts;
    const { layers, sources, experts } = shape;
    const { layers: own, tokens, unobserved, thin } = statistics.confidence();
    const { layers: drifts, ...drift } = statistics.drift();
    return {
      layers,
      sources,
      experts,
      tokensSeen: statistics.tokensSeen,
      /** [layers] */
      confidence: [...own],
      /** [sources] Of the layer in which the source has least. */
      tokens: Array.from({ length: sources }, (_, source) =>
        Array.from({ length: layers }, (_, layer) => tokens[layer * sources + source]!).reduce((a, b) =>
          Math.min(a, b),
        ),
      ),
      unobserved,
      thin,
      drift: { ...drift, layers: drifts.filter(({ drifted }) => drifted) },
    };
  }
}

function numberOf(pusher: unknown, sequence: unknown): [pusher: string, sequence: number] | undefined {
  if (pusher === undefined && sequence === undefined) return undefined;
  const number = typeof sequence === 'string' && /^\d{1,15}$/.test(sequence) ? Number(sequence) : undefined;
  if (typeof pusher !== 'string' || !PUSHER.test(pusher)) {
    throw mismatch('GIMBAL_INVALID_INPUT', PUSHER_HEADER, 'a name without spaces', String(pusher));
  }
  if (number === undefined) {
    throw mismatch('GIMBAL_INVALID_INPUT', SEQUENCE_HEADER, 'a whole number', String(sequence));
  }
  return [pusher, number];
}
