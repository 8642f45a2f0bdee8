/**
 * Files as their own definitions describe them, built byte by byte: NumPy's format document, APPNOTE for zip, the pickle
 * opcodes that torch.save writes, the safetensors README. Nothing here uses the package's own writers.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import zlib from 'node:zlib';
import { afterAll, expect } from 'vitest';
import { GimbalError, type GimbalErrorCode } from '../../lib/errors.js';

export { npy } from '../support/npy.js';

/** A folder that is removed after the test file. */
export function temporaryFolder(): {
  path: (name: string) => string;
  write: (name: string, data: Uint8Array | string) => string;
} {
  const root = mkdtempSync(join(tmpdir(), 'gimbal-formats-'));
  afterAll(() => rmSync(root, { recursive: true, force: true }));
  const path = (name: string) => join(root, name);
  return {
    path,
    write: (name, data) => {
      writeFileSync(path(name), data);
      return path(name);
    },
  };
}

/** Runs `work`, which must fail with a GimbalError of this code whose message holds every fragment. */
export async function expectFailure(
  work: () => unknown,
  fragments: string[],
  code: GimbalErrorCode = 'GIMBAL_FORMAT',
): Promise<GimbalError> {
  let failure: unknown;
  try {
    await work();
  } catch (error) {
    failure = error;
  }
  expect(failure, 'an error was expected').toBeInstanceOf(GimbalError);
  const error = failure as GimbalError;
  expect(error.code).toBe(code);
  for (const fragment of fragments) expect(error.message).toContain(fragment);
  return error;
}

export function concat(...parts: (Uint8Array | string | number[])[]): Uint8Array {
  return Buffer.concat(
    parts.map((part) => (typeof part === 'string' ? Buffer.from(part, 'utf8') : Buffer.from(part))),
  );
}

/** Little-endian unsigned integer of 1 to 8 bytes. */
export function le(value: number, bytes: number): Uint8Array {
  const out = Buffer.alloc(bytes);
  let rest = BigInt(value);
  for (let i = 0; i < bytes; i++, rest >>= 8n) out[i] = Number(rest & 0xffn);
  return out;
}

export type Element = 'u1' | 'i1' | 'u2' | 'i2' | 'u4' | 'i4' | 'u8' | 'i8' | 'f4' | 'f8';

/** The numbers as raw elements. */
export function elements(values: readonly number[], kind: Element, bigEndian = false): Uint8Array {
  const size = Number(kind[1]);
  const out = new Uint8Array(values.length * size);
  const view = new DataView(out.buffer);
  values.forEach((value, i) => {
    const at = i * size;
    const little = !bigEndian;
    if (kind === 'f4') view.setFloat32(at, value, little);
    else if (kind === 'f8') view.setFloat64(at, value, little);
    else if (size === 8) view.setBigInt64(at, BigInt(value), little);
    else if (size === 4) view.setUint32(at, value, little);
    else if (size === 2) view.setUint16(at, value, little);
    else view.setUint8(at, value);
  });
  return out;
}

export interface ZipMember {
  name: string;
  data: Uint8Array;
  deflate?: boolean;
  /** Lies of the central directory. */
  claim?: {
    bytes?: number;
    compressedBytes?: number;
    offset?: number;
    crc?: number;
    method?: number;
    flags?: number;
  };
  /** Lie of the local header. */
  localName?: string;
}

export function crc32(data: Uint8Array): number {
  // Node before 20.15 lacks zlib.crc32; a bitwise CRC serves small fixtures.
  if (typeof zlib.crc32 === 'function') return zlib.crc32(data);
  let crc = 0xffffffff;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}

export interface ZipOptions {
  /** Write the zip64 end records and sizes, as torch.save does for large files. */
  zip64?: boolean;
  /** Lie about the number of entries. */
  count?: number;
  comment?: Uint8Array;
}

