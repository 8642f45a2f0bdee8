/**
 * The words of the command line as values. Each parser throws a UsageError that names the option, says what it takes and
 * shows an example, so that a wrong word is corrected at once.
 */
import { type PlacementFormat, placementFormats } from '../export/placement.js';
import type { AllToAll } from '../topology.js';
import type { Weights } from '../types.js';
import { UsageError } from './exit.js';

export const ALL_TO_ALL: readonly AllToAll[] = ['all-to-all', 'allgather-reducescatter'];
export const BACKENDS = ['auto', 'cpu', 'cuda'] as const;
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;

export function exportFormats(): PlacementFormat[] {
  return Object.keys(placementFormats) as PlacementFormat[];
}

/** A whole number in plain digits, at least `least`. */
export function wholeNumber(option: string, least: number, example: string): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least) {
      throw takes(option, `a whole number of at least ${least}`, text, `${option} ${example}`);
    }
    return value;
  };
}

const LARGEST_SEED = 2n ** 64n - 1n;

/** A number where it is exact, else a bigint. */
export function seed(text: string): number | bigint {
  if (!/^\d+$/.test(text) || BigInt(text) > LARGEST_SEED) {
    throw takes('--seed', `a whole number from 0 to ${LARGEST_SEED}`, text, '--seed 7');
  }
  const value = BigInt(text);
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
}

const TIME_UNITS_NS: Record<string, number> = { ns: 1, us: 1e3, µs: 1e3, ms: 1e6, s: 1e9 };

/** A time in ns; a unit may follow. */
export function timeNs(option: string): (text: string) => number {
  return (text) => {
    const match = /^(\d+(?:\.\d+)?(?:e\d+)?)(ns|us|µs|ms|s)?$/i.exec(text);
    const value =
      match === null ? Number.NaN : Number(match[1]) * TIME_UNITS_NS[(match[2] ?? 'ns').toLowerCase()]!;
    if (!Number.isFinite(value)) {
      throw takes(option, 'a time in ns, or with a unit (ns, us, ms, s)', text, `${option} 250us`);
    }
    return value;
  };
}

export function milliseconds(option: string): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+(\.\d+)?$/.test(text) || !(value > 0)) {
      throw takes(option, 'a time in ms above 0', text, `${option} 500`);
    }
    return value;
  };
}

/** A number above 0. */
export function positive(option: string, example: string): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+(\.\d+)?$/.test(text) || !(value > 0))
      throw takes(option, 'a number above 0', text, `${option} ${example}`);
    return value;
  };
}

/** `ttft=1000,tpot=50`, in ms; what is not named keeps its default. */
export function slo(text: string): { ttftMs?: number; tpotMs?: number } {
  const result: { ttftMs?: number; tpotMs?: number } = {};
  for (const part of text.split(',')) {
    const match = /^(ttft|tpot)=(\d+(?:\.\d+)?)$/.exec(part.trim());
    const value = Number(match?.[2]);
    if (match === null || !(value > 0)) {
      throw takes('--slo', 'ttft=MS and tpot=MS', text, '--slo ttft=1000,tpot=50');
    }
    result[match[1] === 'ttft' ? 'ttftMs' : 'tpotMs'] = value;
  }
  return result;
}

export function oneOf<T extends string>(option: string, names: readonly T[]): (text: string) => T {
  return (text) => {
    const found = names.find((name) => name === text.toLowerCase());
    if (found === undefined) throw takes(option, `one of ${names.join(', ')}`, text, `${option} ${names[0]}`);
    return found;
  };
}

const WEIGHT_KEYS: Record<string, keyof Weights> = {
  load: 'load',
  'comm-max': 'commMax',
  'comm-total': 'commTotal',
  migration: 'migration',
};

