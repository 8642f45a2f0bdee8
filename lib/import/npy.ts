/**
 * NumPy's .npy container, versions 1 to 3: magic, a header that is a Python dict literal, then the raw elements. The header
 * is matched against the one form NumPy writes and never evaluated; object arrays hold a pickle and are refused.
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
import { formatError, quote } from './limits.js';

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
const MAX_HEADER_BYTES = 64 * 1024;
const MAX_DIMENSIONS = 8;

export function isNpy(bytes: Uint8Array): boolean {
  return MAGIC.every((byte, at) => bytes[at] === byte);
}

interface Header {
  descr: string;
  fortranOrder: boolean;
  shape: number[];
  dataOffset: number;
}

/** Header text and where the elements start. */
function headerText(bytes: Uint8Array, file: string): { text: string; dataOffset: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 12) throw formatError(file, 'npy header', 'at least 12 bytes', `${bytes.length} bytes`);
  const major = bytes[6] ?? 0;
  if (major < 1 || major > 3) throw formatError(file, 'npy header', 'version 1, 2 or 3', `version ${major}`);
  const start = major === 1 ? 10 : 12;
  const length = major === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  if (length > MAX_HEADER_BYTES || start + length > bytes.length) {
    const room = Math.min(MAX_HEADER_BYTES, bytes.length - start);
    throw formatError(file, 'npy header', `at most ${room} bytes of header`, `a header of ${length} bytes`);
  }
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + start, length).toString(
    major === 3 ? 'utf8' : 'latin1',
  );
  return { text, dataOffset: start + length };
}

function parseHeader(bytes: Uint8Array, file: string): Header {
  const { text, dataOffset } = headerText(bytes, file);
  const descr = /'descr'\s*:\s*'([^']*)'/.exec(text)?.[1];
  const order = /'fortran_order'\s*:\s*(True|False)/.exec(text)?.[1];
  const shapeLiteral = /'shape'\s*:\s*\(([^()]*)\)/.exec(text)?.[1];
  if (descr === undefined || order === undefined || shapeLiteral === undefined) {
    throw formatError(
      file,
      'npy header',
      "a plain dtype, 'fortran_order' and 'shape'",
      quote(text.trim(), 100),
    );
  }
  const items = shapeLiteral.split(',').map((item) => item.trim());
  if (items.at(-1) === '') items.pop();
  const shape = items.map((item) => (/^\d{1,15}$/.test(item) ? Number(item) : Number.NaN));
  if (shape.some(Number.isNaN) || shape.length > MAX_DIMENSIONS) {
    throw formatError(
      file,
      'npy header, shape',
      `up to ${MAX_DIMENSIONS} whole numbers`,
      quote(shapeLiteral),
    );
  }
  return { descr, fortranOrder: order === 'True', shape, dataOffset };
}

/** `<u4` and the like; kinds and sizes that cannot hold counts or expert ids are refused by name. */
function parseDescr(descr: string, file: string): { kind: ElementKind; littleEndian: boolean } {
  const match = /^([<>|=])([iuf])([1248])$/.exec(descr);
  const kind = match ? (`${match[2]}${match[3]}` as ElementKind) : undefined;
  if (kind === undefined || !(kind in ELEMENT_BYTES)) {
    const hint = descr.includes('O')
      ? `${quote(descr)}: an object array, which holds a pickle`
      : quote(descr);
    throw formatError(file, 'npy header, dtype', 'an integer of 8 to 64 bits, float32 or float64', hint);
  }
  return { kind, littleEndian: match?.[1] !== '>' };
}

/** An array as it lies in the file. */
export interface NpyParts {
  kind: ElementKind;
  littleEndian: boolean;
  fortranOrder: boolean;
  shape: number[];
  /** The elements' bytes, as many as the shape says. */
  data: Uint8Array;
}

export function npyParts(bytes: Uint8Array, file: string, name = 'array'): NpyParts {
  if (!isNpy(bytes)) throw formatError(file, name, 'the magic bytes of a .npy file', 'other bytes');
  const header = parseHeader(bytes, file);
  const { kind, littleEndian } = parseDescr(header.descr, file);
  const data = bytes.subarray(header.dataOffset);
  const expectedBytes = elementCount(header.shape) * ELEMENT_BYTES[kind];
  if (expectedBytes !== data.length) {
    const shape = `${expectedBytes} bytes of data for shape ${shapeText(header.shape)} of ${header.descr}`;
    throw formatError(file, name, shape, `${data.length} bytes`);
  }
  return { kind, littleEndian, fortranOrder: header.fortranOrder, shape: header.shape, data };
}

export function parseNpy(bytes: Uint8Array, file: string, name = 'array'): NumericArray {
  const { kind, littleEndian, fortranOrder, shape, data } = npyParts(bytes, file, name);
  return {
    file,
    where: name,
    kind,
    shape,
    strides: denseStrides(shape, fortranOrder),
    offset: 0,
    read: elementReader(data, kind, littleEndian),
  };
}
