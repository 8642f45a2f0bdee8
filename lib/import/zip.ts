/**
 * The zip container of .pt and .npz files, read with suspicion: the central directory is bounds-checked and checked
 * against the local headers, an entry is inflated into no more than it claims and the caller allows, and its CRC must match.
 * Stored entries are views of the file, not copies.
 */
import zlib from 'node:zlib';
import { formatError, quote } from './limits.js';

const END_SIGNATURE = 0x06054b50;
const END64_SIGNATURE = 0x06064b50;
const END64_LOCATOR_SIGNATURE = 0x07064b50;
const CENTRAL_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const END_BYTES = 22;
const CENTRAL_BYTES = 46;
const LOCAL_BYTES = 30;
const MAX_COMMENT_BYTES = 0xffff;
const STORED = 0;
const DEFLATED = 8;
/** Deflate cannot do better than 1032:1, so a larger claim is a lie. */
const MAX_DEFLATE_RATIO = 1032;

interface Entry {
  name: string;
  method: number;
  encrypted: boolean;
  crc: number;
  compressedBytes: number;
  bytes: number;
  headerOffset: number;
}

export function isZip(bytes: Uint8Array): boolean {
  return bytes[0] === 0x50 && bytes[1] === 0x4b && (bytes[2] === 3 || bytes[2] === 5);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc >>> 0;
});

/** For Node before 20.15, whose zlib has no crc32. */
export function tableCrc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ bytes[i]!) & 0xff]!;
  return (crc ^ 0xffffffff) >>> 0;
}

const crc32: (bytes: Uint8Array) => number = typeof zlib.crc32 === 'function' ? zlib.crc32 : tableCrc32;

export class Zip {
  private readonly view: DataView;
  private readonly entries = new Map<string, Entry>();
  private directoryOffset = 0;
  private budget: number;

  /** `budget`: bytes that all inflated entries together may take. */
  constructor(
    private readonly bytes: Uint8Array,
    private readonly file: string,
    budget: number,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.budget = budget;
    this.readDirectory();
  }

  names(): string[] {
    return [...this.entries.keys()];
  }

  has(name: string): boolean {
    return this.entries.has(name);
  }

  /** The content of one entry, at most `maxBytes` long. */
  read(name: string, maxBytes: number): Uint8Array {
    const entry = this.entries.get(name);
    if (entry === undefined)
      throw formatError(this.file, `entry ${quote(name)}`, 'to be in the archive', 'nothing');
    const where = `entry ${quote(name)}`;
    if (entry.encrypted) throw formatError(this.file, where, 'no encryption', 'an encrypted entry');
    if (entry.bytes > maxBytes) {
      throw formatError(this.file, where, `at most ${maxBytes} bytes`, `a claim of ${entry.bytes} bytes`);
    }
    const raw = this.rawBytes(entry, where);
    const content = entry.method === STORED ? raw : this.inflate(entry, raw, where);
    if (content.length !== entry.bytes) {
      throw formatError(this.file, where, `${entry.bytes} bytes`, `${content.length} bytes`);
    }
    const crc = crc32(content);
    if (crc !== entry.crc) {
      throw formatError(
        this.file,
        where,
        `CRC ${entry.crc.toString(16)}`,
        `${crc.toString(16)}: damaged content`,
      );
    }
    return content;
  }

  private inflate(entry: Entry, raw: Uint8Array, where: string): Uint8Array {
    if (entry.method !== DEFLATED) {
      throw formatError(this.file, where, 'a stored or deflated entry', `compression method ${entry.method}`);
    }
    const ceiling = Math.min(raw.length * MAX_DEFLATE_RATIO, this.budget);
    if (entry.bytes > ceiling) {
      throw formatError(
        this.file,
        where,
        `at most ${ceiling} bytes inflated`,
        `a claim of ${entry.bytes} bytes`,
      );
    }
    this.budget -= entry.bytes;
    try {
      return zlib.inflateRawSync(raw, { maxOutputLength: Math.max(entry.bytes, 1) });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw formatError(this.file, where, `${entry.bytes} bytes of deflated data`, reason, error);
    }
  }

  /** The stored bytes of an entry, behind a local header that agrees with the directory. */
  private rawBytes(entry: Entry, where: string): Uint8Array {
    const at = entry.headerOffset;
    if (at + LOCAL_BYTES > this.directoryOffset || this.u32(at) !== LOCAL_SIGNATURE) {
      throw formatError(
        this.file,
        where,
        'a local header at the offset that the directory gives',
        `none at ${at}`,
      );
    }
    const nameBytes = this.u16(at + 26);
    const start = at + LOCAL_BYTES + nameBytes + this.u16(at + 28);
    if (start + entry.compressedBytes > this.directoryOffset) {
      const room = `${Math.max(this.directoryOffset - start, 0)} bytes`;
      throw formatError(this.file, where, `${entry.compressedBytes} bytes before the directory`, room);
    }
    if (this.text(at + LOCAL_BYTES, nameBytes) !== entry.name) {
      throw formatError(this.file, where, 'the same name in the local header', 'another name');
    }
    return this.bytes.subarray(start, start + entry.compressedBytes);
  }

