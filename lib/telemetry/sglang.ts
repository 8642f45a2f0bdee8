/**
 * SGLang's `/metrics`, `/v1/loads` and its predecessor `/get_load`: one reading for each DP rank. `/v1/loads` is the best of
 * them: it is there without an option of the server, and says how much prefill is waiting. The gauges of `/metrics` are renewed
 * every few dozen decode steps only.
 */
import { aboveZero, checkKeys } from '../checks.js';
import type { GimbalError } from '../errors.js';
import { describe, formatError } from '../import/limits.js';
import { parseJson, property, requireObject } from '../import/text.js';
import type { PrometheusSample } from './prometheus.js';
import {
  asCount,
  asShare,
  asTotal,
  byRank,
  type Check,
  commonRanks,
  type Figure,
  find,
  greatest,
  ofModel,
  ROUNDING,
  rankOf,
  readSeries,
  sum,
  type Together,
} from './series.js';
import type { ReadLoadsOptions, ReadMetricsOptions, SglangEngineReading } from './types.js';

const RANK = 'dp_rank';
const RUNNING: Figure = ['sglang:num_running_reqs'];
const WAITING: Figure = ['sglang:num_queue_reqs'];
const KV_USAGE: Figure = ['sglang:token_usage'];
/** A retraction is what vLLM calls a preemption. */
const RETRACTIONS: Figure = ['sglang:num_retracted_requests_total'];
const FIGURES = [RUNNING, WAITING, KV_USAGE, RETRACTIONS];
/** Ranks within a DP rank, the outermost first. With metrics of all schedulers on, each repeats the figures of its DP rank. */
const INNER_RANKS = ['pp_rank', 'tp_rank', 'moe_ep_rank'] as const;
/** More than any rank. */
const INNER_RADIX = 1e5;

/**
 * In the order of the ranks.
 *
 * @throws GimbalError GIMBAL_FORMAT (a line that is wrong, a figure or a rank that is missing), GIMBAL_INVALID_INPUT (the options)
 */
export function readSglangMetrics(text: string, options: ReadMetricsOptions = {}): SglangEngineReading[] {
  checkKeys('options', options, ['source', 'modelName']);
  const { source = 'SGLang /metrics', modelName } = options;
  const series = readSeries(text, FIGURES, source);
  const values = (figure: Figure, check: Check, together: Together) => {
    const samples = ofModel(source, totals(find(series, figure)), modelName);
    return byRank(source, onePerRank(source, samples), RANK, check, together);
  };
  const running = values(RUNNING, asCount, sum);
  const waiting = values(WAITING, asCount, sum);
  const kvUsage = values(KV_USAGE, asShare, greatest);
  const retractions = values(RETRACTIONS, asTotal, sum);
  const ranks = commonRanks(series, RANK, [
    [RUNNING, running],
    [WAITING, waiting],
    [KV_USAGE, kvUsage],
  ]);
  return ranks.map((dpRank) => {
    const counted = retractions.get(dpRank);
    return {
      dpRank,
      kvUsage: kvUsage.get(dpRank)!,
      running: running.get(dpRank)!,
      waiting: waiting.get(dpRank)!,
      ...(counted === undefined ? {} : { preemptions: counted }),
    };
  });
}

/** With priority scheduling, a series of each priority stands beside the total, whose label `priority` is empty. */
function totals(samples: readonly PrometheusSample[]): readonly PrometheusSample[] {
  return samples.filter(({ labels }) => (labels.get('priority') ?? '') === '');
}

/** Of the series of each DP rank, those of its first inner rank. */
function onePerRank(source: string, samples: readonly PrometheusSample[]): readonly PrometheusSample[] {
  const inner = (sample: PrometheusSample) =>
    INNER_RANKS.reduce((outer, label) => outer * INNER_RADIX + rankOf(source, sample, label), 0);
  const first = new Map<number, number>();
  for (const sample of samples) {
    const rank = rankOf(source, sample, RANK);
    first.set(rank, Math.min(inner(sample), first.get(rank) ?? Number.POSITIVE_INFINITY));
  }
  return samples.filter((sample) => inner(sample) === first.get(rankOf(source, sample, RANK)));
}

/**
 * Of `/v1/loads` or of `/get_load`, told apart by their shapes; in the order of the ranks. `/get_load` has a share of the KV
 * cache only where `options.kvTokens` is given.
 *
 * @throws GimbalError GIMBAL_FORMAT (names the row and the field), GIMBAL_INVALID_INPUT (the options)
 */
