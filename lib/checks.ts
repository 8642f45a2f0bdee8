/** Checks of single values, for every border: what passes is returned, what fails is a GimbalError that names the field. */
import { types } from 'node:util';
import { type GimbalError, mismatch } from './errors.js';
import type { BackendName } from './types.js';

const MAX_INT32 = 2 ** 31 - 1;
const MAX_SEED = 2n ** 64n - 1n;

/** A value in a few words, for error messages. */
export function describe(value: unknown): string {
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'string') {
    return value.length > 60 ? `${JSON.stringify(value.slice(0, 60))}…` : JSON.stringify(value);
  }
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (types.isTypedArray(value)) return `${value.constructor.name} of ${value.length}`;
  if (typeof value === 'function') return 'a function';
  if (typeof value !== 'object' || value === null) return String(value);
  const name = Object.getPrototypeOf(value)?.constructor?.name;
  return name === undefined || name === 'Object' ? 'an object' : `an instance of ${name}`;
}

export function invalid(field: string, expected: string, received: string): GimbalError {
  return mismatch('GIMBAL_INVALID_INPUT', field, expected, received);
}

/** Throws where `object` is no object or has a key that is not in `known`; hints at the nearest of `hints`. */
export function checkKeys(
  field: string,
  object: unknown,
  known: readonly string[],
  hints: readonly string[] = known,
): void {
  if (typeof object !== 'object' || object === null || Array.isArray(object)) {
    throw invalid(field, 'an object', describe(object));
  }
  for (const key of Object.keys(object)) {
    if (known.includes(key)) continue;
    const near = nearest(key, hints);
    const hint = near === undefined ? '' : ` (did you mean ${near}?)`;
    throw invalid(`${field}.${key}`, `one of ${hints.join(', ')}`, `an unknown key${hint}`);
  }
}

/** A positive integer that fits the native side's 32 bits. */
export function count(field: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > MAX_INT32) {
    throw invalid(field, `an integer of 1 to ${MAX_INT32}`, describe(value));
  }
  return value;
}

/** The number of something counted from 0. */
export function ordinal(field: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > MAX_INT32) {
    throw invalid(field, `an integer of 0 to ${MAX_INT32}`, describe(value));
  }
  return value;
}

export function aboveZero(field: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isFinite(value) || value <= 0) {
    throw invalid(field, 'a finite number above 0', describe(value));
  }
  return value;
}

/** Of something that is there at all. */
export function shareAboveZero(field: string, value: unknown): number {
  if (typeof value !== 'number' || !(value > 0 && value <= 1)) {
    throw invalid(field, 'a share above 0, at most 1', describe(value));
  }
  return value;
}

export function oneOf<T extends string>(field: string, value: unknown, allowed: readonly T[]): T {
  const found = allowed.find((name) => name === value);
  if (found !== undefined) return found;
  const near = typeof value === 'string' ? nearest(value, allowed) : undefined;
  const hint = near === undefined ? '' : ` (did you mean '${near}'?)`;
  const list = allowed.map((name) => `'${name}'`).join(', ');
  throw invalid(field, `one of ${list}`, `${describe(value)}${hint}`);
}

export function atLeastZero(field: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isFinite(value) || value < 0) {
    throw invalid(field, 'a finite number of at least 0', describe(value));
  }
  return value;
}

/** @param expected what it is, such as a path */
export function nonEmpty(field: string, value: unknown, expected: string): string {
  if (typeof value !== 'string' || value === '') throw invalid(field, expected, describe(value));
  return value;
}

export function boolean(field: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw invalid(field, 'true or false', describe(value));
  return value;
}

export function checkFunction<T>(field: string, value: T): T {
  if (typeof value !== 'function') throw invalid(field, 'a function', describe(value));
  return value;
}

/** Of everything that draws. */
export function checkSeed(value: unknown): bigint {
  if (typeof value === 'bigint' && value >= 0n && value <= MAX_SEED) return value;
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return BigInt(value);
  throw invalid('options.seed', 'a safe integer of at least 0 or a bigint below 2^64', describe(value));
}

/** The name that a typing error most likely meant, or none that is near. */
function nearest(word: string, names: readonly string[]): string | undefined {
  const scored = names.map((name) => ({ name, edits: editDistance(word.toLowerCase(), name.toLowerCase()) }));
  scored.sort((a, b) => a.edits - b.edits);
  const best = scored[0];
  return best !== undefined && best.edits <= Math.max(2, best.name.length / 3) ? best.name : undefined;
}

/** Insertions, deletions, substitutions and swaps of neighbours. */
function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substituted = rows[i - 1]![j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      const swaps = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const swapped = swaps ? rows[i - 2]![j - 2]! + 1 : substituted;
      row.push(Math.min(substituted, swapped, rows[i - 1]![j]! + 1, row[j - 1]! + 1));
    }
    rows.push(row);
  }
  return rows[a.length]![b.length]!;
}

/** The options that name a backend. */
export function checkBackend({
  backend = 'auto',
  device = 0,
}: {
  backend?: 'auto' | BackendName;
  device?: number;
}): { backend: 'auto' | BackendName; device: number } {
  return {
    backend: oneOf('options.backend', backend, ['auto', 'cpu', 'cuda']),
    device: ordinal('options.device', device),
  };
}