export function zip(members: ZipMember[], options: ZipOptions = {}): Uint8Array {
  const local: Uint8Array[] = [];
  const central: Uint8Array[] = [];
  let offset = 0;
  for (const member of members) {
    const { name, data, claim = {} } = member;
    const stored = member.deflate ? zlib.deflateRawSync(data) : data;
    const method = claim.method ?? (member.deflate ? 8 : 0);
    const crc = claim.crc ?? crc32(data);
    const bytes = claim.bytes ?? data.length;
    const compressed = claim.compressedBytes ?? stored.length;
    const localName = member.localName ?? name;
    const fixed = concat(le(claim.flags ?? 0, 2), le(method, 2), le(0, 2), le(0x21, 2), le(crc, 4));
    const record = concat(
      'PK\x03\x04',
      le(20, 2),
      fixed,
      le(stored.length, 4),
      le(data.length, 4),
      le(localName.length, 2),
      le(0, 2),
      localName,
      stored,
    );
    const at = claim.offset ?? offset;
    const wide = options.zip64 === true;
    const extra = wide
      ? concat(le(1, 2), le(24, 2), le(bytes, 8), le(compressed, 8), le(at, 8))
      : new Uint8Array();
    const narrow = (value: number) => le(wide ? 0xffffffff : value, 4);
    central.push(
      concat(
        'PK\x01\x02',
        le(20, 2),
        le(20, 2),
        fixed,
        narrow(compressed),
        narrow(bytes),
        le(name.length, 2),
        le(extra.length, 2),
        le(0, 2),
        le(0, 2),
        le(0, 2),
        le(0, 4),
        narrow(at),
        name,
        extra,
      ),
    );
    local.push(record);
    offset += record.length;
  }
  const directory = concat(...central);
  const count = options.count ?? members.length;
  const end64 = options.zip64
    ? concat(
        'PK\x06\x06',
        le(44, 8),
        le(45, 2),
        le(45, 2),
        le(0, 4),
        le(0, 4),
        le(count, 8),
        le(count, 8),
        le(directory.length, 8),
        le(offset, 8),
        'PK\x06\x07',
        le(0, 4),
        le(offset + directory.length, 8),
        le(1, 4),
      )
    : new Uint8Array();
  const small = options.zip64 ? [0xffff, 0xffffffff, 0xffffffff] : [count, directory.length, offset];
  const end = concat(
    'PK\x05\x06',
    le(0, 4),
    le(small[0]!, 2),
    le(small[0]!, 2),
    le(small[1]!, 4),
    le(small[2]!, 4),
    le(options.comment?.length ?? 0, 2),
    options.comment ?? [],
  );
  return concat(...local, directory, end64, end);
}

/** A tensor to be saved: its storage, and the view of it. */
export class TensorFixture {
  constructor(
    readonly kind: Element,
    readonly values: readonly number[],
    readonly shape: readonly number[],
    readonly view: { strides?: number[]; offset?: number; storage?: string; dtype?: string } = {},
  ) {}
}

export function tensor(values: unknown, kind: Element = 'i4'): TensorFixture {
  const shape: number[] = [];
  for (let inner = values; Array.isArray(inner); inner = inner[0]) shape.push(inner.length);
  return new TensorFixture(kind, (values as unknown[]).flat(8) as number[], shape);
}

/** Bytes of opcodes to be spliced in as they are. */
export class RawPickle {
  constructor(readonly bytes: Uint8Array) {}
}

const STORAGES: Record<Element, string> = {
  u1: 'ByteStorage',
  i1: 'CharStorage',
  i2: 'ShortStorage',
  i4: 'IntStorage',
  i8: 'LongStorage',
  f4: 'FloatStorage',
  f8: 'DoubleStorage',
  u2: 'UntypedStorage',
  u4: 'UntypedStorage',
  u8: 'UntypedStorage',
};

export interface TorchOptions {
  root?: string;
  byteorder?: 'little' | 'big' | string | null;
  /** In place of data.pkl. */
  pickle?: Uint8Array;
  /** Changes data.pkl after it is written. */
  mutate?: (pickle: Uint8Array) => Uint8Array;
  members?: (members: ZipMember[]) => ZipMember[];
  zip?: ZipOptions;
}

/** A `.pt` file of the object, as torch.save lays it out (protocol 2). */
export function torchFile(value: unknown, options: TorchOptions = {}): Uint8Array {
  const root = options.root ?? 'archive';
  const tensors: TensorFixture[] = [];
  const body = options.pickle ?? concat([0x80, 2], pickleOf(value, tensors), '.');
  const bigEndian = options.byteorder === 'big';
  const members: ZipMember[] = [{ name: `${root}/data.pkl`, data: options.mutate?.(body) ?? body }];
  if (options.byteorder !== null) {
    members.push({ name: `${root}/byteorder`, data: concat(options.byteorder ?? 'little') });
  }
  tensors.forEach((item, key) => {
    members.push({ name: `${root}/data/${key}`, data: elements(item.values, item.kind, bigEndian) });
  });
  members.push({ name: `${root}/version`, data: concat('3\n') });
  return zip(options.members?.(members) ?? members, options.zip);
}