export function readSglangLoads(json: string, options: ReadLoadsOptions = {}): SglangEngineReading[] {
  checkKeys('options', options, ['source', 'kvTokens']);
  const { kvTokens } = options;
  if (kvTokens !== undefined) aboveZero('options.kvTokens', kvTokens);
  const source = options.source ?? 'SGLang loads';
  const document = parseJson(json, source);
  const older = Array.isArray(document);
  const rows = older ? document : rowsOf(document, source);
  const readings = rows.map((fields, n) => {
    const row = new Row(source, n, rows.length, fields);
    return older ? readOlderRow(row, kvTokens) : readRow(row);
  });
  if (readings.length === 0) throw formatError(source, '', 'a row for each DP rank', 'none');
  readings.sort((a, b) => a.dpRank - b.dpRank);
  const twice = readings.find(({ dpRank }, n) => n > 0 && readings[n - 1]!.dpRank === dpRank);
  if (twice !== undefined) throw formatError(source, 'dp_rank', 'each rank once', `${twice.dpRank} again`);
  return readings;
}

function rowsOf(document: unknown, source: string): unknown[] {
  const fields = requireObject(document, source, '');
  const loads = property(fields, 'loads');
  if (Array.isArray(loads)) return loads;
  const found = loads === undefined ? `an object with ${keys(fields)}` : describe(loads);
  throw formatError(source, 'loads', 'a list', found);
}

function readRow(row: Row): SglangEngineReading {
  const uncached = row.count('num_waiting_uncached_tokens', true);
  return {
    dpRank: row.rank(),
    kvUsage: row.has('token_usage')
      ? row.share(row.number('token_usage'), 'token_usage')
      : row.share(row.count('num_used_tokens') / row.count('max_total_num_tokens'), 'num_used_tokens'),
    running: row.count('num_running_reqs'),
    waiting: row.count('num_waiting_reqs'),
    ...(uncached === undefined ? {} : { waitingPrefillTokens: uncached }),
  };
}

/** Its `num_reqs` are those that run and those that wait; its `num_tokens` are those in the cache and those of waiting prompts. */
function readOlderRow(row: Row, kvTokens: number | undefined): SglangEngineReading {
  const waiting = row.count('num_waiting_reqs');
  const running = row.count('num_reqs') - waiting;
  if (running < 0) throw row.wrong('num_reqs', `at least num_waiting_reqs, ${waiting}`, running + waiting);
  const reading = { dpRank: row.rank(), running, waiting };
  if (kvTokens === undefined) return reading;
  const usedTokens = row.count('num_tokens') - (row.count('num_pending_tokens', true) ?? 0);
  // Versions that do not tell pending tokens apart report more than the cache holds once requests wait.
  return { ...reading, kvUsage: Math.min(1, Math.max(0, usedTokens / kvTokens)) };
}

/** One row of a list of loads, with checks that name what is wrong in it. */
class Row {
  readonly #source: string;
  readonly #index: number;
  readonly #rows: number;
  readonly #fields: Readonly<Record<string, unknown>>;

  constructor(source: string, index: number, rows: number, fields: unknown) {
    this.#source = source;
    this.#index = index;
    this.#rows = rows;
    this.#fields = requireObject(fields, source, `row ${index}`);
  }

  has(key: string): boolean {
    return Object.hasOwn(this.#fields, key) && this.#fields[key] !== null;
  }

  /** A server without data parallelism may have none. */
  rank(): number {
    return this.#rows === 1 && !this.has('dp_rank') ? 0 : this.count('dp_rank');
  }

  number(key: string): number {
    const value = this.has(key) ? this.#fields[key] : undefined;
    if (typeof value === 'number') return value;
    if (value !== undefined) throw this.wrong(key, 'a number', value);
    const expected = `a row with ${key}`;
    throw formatError(this.#source, `row ${this.#index}`, expected, `one with ${keys(this.#fields)}`);
  }

  count(key: string): number;
  count(key: string, optional: true): number | undefined;
  count(key: string, optional = false): number | undefined {
    if (optional && !this.has(key)) return undefined;
    const value = this.number(key);
    if (!Number.isSafeInteger(value) || value < 0)
      throw this.wrong(key, 'a whole number of at least 0', value);
    return value;
  }

  share(value: number, key: string): number {
    if (!(value >= 0 && value <= 1 + ROUNDING)) throw this.wrong(key, 'a share of 0 to 1', value);
    return Math.min(1, value);
  }

  wrong(key: string, expected: string, value: unknown): GimbalError {
    return formatError(this.#source, `row ${this.#index}, ${key}`, expected, describe(value));
  }
}

function keys(object: object): string {
  const names = Object.keys(object);
  const shown = names.slice(0, 12).join(', ');
  return names.length > 12 ? `${shown}, …` : shown || 'nothing';
}
