/**
 * Names of blocks by what is in them: a key covers a block's tokens and all before it, so equal prefixes have equal keys on every
 * engine, whatever its own hashes are. 53 bits, so that a key is a number; among a million blocks two share one with a chance of
 * 1 in 16,000, and the price of that is a prefill that is estimated wrongly. Not made to withstand those who seek collisions.
 */

const RADIX = 2 ** 32;
const HIGH_BITS = 0x1fffff;

/** Of no block: what the first block of a prompt comes after. */
export function rootKey(blockSize: number, lora: string | undefined): number {
  const root = blockKey(0, [blockSize], 0, 1);
  return lora === undefined ? root : textKey(root, lora);
}

/** Of the block of the tokens `from` up to `to` after the one whose key is `parent`. */
export function blockKey(parent: number, tokenIds: ArrayLike<number>, from: number, to: number): number {
  let low = parent >>> 0;
  let high = Math.floor(parent / RADIX) ^ 0x9e3779b9;
  for (let at = from; at < to; at++) {
    // Each line maps its half one to one, so that halves which differ do not become equal over equal tokens.
    low = Math.imul(low ^ tokenIds[at]!, 0x85ebca6b);
    low = (low << 13) | (low >>> 19);
    high = Math.imul(high ^ low, 0xc2b2ae35);
    high = (high << 17) | (high >>> 15);
  }
  return (spread(high ^ (low << 7)) & HIGH_BITS) * RADIX + (spread(low ^ (high >>> 11)) >>> 0);
}

/** The same of a text. */
export function textKey(parent: number, text: string): number {
  const bytes = Buffer.from(`text:${text}`);
  return blockKey(parent, bytes, 0, bytes.length);
}

/** Every bit of the result hangs on every bit of `value` (the last step of murmur3). */
function spread(value: number): number {
  let mixed = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return mixed ^ (mixed >>> 16);
}
