/**
 * The way of a request through the gateway: read, look at, get an engine, send, pass the answer on; and again with another engine
 * where one fails before anything was passed on.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Dispatcher } from 'undici';
import { enginePriority } from '../dispatch/request-queue.js';
import { timeOfDay } from '../dispatch/validate.js';
import { GimbalError } from '../errors.js';
import type { AffinityKey } from './affinity.js';
import { type ApiError, endWithin, sendError } from './answers.js';
import { type AttemptOptions, attempt, type Outcome, type WholeAnswer } from './attempt.js';
import { BodyTooLongError, readBody } from './body.js';
import { Client } from './client.js';
import type { GatewayConfig } from './config.js';
import { type Fleet, RefusedError } from './fleet.js';
import { answeredHeaders, forwardedHeaders, type HeaderBag, PIN_HEADER, requestIdOf } from './headers.js';
import { type InferencePath, type Inspected, inspect } from './inspect.js';
import { type Logger, traceOf } from './log.js';
import type { GatewayMetrics } from './metrics.js';
import { RoutedExpertsFilter } from './routing/filter.js';
import type { Capture, RoutingSampler } from './routing/sampler.js';
import type { TokenEstimator } from './tokens.js';
import type { Assignment, FleetEngine, FleetRequest, FleetServer } from './types.js';
import {
  askForRouting,
  askForUsage,
  EventStripper,
  stripEmptied,
  stripUsage,
  type Usage,
  withPriority,
} from './usage.js';

/** The engine, or what stands before it, cannot take the request now; another may. */
const UNAVAILABLE: readonly number[] = [502, 503, 504];
/** The same request may fare better elsewhere. 429 is no failure of the engine, and 500 may be the request's fault. */
const WORTH_ANOTHER: readonly number[] = [429, 500, ...UNAVAILABLE];
const LOST_STATUS = 502;
const ERRORS_FROM = 400;
/** Whose answers may say where tokens were routed. */
const ROUTED_PATHS: readonly InferencePath[] = ['/v1/chat/completions', '/v1/completions'];
/** In ASCII; what is not above it is space to JSON, or not JSON at all. */
const SPACE = 0x20;
const [OPENING_BRACE, CLOSING_BRACE] = [0x7b, 0x7d];
/** A server that takes longer for a list is not asked for it. */
const MODELS_MS = 2000;

export interface ProxyParts {
  fleet: Fleet;
  dispatcher: Dispatcher;
  metrics: GatewayMetrics;
  tokens: TokenEstimator;
  /** Missing where nobody wants to know where tokens are routed. */
  routing: RoutingSampler | undefined;
  log: Logger;
  /** What a request's experts are learned by; missing where nobody learns them. */
  affinityKey: AffinityKey | undefined;
  /** Whether clients' authorization is the gateway's, and so is not passed on. */
  checksKeys(): boolean;
  /** In [0, 1): which streams are asked for their usage. */
  draw(): number;
}

export class InferenceProxy {
  readonly #parts: ProxyParts;
  config: GatewayConfig;
  #requests = 0;
  readonly #startMs = timeOfDay();
  /** Sets the ids of one process apart from those of others. */
  readonly #prefix = Math.floor(Math.random() * 2 ** 32).toString(36);

  constructor(config: GatewayConfig, parts: ProxyParts) {
    this.config = config;
    this.#parts = parts;
  }

