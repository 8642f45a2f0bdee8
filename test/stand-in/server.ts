/**
 * A stand-in for an engine's server: vLLM's or SGLang's HTTP over the timing model of rank.ts, for tests and benches.
 *
 *     const engine = await StandIn.start({ kind: 'vllm', ranks: 2, timing: { timeScale: 20 } });
 *     engine.fault({ kind: 'die', after: 3 });              // the next POST ends in a destroyed socket after three events
 *     engine.fault({ kind: 'hang', after: 'request' }, { times: Infinity, when: ({ path }) => path === '/metrics' });
 *     engine.pause(); … engine.resume();                    // what comes in between waits on its rank, however long
 *     … ask engine.url …
 *     engine.requests[0]                                    // what came, to which rank, and how it ended
 *     await engine.kill(); await engine.restart();          // refused connections; then back on the same port, all counts at 0
 *     await engine.stop();
 *
 * - Answers are functions of the prompt, the seed and the choice: `answerText(chatText(messages), tokens, seed, choice)` of
 *   text.ts is what must arrive. Without `max_tokens` (or its kin) an answer has 16 tokens and ends by `stop`, else by `length`.
 * - A pin (`X-data-parallel-rank`; SGLang's body field `routed_dp_rank` too) that is out of range is a 400. Without a pin vLLM
 *   takes the least waiting·4 + running of a snapshot of 100 ms, and SGLang goes round.
 * - With `scheduling: 'priority'` the body's `priority` orders a rank's queue: lower first for vLLM, higher first for SGLang.
 * - A client that leaves frees its places in the batch.
 * - Streams of vLLM send their headers as the request is accepted, those of SGLang with the first token, as the engines do.
 */
import http from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Engine, type EngineOptions } from './engine.js';
import { EXCHANGES, exchange, type Notes, Refusal } from './exchange.js';
import { type Fault, Outlet, type SseOptions } from './faults.js';
import { sglangLoads, sglangMetrics, sglangOlderLoads, vllmMetrics } from './metrics.js';
import type { Rank } from './rank.js';
import { type Fields, promptsOf, tokenIds } from './text.js';
import { errorDocument, modelsDocument } from './wire.js';

export interface StandInOptions extends EngineOptions {
  /** Default: any. */
  port?: number;
  tls?: { key: string; cert: string };
  sse?: SseOptions;
  /** Off for long benches: `requests` stays empty. */
  keepLog?: boolean;
}

/** One POST. Times are milliseconds of the day's clock. */
export interface LoggedRequest extends Notes {
  /** Also the answer's. */
  id: string;
  path: string;
  headers: http.IncomingHttpHeaders;
  body: unknown;
  startedMs: number;
  /** Missing where the request got no further: a fault in the engine's stead, a refusal. */
  rank?: number;
  firstTokenMs?: number;
  endedMs?: number;
  /** `aborted` by the client; `error`: answered with a status of 400 or more, or broken off by a fault or by `kill`. */
  outcome: 'open' | 'finished' | 'aborted' | 'error';
  /** Tokens made so far, over all choices. */
  outputTokens: number;
  /** Events of a stream that were sent. */
  events: number;
}

export interface Seen {
  method: string;
  /** Without the query. */
  path: string;
  headers: http.IncomingHttpHeaders;
  body: unknown;
}

export interface FaultRule {
  /** How many requests it befalls. Default 1. */
  times?: number;
  /** Default: every POST. */
  when?: (request: Seen) => boolean;
}

interface Rule extends Required<FaultRule> {
  fault: Fault;
  /** [path] What a stale fault repeats. */
  said: ReadonlyMap<string, string>;
}

