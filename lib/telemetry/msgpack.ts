/**
 * MessagePack from whoever may publish it. The library allocates what an array claims to hold, so claims are held against the
 * bytes first, in one pass that allocates nothing: every value takes a byte at least.
 */
import { decode } from '@msgpack/msgpack';
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
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  /** [depth] Values that each open list or map still lacks; the whole is the first. */
  const lacking = new Uint32Array(MAX_DEPTH + 1);
  let depth = 0;
  let at = 0;
  let expected = 1;
  lacking[0] = 1;
  while (expected > 0) {
    if (at >= bytes.length) throw formatError(source, `byte ${at}`, 'a value', 'the end');
    const { skip, values } = headOf(view, at, source);
    at += skip;
    expected += values - 1;
    if (at > bytes.length || expected > bytes.length - at) {
      throw formatError(source, `byte ${at}`, 'no more values than there are bytes', 'what claims more');
    }
    lacking[depth]! -= 1;
    if (values > 0) {
      depth += 1;
      if (depth > MAX_DEPTH) throw formatError(source, `byte ${at}`, `at most ${MAX_DEPTH} levels`, 'more');
      lacking[depth] = values;
    }
    while (depth > 0 && lacking[depth] === 0) depth -= 1;
  }
  if (at < bytes.length)
    throw formatError(source, `byte ${at}`, 'the end', `${bytes.length - at} bytes more`);
}

/** Bytes of a value up to the first that is within it, and how many are. */
interface Head {
  skip: number;
  values: number;
}

/** Bytes after the head of what has a fixed size, from 0xca on: floats, unsigned and signed integers, short extensions. */
const FIXED_SIZES = [4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17];

function headOf(view: DataView, at: number, source: string): Head {
  const head = view.getUint8(at);
  const length = (bytes: 1 | 2 | 4): number => {
    if (at + bytes >= view.byteLength) throw formatError(source, `byte ${at}`, 'a length', 'the end');
    return bytes === 1
      ? view.getUint8(at + 1)
      : bytes === 2
        ? view.getUint16(at + 1)
        : view.getUint32(at + 1);
  };
  const width = (first: number) => (1 << (head - first)) as 1 | 2 | 4;
  if (head <= 0x7f || head >= 0xe0) return { skip: 1, values: 0 };
  if (head <= 0x8f) return { skip: 1, values: 2 * (head & 0xf) };
  if (head <= 0x9f) return { skip: 1, values: head & 0xf };
  if (head <= 0xbf) return { skip: 1 + (head & 0x1f), values: 0 };
  if (head === 0xc1)
    throw formatError(source, `byte ${at}`, 'a value', 'a byte that MessagePack does not use');
  if (head <= 0xc3) return { skip: 1, values: 0 };
  if (head <= 0xc6) return { skip: 1 + width(0xc4) + length(width(0xc4)), values: 0 };
  if (head <= 0xc9) return { skip: 2 + width(0xc7) + length(width(0xc7)), values: 0 };
  if (head <= 0xd8) return { skip: 1 + FIXED_SIZES[head - 0xca]!, values: 0 };
  if (head <= 0xdb) return { skip: 1 + width(0xd9) + length(width(0xd9)), values: 0 };
  const bytes = head % 2 === 0 ? 2 : 4;
  return { skip: 1 + bytes, values: length(bytes) * (head <= 0xdd ? 1 : 2) };
}
