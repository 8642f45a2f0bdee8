/**
 * What vLLM says of a request's routing: the field `routed_experts` of a choice, base64 of a .npy array [tokens, layers, k] of
 * uint8 or uint16, where the server runs with its option to return it.
 */
import { describe, invalid } from '../checks.js';
import { elementCount, shapeText } from '../import/array.js';
import { formatError, MAX_EXPERTS, MAX_LAYERS, quote } from '../import/limits.js';
import { type NpyParts, npyParts, parseNpy } from '../import/npy.js';
import { isTypedArray } from '../validate.js';

const FIELD = 'routed_experts';
/** A prompt of a million tokens at 58 layers of 8 experts, in uint8. */
const MOST_BYTES = 512 * 1024 * 1024;

/** As `RoutingStatistics.observe` takes it, but for the source. */
export interface RoutedExperts {
  /** `[tokens][layers][k]` */
  topk: Uint8Array | Uint16Array;
  tokens: number;
  layers: number;
  k: number;
}

export interface ReadRoutedExpertsOptions {
  /** Rows to keep, in this order: for engines that report a row for every model layer, dense ones too. Default: all. */
  layerIds?: readonly number[] | Int32Array;
  /** Bytes of the array's file; larger ones are refused. Default 512 MiB. */
  maxBytes?: number;
}

/**
 * Reads the field, or the bytes that are in it. An array of a request of one token is empty: `tokens` is 0.
 *
 * @throws GimbalError GIMBAL_FORMAT where the content is at fault, GIMBAL_INVALID_INPUT for what is neither text nor bytes
 */
export function readRoutedExperts(
  field: string | Uint8Array,
  options: ReadRoutedExpertsOptions = {},
): RoutedExperts {
  const bytes = bytesOf(field, options.maxBytes ?? MOST_BYTES);
  const parts = npyParts(bytes, FIELD);
  const { kind, shape } = parts;
  if (kind !== 'u1' && kind !== 'u2') throw formatError(FIELD, 'dtype', 'uint8 or uint16', kind);
  const [tokens = 0, layers = 0, k = 0] = shape;
  if (shape.length !== 3 || layers < 1 || layers > MAX_LAYERS || k < 1 || k > MAX_EXPERTS) {
    throw formatError(FIELD, 'shape', '[tokens, layers, k]', shapeText(shape));
  }
  const routed = { topk: elements(parts, bytes), tokens, layers, k };
  return options.layerIds === undefined ? routed : pickLayers(routed, options.layerIds);
}

function bytesOf(field: string | Uint8Array, maxBytes: number): Uint8Array {
  if (typeof field !== 'string' && !isTypedArray(field, 'Uint8Array')) {
    throw invalid(FIELD, 'a base64 string or a Buffer', describe(field));
  }
  const length = typeof field === 'string' ? Math.floor((field.length / 4) * 3) : field.length;
  if (length > maxBytes) throw formatError(FIELD, '', `at most ${maxBytes} bytes`, `${length}`);
  if (typeof field !== 'string') return field;
  // Buffer.from leaves out what is not base64.
  if (field.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(field)) {
    throw formatError(FIELD, '', 'base64', quote(field));
  }
  return Buffer.from(field, 'base64');
}

/** The ids in C order. Those of uint8 stay where they are. */
function elements(parts: NpyParts, bytes: Uint8Array): Uint8Array | Uint16Array {
  const { kind, littleEndian, fortranOrder, shape, data } = parts;
  if (kind === 'u1' && !fortranOrder) return data;
  const ids = kind === 'u1' ? new Uint8Array(elementCount(shape)) : new Uint16Array(elementCount(shape));
  if (littleEndian && !fortranOrder && HOST_IS_LITTLE) {
    new Uint8Array(ids.buffer).set(data);
    return ids;
  }
  const { strides, read } = parseNpy(bytes, FIELD);
  const [tokens = 0, layers = 0, k = 0] = shape;
  const [byToken = 0, byLayer = 0, byChoice = 0] = strides;
  let at = 0;
  for (let token = 0; token < tokens; token++) {
    for (let layer = 0; layer < layers; layer++) {
      for (let i = 0; i < k; i++) ids[at++] = read(token * byToken + layer * byLayer + i * byChoice);
    }
  }
  return ids;
}

const HOST_IS_LITTLE = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

function pickLayers({ topk, tokens, layers, k }: RoutedExperts, ids: ArrayLike<number>): RoutedExperts {
  const kept = Array.from(ids);
  const wrong = kept.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < layers));
  if (wrong >= 0 || kept.length === 0) {
    const field = wrong < 0 ? 'options.layerIds' : `options.layerIds[${wrong}]`;
    throw invalid(field, `rows of 0 to ${layers - 1}`, wrong < 0 ? 'none' : describe(kept[wrong]));
  }
  const length = tokens * kept.length * k;
  const picked = isTypedArray(topk, 'Uint8Array') ? new Uint8Array(length) : new Uint16Array(length);
  for (let token = 0, into = 0; token < tokens; token++) {
    for (const id of kept) {
      const from = (token * layers + id) * k;
      picked.set(topk.subarray(from, from + k), into);
      into += k;
    }
  }
  return { topk: picked, tokens, layers: kept.length, k };
}
