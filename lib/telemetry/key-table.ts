/**
 * Numbers by keys of blocks (block-keys.ts). A look-up asks for thousands of keys, one after the other and all over memory, where
 * the chains and boxed numbers of a Map cost several times as much: here a key is found in one or two lines of cache. Open
 * addressing; what is deleted is closed up, so that nothing is left to be skipped.
 */

const FIRST_SLOTS = 2048;
/** No key: they are at least 0. */
const EMPTY = -1;

export class KeyTable {
  /** [slots] */
  #keys = new Float64Array(FIRST_SLOTS).fill(EMPTY);
  /** [slots] */
  #values = new Uint32Array(FIRST_SLOTS);
  #size = 0;

  get size(): number {
    return this.#size;
  }

  /** -1 where the key is not there. */
  get(key: number): number {
    const slot = this.#find(key);
    return this.#keys[slot] === EMPTY ? -1 : this.#values[slot]!;
  }

  /** The key must not be there. */
  add(key: number, value: number): void {
    // Fuller than this, runs of taken slots grow long.
    if (this.#size * 8 >= this.#keys.length * 5) this.#grow();
    const slot = this.#find(key);
    this.#keys[slot] = key;
    this.#values[slot] = value;
    this.#size += 1;
  }

  /** The key must be there. */
  delete(key: number): void {
    const mask = this.#keys.length - 1;
    let hole = this.#find(key);
    // Whatever stands behind in the same run, and would not be found past an empty slot, moves up.
    for (let slot = (hole + 1) & mask; this.#keys[slot] !== EMPTY; slot = (slot + 1) & mask) {
      const wanted = this.#keys[slot]! >>> 0;
      if (((slot - wanted) & mask) < ((slot - hole) & mask)) continue;
      this.#keys[hole] = this.#keys[slot]!;
      this.#values[hole] = this.#values[slot]!;
      hole = slot;
    }
    this.#keys[hole] = EMPTY;
    this.#size -= 1;
  }

  /** The slot of the key, or the empty one where it would stand. Keys are mixed well, so their low bits are a hash. */
  #find(key: number): number {
    const keys = this.#keys;
    const mask = keys.length - 1;
    let slot = (key >>> 0) & mask;
    while (keys[slot] !== key && keys[slot] !== EMPTY) slot = (slot + 1) & mask;
    return slot;
  }

  #grow(): void {
    const [keys, values] = [this.#keys, this.#values];
    this.#keys = new Float64Array(2 * keys.length).fill(EMPTY);
    this.#values = new Uint32Array(2 * keys.length);
    this.#size = 0;
    for (let slot = 0; slot < keys.length; slot++) {
      if (keys[slot] !== EMPTY) this.add(keys[slot]!, values[slot]!);
    }
  }
}
