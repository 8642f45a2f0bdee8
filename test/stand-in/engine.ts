/** An engine between two restarts: its ranks, what steps them, and its own rule for requests without a pin. */
import { DEFAULT_TIMING, Pump, Rank, type Sequence, type Timing } from './rank.js';
import type { StandInRouting } from './routing.js';
import type { Kind } from './wire.js';

export interface EngineOptions {
  kind: Kind;
  ranks: number;
  /** Default `stand-in`. */
  model?: string;
  timing?: Partial<Timing>;
  /** All ranks step together, each as long as the slowest. */
  lockstep?: boolean;
  /** Default `fcfs`, as of the engines. */
  scheduling?: 'fcfs' | 'priority';
  /** Prompts that begin alike are computed once. */
  prefixCache?: boolean;
  /** Of the answers' texts. */
  seed?: number;
  /** As with the engines' `--enable-return-routed-experts`. */
  routing?: StandInRouting;
}

/** vLLM's balancer sees counts this old, and adds what it has sent since. */
const SNAPSHOT_MS = 100;
const WAITING_WEIGHT = 4;

export class Engine {
  readonly kind: Kind;
  readonly model: string;
  readonly seed: number;
  readonly timing: Timing;
  readonly prefixCache: boolean;
  readonly ranks: readonly Rank[];
  readonly routing: StandInRouting | undefined;
  /** [ranks] The same one for all in lockstep. */
  readonly #pumps: readonly Pump[];
  /** [ranks] */
  #snapshot: { waiting: number; running: number }[] = [];
  #snapshotMs = Number.NEGATIVE_INFINITY;
  #next = 0;

  constructor(options: EngineOptions) {
    const { kind, ranks, model = 'stand-in', seed = 0, prefixCache = false, scheduling = 'fcfs' } = options;
    const priority = kind === 'vllm' ? 'lower-first' : 'higher-first';
    const order = scheduling === 'fcfs' ? 'fcfs' : priority;
    const timing = { ...DEFAULT_TIMING, ...options.timing };
    this.kind = kind;
    this.model = model;
    this.seed = seed;
    this.timing = timing;
    this.prefixCache = prefixCache;
    this.routing = options.routing;
    this.ranks = Array.from({ length: ranks }, () => new Rank({ timing, order, prefixCache }));
    const together = new Pump(this.ranks, timing.timeScale);
    this.#pumps = this.ranks.map((rank) =>
      options.lockstep ? together : new Pump([rank], timing.timeScale),
    );
  }

  /** Those of one request, so that they begin together. */
  submit(rank: number, sequences: readonly Sequence[]): void {
    for (const sequence of sequences) this.ranks[rank]!.submit(sequence);
    this.#pumps[rank]!.wake();
  }

  stop(): void {
    for (const pump of this.#pumps) pump.stop();
  }

  pause(): void {
    for (const pump of this.#pumps) pump.pause();
  }

  resume(): void {
    for (const pump of this.#pumps) pump.resume();
  }

  /** The rank of a request without a pin: vLLM's least loaded, from a rotating start; SGLang's next. */
  pick(): number {
    const start = this.#next;
    this.#next = (start + 1) % this.ranks.length;
    if (this.kind === 'sglang') return start;
    const counts = this.#counts();
    const score = (rank: number) => counts[rank]!.waiting * WAITING_WEIGHT + counts[rank]!.running;
    let best = start;
    for (let n = 1; n < counts.length; n++) {
      const rank = (start + n) % counts.length;
      if (score(rank) < score(best)) best = rank;
    }
    counts[best]!.waiting += 1;
    return best;
  }

  #counts(): { waiting: number; running: number }[] {
    const nowMs = performance.now();
    if (nowMs - this.#snapshotMs >= SNAPSHOT_MS / this.timing.timeScale) {
      this.#snapshotMs = nowMs;
      this.#snapshot = this.ranks.map(({ waiting, running }) => ({
        waiting: waiting.length,
        running: running.length,
      }));
    }
    return this.#snapshot;
  }
}
