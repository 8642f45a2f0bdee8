/**
 * Counts that an engine's side pushes: (token, expert) pairs of one source since its last push, in a binary and a JSON form. Both are
 * described in docs/FORMATS.md; this is their encoder and decoder, whatever carries them.
 */
import { checkKeys, oneOf } from '../checks.js';
import {
  formatError,
  MAX_EXPERTS,
  MAX_LAYERS,
  MAX_SOURCES,
  requireInteger,
  requireShape,
} from '../import/limits.js';
import {
  decodeText,
  nestedShape,
  parseJson,
  property,
  requireObject,
  startsLikeJson,
  walkNested,
} from '../import/text.js';
import { typedArray } from '../validate.js';
import { checkChoices, MOST_CHOICES, upTo } from './validate.js';

const NAME = 'pushed counts';
const VERSION = 1;
/** "GMPC" */
const MAGIC = 0x43504d47;
const HEADER_BYTES = 24;
const MOST_COUNT = 2 ** 32 - 1;
const KEYS = ['version', 'source', 'k', 'counts'];

/** As `RoutingStatistics.observeCounts` takes it. */
export interface PushedCounts {
  source: number;
  layers: number;
  experts: number;
  /** Experts of a token in a layer. */
  k: number;
  /** `[layers][experts]` */
  counts: Uint32Array;
}

/** @throws GimbalError GIMBAL_INVALID_INPUT */
export function encodePushedCounts(pushed: PushedCounts, form: 'binary' | 'json' = 'binary'): Uint8Array {
  checkKeys('counts', pushed, ['source', 'layers', 'experts', 'k', 'counts']);
  const { source, layers, experts, k } = pushed;
  upTo('counts.source', source, 0, MAX_SOURCES - 1);
  upTo('counts.layers', layers, 1, MAX_LAYERS);
  upTo('counts.experts', experts, 1, MAX_EXPERTS);
  checkChoices('counts.k', k);
  oneOf('form', form, ['binary', 'json']);
  const shape = '[layers][experts]';
  const counts = typedArray('counts.counts', pushed.counts, 'Uint32Array', shape, layers * experts);
  if (form === 'json') {
    const rows = Array.from({ length: layers }, (_, layer) =>
      Array.from(counts.subarray(layer * experts, (layer + 1) * experts)),
    );
    return Buffer.from(JSON.stringify({ version: VERSION, source, k, counts: rows }));
  }
  const bytes = new Uint8Array(HEADER_BYTES + 4 * counts.length);
  const view = new DataView(bytes.buffer);
  [MAGIC, VERSION, source, k, layers, experts].forEach((word, at) => {
    view.setUint32(4 * at, word, true);
  });
  counts.forEach((pairs, at) => {
    view.setUint32(HEADER_BYTES + 4 * at, pairs, true);
  });
  return bytes;
}

/**
 * Reads either form, told apart by the first byte.
 *
 * @throws GimbalError GIMBAL_FORMAT
 */
export function decodePushedCounts(bytes: Uint8Array): PushedCounts {
  return startsLikeJson(bytes) ? decodeJson(bytes) : decodeBinary(bytes);
}

function decodeBinary(bytes: Uint8Array): PushedCounts {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (at: number) => view.getUint32(4 * at, true);
  if (bytes.length < HEADER_BYTES) {
    throw formatError(NAME, 'header', `at least ${HEADER_BYTES} bytes`, `${bytes.length}`);
  }
  if (word(0) !== MAGIC) throw formatError(NAME, 'header', 'the bytes "GMPC", or JSON', 'other bytes');
  requireVersion(word(1));
  const [source, k, layers, experts] = [word(2), word(3), word(4), word(5)];
  requireHead(source, k, layers, experts);
  if (bytes.length !== HEADER_BYTES + 4 * layers * experts) {
    const expected = `${HEADER_BYTES + 4 * layers * experts} bytes for ${layers} layers of ${experts} experts`;
    throw formatError(NAME, 'counts', expected, `${bytes.length}`);
  }
  const counts = new Uint32Array(layers * experts);
  for (let at = 0; at < counts.length; at++) counts[at] = view.getUint32(HEADER_BYTES + 4 * at, true);
  return { source, layers, experts, k, counts };
}

function decodeJson(bytes: Uint8Array): PushedCounts {
  const object = requireObject(parseJson(decodeText(bytes, NAME), NAME), NAME, 'JSON');
  const unknown = Object.keys(object).find((key) => !KEYS.includes(key));
  if (unknown !== undefined) throw formatError(NAME, 'JSON', `the keys ${KEYS.join(', ')}`, unknown);
  requireVersion(property(object, 'version'));
  const list = property(object, 'counts');
  const shape = nestedShape(list, 2);
  const [layers = 0, experts = 0] = shape;
  if (shape.length !== 2) throw formatError(NAME, 'counts', 'a list [layers][experts]', `[${shape}]`);
  const source = property(object, 'source') as number;
  const k = property(object, 'k') as number;
  requireHead(source, k, layers, experts);
  const counts = new Uint32Array(layers * experts);
  walkNested(list, shape, NAME, 'counts', (pairs, at) => {
    const place = `counts[${Math.floor(at / experts)}][${at % experts}]`;
    counts[at] = requireInteger(NAME, place, pairs, 0, MOST_COUNT);
  });
  return { source, layers, experts, k, counts };
}

function requireVersion(version: unknown): void {
  requireInteger(NAME, 'version', version, VERSION, VERSION);
}

function requireHead(source: unknown, k: unknown, layers: number, experts: number): void {
  requireInteger(NAME, 'source', source, 0, MAX_SOURCES - 1);
  requireInteger(NAME, 'k', k, 1, MOST_CHOICES);
  requireShape(NAME, 'counts', layers, 1, experts);
}