  /** Never rejects: whatever goes wrong is answered, or breaks the connection off. */
  async serve(request: IncomingMessage, response: ServerResponse, path: InferencePath): Promise<void> {
    this.#requests += 1;
    const id = `${this.#prefix}-${this.#requests}`;
    const exchange = new Exchange(this.#parts, this.config, this.#startMs, { request, response, path, id });
    try {
      await exchange.run();
    } catch (error) {
      exchange.fail(error);
    }
  }

  /** What models there are, by the first server that says so. */
  async serveModels(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { fleet, dispatcher, checksKeys } = this.#parts;
    const client = new Client(response);
    const requestId = requestIdOf(request.headers, () => `${this.#prefix}-models`);
    const servers = new Set(fleet.targets.map(({ server }) => server));
    for (const server of servers) {
      const { origin, path } = addressOf(server, '/v1/models');
      const headers = headersFor(request, requestId, server, checksKeys());
      const outcome = await attempt({
        dispatcher,
        origin,
        path,
        method: 'GET',
        headers,
        body: null,
        response,
        requestId,
        times: { ...this.config.limits, firstByteMs: MODELS_MS },
        stripper: undefined,
        routed: undefined,
        onFirstToken: () => undefined,
        client,
      });
      if (outcome.kind === 'passed' || client.isGone) return;
      if (outcome.kind === 'broken' || outcome.kind === 'abandoned') {
        response.destroy();
        return;
      }
      if (outcome.kind !== 'held' || outcome.answer.status !== 200 || isGarbage(outcome.answer)) continue;
      sendWhole(response, outcome.answer, requestId, this.config.limits.stalledClientMs);
      return;
    }
    const message = 'no server told its models';
    sendError(response, { status: LOST_STATUS, message, type: 'server_error', code: 'engine_failed' });
  }
}

interface Call {
  request: IncomingMessage;
  response: ServerResponse;
  path: InferencePath;
  id: string;
}

/** One request of a client. */
class Exchange {
  readonly #parts: ProxyParts;
  readonly #config: GatewayConfig;
  readonly #startMs: number;
  readonly #call: Call;
  readonly #requestId: string;
  readonly #arrivalMs = timeOfDay();
  readonly #began = performance.now();
  readonly #client: Client;
  #firstTokenMs: number | undefined;
  #attempts = 0;
  #model = '';
  /** What the attempt under way says of routing, where it is to be counted. */
  #capture: Capture | undefined;

  constructor(parts: ProxyParts, config: GatewayConfig, startMs: number, call: Call) {
    this.#parts = parts;
    this.#config = config;
    this.#startMs = startMs;
    this.#call = call;
    this.#requestId = requestIdOf(call.request.headers, () => call.id);
    this.#client = new Client(call.response);
  }

