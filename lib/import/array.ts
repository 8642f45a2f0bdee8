/**
 * One view over the numeric arrays of .npy, .pt and safetensors files: a shape, strides and a reader over the file's own
 * bytes. Nothing is copied; the readers that build one have checked that every element lies inside the bytes.
 */
import { formatError } from './limits.js';

export type ElementKind = 'u1' | 'u2' | 'u4' | 'u8' | 'i1' | 'i2' | 'i4' | 'i8' | 'f4' | 'f8';

export const ELEMENT_BYTES: Record<ElementKind, number> = {
  u1: 1,
  u2: 2,
  u4: 4,
  u8: 8,
  i1: 1,
  i2: 2,
  i4: 4,
  i8: 8,
  f4: 4,
  f8: 8,
};

export interface NumericArray {
  /** For messages: the file, and the name of the array in it. */
  file: string;
  where: string;
  kind: ElementKind;
  shape: number[];
  /** In elements, one per dimension. */
  strides: number[];
  /** Element index of [0, 0, …]. */
  offset: number;
  /** Element at an index into the underlying bytes. Beyond ±2^53 a 64-bit integer comes back rounded. */
  read: (element: number) => number;
}

const HIGH_WORD = 2 ** 32;

/** A reader over `bytes`, unaligned access and either byte order allowed. */
export function elementReader(
  bytes: Uint8Array,
  kind: ElementKind,
  littleEndian: boolean,
): (element: number) => number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const high = littleEndian ? 4 : 0;
  const low = littleEndian ? 0 : 4;
  switch (kind) {
    case 'u1':
      return (i) => view.getUint8(i);
    case 'i1':
      return (i) => view.getInt8(i);
    case 'u2':
      return (i) => view.getUint16(i * 2, littleEndian);
    case 'i2':
      return (i) => view.getInt16(i * 2, littleEndian);
    case 'u4':
      return (i) => view.getUint32(i * 4, littleEndian);
    case 'i4':
      return (i) => view.getInt32(i * 4, littleEndian);
    // Anything above 2^53 is out of range for every use here, so a rounded double serves and is faster than BigInt.
    case 'u8':
      return (i) =>
        view.getUint32(i * 8 + high, littleEndian) * HIGH_WORD + view.getUint32(i * 8 + low, littleEndian);
    case 'i8':
      return (i) =>
        view.getInt32(i * 8 + high, littleEndian) * HIGH_WORD + view.getUint32(i * 8 + low, littleEndian);
    case 'f4':
      return (i) => view.getFloat32(i * 4, littleEndian);
    case 'f8':
      return (i) => view.getFloat64(i * 8, littleEndian);
  }
}

/** Strides of a dense array, in elements. */
export function denseStrides(shape: readonly number[], fortranOrder = false): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let at = 0; at < shape.length; at++) {
    const dimension = fortranOrder ? at : shape.length - 1 - at;
    strides[dimension] = step;
    step *= shape[dimension] ?? 1;
  }
  return strides;
}

/** Product of the dimensions; infinite rather than wrong where it overflows. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, length) => product * length, 1);
}

export function isInteger(array: NumericArray): boolean {
  return array.kind[0] !== 'f';
}

export function shapeText(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`;
}

const ELEMENTS_PER_TURN = 1 << 20;

/** Gives the event loop a turn and stops when the caller has aborted. */
export async function breathe(signal: AbortSignal | undefined): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
  signal?.throwIfAborted();
}

/**
 * Calls `each(value, index)` for every element, `index` counting in C order, and leaves the event loop a turn every million
 * elements.
 */
export async function visit(
  array: NumericArray,
  each: (value: number, index: number) => void,
  signal?: AbortSignal,
): Promise<void> {
  const { shape, strides, read } = array;
  const inner = shape.at(-1) ?? 1;
  const step = strides.at(-1) ?? 1;
  const outer = elementCount(shape.slice(0, -1));
  if (inner === 0 || outer === 0) return;
  const at = new Array<number>(Math.max(shape.length - 1, 0)).fill(0);
  let base = array.offset;
  let untilTurn = ELEMENTS_PER_TURN;
  for (let row = 0; row < outer; row++) {
    for (let i = 0; i < inner; i++) each(read(base + i * step), row * inner + i);
    // Odometer: the last outer dimension turns fastest.
    for (let d = at.length - 1; d >= 0; d--) {
      base += strides[d]!;
      if (++at[d]! < shape[d]!) break;
      base -= strides[d]! * shape[d]!;
      at[d] = 0;
    }
    untilTurn -= inner;
    if (untilTurn <= 0) {
      untilTurn = ELEMENTS_PER_TURN;
      await breathe(signal);
    }
  }
}

/** Throws unless the array has this many dimensions. */
export function requireRank(array: NumericArray, ranks: number[], meaning: string): void {
  if (!ranks.includes(array.shape.length)) {
    throw formatError(array.file, array.where, meaning, `shape ${shapeText(array.shape)}`);
  }
}
