/**
 * The state while the controller runs: in memory, and on disk at every step. What is about to happen is written before it happens;
 * what has happened is taken over at once and written again and again until that works, and nothing new is begun before.
 *
 * Times of day are only kept; how long ago something was is measured by the monotonic clock. At the start a time of day that lies in
 * the future counts as now.
 */
import { GimbalError } from '../errors.js';
import { type Change, type KeptState, readState, writeState } from './state.js';
import type { ControllerClock, DecisionRecord } from './types.js';

/** Records that are kept, newest first. */
const MOST_RECORDS = 100;

/** Not a failure: somebody else acts now. */
export class LeaseLost extends GimbalError {
  constructor(received: string) {
    const expected = 'the lease';
    super('GIMBAL_IO', `lease: expected ${expected} but received ${received}`, {
      field: 'lease',
      expected,
      received,
    });
  }
}

export class Keeper {
  readonly #path: string;
  readonly #clock: ControllerClock;
  readonly #token: () => number;
  readonly #isReadOnly: boolean;
  #state: KeptState;
  #isWritten = false;
  #committedMs: number | undefined;
  #failedMs: number | undefined;

  /** @param token of the lease; throws LeaseLost where it is not held */
  constructor(
    path: string,
    state: KeptState,
    clock: ControllerClock,
    token: () => number,
    isReadOnly: boolean,
  ) {
    this.#path = path;
    this.#isReadOnly = isReadOnly;
    this.#state = state;
    this.#clock = clock;
    this.#token = token;
    const since = (atMs: number) => clock.monotonicMs() - Math.max(0, clock.wallMs() - atMs);
    const { committed, history, failedAtMs } = state;
    if (history.length > 0) this.#committedMs = since(committed.atMs);
    if (failedAtMs !== undefined) this.#failedMs = since(failedAtMs);
  }

  get state(): KeptState {
    return this.#state;
  }

  /** As `decide` takes it, by the monotonic clock. */
  get history() {
    const { committed, failures } = this.#state;
    return {
      failures,
      ...(this.#committedMs !== undefined && { committedAtMs: this.#committedMs }),
      ...(committed.score !== undefined && { committedScore: committed.score }),
      ...(this.#failedMs !== undefined && { failedAtMs: this.#failedMs }),
    };
  }

  get planAgeMs(): number {
    const since = this.#committedMs;
    if (since !== undefined) return this.#clock.monotonicMs() - since;
    return Math.max(0, this.#clock.wallMs() - this.#state.committed.atMs);
  }

  nextPlanId(): string {
    return `${this.#state.series}-${this.#state.lastPlan + 1}`;
  }

  /** Writes what is about to happen. Throws, and changes nothing, where that fails. */
  async announce(patch: Partial<KeptState>): Promise<void> {
    await this.#write({ ...this.#state, ...patch });
  }

  /** Takes over what has happened, and writes it now or at the next `flush`. */
  async record(patch: Partial<KeptState>): Promise<void> {
    this.#state = { ...this.#state, ...patch };
    this.#isWritten = false;
    await this.#flushOrLater();
  }

  /** Throws while what has happened cannot be written. */
  async flush(): Promise<void> {
    if (!this.#isWritten) await this.#write(this.#state);
  }

  async committed(change: Change): Promise<void> {
    const { planId, placement, gpus, slotsPerGpu, deadGpus, score, migrations, gainShare } = change;
    const atMs = this.#clock.wallMs();
    this.#committedMs = this.#clock.monotonicMs();
    this.#failedMs = undefined;
    await this.record({
      committed: {
        planId,
        placement,
        gpus,
        slotsPerGpu,
        deadGpus,
        atMs,
        ...(score !== undefined && { score }),
      },
      history: [{ planId, atMs, migrations, gainShare }, ...this.#state.history].slice(0, MOST_RECORDS),
      change: undefined,
      failures: 0,
      failedAtMs: undefined,
    });
  }

  async failed(patch: Partial<KeptState> = {}): Promise<void> {
    this.#failedMs = this.#clock.monotonicMs();
    const failures = this.#state.failures + 1;
    await this.record({ ...patch, failures, failedAtMs: this.#clock.wallMs() });
  }

  /** Other GPUs are dead than before. What failed before that says nothing of a plan for them. */
  async sawGpus(deadGpus: number[]): Promise<void> {
    this.#failedMs = undefined;
    await this.record({ deadGpus, failures: 0, failedAtMs: undefined });
  }

  /** Takes over what a look came to; what was only looked at is not worth a write. */
  async note(record: DecisionRecord): Promise<void> {
    const decisions = [record, ...this.#state.decisions].slice(0, MOST_RECORDS);
    this.#state = { ...this.#state, decisions };
    if (record.decision !== 'kept') this.#isWritten = false;
    await this.#flushOrLater();
  }

  async #flushOrLater(): Promise<void> {
    await this.flush().catch((error) => {
      if (error instanceof LeaseLost) throw error;
    });
  }

  async #write(state: KeptState): Promise<void> {
    const fencingToken = this.#token();
    const next = { ...state, fencingToken };
    if (this.#isReadOnly) {
      this.#state = next;
      return;
    }
    const there = await readState(this.#path, state);
    if (there !== undefined && there.fencingToken > fencingToken) {
      throw new LeaseLost(
        `state that was written under token ${there.fencingToken}, after ours of ${fencingToken}`,
      );
    }
    await writeState(this.#path, next);
    this.#state = next;
    this.#isWritten = true;
  }
}
