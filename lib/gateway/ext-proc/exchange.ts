/**
 * One HTTP request as it passes through the data plane: messages in, messages out. Where the data plane shows the body before it
 * sends the headers on, the pick waits for the body; else it is made by the headers alone.
 */
import { randomUUID } from 'node:crypto';
import { status as GrpcStatus } from '@grpc/grpc-js';
import { timeOfDay } from '../../dispatch/validate.js';
import type { ApiError } from '../answers.js';
import { BodyTooLongError } from '../body.js';
import { RefusedError } from '../fleet.js';
import { requestIdOf } from '../headers.js';
import { traceOf } from '../log.js';
import { toApiError } from '../proxy.js';
import { NOTHING, TokenEstimator } from '../tokens.js';
import type { Assignment, FleetEngine } from '../types.js';
import { Answer, type AnswerEnd } from './answer.js';
import * as messages from './messages.js';
import { BodyMode, type HttpBody, type ProcessingRequest, type ProcessingResponse } from './protocol.js';
import type { ExtProcParts, RequestFacts } from './types.js';

/** The data plane does not keep to the protocol, or wants what is not here: the stream ends with this gRPC status. */
export class ProtocolError extends Error {
  readonly code: GrpcStatus;

  constructor(message: string, code: GrpcStatus = GrpcStatus.INVALID_ARGUMENT) {
    super(message);
    this.name = 'ProtocolError';
    this.code = code;
  }
}

/** `headers`: nothing has come. `body`: the pick waits for it. `done`: picked, or never to be. `over`: nothing more is said. */
type Phase = 'headers' | 'body' | 'done' | 'over';

/** Of requests that may go to none of our engines: the data plane's list is as of one moment. */
const RETRY_AFTER_SECONDS = 1;
/** For requests whose body is not shown. It learns nothing. */
const SIZE_ALONE = new TokenEstimator();

export class Exchange {
  readonly #parts: ExtProcParts;
  readonly #id = randomUUID();
  readonly #startMs = performance.now();
  #lastMs = this.#startMs;
  #phase: Phase = 'headers';
  #requestMode: number = BodyMode.fullDuplex;
  #responseMode: number = BodyMode.fullDuplex;
  #headers: messages.HeaderRecord = {};
  #subset: ReadonlySet<string> | undefined;
  /** [pieces] Of the body, until the pick. */
  #pieces: Buffer[] = [];
  #bodyBytes = 0;
  /** Aborted when the request needs no engine any more. */
  readonly #leave = new AbortController();
  #answer: Answer | undefined;

  constructor(parts: ExtProcParts) {
    this.#parts = parts;
  }

  get isOver(): boolean {
    return this.#phase === 'over';
  }

