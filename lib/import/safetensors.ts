/**
 * Safetensors: a 64-bit header length, a JSON header that gives each tensor's dtype, shape and byte range, then the bytes.
 * Lengths and ranges are checked before anything is read.
 */
import {
  denseStrides,
  ELEMENT_BYTES,
  type ElementKind,
  elementCount,
  elementReader,
  type NumericArray,
  shapeText,
} from './array.js';
import { describe, formatError, quote } from './limits.js';

// The limit of the reference implementation.
const MAX_HEADER_BYTES = 100_000_000;
const MAX_DIMENSIONS = 8;

const KINDS: Record<string, ElementKind | undefined> = {
  U8: 'u1',
  I8: 'i1',
  U16: 'u2',
  I16: 'i2',
  U32: 'u4',
  I32: 'i4',
  U64: 'u8',
  I64: 'i8',
  F32: 'f4',
  F64: 'f8',
};

export function parseSafetensors(bytes: Uint8Array, file: string): Map<string, NumericArray> {
  if (bytes.length < 8)
    throw formatError(file, 'safetensors header', 'at least 8 bytes', `${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerBytes = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
  const room = Math.min(bytes.length - 8, MAX_HEADER_BYTES);
  if (headerBytes > room) {
    throw formatError(file, 'safetensors header', `at most ${room} bytes`, `a length of ${headerBytes}`);
  }
  const header = parseHeader(
    Buffer.from(bytes.buffer, bytes.byteOffset + 8, headerBytes).toString('utf8'),
    file,
  );
  const data = bytes.subarray(8 + headerBytes);
  const tensors = new Map<string, NumericArray>();
  for (const [name, info] of Object.entries(header)) {
    if (name !== '__metadata__') tensors.set(name, parseTensor(name, info, data, file));
  }
  return tensors;
}

function parseHeader(text: string, file: string): object {
  let header: unknown;
  try {
    header = JSON.parse(text);
  } catch (error) {
    throw formatError(file, 'safetensors header', 'JSON', quote(text), error);
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header)) {
    throw formatError(file, 'safetensors header', 'a JSON object', describe(header));
  }
  return header;
}

function parseTensor(name: string, info: unknown, data: Uint8Array, file: string): NumericArray {
  const where = `tensor ${quote(name)}`;
  const { dtype, shape, data_offsets: range } = (info ?? {}) as Record<string, unknown>;
  const kind = typeof dtype === 'string' && Object.hasOwn(KINDS, dtype) ? KINDS[dtype] : undefined;
  if (kind === undefined) throw formatError(file, where, 'an integer dtype, F32 or F64', describe(dtype));
  if (!isCounts(shape) || shape.length > MAX_DIMENSIONS) {
    throw formatError(file, where, 'a shape', describe(shape));
  }
  if (!isCounts(range) || range.length !== 2)
    throw formatError(file, where, 'two data offsets', describe(range));
  const [begin = 0, end = 0] = range;
  if (begin > end || end > data.length) {
    throw formatError(file, where, `data inside the file's ${data.length} bytes`, `bytes ${begin} to ${end}`);
  }
  const expectedBytes = elementCount(shape) * ELEMENT_BYTES[kind];
  if (expectedBytes !== end - begin) {
    throw formatError(
      file,
      where,
      `${expectedBytes} bytes for shape ${shapeText(shape)}`,
      `${end - begin} bytes`,
    );
  }
  const read = elementReader(data.subarray(begin, end), kind, true);
  return { file, where, kind, shape, strides: denseStrides(shape), offset: 0, read };
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}