function text(value: string): Uint8Array {
  const bytes = Buffer.from(value, 'utf8');
  return concat('X', le(bytes.length, 4), bytes);
}

function integer(value: number): Uint8Array {
  if (value >= 0 && value < 256) return concat('K', le(value, 1));
  if (value >= 0 && value < 65536) return concat('M', le(value, 2));
  if (Number.isInteger(value) && Math.abs(value) < 2 ** 31)
    return concat('J', le(value < 0 ? value + 2 ** 32 : value, 4));
  if (!Number.isInteger(value)) {
    const bytes = Buffer.alloc(8);
    bytes.writeDoubleBE(value);
    return concat('G', bytes);
  }
  return concat([0x8a, 8], elements([value], 'i8'));
}

const tuple = (items: Uint8Array[]) => concat('(', ...items, 't');

/** The pickle opcodes of a value, without protocol and STOP. */
export function pickleOf(value: unknown, tensors: TensorFixture[] = []): Uint8Array {
  if (value instanceof RawPickle) return value.bytes;
  if (value instanceof TensorFixture) return pickleTensor(value, tensors);
  if (value === null || value === undefined) return concat('N');
  if (value === true) return concat([0x88]);
  if (value === false) return concat([0x89]);
  if (typeof value === 'number') return integer(value);
  if (typeof value === 'string') return text(value);
  if (Array.isArray(value)) return concat(']', '(', ...value.map((item) => pickleOf(item, tensors)), 'e');
  const entries = Object.entries(value as object);
  return concat('}', '(', ...entries.flatMap(([key, item]) => [text(key), pickleOf(item, tensors)]), 'u');
}

function pickleTensor(item: TensorFixture, tensors: TensorFixture[]): Uint8Array {
  const key = String(tensors.length);
  tensors.push(item);
  const storage = item.view.storage ?? STORAGES[item.kind];
  const untyped = storage === 'UntypedStorage';
  const module = untyped ? 'torch.storage' : 'torch';
  const id = tuple([
    text('storage'),
    concat(`c${module}\n${storage}\n`),
    text(key),
    text('cpu'),
    integer(item.values.length),
  ]);
  const strides =
    item.view.strides ?? item.shape.map((_, d) => item.shape.slice(d + 1).reduce((a, b) => a * b, 1));
  const dtype = item.view.dtype ?? `uint${Number(item.kind[1]) * 8}`;
  const args = [
    concat(id, 'Q'),
    integer(item.view.offset ?? 0),
    tuple(item.shape.map(integer)),
    tuple(strides.map(integer)),
    concat([0x89]),
    concat('ccollections\nOrderedDict\n', ')', 'R'),
    ...(untyped ? [concat(`ctorch\n${dtype}\n`), concat('N')] : []),
  ];
  return concat(`ctorch._utils\n_rebuild_tensor_v${untyped ? 3 : 2}\n`, tuple(args), 'R');
}

export interface SafetensorFixture {
  dtype: string;
  shape: number[];
  data: Uint8Array;
  offsets?: [number, number];
}

export function safetensors(
  tensors: Record<string, SafetensorFixture>,
  options: { headerBytes?: number } = {},
): Uint8Array {
  let at = 0;
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  for (const [name, item] of Object.entries(tensors)) {
    header[name] = {
      dtype: item.dtype,
      shape: item.shape,
      data_offsets: item.offsets ?? [at, at + item.data.length],
    };
    at += item.data.length;
  }
  const json = JSON.stringify(header);
  return concat(
    le(options.headerBytes ?? json.length, 8),
    json,
    ...Object.values(tensors).map((item) => item.data),
  );
}

/** [experts] counts as TensorRT-LLM saves them. */
export function statistic(values: number[]): SafetensorFixture {
  return { dtype: 'I64', shape: [values.length], data: elements(values, 'i8') };
}
