/** The requests of a simulation as columns, `[requests]` each: a million of them are a few hundred MB in all. */
import type { SimulatedRequest } from './types.js';

export class RequestColumns {
  readonly count: number;
  readonly arrivalMs: Float64Array;
  readonly inputTokens: Int32Array;
  readonly outputTokens: Int32Array;
  readonly profile: Int32Array;
  readonly engine: Int32Array;
  /** The engine it is bound to, or −1. */
  readonly home: Int32Array;
  /** NaN until it happens. */
  readonly firstTokenMs: Float64Array;
  readonly finishMs: Float64Array;
  /** Tokens whose prefill is needed: the prompt, and after a preemption what had been generated too. */
  readonly prefillTokens: Int32Array;
  /** Of these, computed or found. */
  readonly prefilled: Int32Array;
  /** Tokens that the user has. */
  readonly generated: Int32Array;
  /** Private KV blocks. */
  readonly blocks: Int32Array;
  /** While it decodes: the engine's tick at which it began, and with how many tokens in the KV cache. Else −1. */
  readonly sinceTick: Int32Array;
  readonly sinceContext: Int32Array;
  /** How often it was admitted: tells a place in a list that is out of date. */
  readonly admissions: Int32Array;
  readonly #trace: readonly SimulatedRequest[];
  readonly #held = new Map<number, number[]>();

  constructor(trace: readonly SimulatedRequest[]) {
    const count = trace.length;
    this.#trace = trace;
    this.count = count;
    this.arrivalMs = Float64Array.from(trace, ({ arrivalMs }) => arrivalMs);
    this.inputTokens = Int32Array.from(trace, ({ inputTokens }) => inputTokens);
    this.outputTokens = Int32Array.from(trace, ({ outputTokens }) => outputTokens);
    this.profile = new Int32Array(count);
    this.engine = new Int32Array(count).fill(-1);
    this.home = new Int32Array(count).fill(-1);
    this.firstTokenMs = new Float64Array(count).fill(Number.NaN);
    this.finishMs = new Float64Array(count).fill(Number.NaN);
    this.prefillTokens = this.inputTokens.slice();
    this.prefilled = new Int32Array(count);
    this.generated = new Int32Array(count);
    this.blocks = new Int32Array(count);
    this.sinceTick = new Int32Array(count).fill(-1);
    this.sinceContext = new Int32Array(count);
    this.admissions = new Int32Array(count);
  }

  hashes(id: number): readonly number[] | undefined {
    return this.#trace[id]!.prefixHashes;
  }

  /** Shared blocks that the request holds, by hash. */
  held(id: number): number[] {
    let list = this.#held.get(id);
    if (list === undefined) {
      list = [];
      this.#held.set(id, list);
    }
    return list;
  }

  takeHeld(id: number): number[] {
    const list = this.#held.get(id) ?? [];
    this.#held.delete(id);
    return list;
  }
}