  /** How long the next message may take. */
  get patienceMs(): number {
    const { requestMs, firstByteMs, idleMs } = this.#parts.limits;
    if (this.#phase !== 'done') return Math.max(0, this.#startMs + requestMs - performance.now());
    const answer = this.#answer;
    if (answer?.hasHeaders && this.#responseMode === BodyMode.none) return Number.POSITIVE_INFINITY;
    const limitMs = answer !== undefined && !answer.hasHeaders ? firstByteMs : idleMs;
    return Math.max(0, this.#lastMs + limitMs - performance.now());
  }

  /**
   * What the data plane is told, in this order.
   *
   * @throws ProtocolError
   */
  async handle(message: ProcessingRequest): Promise<ProcessingResponse[]> {
    const told = await this.#handle(message);
    this.#lastMs = performance.now();
    return told;
  }

  /** The next message, while another is handled; undefined: there is none. */
  foresee(message: ProcessingRequest | undefined): void {
    // A client that goes away ends the stream. An answer before the pick is the data plane's own.
    if (message === undefined || message.request?.startsWith('response')) this.#leave.abort();
  }

  /** The next message did not come in time. */
  timedOut(): ProcessingResponse[] {
    const waits = this.#phase === 'body';
    this.close();
    if (!waits) return [];
    const message = 'the request did not come in time';
    return this.#refuse({ status: 408, message, type: 'invalid_request_error', code: 'request_timeout' });
  }

  /** The stream has ended, by the data plane or for want of it. */
  close(): void {
    this.#phase = 'over';
    this.#pieces = [];
    this.#leave.abort();
    const answer = this.#answer;
    if (answer === undefined) return;
    // Where bodies are not shown, this is all that is seen of an answer's end; and some data planes cancel whatever has ended.
    if (answer.hasHeaders && this.#responseMode === BodyMode.none) answer.complete();
    else answer.lost();
  }

  async #handle(message: ProcessingRequest): Promise<ProcessingResponse[]> {
    switch (message.request) {
      case 'requestHeaders':
        return this.#onRequestHeaders(message);
      case 'requestBody':
        return this.#onRequestBody(message.requestBody!);
      case 'requestTrailers':
        return this.#onRequestTrailers();
      case 'responseHeaders':
        return this.#onResponseHeaders(message);
      case 'responseBody':
        return this.#onResponseBody(message.responseBody!);
      case 'responseTrailers':
        return this.#onResponseTrailers();
      default:
        throw new ProtocolError('a message without headers, body and trailers');
    }
  }

  async #onRequestHeaders(message: ProcessingRequest): Promise<ProcessingResponse[]> {
    if (this.#phase !== 'headers') throw new ProtocolError('request headers came twice');
    this.#setModes(message);
    const { endOfStream = false } = message.requestHeaders!;
    this.#headers = messages.readHeaders(message.requestHeaders!);
    this.#subset = messages.readSubset(message);
    if (this.#contentLength > this.#parts.limits.bodyBytes)
      return this.#refuseFor(new BodyTooLongError(this.#parts.limits.bodyBytes));
    const isBodyAwaited =
      this.#requestMode === BodyMode.fullDuplex || this.#requestMode === BodyMode.buffered;
    if (endOfStream || !isBodyAwaited)
      return this.#place(this.#factsByHeaders(endOfStream), 'requestHeaders');
    this.#phase = 'body';
    return this.#requestMode === BodyMode.buffered ? [messages.carryOn.requestHeaders] : [];
  }

  #setModes({ protocolConfig, observabilityMode = false }: ProcessingRequest): void {
    if (observabilityMode) {
      throw new ProtocolError(
        'observability_mode: what is picked would not be heeded',
        GrpcStatus.UNIMPLEMENTED,
      );
    }
    // Data planes that say nothing are held to what the protocol demands of them.
    if (protocolConfig === undefined) return;
    const { requestBodyMode = BodyMode.none, responseBodyMode = BodyMode.none } = protocolConfig;
    for (const mode of [requestBodyMode, responseBodyMode]) {
      if (!Object.values<number>(BodyMode).includes(mode)) {
        throw new ProtocolError(`body mode ${mode} is not known here`, GrpcStatus.UNIMPLEMENTED);
      }
    }
    this.#requestMode = requestBodyMode;
    this.#responseMode = responseBodyMode;
  }

  get #contentLength(): number {
    const length = Number(this.#headers['content-length'] ?? 0);
    return Number.isFinite(length) && length > 0 ? length : 0;
  }

  #factsByHeaders(hasNoBody: boolean): RequestFacts {
    const size = { ...NOTHING, asciiBytes: this.#contentLength };
    // Whether the answer streams is in the body.
    return { promptTokens: hasNoBody ? 0 : SIZE_ALONE.estimate('', size), streams: false };
  }

  async #onRequestBody(part: HttpBody): Promise<ProcessingResponse[]> {
    if (this.#phase === 'headers') throw new ProtocolError('a request body came before its headers');
    if (this.#phase === 'done') {
      // The rest of a body by which nothing is picked.
      if (this.#requestMode !== BodyMode.fullDuplex) return [messages.carryOn.requestBody];
      if (this.#answer !== undefined) throw new ProtocolError('a request body came after its end');
      // Nobody sends it on: the data plane has answered by itself.
      return [];
    }
    const { body = Buffer.alloc(0), endOfStream = false } = part;
    this.#bodyBytes += body.length;
    if (this.#bodyBytes > this.#parts.limits.bodyBytes)
      return this.#refuseFor(new BodyTooLongError(this.#parts.limits.bodyBytes));
    this.#pieces.push(body);
    // A buffered body is one message, which is not the stream's end where trailers follow.
    if (this.#requestMode === BodyMode.buffered) return this.#placeByBody('requestBody');
    return endOfStream ? this.#placeByBody('requestHeaders', true) : [];
  }

  async #onRequestTrailers(): Promise<ProcessingResponse[]> {
    if (this.#phase === 'headers') throw new ProtocolError('request trailers came before the headers');
    if (this.#phase === 'done') return [messages.carryOn.requestTrailers];
    if (this.#requestMode === BodyMode.buffered) throw new ProtocolError('request trailers without a body');
    const told = await this.#placeByBody('requestHeaders', false);
    return this.isOver ? told : [...told, messages.carryOn.requestTrailers];
  }

  /** `endsStream` under full duplex, where the body is sent back. */
  async #placeByBody(
    phase: 'requestHeaders' | 'requestBody',
    endsStream?: boolean,
  ): Promise<ProcessingResponse[]> {
    const pieces = this.#pieces;
    this.#pieces = [];
    let facts: RequestFacts;
    try {
      facts = this.#parts.inspect(this.#path, Buffer.concat(pieces), this.#headers);
    } catch (error) {
      return this.#refuseFor(error);
    }
    const told = await this.#place(facts, phase);
    if (this.#answer === undefined || endsStream === undefined) return told;
    const last = pieces.length - 1;
    return [
      ...told,
      ...pieces.flatMap((body, n) =>
        messages.echo('requestBody', { body, endOfStream: endsStream && n === last }),
      ),
    ];
  }

  async #place(facts: RequestFacts, phase: 'requestHeaders' | 'requestBody'): Promise<ProcessingResponse[]> {
    this.#phase = 'done';
    const { picker } = this.#parts;
    let assignment: Assignment;
    try {
      assignment = await this.#acquire(facts);
    } catch (error) {
      return this.#leave.signal.aborted ? [] : this.#refuseFor(error);
    }
    if (this.#leave.signal.aborted) {
      assignment.failed();
      return [];
    }
    this.#answer = new Answer(assignment, this.#startMs, {
      reportFailure: (target, reason) => picker.reportFailure(target, reason),
      reportSuccess: (target) => picker.reportSuccess(target),
      ended: (end) => this.#onEnded(facts, assignment, end),
    });
    return [messages.sendTo(assignment.target, phase)];
  }

  async #acquire(facts: RequestFacts): Promise<Assignment> {
    const { picker } = this.#parts;
    const subset = this.#subset;
    const only = subset && ((target: FleetEngine) => messages.isInSubset(target, subset));
    if (only !== undefined && !picker.targets.some(only)) {
      const why = 'no engine is among the endpoints that the data plane allows';
      throw new RefusedError(503, why, RETRY_AFTER_SECONDS);
    }
    const { model: _model, size: _size, ...needs } = facts;
    const request = { ...needs, id: this.#id, arrivalMs: timeOfDay() };
    // Nobody tells the first token of an answer that is not shown.
    if (this.#responseMode === BodyMode.none) request.streams = false;
    const { signal } = this.#leave;
    return picker.acquire(request, { signal, ...(only === undefined ? {} : { only }) });
  }

  #onResponseHeaders(message: ProcessingRequest): ProcessingResponse[] {
    const { endOfStream = false } = message.responseHeaders!;
    const answer = this.#answering('response headers');
    if (answer !== undefined && this.#isServedAsPicked(answer, messages.readServed(message))) {
      const headers = messages.readHeaders(message.responseHeaders!);
      answer.headers(Number(headers[':status']), headers['content-type'] ?? '');
      if (endOfStream) answer.complete();
    }
    return [messages.carryOn.responseHeaders];
  }

  #onResponseBody(part: HttpBody): ProcessingResponse[] {
    const answer = this.#answering('a response body');
    answer?.body(part.body ?? Buffer.alloc(0));
    if (part.endOfStream) answer?.complete();
    return this.#responseMode === BodyMode.fullDuplex
      ? messages.echo('responseBody', part)
      : [messages.carryOn.responseBody];
  }

  #onResponseTrailers(): ProcessingResponse[] {
    this.#answering('response trailers')?.complete();
    return [messages.carryOn.responseTrailers];
  }

  /** Undefined where the answer is the data plane's own, to a request that went nowhere. */
  #answering(what: string): Answer | undefined {
    if (this.#phase === 'headers') throw new ProtocolError(`${what} came before the request`);
    this.#phase = 'done';
    this.#pieces = [];
    return this.#answer;
  }

  /** The ledger must not hold an engine to account for what another one does. */
  #isServedAsPicked(answer: Answer, served: string | undefined): boolean {
    const picked = messages.endpointOf(answer.target);
    if (served === undefined || served === picked) return true;
    this.#log('warn', { picked, served }, 'the data plane sent the request elsewhere');
    answer.lost();
    return false;
  }

  #refuseFor(error: unknown): ProcessingResponse[] {
    const answer = toApiError(error);
    if (answer.status === 500) this.#log('error', { err: error }, 'internal error');
    return this.#refuse(answer);
  }

  #refuse(error: ApiError): ProcessingResponse[] {
    this.#phase = 'over';
    const { status, message } = error;
    this.#log('info', { status, reason: message });
    this.#parts.events?.refused(this.#path, status, performance.now() - this.#startMs);
    return [messages.refuse(error)];
  }

  #onEnded(facts: RequestFacts, { target, waitedMs }: Assignment, end: AnswerEnd): void {
    const { how, status, firstTokenMs, totalMs } = end;
    this.#log(how === 'finished' ? 'info' : 'warn', {
      status,
      model: facts.model,
      engine: target.name,
      waitedMs: Math.round(waitedMs),
      firstTokenMs: firstTokenMs === undefined ? undefined : Math.round(firstTokenMs),
      totalMs: Math.round(totalMs),
      how,
    });
    this.#parts.events?.ended({ ...end, path: this.#path, facts, target, waitedMs });
  }

  get #path(): string {
    return (this.#headers[':path'] ?? '').split('?', 1)[0]!;
  }

  #log(level: 'info' | 'warn' | 'error', fields: object, message = 'request'): void {
    const { log } = this.#parts;
    if (!log.isLevelEnabled(level)) return;
    const requestId = requestIdOf(this.#headers, () => this.#id);
    log[level]({ requestId, path: this.#path, ...traceOf(this.#headers.traceparent), ...fields }, message);
  }
}
