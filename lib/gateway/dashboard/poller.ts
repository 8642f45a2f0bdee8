/** Asks for the state again and again, one question at a time: each second while answers come, ever later while they do not. */
import { backoff, type Pace } from '../../telemetry/pace.js';

export const PACE: Pace = { intervalMs: 1000, maxBackoffMs: 10_000, jitter: 0.1 };
export const TIMEOUT_MS = 5000;

export interface PollerOptions {
  /** Rejects where there is no answer, or one that cannot be used; when the signal aborts, with its reason. */
  ask(signal: AbortSignal): Promise<void>;
  /** Why the last question has failed, and how many have in a row. */
  onFailure(reason: string, failures: number): void;
  /** Of the jitter. Default `Math.random`. */
  draw?: () => number;
}

export class Poller {
  readonly #options: PollerOptions;
  #failures = 0;
  /** The question under way; missing between questions and while stopped. */
  #question: AbortController | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #running = false;

  constructor(options: PollerOptions) {
    this.#options = options;
  }

  /** Asks at once. */
  start(): void {
    if (this.#running) return;
    this.#running = true;
    void this.#ask();
  }

  /** What is under way is dropped, its end not told. */
  stop(): void {
    this.#running = false;
    clearTimeout(this.#timer);
    this.#question?.abort();
    this.#question = undefined;
  }

  /** Asks at once where a back-off would wait, e.g. since the network is back. */
  hurry(): void {
    if (!this.#running || this.#question !== undefined) return;
    clearTimeout(this.#timer);
    void this.#ask();
  }

  async #ask(): Promise<void> {
    const question = new AbortController();
    this.#question = question;
    const late = new Error(`no answer within ${TIMEOUT_MS / 1000} s`);
    const timeout = setTimeout(() => question.abort(late), TIMEOUT_MS);
    const failure = await this.#options.ask(question.signal).then(
      () => undefined,
      (error: unknown) => (error instanceof Error ? error.message : String(error)),
    );
    clearTimeout(timeout);
    if (this.#question !== question) return;
    this.#question = undefined;
    this.#failures = failure === undefined ? 0 : this.#failures + 1;
    if (failure !== undefined) this.#options.onFailure(failure, this.#failures);
    const draw = this.#options.draw ?? Math.random;
    const waitMs = failure === undefined ? PACE.intervalMs : backoff(PACE, this.#failures, draw);
    this.#timer = setTimeout(() => void this.#ask(), waitMs);
  }
}
