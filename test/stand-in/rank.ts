/**
 * The timing model: DP ranks with continuous batching, as vLLM's engine schedules. A step takes the running
 * sequences, then the waiting ones, each with what it has left to compute, while the budget of tokens, the KV cache and the
 * places last; then it lasts as long as what is in it, and every sequence that has caught up gains a token.
 *
 * step ms = stepOverheadMs + 1000·prefill tokens/prefillTokensPerSecond + (some decode: decodeStepMs) + decodes·decodeSequenceMs
 *
 * Not modelled: pages (the KV cache counts in tokens), and that blocks of a cached prefix are shared (each user counts them).
 * Both kinds of server are timed alike. One timer a rank, or one for all where they move in lockstep.
 */

export interface Timing {
  prefillTokensPerSecond: number;
  /** Of a step that decodes at all. */
  decodeStepMs: number;
  /** On top, for each sequence that decodes in it. */
  decodeSequenceMs: number;
  /** Of any step. */
  stepOverheadMs: number;
  /** Tokens of one step. */
  stepTokens: number;
  /** Running at once on a rank. */
  maxNumSeqs: number;
  /** What the KV cache of a rank holds; also the longest prompt and answer together. */
  kvTokens: number;
  /** The model's clock runs so many times as fast as the wall's. */
  timeScale: number;
}

export const DEFAULT_TIMING: Readonly<Timing> = {
  prefillTokensPerSecond: 20_000,
  decodeStepMs: 8,
  decodeSequenceMs: 0.05,
  stepOverheadMs: 1,
  stepTokens: 2048,
  maxNumSeqs: 256,
  kvTokens: 400_000,
  timeScale: 1,
};

export interface RankOptions {
  timing: Timing;
  /** Which of two waiting requests goes first where their priorities differ: vLLM's lower one, SGLang's higher one. */
  order: 'fcfs' | 'lower-first' | 'higher-first';
  prefixCache: boolean;
}

/** Tokens of a block of the prefix cache. */
const BLOCK = 16;
/** Steps that are later than this by the wall's clock are not made up for. */
const MOST_LAG_MS = 100;

export class Sequence {
  /** Place in the order of arrival, given by the rank. */
  arrival = 0;
  /** Of the KV cache. */
  heldTokens = 0;
  computedTokens = 0;
  cachedTokens = 0;
  outputTokens = 0;
  state: 'waiting' | 'running' | 'finished' | 'aborted' = 'waiting';

  constructor(
    readonly promptTokens: number,
    /** 0 for embeddings. */
    readonly maxOutputTokens: number,
    readonly priority: number,
    /** Of each whole block of the prompt and all before it. */
    readonly blocks: readonly string[],
    /** Called as each token is there, and once for a prompt without an answer. */
    readonly onToken: (sequence: Sequence) => void,
  ) {}

  get remainingTokens(): number {
    return this.promptTokens + this.outputTokens - this.computedTokens;
  }
}

export class Rank {
  readonly waiting: Sequence[] = [];
  readonly counters = { promptTokens: 0, cachedTokens: 0, outputTokens: 0, preemptions: 0 };
  readonly finished = { stop: 0, length: 0, abort: 0 };
  running: Sequence[] = [];
  usedTokens = 0;
  readonly #options: RankOptions;
  readonly #cache = new Set<string>();
  #arrivals = 0;
  #step: { sequence: Sequence; tokens: number }[] = [];

  constructor(options: RankOptions) {
    this.#options = options;
  }

  /** Prefill of those that wait and of those that run; what the cache will spare those that wait is not known yet. */
  get waitingPrefillTokens(): number {
    const unread = (sum: number, { promptTokens, computedTokens }: Sequence) =>
      sum + Math.max(0, promptTokens - computedTokens);
    return this.running.reduce(unread, this.waiting.reduce(unread, 0));
  }

  submit(sequence: Sequence): void {
    sequence.arrival = this.#arrivals++;
    this.#enqueue(sequence);
  }