const ID_PREFIXES: Readonly<Record<string, string>> = {
  '/v1/chat/completions': 'chatcmpl-',
  '/v1/completions': 'cmpl-',
  '/v1/responses': 'resp_',
  '/v1/embeddings': 'embd-',
};
const TELEMETRY: readonly string[] = ['/metrics', '/v1/loads', '/get_load'];
const JSON_TYPE = { 'content-type': 'application/json' };
const TEXT_TYPE = { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' };
/** Connections that may wait to be accepted. Node's 511 are too few for a storm of streams. */
const BACKLOG = 8192;

export class StandIn {
  readonly requests: LoggedRequest[] = [];
  /** [path] How often each was asked with GET. */
  readonly gets = new Map<string, number>();
  sse: SseOptions;
  /** What vLLM's metrics say of sleep; requests are served all the same. */
  asleep = false;
  readonly #options: StandInOptions;
  readonly #createdSeconds = Math.floor(Date.now() / 1000);
  #engine: Engine;
  #rules: Rule[] = [];
  /** For each request that is being answered, what notes its end. */
  readonly #open = new Set<() => void>();
  #server: http.Server | undefined;
  #port: number;
  #ids = 0;

  private constructor(options: StandInOptions) {
    this.#options = options;
    this.#engine = new Engine(options);
    this.#port = options.port ?? 0;
    this.sse = options.sse ?? {};
  }

  static async start(options: StandInOptions): Promise<StandIn> {
    const standIn = new StandIn(options);
    await standIn.restart();
    return standIn;
  }

  get url(): string {
    return `${this.#options.tls === undefined ? 'http' : 'https'}://127.0.0.1:${this.#port}`;
  }

  /** [ranks] Of the engine as it is since the last restart. */
  get ranks(): readonly Rank[] {
    return this.#engine.ranks;
  }

  /** Of the rules that fit a request the oldest befalls it. Returns what takes the rule back. */
  fault(fault: Fault, { times = 1, when = ({ method }) => method === 'POST' }: FaultRule = {}): () => void {
    const said = new Map(TELEMETRY.map((path) => [path, this.#telemetry(path) ?? '']));
    const rule = { fault, times, when, said };
    this.#rules.push(rule);
    return () => {
      this.#rules = this.#rules.filter((other) => other !== rule);
    };
  }

  /** The engine stands still while its server goes on: what comes waits. A restart ends it. */
  pause(): void {
    this.#engine.pause();
  }

  resume(): void {
    this.#engine.resume();
  }

  /** All at once: sockets are destroyed, the port is closed, what was running is lost. */
  async kill(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    this.#server = undefined;
    this.#engine.stop();
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    server.closeAllConnections();
    for (const settle of this.#open) settle();
    await closed;
  }

  /** After a test. */
  stop(): Promise<void> {
    return this.kill();
  }

  /** On the same port, with an empty engine and all its counts at 0; the log and the faults stay. */
  async restart(): Promise<void> {
    await this.kill();
    this.#engine = new Engine(this.#options);
    const { tls } = this.#options;
    const server = tls === undefined ? http.createServer() : https.createServer(tls);
    server.on('request', (request, response) => void this.#serve(request, response));
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen({ port: this.#port, host: '127.0.0.1', backlog: BACKLOG }, resolve);
    });
    this.#port = (server.address() as AddressInfo).port;
    this.#server = server;
  }

  async #serve(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const startedMs = now();
    const text = await readAll(request);
    // Gone before it had said all.
    if (text === undefined) return;
    const { method = '', headers } = request;
    const seen = { method, path: request.url!.split('?', 1)[0]!, headers, body: parsed(text) };
    const rule = this.#rules.find(({ times, when }) => times > 0 && when(seen));
    if (rule !== undefined) rule.times -= 1;
    const log = this.#log(seen, startedMs);
    const outlet = new Outlet(response, rule?.fault, this.sse);
    this.#watch(response, outlet, log);
    if (rule?.fault.kind === 'delay') await sleep(rule.fault.delayMs);
    if (!response.destroyed) this.#answer(seen, rule, outlet, log);
  }

  #log({ method, path, headers, body }: Seen, startedMs: number): LoggedRequest {
    const id = `${ID_PREFIXES[path] ?? ''}${(this.#ids++).toString(16).padStart(16, '0')}`;
    const counts = { outputTokens: 0, cachedTokens: 0, events: 0 };
    const log: LoggedRequest = { id, path, headers, body, startedMs, outcome: 'open', ...counts };
    if (method === 'GET') this.gets.set(path, (this.gets.get(path) ?? 0) + 1);
    else if (this.#options.keepLog !== false) this.requests.push(log);
    return log;
  }

  /** Notes how it ends. */
  #watch(response: http.ServerResponse, outlet: Outlet, log: LoggedRequest): void {
    const settle = () => {
      if (!this.#open.delete(settle)) return;
      log.endedMs = now();
      log.events = outlet.events;
      if (outlet.broken || response.statusCode >= 400 || this.#server === undefined) log.outcome = 'error';
      else log.outcome = response.writableFinished ? 'finished' : 'aborted';
    };
    this.#open.add(settle);
    outlet.onClose(settle);
  }

  #answer(seen: Seen, rule: Rule | undefined, outlet: Outlet, log: LoggedRequest): void {
    const { method, path } = seen;
    if (rule?.fault.kind === 'garbage') outlet.garbage(rule.fault.what);
    else if (rule?.fault.kind === 'status') {
      const { status, message = 'As told.', retryAfter } = rule.fault;
      this.#refuse(outlet, status, message, retryAfter === undefined ? {} : { 'retry-after': retryAfter });
    } else if (outlet.shut) return;
    else if (method === 'GET') this.#get(path, rule?.fault.kind === 'stale' ? rule.said : undefined, outlet);
    else if (method !== 'POST') this.#refuse(outlet, 405, 'Method Not Allowed');
    else this.#post(seen, outlet, log);
  }

  #get(path: string, said: ReadonlyMap<string, string> | undefined, outlet: Outlet): void {
    const text = said?.get(path) ?? this.#telemetry(path);
    const { kind, model, timing } = this.#engine;
    if (path === '/health') outlet.document(200, '');
    else if (path === '/v1/models') {
      const models = modelsDocument(kind, model, timing.kvTokens, this.#createdSeconds);
      outlet.document(200, JSON.stringify(models), JSON_TYPE);
    } else if (text === undefined) this.#refuse(outlet, 404, 'Not Found');
    else outlet.document(200, text, path === '/metrics' ? TEXT_TYPE : JSON_TYPE);
  }

  #telemetry(path: string): string | undefined {
    const { kind } = this.#engine;
    const reported = { ...this.#engine, asleep: this.asleep };
    if (path === '/metrics') return kind === 'vllm' ? vllmMetrics(reported) : sglangMetrics(reported);
    if (kind === 'vllm') return undefined;
    if (path === '/v1/loads') return JSON.stringify(sglangLoads(reported));
    return path === '/get_load' ? JSON.stringify(sglangOlderLoads(reported)) : undefined;
  }

  #post({ path, headers, body }: Seen, outlet: Outlet, log: LoggedRequest): void {
    if (typeof body !== 'object' || body === null) this.#refuse(outlet, 400, 'The body is no JSON object.');
    else if (path === '/tokenize' && this.#engine.kind === 'vllm') this.#tokenize(body as Fields, outlet);
    else if (!EXCHANGES.includes(path)) this.#refuse(outlet, 404, 'Not Found');
    else {
      try {
        const asked = { id: log.id, path, headers, body: body as Fields };
        outlet.onClose(exchange(this.#engine, asked, outlet, log));
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        this.#refuse(outlet, error.status, error.message);
      }
    }
  }

  #tokenize(body: Fields, outlet: Outlet): void {
    const [prompt] = promptsOf(
      body.messages === undefined ? '/v1/completions' : '/v1/chat/completions',
      body,
    );
    const tokens = tokenIds(prompt?.text ?? '');
    const document = {
      count: tokens.length,
      max_model_len: this.#engine.timing.kvTokens,
      tokens,
      token_strs: null,
    };
    outlet.document(200, JSON.stringify(document), JSON_TYPE);
  }

  #refuse(outlet: Outlet, status: number, message: string, headers: http.OutgoingHttpHeaders = {}): void {
    const document = JSON.stringify(errorDocument(this.#engine.kind, status, message));
    outlet.document(status, document, { ...JSON_TYPE, ...headers });
  }
}

function now(): number {
  return performance.timeOrigin + performance.now();
}

/** Undefined where the client leaves before it has said all. */
async function readAll(request: http.IncomingMessage): Promise<string | undefined> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of request) chunks.push(chunk);
  } catch {
    return undefined;
  }
  return Buffer.concat(chunks).toString();
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
