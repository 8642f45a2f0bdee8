/**
 * Contends for a lease and keeps it: tries at an interval, and takes it for lost once its time is over by the monotonic clock, counted from
 * before the renewal was asked for. So whoever holds it stops before another can win it, whatever the clocks of day say.
 */
import { aboveZero, checkFunction } from '../../checks.js';
import type { Lease } from '../types.js';

export interface LeaseTimes {
  /** For which a renewal holds. Default 15,000. */
  ttlMs?: number;
  /** Between two renewals, or attempts. Default: a fifth of `ttlMs`. */
  renewMs?: number;
}

/** Where a lease is kept. */
export interface LeaseStore {
  /** Wins it where nobody has it: a token greater than all before. Undefined where another has it. */
  acquire(ttlMs: number): Promise<number | undefined>;
  /** False where it is not ours any more. */
  renew(token: number, ttlMs: number): Promise<boolean>;
  release(token: number): Promise<void>;
  close?(): Promise<void>;
}

/** The holder gives up when so much of `ttlMs` is over: what follows belongs to nobody, against clocks of unequal speed. */
const HELD_SHARE = 0.8;

export class KeptLease implements Lease {
  readonly #store: LeaseStore;
  readonly #ttlMs: number;
  readonly #renewMs: number;
  #onChange: (token: number | undefined) => void = () => {};
  #token: number | undefined;
  #endsMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #end: NodeJS.Timeout | undefined;
  #turn: Promise<void> = Promise.resolve();
  #isOpen = false;

  constructor(store: LeaseStore, { ttlMs = 15_000, renewMs = ttlMs / 5 }: LeaseTimes) {
    this.#store = store;
    this.#ttlMs = aboveZero('options.ttlMs', ttlMs);
    this.#renewMs = aboveZero('options.renewMs', renewMs);
  }

  open(onChange: (token: number | undefined) => void): void {
    this.#onChange = checkFunction('onChange', onChange);
    this.#isOpen = true;
    this.#next(0);
  }

  get token(): number | undefined {
    return performance.now() < this.#endsMs ? this.#token : undefined;
  }

  async close(): Promise<void> {
    this.#isOpen = false;
    clearTimeout(this.#timer);
    await this.#turn;
    const token = this.#token;
    if (token !== undefined) {
      // Where that fails it runs out.
      await this.#store.release(token).catch(() => {});
      this.#lose();
    }
    await this.#store.close?.();
  }

  #next(ms: number): void {
    this.#timer = setTimeout(() => {
      this.#turn = this.#contend().then(() => {
        if (this.#isOpen) this.#next(this.#renewMs);
      });
    }, ms);
  }

  async #contend(): Promise<void> {
    const beganMs = performance.now();
    const held = this.#token;
    try {
      const token =
        held === undefined
          ? await this.#store.acquire(this.#ttlMs)
          : (await this.#store.renew(held, this.#ttlMs)) && held;
      if (token === false) this.#lose();
      else if (token !== undefined) this.#hold(token, beganMs);
    } catch {
      // Not knowing is not having lost: it runs out by itself.
    }
  }

  #hold(token: number, beganMs: number): void {
    const endsMs = beganMs + this.#ttlMs * HELD_SHARE;
    // An answer that came too late: another may have it by now.
    if (performance.now() >= endsMs) return;
    const isNew = this.#token !== token;
    this.#endsMs = endsMs;
    this.#token = token;
    clearTimeout(this.#end);
    this.#end = setTimeout(() => this.#lose(), endsMs - performance.now());
    if (isNew) this.#onChange(token);
  }

  #lose(): void {
    clearTimeout(this.#end);
    this.#endsMs = 0;
    if (this.#token === undefined) return;
    this.#token = undefined;
    this.#onChange(undefined);
  }
}
