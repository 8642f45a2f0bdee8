/**
 * Text files: UTF-8 checked, bounded, and parsed JSON walked as untrusted data.
 */
import { describe, formatError, MAX_TEXT_BYTES, quote } from './limits.js';

/** The text of a file, without a byte-order mark. */
export function decodeText(bytes: Uint8Array, file: string, maxBytes = MAX_TEXT_BYTES): string {
  if (bytes.length > maxBytes) {
    throw formatError(file, '', `at most ${maxBytes} bytes of text`, `${bytes.length} bytes`);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw formatError(file, '', 'UTF-8 text', 'other bytes', error);
  }
}

/** The first character that is not white space, as cheap evidence of JSON. */
export function startsLikeJson(bytes: Uint8Array): boolean {
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 4096)).toString('utf8');
  return /^\uFEFF?\s*[[{]/.test(head);
}

export function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    // Python's json module writes these three words, which JSON does not have.
    const word = /(?<![\w"])(-?Infinity|NaN)(?![\w"])/.exec(text)?.[0];
    throw formatError(file, 'JSON', 'valid JSON', word === undefined ? quote(reason, 160) : word, error);
  }
}

/** The value as a JSON object. */
export function requireObject(value: unknown, file: string, where: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw formatError(file, where, 'an object', describe(value));
  }
  return value as Record<string, unknown>;
}

/** An own property; what a prototype offers does not count. */
export function property(object: Record<string, unknown>, key: string): unknown {
  return Object.hasOwn(object, key) ? object[key] : undefined;
}

/** Shape of a nested list, taken from its first elements: the walk over it checks that the rest agrees. */
export function nestedShape(value: unknown, maxDimensions: number): number[] {
  const shape: number[] = [];
  let inner = value;
  while (Array.isArray(inner) && shape.length <= maxDimensions) {
    shape.push(inner.length);
    inner = inner[0];
  }
  return shape;
}

/** Calls `each(number, flat index)` for every element of a nested list; anything ragged or not a number is an error. */
export function walkNested(
  value: unknown,
  shape: readonly number[],
  file: string,
  where: string,
  each: (value: number, index: number) => void,
): void {
  let index = 0;
  const at: number[] = [];
  const place = () => `${where}${at.map((i) => `[${i}]`).join('')}`;
  const walk = (node: unknown, depth: number): void => {
    if (depth === shape.length) {
      if (typeof node !== 'number') throw formatError(file, place(), 'a number', describe(node));
      each(node, index++);
      return;
    }
    const length = shape[depth]!;
    if (!Array.isArray(node) || node.length !== length) {
      throw formatError(file, place() || where, `a list of ${length}`, describe(node));
    }
    for (let i = 0; i < length; i++) {
      at[depth] = i;
      walk(node[i], depth + 1);
    }
    at.length = depth;
  };
  walk(value, 0);
}
