/**
 * Which pushes of counts are new. A pusher that numbers its pushes may send one again where it is not sure that it came: what comes
 * twice counts once, and what comes after a later one is late and not counted, since its tokens would seem the newest.
 */

/** Those that were heard of last are remembered. */
const MOST_PUSHERS = 4096;

export type PushResult = 'counted' | 'duplicate' | 'late';

export class Pushes {
  /** By pusher, the number of its last push; the pusher heard of longest ago first. */
  readonly #last = new Map<string, number>();

  /** Whether to count it; `accept` says that it was. */
  judge(pusher: string, sequence: number): PushResult {
    const last = this.#last.get(pusher);
    if (last === undefined || sequence > last) return 'counted';
    return sequence === last ? 'duplicate' : 'late';
  }

  accept(pusher: string, sequence: number): void {
    this.#last.delete(pusher);
    this.#last.set(pusher, sequence);
    if (this.#last.size <= MOST_PUSHERS) return;
    const [oldest] = this.#last.keys();
    this.#last.delete(oldest!);
  }
}
