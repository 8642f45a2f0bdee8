/** An engine's answer as the data plane shows it, and what the ledger is told of it: once that it has ended. */
import type { Assignment, FleetEngine } from '../types.js';
import { AnswerTail, type Usage } from '../usage.js';

/** How it went. Times are from the request on. */
export interface AnswerEnd {
  how: 'finished' | 'failed';
  /** Of HTTP; missing where no answer came. */
  status?: number;
  /** Missing where the answer did not say. */
  usage?: Usage;
  /** Of a stream: about as many as output tokens. */
  events: number;
  /** Of a stream; missing where none came. */
  firstTokenMs?: number;
  totalMs: number;
}

export interface AnswerListener {
  reportFailure(target: FleetEngine, reason: string): void;
  reportSuccess(target: FleetEngine): void;
  ended(end: AnswerEnd): void;
}

/** The data plane found no connection to the server, or the server says that it cannot serve. A 504 may be a long answer's. */
const UNAVAILABLE: readonly number[] = [502, 503];

export class Answer {
  readonly #assignment: Assignment;
  readonly #startMs: number;
  readonly #listener: AnswerListener;
  readonly #tail = new AnswerTail();
  #status: number | undefined;
  #streams = false;
  #firstTokenMs: number | undefined;
  #ended = false;

  /** @param startMs when the request came, by the monotonic clock */
  constructor(assignment: Assignment, startMs: number, listener: AnswerListener) {
    this.#assignment = assignment;
    this.#startMs = startMs;
    this.#listener = listener;
  }

  get target(): FleetEngine {
    return this.#assignment.target;
  }

  get hasHeaders(): boolean {
    return this.#status !== undefined;
  }

  headers(status: number, contentType: string): void {
    this.#status = status;
    this.#streams = contentType.startsWith('text/event-stream');
    if (UNAVAILABLE.includes(status)) this.#listener.reportFailure(this.target, `status ${status}`);
    else this.#listener.reportSuccess(this.target);
  }

  body(chunk: Buffer): void {
    this.#tail.push(chunk);
    if (this.#firstTokenMs !== undefined || this.#events === 0) return;
    this.#firstTokenMs = this.#sinceStartMs;
    this.#assignment.firstToken();
  }

  /** The whole answer has passed. */
  complete(): void {
    this.#end(this.#status !== undefined && this.#status >= 500 ? 'failed' : 'finished');
  }

  /** Nothing more of it will be seen. */
  lost(): void {
    this.#end('failed');
  }

  get #events(): number {
    return this.#streams ? this.#tail.events : 0;
  }

  get #sinceStartMs(): number {
    return performance.now() - this.#startMs;
  }

  #end(how: 'finished' | 'failed'): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#assignment[how]();
    const usage = this.#tail.usage();
    this.#listener.ended({
      how,
      events: this.#events,
      totalMs: this.#sinceStartMs,
      ...(this.#status === undefined ? {} : { status: this.#status }),
      ...(usage === undefined ? {} : { usage }),
      ...(this.#firstTokenMs === undefined ? {} : { firstTokenMs: this.#firstTokenMs }),
    });
  }
}