  #log(level: 'info' | 'warn' | 'error', fields: object, message = 'request'): void {
    const { log } = this.#parts;
    if (!log.isLevelEnabled(level)) return;
    const { path, request } = this.#call;
    const trace = traceOf(request.headers.traceparent as string | undefined);
    log[level]({ requestId: this.#requestId, path, ...trace, ...fields }, message);
  }

  async run(): Promise<void> {
    const { request, path } = this.#call;
    const body = await readBody(request, this.#config.limits.bodyBytes);
    const inspected = inspect(path, body, request.headers, this.#config.sessionHeader);
    this.#model = inspected.model;
    const { tokens } = this.#parts;
    const { size, streams, sessionKey, promptTokenIds, prefixHashes } = inspected;
    const affinityKey = this.#parts.affinityKey?.(request.headers, sessionKey);
    const wanted: FleetRequest = {
      id: this.#call.id,
      promptTokens: tokens.estimate(inspected.model, size),
      streams,
      prefixHashes,
      arrivalMs: this.#arrivalMs,
      ...(sessionKey === undefined ? {} : { sessionKey }),
      ...(affinityKey === undefined ? {} : { affinityKey }),
      ...(promptTokenIds === undefined ? {} : { promptTokenIds }),
    };
    await this.#untilAnswered(wanted, inspected, body);
  }

  async #untilAnswered(wanted: FleetRequest, inspected: Inspected, body: Buffer): Promise<void> {
    const { fleet } = this.#parts;
    const tried: FleetEngine[] = [];
    // Of an engine that has answered, in case no other takes the request.
    let last: (() => void) | undefined;
    for (;;) {
      const assignment =
        fleet.acquireNow(wanted, { excluding: tried }) ??
        (await this.#wait(wanted, tried, last !== undefined));
      if (assignment === undefined) return last?.();
      const outcome = await this.#attempt(assignment, wanted, inspected, body);
      if (wasSent(outcome)) this.#attempts += 1;
      const verdict = this.#judge(outcome, assignment, tried);
      this.#settle(assignment, outcome, verdict);
      const { target } = assignment;
      const finish = () => this.#finish(outcome, assignment, wanted, inspected);
      if (verdict !== 'again') {
        finish();
        this.#countRouting(outcome, assignment, wanted);
        return;
      }
      this.#countRouting(undefined, assignment, wanted);
      if (outcome.kind === 'held' && !isGarbage(outcome.answer)) last = finish;
      tried.push(target);
      this.#parts.metrics.retried();
      this.#log('warn', { engine: target.name, reason: reasonOf(outcome) }, 'sent to another engine');
    }
  }

  /** For an engine; undefined where none takes a request that has an answer, though one to better. */
  async #wait(
    wanted: FleetRequest,
    excluding: readonly FleetEngine[],
    hasAnswer: boolean,
  ): Promise<Assignment | undefined> {
    try {
      return await this.#parts.fleet.wait(wanted, { signal: this.#client.signal, excluding });
    } catch (error) {
      if (hasAnswer && error instanceof RefusedError) return undefined;
      throw error;
    }
  }

  async #attempt(
    assignment: Assignment,
    wanted: FleetRequest,
    inspected: Inspected,
    body: Buffer,
  ): Promise<Outcome> {
    const { server, rank } = assignment.target;
    const { request, response } = this.#call;
    const { origin, path } = addressOf(server, this.#call.path);
    const draws = this.#drawsRouting(inspected);
    this.#capture = draws ? this.#parts.routing!.capture(assignment.target) : undefined;
    const { sent, stripper } = this.#bodyFor(server.kind, wanted, inspected, body);
    const headers = headersFor(request, this.#requestId, server, this.#parts.checksKeys());
    if (server.pins) headers[PIN_HEADER] = String(rank);
    const options: AttemptOptions = {
      dispatcher: this.#parts.dispatcher,
      origin,
      path,
      method: 'POST',
      headers,
      body: sent,
      response,
      requestId: this.#requestId,
      times: this.#config.limits,
      stripper,
      routed: this.#filterFor(inspected),
      onFirstToken: () => this.#onFirstToken(assignment),
      client: this.#client,
    };
    return attempt(options);
  }

  #drawsRouting({ routedExperts }: Inspected): boolean {
    const { routing } = this.#parts;
    if (routing === undefined || !ROUTED_PATHS.includes(this.#call.path)) return false;
    // Where a client wants some tokens, which ones it were cannot be told from the answer.
    return routedExperts !== 'some' && routing.draws(this.#requestId);
  }

  #filterFor({ routedExperts }: Inspected): RoutedExpertsFilter | undefined {
    if (this.#parts.routing === undefined) return undefined;
    const strips = routedExperts === 'none';
    const text = this.#capture;
    if (!strips && text === undefined) return undefined;
    return new RoutedExpertsFilter({ strips, ...(text === undefined ? {} : { text }) });
  }

  /** The client's body, save for what the gateway is told to ask for. */
  #bodyFor(
    kind: 'vllm' | 'sglang',
    { promptTokens }: FleetRequest,
    { streams, streamOptions, hasPriority, routedExperts }: Inspected,
    body: Buffer,
  ): { sent: Buffer; stripper: EventStripper | undefined } {
    const { path } = this.#call;
    const { usageShare, enginePriority: setsPriority, queue } = this.#config;
    const isAskable = streams && streamOptions === 'none' && path !== '/v1/responses';
    const stripsUsage = isAskable && this.#parts.draw() < usageShare;
    // vLLM says it without being asked, and SGLang only then.
    const asksRouting = this.#capture !== undefined && kind === 'sglang' && routedExperts === 'none';
    let sent = stripsUsage ? askForUsage(body) : body;
    if (asksRouting) sent = askForRouting(sent);
    if (setsPriority && !hasPriority) {
      const ranked = { prefillTokens: promptTokens, arrivalMs: this.#arrivalMs };
      const { agingTokensPerSecond } = queue;
      sent = withPriority(
        sent,
        enginePriority(ranked, kind, { sinceMs: this.#startMs, agingTokensPerSecond }),
      );
    }
    return { sent, stripper: stripperOf(stripsUsage, asksRouting && streams) };
  }

  #onFirstToken(assignment: Assignment): void {
    assignment.firstToken();
    this.#firstTokenMs = performance.now() - this.#began;
    this.#parts.metrics.firstToken(this.#firstTokenMs);
  }

  /** Whether to try another engine. */
  #judge(outcome: Outcome, { target }: Assignment, tried: readonly FleetEngine[]): 'again' | 'over' {
    const { retries, queue } = this.#config;
    if (this.#client.isGone) return 'over';
    // Where there was no connection, it is as if the engine had no room.
    if (!wasSent(outcome)) return performance.now() - this.#began < queue.maxWaitMs ? 'again' : 'over';
    if (this.#attempts > retries) return 'over';
    if (outcome.kind === 'failed') return 'again';
    if (outcome.kind !== 'held') return 'over';
    if (isGarbage(outcome.answer)) return 'again';
    if (!WORTH_ANOTHER.includes(outcome.answer.status)) return 'over';
    // The engine has given an answer; the same one would most likely give it again. It gets no request while its server stands
    // aside, so then the others can be waited for; else they must be there.
    const { fleet } = this.#parts;
    const standsAside = isUnavailable(outcome.answer);
    const isNew = (engine: FleetEngine) =>
      engine !== target && !tried.includes(engine) && (standsAside || fleet.serves(engine));
    return fleet.targets.some(isNew) ? 'again' : 'over';
  }

  /** The ledger and the health of the engine. */
  #settle(assignment: Assignment, outcome: Outcome, verdict: 'again' | 'over'): void {
    const { fleet } = this.#parts;
    const { target } = assignment;
    const isAnswer = outcome.kind === 'passed' || outcome.kind === 'held';
    const isBroken = outcome.kind === 'failed' || outcome.kind === 'broken';
    if (isAnswer && verdict === 'over') assignment.finished();
    else assignment.failed();
    if (isBroken) fleet.reportFailure(target, outcome.reason);
    else if (outcome.kind === 'held' && (isGarbage(outcome.answer) || isUnavailable(outcome.answer))) {
      fleet.reportFailure(target, reasonOf(outcome));
    } else if (isAnswer) fleet.reportSuccess(target);
  }

  /** Behind the answer; of an attempt that failed nothing is counted. */
  #countRouting(outcome: Outcome | undefined, { target }: Assignment, { affinityKey }: FleetRequest): void {
    const capture = this.#capture;
    this.#capture = undefined;
    if (capture === undefined) return;
    const isAnswer = outcome?.kind === 'passed' || outcome?.kind === 'held';
    if (isAnswer && statusOf(outcome) < ERRORS_FROM) {
      this.#parts.routing!.count(capture, target, outcome.usage?.cachedTokens ?? 0, affinityKey);
    } else capture.release();
  }

  #finish(outcome: Outcome, assignment: Assignment, wanted: FleetRequest, inspected: Inspected): void {
    const { response } = this.#call;
    switch (outcome.kind) {
      case 'held':
        if (isGarbage(outcome.answer)) {
          this.#lost(assignment, reasonOf(outcome));
          break;
        }
        sendWhole(response, outcome.answer, this.#requestId, this.#config.limits.stalledClientMs);
        this.#learn(outcome.usage, wanted, inspected);
        this.#end(assignment, outcome.answer.status, outcome.usage?.completionTokens ?? 0);
        break;
      case 'passed':
        this.#learn(outcome.usage, wanted, inspected);
        this.#end(assignment, outcome.status, outcome.outputTokens);
        break;
      case 'failed':
        this.#lost(assignment, outcome.reason);
        break;
      case 'broken':
        this.#parts.metrics.broken();
        response.destroy();
        this.#end(assignment, 0, 0, outcome.reason);
        break;
      case 'abandoned':
        response.destroy();
        this.#end(assignment, 0, 0, outcome.reason);
    }
  }

  /** Every attempt has failed. */
  #lost(assignment: Assignment, reason: string): void {
    const message = `no engine answered; the last one: ${reason}`;
    this.#answer({ status: LOST_STATUS, message, type: 'server_error', code: 'engine_failed' });
    this.#end(assignment, LOST_STATUS, 0, reason);
  }

  #learn(usage: Usage | undefined, wanted: FleetRequest, { model, size }: Inspected): void {
    this.#parts.metrics.computed(wanted.promptTokens, usage);
    if (usage === undefined) return;
    this.#parts.tokens.learn(model, size, usage.promptTokens);
    this.#parts.metrics.counted(wanted.promptTokens, usage);
  }

  #end({ target, waitedMs }: Assignment, status: number, outputTokens: number, reason?: string): void {
    const totalMs = performance.now() - this.#began;
    const firstTokenMs = this.#firstTokenMs;
    this.#parts.metrics.answered(this.#call.path, status, totalMs, outputTokens, firstTokenMs);
    this.#log(reason === undefined ? 'info' : 'warn', {
      status,
      model: this.#model,
      engine: target.name,
      attempts: this.#attempts,
      waitedMs: Math.round(waitedMs),
      firstTokenMs: firstTokenMs === undefined ? undefined : Math.round(firstTokenMs),
      totalMs: Math.round(totalMs),
      outputTokens,
      reason,
    });
  }

