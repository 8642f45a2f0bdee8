/**
 * One attempt of one request on one engine: sends it, and passes the answer on.
 *
 * A stream is passed on from its first byte. Any other answer is held until it is whole, as long as it is of a usual size, since
 * engines make it in one piece: so an engine that dies half-way through it costs nothing but time. Until a byte has been passed
 * on, the attempt fails without a trace, and the request can be sent elsewhere.
 */
import type { IncomingHttpHeaders, ServerResponse } from 'node:http';
import type { Dispatcher } from 'undici';
import { endWithin } from './answers.js';
import type { Client } from './client.js';
import { answeredHeaders, type HeaderBag } from './headers.js';
import type { RoutedExpertsFilter } from './routing/filter.js';
import { AnswerTail, type EventStripper, type Usage, usageOf } from './usage.js';

/** An answer that is no stream is held up to this size. */
const MOST_HELD_BYTES = 1024 * 1024;

export interface AttemptTimes {
  firstByteMs: number;
  idleMs: number;
  stalledClientMs: number;
}

export interface AttemptOptions {
  dispatcher: Dispatcher;
  origin: string;
  path: string;
  method: Dispatcher.HttpMethod;
  headers: HeaderBag;
  body: Buffer | null;
  response: ServerResponse;
  requestId: string;
  times: AttemptTimes;
  /** Events that the gateway asked for on its own account, and that do not pass. */
  stripper: EventStripper | undefined;
  /** Looks at what engines say of routing, before all else. */
  routed: RoutedExpertsFilter | undefined;
  /** The first event of a stream has come. */
  onFirstToken(): void;
  client: Client;
}

export interface WholeAnswer {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
}

export type Outcome =
  /** All of it has been passed on. */
  | { kind: 'passed'; status: number; usage?: Usage; outputTokens: number }
  /** All of it has come, and nothing has been passed on yet. */
  | { kind: 'held'; answer: WholeAnswer; usage?: Usage }
  /** Nothing has been passed on; or, where it was not even sent, there was no connection. */
  | { kind: 'failed'; reason: string; sent: boolean }
  /** It broke off after a part had been passed on; so the client's connection is broken off too. */
  | { kind: 'broken'; reason: string }
  /** The client has gone, or does not read. */
  | { kind: 'abandoned'; reason: string };

export function attempt(options: AttemptOptions): Promise<Outcome> {
  return new Promise((resolve) => new Attempt(options, resolve).start());
}

class Attempt implements Dispatcher.DispatchHandler {
  readonly #options: AttemptOptions;
  readonly #resolve: (outcome: Outcome) => void;
  readonly #tail = new AnswerTail();
  #controller: Dispatcher.DispatchController | undefined;
  #timer: NodeJS.Timeout;
  #status = 0;
  #headers: IncomingHttpHeaders = {};
  #streams = false;
  #passing = false;
  #paused = false;
  #told = false;
  #settled = false;
  #held: Buffer[] = [];
  #heldBytes = 0;

  constructor(options: AttemptOptions, resolve: (outcome: Outcome) => void) {
    this.#options = options;
    this.#resolve = resolve;
    const { firstByteMs } = options.times;
    this.#timer = setTimeout(() => this.#fail(`no answer within ${firstByteMs} ms`), firstByteMs);
  }

  start(): void {
    const { dispatcher, origin, path, method, headers, body, client } = this.#options;
    if (client.isGone) {
      this.#abandon();
      return;
    }
    client.onGone = () => this.#abandon();
    dispatcher.dispatch({ origin, path, method, headers, body, headersTimeout: 0, bodyTimeout: 0 }, this);
  }

