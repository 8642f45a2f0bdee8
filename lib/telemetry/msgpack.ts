/**
 * MessagePack from whoever may publish it. The library allocates what an array claims to hold, so claims are held against the
 * bytes first, in one pass that allocates nothing: every value takes a byte at least.
 */
import { decode } from '@msgpack/msgpack';
import type { GimbalError } from '../errors.js';
import { formatError } from '../import/limits.js';

/** A prefill step of a million tokens, with ids of five bytes each, takes a third of it. */
export const MAX_PAYLOAD_BYTES = 16 * 1024 * 1024;
/** Lists and maps in each other; what is read here has five. */
const MAX_DEPTH = 8;

/** @throws GimbalError GIMBAL_FORMAT; integers of 64 bits come as bigints, whatever their value */
export function decodeMsgpack(bytes: Uint8Array, source: string): unknown {
  checkShape(bytes, source);
  // Of a Buffer, bytes would come as Buffers too, which are something else to JSON.
  const plain = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    return decode(plain, { useBigInt64: true });
  } catch (error) {
    throw formatError(
      source,
      '',
      'MessagePack',
      error instanceof Error ? error.message : 'what is not',
      error,
    );
  }
}

function checkShape(bytes: Uint8Array, source: string): void {
  if (bytes.length > MAX_PAYLOAD_BYTES) {
    throw formatError(source, '', `at most ${MAX_PAYLOAD_BYTES} bytes`, `${bytes.length}`);
  }
  const walk = new Walk(bytes, source);
  /** [depth] Values that each open list or map still lacks; the whole is the first. */
  const lacking = new Uint32Array(MAX_DEPTH + 1);
  lacking[0] = 1;
  let depth = 0;
  for (let expected = 1; expected > 0; ) {
    const values = walk.step();
    expected += values - 1;
    if (expected > bytes.length - walk.at) {
      throw walk.wrong('no more values than there are bytes', 'what claims more');
    }
    lacking[depth]! -= 1;
    if (values > 0) {
      depth += 1;
      if (depth > MAX_DEPTH) throw walk.wrong(`at most ${MAX_DEPTH} levels`, 'more');
      lacking[depth] = values;
    }
    while (depth > 0 && lacking[depth] === 0) depth -= 1;
  }
  if (walk.at < bytes.length) throw walk.wrong('the end', `${bytes.length - walk.at} bytes more`);
}

/** Bytes after the head of what has a fixed size, from 0xca on: floats, unsigned and signed integers, short extensions. */
const FIXED_SIZES = Uint8Array.of(4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17);

/** From value to value, into each list and map. It runs over every token of every batch, so it makes no objects. */
class Walk {
  readonly #view: DataView;
  readonly #source: string;
  at = 0;

  constructor(bytes: Uint8Array, source: string) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#source = source;
  }

  /** Passes a value, of a list or a map the head alone; returns how many values are in it. */
  step(): number {
    if (this.at >= this.#view.byteLength) throw this.wrong('a value', 'the end');
    const head = this.#view.getUint8(this.at);
    if (head <= 0x7f || head >= 0xe0) return this.#pass(0);
    if (head <= 0x8f) return this.#pass(0, 2 * (head & 0xf));
    if (head <= 0x9f) return this.#pass(0, head & 0xf);
    if (head <= 0xbf) return this.#pass(head & 0x1f);
    if (head === 0xc1) throw this.wrong('a value', 'a byte that MessagePack does not use');
    if (head <= 0xc3) return this.#pass(0);
    if (head <= 0xc6) return this.#passSized(1 << (head - 0xc4), 0);
    if (head <= 0xc9) return this.#passSized(1 << (head - 0xc7), 1);
    if (head <= 0xd8) return this.#pass(FIXED_SIZES[head - 0xca]!);
    if (head <= 0xdb) return this.#passSized(1 << (head - 0xd9), 0);
    const width = head % 2 === 0 ? 2 : 4;
    return this.#pass(width, this.#length(width) * (head <= 0xdd ? 1 : 2));
  }

  /** What has its size in so many bytes after its head, and `more` besides. */
  #passSized(width: number, more: number): number {
    return this.#pass(width + this.#length(width) + more);
  }

  #length(width: number): number {
    if (this.at + width >= this.#view.byteLength) throw this.wrong('a length', 'the end');
    if (width === 1) return this.#view.getUint8(this.at + 1);
    return width === 2 ? this.#view.getUint16(this.at + 1) : this.#view.getUint32(this.at + 1);
  }

  #pass(bytes: number, values = 0): number {
    this.at += 1 + bytes;
    if (this.at > this.#view.byteLength) throw this.wrong('a whole value', 'the end');
    return values;
  }

  wrong(expected: string, received: string): GimbalError {
    return formatError(this.#source, `byte ${this.at}`, expected, received);
  }
}