  /** What never reached an engine. */
  fail(error: unknown): void {
    const { metrics } = this.#parts;
    const { path, response } = this.#call;
    if (this.#client.isGone || response.destroyed) {
      metrics.ended(path, 0, performance.now() - this.#began);
      this.#log('info', { reason: 'the client has gone' });
      return;
    }
    const answer = toApiError(error);
    if (answer.status === 500) this.#log('error', { err: error }, 'internal error');
    else this.#log('info', { status: answer.status, reason: answer.message });
    if (error instanceof RefusedError) metrics.refused(error.status);
    metrics.ended(path, answer.status, performance.now() - this.#began);
    this.#answer(answer);
  }

  #answer(error: ApiError): void {
    const headers = { 'x-request-id': this.#requestId, ...error.headers };
    sendError(this.#call.response, { ...error, headers });
  }
}

function headersFor(
  { headers, socket }: IncomingMessage,
  requestId: string,
  server: FleetServer,
  dropsAuthorization: boolean,
): HeaderBag {
  return forwardedHeaders(headers, {
    requestId,
    clientAddress: socket.remoteAddress,
    secure: 'encrypted' in socket,
    dropsAuthorization,
    extra: server.headers,
  });
}

function addressOf(server: FleetServer, path: string): { origin: string; path: string } {
  const { origin, pathname } = new URL(server.url);
  return { origin, path: pathname === '/' ? path : `${pathname}${path}` };
}

function sendWhole(
  response: ServerResponse,
  { status, headers, body }: WholeAnswer,
  requestId: string,
  stalledClientMs: number,
): void {
  response.writeHead(status, { ...answeredHeaders(headers, requestId), 'content-length': body.length });
  endWithin(response, stalledClientMs, body);
}

export function toApiError(error: unknown): ApiError {
  if (error instanceof RefusedError) {
    const { status, message, retryAfterSeconds } = error;
    const headers = { 'retry-after': String(retryAfterSeconds) };
    return status === 429
      ? { status, message, type: 'rate_limit_error', code: 'queue_full', headers }
      : { status, message, type: 'server_error', code: 'no_engine', headers };
  }
  if (error instanceof BodyTooLongError) {
    return { status: 413, message: error.message, type: 'invalid_request_error', code: 'body_too_long' };
  }
  if (error instanceof GimbalError && error.code === 'GIMBAL_FORMAT') {
    return { status: 400, message: error.message, type: 'invalid_request_error', code: 'invalid_body' };
  }
  return { status: 500, message: 'internal error of the gateway', type: 'server_error', code: 'internal' };
}

function wasSent(outcome: Outcome): boolean {
  return outcome.kind !== 'failed' || outcome.sent;
}

function reasonOf(outcome: Outcome): string {
  if (outcome.kind === 'held') {
    return isGarbage(outcome.answer) ? 'an answer that is none' : `status ${outcome.answer.status}`;
  }
  return outcome.kind === 'passed' ? '' : outcome.reason;
}

function isUnavailable({ status }: WholeAnswer): boolean {
  return UNAVAILABLE.includes(status);
}

function statusOf(outcome: Outcome & { kind: 'passed' | 'held' }): number {
  return outcome.kind === 'passed' ? outcome.status : outcome.answer.status;
}

function stripperOf(usage: boolean, emptied: boolean): EventStripper | undefined {
  if (usage && emptied) return new EventStripper((event) => stripEmptied(stripUsage(event)));
  if (usage) return new EventStripper(stripUsage);
  return emptied ? new EventStripper(stripEmptied) : undefined;
}

/** Success in words that no engine uses: a page of something else, or JSON that is cut off. */
function isGarbage({ status, headers, body }: WholeAnswer): boolean {
  if (status !== 200) return false;
  const type = headers['content-type'] ?? '';
  if (type.startsWith('text/html')) return true;
  if (!type.startsWith('application/json')) return false;
  let [first, last] = [0, body.length - 1];
  while (last >= 0 && body[last]! <= SPACE) last -= 1;
  while (first < last && body[first]! <= SPACE) first += 1;
  return last <= first || body[last] !== CLOSING_BRACE || body[first] !== OPENING_BRACE;
}