  abort(sequence: Sequence): void {
    if (sequence.state === 'waiting') this.waiting.splice(this.waiting.indexOf(sequence), 1);
    else if (sequence.state === 'running') this.#release(sequence);
    else return;
    sequence.state = 'aborted';
    this.finished.abort += 1;
  }

  /** Returns how long the step lasts, in ms of the model's clock; 0 where there is nothing to do. */
  begin(): number {
    const { timing } = this.#options;
    const preempted = this.#makeRoom();
    this.#step = this.#wants();
    if (!preempted) this.#admit(timing.stepTokens - tokensOf(this.#step));
    let prefill = 0;
    let decodes = 0;
    for (const { sequence, tokens } of this.#step) {
      sequence.heldTokens += tokens;
      this.usedTokens += tokens;
      if (sequence.outputTokens > 0 && sequence.remainingTokens === 1) decodes += 1;
      else prefill += tokens;
    }
    if (prefill + decodes === 0) return 0;
    const decodeMs = decodes === 0 ? 0 : timing.decodeStepMs + decodes * timing.decodeSequenceMs;
    return timing.stepOverheadMs + (prefill / timing.prefillTokensPerSecond) * 1000 + decodeMs;
  }

  end(): void {
    for (const { sequence, tokens } of this.#step) {
      // Aborted meanwhile, or by what a token of another led to.
      if (sequence.state !== 'running') continue;
      sequence.computedTokens += tokens;
      if (sequence.remainingTokens === 0) this.#advance(sequence);
    }
    this.#step = [];
  }