/** `load=1,comm-max=0.5`; what is not named keeps its default. */
export function weights(text: string): Weights {
  const wrong = (reason: string) =>
    new UsageError(
      `--weights: ${reason}`,
      `it takes name=value pairs of ${Object.keys(WEIGHT_KEYS).join(', ')}, e.g. --weights load=1,comm-max=1,comm-total=0.1,migration=1`,
    );
  const result: Weights = {};
  for (const part of text.split(',')) {
    const [name = '', value = '', ...rest] = part.split('=').map((word) => word.trim());
    const key = WEIGHT_KEYS[name];
    if (key === undefined) throw wrong(`unknown weight ${JSON.stringify(name)}`);
    if (result[key] !== undefined) throw wrong(`${name} is given twice`);
    const number = Number(value);
    if (value === '' || rest.length > 0 || !Number.isFinite(number) || number < 0) {
      throw wrong(`${name} takes a number of at least 0 but received ${JSON.stringify(value)}`);
    }
    result[key] = number;
  }
  return result;
}

/** A share of 1, or with %. */
export function share(option: string, example: string): (text: string) => number {
  return (text) => {
    const match = /^(\d+(?:\.\d+)?)(%)?$/.exec(text);
    const value = Number(match?.[1]) / (match?.[2] === '%' ? 100 : 1);
    if (match === null || value > 1)
      throw takes(option, 'a share from 0 to 1, or in %', text, `${option} ${example}`);
    return value;
  };
}

/** `0,32,64`: each a whole number. */
export function wholeNumbers(option: string, example: string): (text: string) => number[] {
  return (text) => {
    if (!/^\d+(,\d+)*$/.test(text))
      throw takes(option, 'whole numbers with commas between', text, `${option} ${example}`);
    return text.split(',').map(wholeNumber(option, 0, example));
  };
}

/** `4x8`. */
export function clusterShape(text: string): { nodes: number; gpusPerNode: number } {
  const match = /^([1-9]\d{0,5})[x×*]([1-9]\d{0,5})$/i.exec(text);
  if (match === null) throw takes('--topology', 'NODESxGPUS', text, '--topology 4x8');
  return { nodes: Number(match[1]), gpusPerNode: Number(match[2]) };
}

/** `3,7` or `8-15`: ascending, each once. */
export function gpuList(option: string): (text: string) => number[] {
  const most = 1_000_000;
  return (text) => {
    const gpus = new Set<number>();
    for (const part of text.split(',')) {
      const match = /^(\d+)(?:-(\d+))?$/.exec(part.trim());
      const first = Number(match?.[1]);
      const last = Number(match?.[2] ?? match?.[1]);
      if (match === null || last < first || last > most) {
        throw takes(option, 'GPU numbers and ranges', text, `${option} 3,7 or ${option} 8-15`);
      }
      for (let gpu = first; gpu <= last; gpu++) gpus.add(gpu);
    }
    return [...gpus].sort((a, b) => a - b);
  };
}

/** How many slots: in total, as engines count physical experts, or a GPU. */
export type SlotsOption = { total: number } | { perGpu: number };

export function slots(text: string): SlotsOption {
  const match = /^(\d+)(\/gpu)?$/i.exec(text);
  const value = Number(match?.[1]);
  if (match === null || !Number.isSafeInteger(value) || value < 1) {
    throw takes(
      '--slots',
      'the number of physical experts of all GPUs together, or one GPU’s with /gpu',
      text,
      '--slots 288 or --slots 9/gpu',
    );
  }
  return match[2] === undefined ? { total: value } : { perGpu: value };
}

/** Moves allowed: a number, or a share of all slots. */
export type BudgetOption = { pairs: number } | { share: number };

export function budget(text: string): BudgetOption {
  const match = /^(\d+(?:\.\d+)?)(%)?$/.exec(text);
  const value = Number(match?.[1]);
  const wrong = match === null || (match[2] === '%' ? value > 100 : !Number.isSafeInteger(value));
  if (wrong)
    throw takes(
      '--budget',
      'a number of moves, or a share of all slots in %',
      text,
      '--budget 800 or --budget 5%',
    );
  return match[2] === '%' ? { share: value / 100 } : { pairs: value };
}

function takes(option: string, what: string, received: string, example: string): UsageError {
  return new UsageError(
    `${option} takes ${what} but received ${JSON.stringify(received)}`,
    `e.g. ${example}`,
  );
}
