/**
 * What a file may claim before it is refused. The bounds lie far above every engine and model known, and low enough that
 * a hostile or broken file cannot exhaust memory: nothing is allocated from a claim that has not been checked.
 */
import { mismatch } from '../errors.js';

/** Bytes of one binary file, unless the caller says otherwise. */
export const MAX_FILE_BYTES = 1024 * 1024 * 1024;
/** Bytes of one text file: parsed JSON and CSV take many times their size in memory. */
export const MAX_TEXT_BYTES = 64 * 1024 * 1024;
/** Bytes of one YAML file. 61 layers of 1,024 slots take less than 300 KB. */
export const MAX_YAML_BYTES = 512 * 1024;

export const MAX_LAYERS = 4096;
export const MAX_SOURCES = 65_536;
export const MAX_EXPERTS = 65_536;
/** Slots of one layer, over all GPUs. */
export const MAX_SLOTS = 1_048_576;
/** layers × sources × experts, and layers × slots. */
export const MAX_CELLS = 1 << 26;
/** Files of one set (per-rank dumps, rank statistics). */
export const MAX_FILES = 65_536;

/** A file's content is at fault: names the file, where in it, what was expected and what came. */
export function formatError(
  file: string,
  where: string,
  expected: string,
  received: string,
  cause?: unknown,
) {
  return mismatch('GIMBAL_FORMAT', where === '' ? file : `${file}: ${where}`, expected, received, cause);
}

/** At most `length` characters of a text from a file, safe to print. */
export function quote(text: string, length = 60): string {
  const short = text.length > length ? `${text.slice(0, length)}…` : text;
  return JSON.stringify(short);
}

/** Throws unless `value` is an integer in [low, high]. */
export function requireInteger(
  file: string,
  where: string,
  value: unknown,
  low: number,
  high: number,
): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < low || value > high) {
    throw formatError(file, where, `an integer from ${low} to ${high}`, describe(value));
  }
  return value;
}

/** A short name of any value, for messages. */
export function describe(value: unknown): string {
  if (value === null || value === undefined) return 'nothing';
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean')
    return String(value);
  if (typeof value === 'string') return quote(value);
  if (Array.isArray(value)) return `a list of ${value.length}`;
  return 'an object';
}

/** Throws unless a table of this shape is within the bounds. */
export function requireShape(
  file: string,
  where: string,
  layers: number,
  sources: number,
  experts: number,
): void {
  requireInteger(file, `${where}, layers`, layers, 1, MAX_LAYERS);
  requireInteger(file, `${where}, sources`, sources, 1, MAX_SOURCES);
  requireInteger(file, `${where}, experts`, experts, 1, MAX_EXPERTS);
  if (layers * sources * experts > MAX_CELLS) {
    throw formatError(file, where, `at most ${MAX_CELLS} counts`, `${layers} × ${sources} × ${experts}`);
  }
}
