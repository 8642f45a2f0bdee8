/** How fast the statistics grow, by the monotonic clock: over the last minutes, so that one late push does not pass for a burst. */

const MS_PER_SECOND = 1000;
const SPAN_MS = 300_000;
/** Below it, a rate would be a guess. */
const LEAST_MS = 1000;

export class GrowthRate {
  readonly #marks: { atMs: number; tokens: number }[] = [];
  #grewAtMs: number;

  constructor(nowMs: number, tokens: number) {
    this.#marks.push({ atMs: nowMs, tokens });
    this.#grewAtMs = nowMs;
  }

  /** Before each look. Statistics that were reset, or restored from elsewhere, start anew. */
  note(nowMs: number, tokens: number): void {
    const last = this.#marks.at(-1)!;
    if (tokens !== last.tokens) this.#grewAtMs = nowMs;
    if (tokens < last.tokens) this.#marks.length = 0;
    this.#marks.push({ atMs: nowMs, tokens });
    while (this.#marks.length > 2 && nowMs - this.#marks[0]!.atMs > SPAN_MS) this.#marks.shift();
  }

  /** Since the statistics last changed. */
  ageMs(nowMs: number): number {
    return nowMs - this.#grewAtMs;
  }

  /** 0 until there is something to tell it by. */
  get tokensPerSecond(): number {
    const [first, last] = [this.#marks[0]!, this.#marks.at(-1)!];
    const elapsedMs = last.atMs - first.atMs;
    return elapsedMs < LEAST_MS ? 0 : ((last.tokens - first.tokens) / elapsedMs) * MS_PER_SECOND;
  }
}
