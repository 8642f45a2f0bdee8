/**
 * From series to one value for each DP rank. The names of a figure have changed over versions, models and processes have series
 * of their own, and some are repeated: here is what becomes of that, the same for every engine.
 */
import type { GimbalError } from '../errors.js';
import { formatError, quote } from '../import/limits.js';
import { type PrometheusSample, parsePrometheus } from './prometheus.js';

/** More ranks than any server has, so that a label is not taken for one. */
const MOST_DIGITS_OF_RANK = 5;
/** Engines round what they print; a share above 1 by more than this is no rounding. */
export const ROUNDING = 1e-3;
/** How many names a message lists. */
const NAMES_SHOWN = 6;

/** A figure and the names it has had, the current one first. */
export type Figure = readonly string[];

/** What was read of one text. */
export interface Series {
  source: string;
  byName: ReadonlyMap<string, readonly PrometheusSample[]>;
  /** Of all that is in the text. */
  names: ReadonlySet<string>;
}

/** @throws GimbalError GIMBAL_FORMAT, also for a series that is there twice */
export function readSeries(text: string, figures: readonly Figure[], source: string): Series {
  const wanted = new Set(figures.flat());
  const { samples, names } = parsePrometheus(text, source, wanted);
  const seen = new Set<string>();
  const byName = new Map<string, PrometheusSample[]>();
  for (const sample of samples) {
    const key = JSON.stringify([sample.name, ...[...sample.labels].sort(byLabel)]);
    if (seen.has(key)) throw wrong(source, sample, 'each series once', 'it again');
    seen.add(key);
    const same = byName.get(sample.name);
    if (same === undefined) byName.set(sample.name, [sample]);
    else same.push(sample);
  }
  return { source, byName, names };
}

function byLabel([a]: [string, string], [b]: [string, string]): number {
  return a < b ? -1 : 1;
}

/** The series of a figure by the first of its names that is there: versions that rename one show both for a while. */
export function find({ byName }: Series, figure: Figure): readonly PrometheusSample[] {
  for (const name of figure) {
    const samples = byName.get(name);
    if (samples !== undefined) return samples;
  }
  return [];
}

export function missing(series: Series, figure: Figure, where: string): GimbalError {
  const prefix = figure[0]!.slice(0, figure[0]!.indexOf(':') + 1);
  const names = [...series.names].filter((name) => name.startsWith(prefix));
  const shown = names.slice(0, NAMES_SHOWN).join(', ') + (names.length > NAMES_SHOWN ? ', …' : '');
  const others = `${series.names.size} names, of which ${names.length} begin with ${prefix}`;
  const found = names.length === 0 ? others : `${others} (${shown})`;
  return formatError(series.source, figure[0]!, `a series ${figure.join(' or ')}${where}`, found);
}

export function wrong(
  source: string,
  { name, line }: PrometheusSample,
  expected: string,
  received: string,
): GimbalError {
  return formatError(source, `line ${line}, ${name}`, expected, received);
}

/** The rank that a label names; servers with one rank may leave the label out. */
export function rankOf(source: string, sample: PrometheusSample, label: string): number {
  const rank = sample.labels.get(label) ?? '0';
  if (rank.length > MOST_DIGITS_OF_RANK || !/^\d+$/.test(rank)) {
    throw wrong(source, sample, `a rank in the label ${label}`, quote(rank));
  }
  return Number(rank);
}

export type Check = (source: string, sample: PrometheusSample) => number;

export const asCount: Check = (source, sample) => {
  if (Number.isSafeInteger(sample.value) && sample.value >= 0) return sample.value;
  throw wrong(source, sample, 'a whole number of at least 0', String(sample.value));
};

export const asTotal: Check = (source, sample) => {
  if (Number.isFinite(sample.value) && sample.value >= 0) return sample.value;
  throw wrong(source, sample, 'a finite number of at least 0', String(sample.value));
};

export const asShare: Check = (source, sample) => {
  if (sample.value >= 0 && sample.value <= 1 + ROUNDING) return Math.min(1, sample.value);
  throw wrong(source, sample, 'a share of 0 to 1', String(sample.value));
};

/** What the values of several models come to. */
export type Together = (values: readonly number[]) => number;
export const sum: Together = (values) => values.reduce((all, value) => all + value, 0);
export const greatest: Together = (values) => values.reduce((most, value) => Math.max(most, value), 0);

/**
 * One value for each rank. Where several series of one model are left, they are those of several processes, of which some are
 * late: the greatest counts.
 */
export function byRank(
  source: string,
  samples: readonly PrometheusSample[],
  rankLabel: string,
  check: Check,
  together: Together,
): Map<number, number> {
  const models = new Map<number, Map<string, number>>();
  for (const sample of samples) {
    const rank = rankOf(source, sample, rankLabel);
    const value = check(source, sample);
    const model = sample.labels.get('model_name') ?? '';
    const ofRank = models.get(rank) ?? new Map<string, number>();
    models.set(rank, ofRank.set(model, Math.max(value, ofRank.get(model) ?? 0)));
  }
  return new Map([...models].map(([rank, values]) => [rank, together([...values.values()])]));
}

/**
 * All ranks, ascending, that any of the figures has, each of which must have all of them.
 *
 * @throws GimbalError GIMBAL_FORMAT
 */
export function commonRanks(
  series: Series,
  rankLabel: string,
  figures: readonly (readonly [Figure, ReadonlyMap<number, number>])[],
): number[] {
  const ranks = [...new Set(figures.flatMap(([, values]) => [...values.keys()]))].sort((a, b) => a - b);
  for (const [figure, values] of figures) {
    if (values.size === 0) throw missing(series, figure, '');
    const lacking = ranks.find((rank) => !values.has(rank));
    if (lacking !== undefined) throw missing(series, figure, ` with ${rankLabel}="${lacking}"`);
  }
  return ranks;
}

/** @throws GimbalError GIMBAL_FORMAT where there are series, but none of this model */
export function ofModel(
  source: string,
  samples: readonly PrometheusSample[],
  modelName: string | undefined,
): readonly PrometheusSample[] {
  if (modelName === undefined || samples.length === 0) return samples;
  const kept = samples.filter(({ labels }) => labels.get('model_name') === modelName);
  if (kept.length > 0) return kept;
  const models = [...new Set(samples.map(({ labels }) => quote(labels.get('model_name') ?? '')))];
  const found = models.slice(0, NAMES_SHOWN).join(', ');
  throw wrong(source, samples[0]!, `a series with model_name=${quote(modelName)}`, `those of ${found}`);
}