  #abandon(): void {
    this.#settle({ kind: 'abandoned', reason: 'the client has gone' });
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#settled) controller.abort(new Error('settled'));
  }

  onResponseStart(_: Dispatcher.DispatchController, status: number, headers: IncomingHttpHeaders): void {
    // 100 and its like are not passed on.
    if (status < 200) return;
    this.#status = status;
    this.#headers = headers;
    this.#streams = headers['content-type']?.startsWith('text/event-stream') ?? false;
  }

  onResponseData(_: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#settled) return;
    const bytes = this.#options.routed?.push(chunk) ?? chunk;
    if (bytes.length > 0) this.#take(bytes);
    // All of it is taken out, and more may come for long.
    else if (this.#passing && !this.#paused) this.#timer.refresh();
  }

  #take(chunk: Buffer): void {
    if (this.#streams) this.#tail.push(chunk);
    if (this.#passing) {
      this.#pass(chunk);
    } else {
      this.#held.push(chunk);
      this.#heldBytes += chunk.length;
      if (!this.#streams && this.#heldBytes <= MOST_HELD_BYTES) return;
      this.#beginPassing();
    }
    if (this.#told || !this.#streams || this.#tail.events === 0) return;
    this.#told = true;
    this.#options.onFirstToken();
  }

  onResponseEnd(): void {
    if (this.#settled) return;
    const rest = this.#options.routed?.end();
    if (rest !== undefined && rest.length > 0) this.#take(rest);
    if (this.#passing) this.#endPassing();
    else if (this.#streams) this.#fail('a stream without an event');
    else {
      const body = Buffer.concat(this.#held, this.#heldBytes);
      const answer = { status: this.#status, headers: this.#headers, body };
      this.#settle({ kind: 'held', answer, ...present(usageOf(body)) });
    }
  }

  onResponseError(_: Dispatcher.DispatchController, error: Error): void {
    this.#fail(error.message);
  }

  #beginPassing(): void {
    const { response, requestId, times } = this.#options;
    this.#passing = true;
    clearTimeout(this.#timer);
    const { idleMs } = times;
    this.#timer = setTimeout(() => this.#fail(`nothing more for ${idleMs} ms`), idleMs);
    const headers = answeredHeaders(this.#headers, requestId);
    const { stripper, routed } = this.#options;
    if (stripper !== undefined || routed !== undefined) delete headers['content-length'];
    response.writeHead(this.#status, headers);
    for (const chunk of this.#held) this.#pass(chunk);
    this.#held = [];
  }

  #endPassing(): void {
    const { response, times } = this.#options;
    const rest = this.#options.stripper?.end();
    if (rest !== undefined && rest.length > 0) response.write(rest);
    endWithin(response, times.stalledClientMs);
    const usage = this.#tail.usage();
    const outputTokens = usage?.completionTokens ?? this.#tail.events;
    this.#settle({ kind: 'passed', status: this.#status, outputTokens, ...present(usage) });
  }

  #pass(chunk: Buffer): void {
    this.#timer.refresh();
    const bytes = this.#options.stripper?.push(chunk) ?? chunk;
    if (bytes.length === 0 || this.#options.response.write(bytes) || this.#paused) return;
    this.#waitForClient();
  }

  /** The client reads more slowly than the engine writes. */
  #waitForClient(): void {
    const { response, times } = this.#options;
    this.#paused = true;
    this.#controller?.pause();
    clearTimeout(this.#timer);
    const { stalledClientMs, idleMs } = times;
    const why = `the client has read nothing for ${stalledClientMs} ms`;
    this.#timer = setTimeout(() => {
      // Behind another answer of its connection it is not its turn yet.
      if (response.socket === null) this.#timer.refresh();
      else this.#settle({ kind: 'abandoned', reason: why });
    }, stalledClientMs);
    response.once('drain', () => {
      if (this.#settled) return;
      this.#paused = false;
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#fail(`nothing more for ${idleMs} ms`), idleMs);
      this.#controller?.resume();
    });
  }

  #fail(reason: string): void {
    if (this.#passing) this.#settle({ kind: 'broken', reason });
    else this.#settle({ kind: 'failed', reason, sent: this.#controller !== undefined });
  }

  /** Once. Whatever ends it other than the engine's last byte also ends it at the engine. */
  #settle(outcome: Outcome): void {
    if (this.#settled) return;
    this.#settled = true;
    clearTimeout(this.#timer);
    this.#options.client.onGone = undefined;
    const { kind } = outcome;
    if (kind !== 'passed' && kind !== 'held') this.#controller?.abort(new Error(outcome.kind));
    this.#resolve(outcome);
  }
}

function present(usage: Usage | undefined): { usage?: Usage } {
  return usage === undefined ? {} : { usage };
}