  private readDirectory(): void {
    const end = this.findEnd();
    let count = this.u16(end + 10);
    let size = this.u32(end + 12);
    let offset = this.u32(end + 16);
    const wide = this.findEnd64(end);
    if (wide !== undefined) {
      count = this.u64(wide + 32);
      size = this.u64(wide + 40);
      offset = this.u64(wide + 48);
    }
    const limit = wide ?? end;
    if (offset + size > limit || count * CENTRAL_BYTES > size) {
      const claim = `${count} entries in ${size} bytes at ${offset}`;
      throw formatError(this.file, 'zip directory', `a directory inside the first ${limit} bytes`, claim);
    }
    this.directoryOffset = offset;
    let at = offset;
    for (let i = 0; i < count; i++) at = this.readEntry(at, offset + size, i);
  }

  private readEntry(at: number, limit: number, index: number): number {
    const where = `zip directory, entry ${index}`;
    if (at + CENTRAL_BYTES > limit || this.u32(at) !== CENTRAL_SIGNATURE) {
      throw formatError(this.file, where, 'a directory record', `none at ${at}`);
    }
    const nameBytes = this.u16(at + 28);
    const extraBytes = this.u16(at + 30);
    const next = at + CENTRAL_BYTES + nameBytes + extraBytes + this.u16(at + 32);
    if (next > limit)
      throw formatError(this.file, where, 'a record inside the directory', 'one that runs past its end');
    const entry: Entry = {
      name: this.text(at + CENTRAL_BYTES, nameBytes),
      method: this.u16(at + 10),
      encrypted: (this.u16(at + 8) & 1) === 1,
      crc: this.u32(at + 16),
      compressedBytes: this.u32(at + 20),
      bytes: this.u32(at + 24),
      headerOffset: this.u32(at + 42),
    };
    this.widen(entry, at + CENTRAL_BYTES + nameBytes, extraBytes, where);
    if (this.entries.has(entry.name))
      throw formatError(this.file, where, 'distinct names', `${quote(entry.name)} twice`);
    this.entries.set(entry.name, entry);
    return next;
  }

  /** Takes the 64-bit values of the zip64 extra field for those fields that say "too large for 32 bits". */
  private widen(entry: Entry, extra: number, extraBytes: number, where: string): void {
    const fields = (['bytes', 'compressedBytes', 'headerOffset'] as const).filter(
      (f) => entry[f] === 0xffffffff,
    );
    if (fields.length === 0) return;
    for (let at = extra; at + 4 <= extra + extraBytes; at += 4 + this.u16(at + 2)) {
      if (this.u16(at) !== 1) continue;
      if (this.u16(at + 2) < fields.length * 8 || at + 4 + fields.length * 8 > extra + extraBytes) break;
      fields.forEach((field, i) => {
        entry[field] = this.u64(at + 4 + i * 8);
      });
      return;
    }
    throw formatError(this.file, where, 'a zip64 field with the sizes', 'none');
  }

  /** The end record: the last signature whose comment reaches exactly to the end of the file. */
  private findEnd(): number {
    const last = this.bytes.length - END_BYTES;
    for (let at = last; at >= Math.max(0, last - MAX_COMMENT_BYTES); at--) {
      if (this.u32(at) === END_SIGNATURE && at + END_BYTES + this.u16(at + 20) === this.bytes.length)
        return at;
    }
    throw formatError(
      this.file,
      'zip directory',
      'an end-of-directory record',
      'none: the file is truncated or not a zip',
    );
  }

  private findEnd64(end: number): number | undefined {
    const locator = end - 20;
    if (locator < 0 || this.u32(locator) !== END64_LOCATOR_SIGNATURE) return undefined;
    const at = this.u64(locator + 8);
    if (at + 56 > locator || this.u32(at) !== END64_SIGNATURE) {
      throw formatError(
        this.file,
        'zip directory',
        'a zip64 end record where the locator points',
        `none at ${at}`,
      );
    }
    return at;
  }

  private u16(at: number): number {
    return this.view.getUint16(at, true);
  }

  private u32(at: number): number {
    return this.view.getUint32(at, true);
  }

  /** Rounded above 2^53, where every check refuses it anyway. */
  private u64(at: number): number {
    return this.u32(at + 4) * 2 ** 32 + this.u32(at);
  }

  private text(at: number, length: number): string {
    return Buffer.from(this.bytes.buffer, this.bytes.byteOffset + at, length).toString('utf8');
  }
}
