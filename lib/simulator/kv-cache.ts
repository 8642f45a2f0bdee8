/**
 * Paged KV memory of one rank, counted in blocks of 16 tokens: private blocks of requests, and blocks of prompts that are known
 * by a hash, shared, kept after their last request until the room is needed, and given up longest unused first.
 */
export const BLOCK_TOKENS = 16;

export const blocksFor = (tokens: number): number => Math.ceil(tokens / BLOCK_TOKENS);

interface Shared {
  blocks: number;
  users: number;
}

export class KvCache {
  /** Private, or shared and in use. */
  used = 0;
  #idleBlocks = 0;
  readonly #shared = new Map<number, Shared>();
  /** Hashes without a user; the first is the one unused longest. */
  readonly #idle = new Map<number, Shared>();

  constructor(readonly blocks: number) {}

  /** Takes private blocks, or none where there is no room for all. */
  take(blocks: number): boolean {
    if (blocks > this.blocks - this.used) return false;
    this.used += blocks;
    while (this.used + this.#idleBlocks > this.blocks) this.#evict();
    return true;
  }

  give(blocks: number): void {
    this.used -= blocks;
    if (this.used < 0) throw new Error(`expected at most ${this.used + blocks} blocks back, not ${blocks}`);
  }

  get free(): number {
    return this.blocks - this.used;
  }

  #evict(): void {
    const [hash, { blocks }] = this.#idle.entries().next().value!;
    this.#idle.delete(hash);
    this.#shared.delete(hash);
    this.#idleBlocks -= blocks;
  }

  /** How many of the hashes, from the first on, are here. */
  known(hashes: readonly number[]): number {
    let count = 0;
    while (count < hashes.length && this.#shared.has(hashes[count]!)) count++;
    return count;
  }

  /** One user more. Returns the blocks. */
  hold(hash: number): number {
    const shared = this.#shared.get(hash)!;
    if (shared.users === 0) {
      this.#idle.delete(hash);
      this.#idleBlocks -= shared.blocks;
      this.used += shared.blocks;
    }
    shared.users += 1;
    return shared.blocks;
  }

  release(hash: number): void {
    const shared = this.#shared.get(hash)!;
    shared.users -= 1;
    if (shared.users > 0) return;
    this.#idle.set(hash, shared);
    this.#idleBlocks += shared.blocks;
    this.used -= shared.blocks;
  }

  /** Private blocks become shared ones with one user. Returns false where the hash is known already. */
  share(hash: number, blocks: number): boolean {
    if (this.#shared.has(hash)) return false;
    this.#shared.set(hash, { blocks, users: 1 });
    return true;
  }
}