  #advance(sequence: Sequence): void {
    if (sequence.maxOutputTokens > 0) {
      sequence.outputTokens += 1;
      this.counters.outputTokens += 1;
    }
    if (sequence.outputTokens <= 1) this.#remember(sequence);
    if (sequence.outputTokens === sequence.maxOutputTokens) {
      this.#release(sequence);
      sequence.state = 'finished';
    }
    sequence.onToken(sequence);
  }

  /** What the running sequences take of the budget, in their order. */
  #wants(): { sequence: Sequence; tokens: number }[] {
    let budget = this.#options.timing.stepTokens;
    const wants = [];
    for (const sequence of this.running) {
      const tokens = Math.min(sequence.remainingTokens, budget);
      if (tokens === 0) break;
      budget -= tokens;
      wants.push({ sequence, tokens });
    }
    return wants;
  }

  /** Sends the last in order back to wait, to be computed anew, until the next step fits. One always fits alone. */
  #makeRoom(): boolean {
    let preempted = false;
    while (this.usedTokens + tokensOf(this.#wants()) > this.#options.timing.kvTokens) {
      const last = this.running.reduce((a, b) => (this.#before(a, b) ? b : a));
      this.#release(last);
      last.state = 'waiting';
      last.computedTokens = 0;
      this.counters.preemptions += 1;
      this.#enqueue(last);
      preempted = true;
    }
    return preempted;
  }

  #admit(budget: number): void {
    const { maxNumSeqs, kvTokens } = this.#options.timing;
    let left = budget;
    let free = kvTokens - this.usedTokens - tokensOf(this.#step);
    while (left > 0 && this.waiting.length > 0 && this.running.length < maxNumSeqs) {
      const sequence = this.waiting[0]!;
      const cached = this.#lookUp(sequence);
      const tokens = Math.min(sequence.remainingTokens - cached, left);
      if (cached + tokens > free) return;
      this.waiting.shift();
      this.#start(sequence, cached);
      this.#step.push({ sequence, tokens });
      left -= tokens;
      free -= cached + tokens;
    }
  }

  #start(sequence: Sequence, cachedTokens: number): void {
    sequence.state = 'running';
    sequence.computedTokens = cachedTokens;
    sequence.heldTokens = cachedTokens;
    this.usedTokens += cachedTokens;
    this.running.push(sequence);
    // A preempted one finds its own prompt there; that is no hit.
    if (sequence.outputTokens === 0) sequence.cachedTokens = cachedTokens;
  }

  #release(sequence: Sequence): void {
    this.running.splice(this.running.indexOf(sequence), 1);
    this.usedTokens -= sequence.heldTokens;
    sequence.heldTokens = 0;
  }

  #before(a: Sequence, b: Sequence): boolean {
    const { order } = this.#options;
    if (order === 'fcfs' || a.priority === b.priority) return a.arrival < b.arrival;
    return order === 'lower-first' ? a.priority < b.priority : a.priority > b.priority;
  }

  #enqueue(sequence: Sequence): void {
    let low = 0;
    let high = this.waiting.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#before(this.waiting[middle]!, sequence)) low = middle + 1;
      else high = middle;
    }
    this.waiting.splice(low, 0, sequence);
  }

  /** The prompt's tokens that are in the cache; its last one is always computed. */
  #lookUp({ blocks, promptTokens }: Sequence): number {
    if (!this.#options.prefixCache) return 0;
    const missing = blocks.findIndex((block) => !this.#cache.has(block));
    const hits = missing === -1 ? blocks.length : missing;
    return Math.min(hits, Math.floor((promptTokens - 1) / BLOCK)) * BLOCK;
  }

  #remember({ blocks, promptTokens, cachedTokens }: Sequence): void {
    this.counters.promptTokens += promptTokens;
    this.counters.cachedTokens += cachedTokens;
    if (!this.#options.prefixCache) return;
    // The last block first, so that a prefix outlives what hangs on it.
    for (const block of [...blocks].reverse()) {
      this.#cache.delete(block);
      this.#cache.add(block);
    }
    const room = Math.floor(this.#options.timing.kvTokens / BLOCK);
    for (const block of this.#cache) {
      if (this.#cache.size <= room) break;
      this.#cache.delete(block);
    }
  }
}

function tokensOf(step: readonly { tokens: number }[]): number {
  return step.reduce((sum, { tokens }) => sum + tokens, 0);
}

/** Names of a prompt's whole blocks, each standing for all text up to its end. */
export function blockNames(text: string, hash: (part: string) => string): string[] {
  // Four bytes to a token; blocks are cut by characters, which is the same for plain text.
  const length = BLOCK * 4;
  const names: string[] = [];
  for (let end = length; end <= text.length; end += length) {
    names.push(hash(`${names.at(-1) ?? ''}${text.slice(end - length, end)}`));
  }
  return names;
}

/** Steps ranks together: one, or all those in lockstep, whose step is as long as the longest among them. */
export class Pump {
  readonly #ranks: readonly Rank[];
  readonly #timeScale: number;
  #dueMs = 0;
  #state: 'idle' | 'stepping' | 'stopped' = 'idle';
  #paused = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(ranks: readonly Rank[], timeScale: number) {
    this.#ranks = ranks;
    this.#timeScale = timeScale;
  }

  /** To be called when there is new work. */
  wake(): void {
    if (this.#state !== 'idle' || this.#paused) return;
    this.#state = 'stepping';
    this.#dueMs = performance.now();
    this.#begin();
  }

  stop(): void {
    this.#state = 'stopped';
    clearTimeout(this.#timer);
  }

  /** The step that is on ends; no other begins. */
  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.wake();
  }

  #begin(): void {
    const stepMs = this.#paused ? 0 : Math.max(...this.#ranks.map((rank) => rank.begin()));
    if (stepMs === 0) {
      this.#state = 'idle';
      return;
    }
    const nowMs = performance.now();
    this.#dueMs = Math.max(this.#dueMs, nowMs - MOST_LAG_MS) + stepMs / this.#timeScale;
    // Timers wake a millisecond late or so; what is due already makes up for it.
    if (this.#dueMs <= nowMs) setImmediate(() => this.#end());
    else this.#timer = setTimeout(() => this.#end(), this.#dueMs - nowMs);
  }

  #end(): void {
    if (this.#state === 'stopped') return;
    for (const rank of this.#ranks) rank.end();
    this.#begin();
  }
}
