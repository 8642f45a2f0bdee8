/**
 * A gateway over stand-in engines, for end-to-end tests: it is started, asked over real sockets, and must be left with nothing in
 * flight. What is waited for is a condition, never a time.
 */
import http from 'node:http';
import net from 'node:net';
import OpenAI from 'openai';
import { expect, vi } from 'vitest';
import { checkGatewayOptions, type GatewayConfig, type GatewayOptions } from '../../lib/gateway/config.js';
import { Gateway } from '../../lib/gateway/gateway.js';
import { createLog } from '../../lib/gateway/log.js';
import type { GatewaySnapshot } from '../../lib/gateway/types.js';
import { StandIn, type StandInOptions } from '../stand-in/server.js';
import { answerText, chatText } from '../stand-in/text.js';

/** Far longer than anything here takes. */
const DEADLINE_MS = 30_000;
export const MODEL = 'stand-in';

export const until = <T>(check: () => T | Promise<T>): Promise<T> =>
  vi.waitFor(check, { timeout: DEADLINE_MS, interval: 10 });

/** Limits under which a test that goes wrong ends soon, and one that goes well sees none of them. */
const LIMITS = { firstByteMs: 20_000, idleMs: 20_000, stalledClientMs: 20_000 };

export interface Running {
  gateway: Gateway;
  url: string;
  adminUrl: string;
  extProcUrl?: string;
  /** Lines of the log, parsed. */
  log: Record<string, unknown>[];
}

/** What a test has started, and stops with `end`. */
export class Stage {
  readonly #gateways: Running[] = [];
  readonly #standIns: StandIn[] = [];
  readonly #closers: (() => Promise<unknown>)[] = [];

  async standIn(options: Partial<StandInOptions> = {}): Promise<StandIn> {
    const standIn = await StandIn.start({ kind: 'vllm', ranks: 1, timing: { timeScale: 50 }, ...options });
    this.#standIns.push(standIn);
    return standIn;
  }

  async gateway(options: GatewayOptions): Promise<Running> {
    const log: Record<string, unknown>[] = [];
    const config = configOf(options);
    const write = (line: string) => log.push(JSON.parse(line));
    const gateway = await Gateway.create(config, { version: 'test', log: createLog('info', { write }) });
    const running = { gateway, ...(await gateway.listen()), log };
    this.#gateways.push(running);
    return running;
  }

  /** Whatever else must be stopped. */
  onEnd(close: () => Promise<unknown>): void {
    this.#closers.push(close);
  }

  /** Nothing is in flight any more, on either side; then all is stopped. */
  async end(): Promise<void> {
    try {
      for (const { gateway } of this.#gateways) await idle(gateway);
      const open = () => this.#standIns.flatMap(({ requests }) => requests.filter((one) => !one.endedMs));
      await until(() => expect(open()).toEqual([]));
    } finally {
      await Promise.all(this.#gateways.splice(0).map(({ gateway }) => gateway.close()));
      await Promise.all(this.#standIns.splice(0).map((standIn) => standIn.stop()));
      for (const close of this.#closers.splice(0)) await close();
    }
  }
}

export function configOf(options: GatewayOptions): GatewayConfig {
  return checkGatewayOptions({
    seed: 1,
    usageShare: 0,
    ...options,
    listen: { port: 0, ...options.listen },
    limits: { ...LIMITS, ...options.limits },
    drain: { timeoutMs: 10_000, ...options.drain },
  });
}

export function inFlight({ engines }: GatewaySnapshot): number {
  return engines.reduce((sum, engine) => sum + engine.inFlight, 0);
}

/** The ledger is back at zero. */
export async function idle(gateway: Gateway): Promise<void> {
  await until(async () => {
    const snapshot = await gateway.snapshot();
    expect({ inFlight: inFlight(snapshot), waiting: snapshot.queue.size }).toEqual({
      inFlight: 0,
      waiting: 0,
    });
    for (const { inFlightPrefillMs } of snapshot.engines) expect(inFlightPrefillMs).toBe(0);
  });
}

export function clientOf(url: string, apiKey = 'none'): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: DEADLINE_MS });
}

export const saying = (content: string) => [{ role: 'user' as const, content }];

/** The body of a chat, and what must be answered to it. */
export function chat(content: string, tokens = 8, more: object = {}) {
  const messages = saying(content);
  return {
    body: { model: MODEL, messages, max_tokens: tokens, ...more },
    answer: answerText(chatText(messages), tokens),
  };
}

export interface Answered {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: Buffer;
  /** Whether the answer ended as HTTP says that it ends. */
  complete: boolean;
}

export interface Asking {
  path?: string;
  method?: string;
  headers?: http.OutgoingHttpHeaders;
  agent?: http.Agent;
  signal?: AbortSignal;
  /** As the pieces come. */
  onData?(piece: Buffer, response: http.IncomingMessage): void;
}

/** One request on a connection of its own. Rejects where no head of an answer comes. */
export function ask(url: string, body: object | string | Buffer, asking: Asking = {}): Promise<Answered> {
  const { path = '/v1/chat/completions', method = 'POST', headers = {}, agent, signal, onData } = asking;
  // Node writes headers as UTF-8, which they are not, together with a body that is a string.
  const bytes = Buffer.isBuffer(body)
    ? body
    : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
  const answered = new Promise<Answered>((resolve, reject) => {
    const options = { method, agent: agent ?? false, ...(signal === undefined ? {} : { signal }) };
    const lengthless = method === 'GET' || 'transfer-encoding' in headers;
    const length = lengthless ? {} : { 'content-length': bytes.length };
    const request = http.request(`${url}${path}`, { ...options, headers: { ...length, ...headers } });
    request.once('error', reject);
    request.once('response', (response) => {
      const pieces: Buffer[] = [];
      response.on('data', (piece: Buffer) => {
        pieces.push(piece);
        onData?.(piece, response);
      });
      // An answer that is broken off ends in an error, and then in this as well.
      response.on('error', () => undefined);
      response.once('close', () =>
        resolve({
          status: response.statusCode!,
          headers: response.headers,
          body: Buffer.concat(pieces),
          complete: response.complete,
        }),
      );
    });
    request.end(method === 'GET' ? undefined : bytes);
  });
  // Where a test fails before it awaits this one, that is what it should say.
  answered.catch(() => undefined);
  return answered;
}

/** The error that stands in an answer, as OpenAI's API has them. */
export function errorIn({ status, body }: Answered): { status: number; type: string; code: string } {
  const { error } = JSON.parse(body.toString());
  expect(error).toEqual({
    message: expect.any(String),
    type: expect.any(String),
    code: expect.any(String),
    param: null,
  });
  return { status, type: error.type, code: error.code };
}

/** The text of a whole chat. */
export function contentOf({ status, body }: Answered): string {
  expect(status, body.toString()).toBe(200);
  return JSON.parse(body.toString()).choices[0].message.content;
}

/** The objects of a stream's events, its `[DONE]` left out. */
export function eventsIn(stream: Buffer): { choices: { delta: { content?: string } }[]; usage?: unknown }[] {
  const lines = stream.toString().split(/\r?\n/);
  const data = lines.filter((line) => line.startsWith('data: ') && line !== 'data: [DONE]');
  return data.map((line) => JSON.parse(line.slice(6)));
}

/** The text of a streamed chat. It must have ended by the book. */
export function streamedText({ status, body, complete }: Answered): string {
  expect({ status, complete }).toEqual({ status: 200, complete: true });
  expect(body.toString().trimEnd().endsWith('data: [DONE]')).toBe(true);
  return eventsIn(body)
    .map(({ choices }) => choices[0]?.delta.content ?? '')
    .join('');
}

/** Writes bytes as they are, and gives all that comes until the connection is closed. */
export function raw(url: string, ...pieces: (string | Buffer)[]): Promise<string> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    const socket = net.connect(Number(port), hostname);
    let said = '';
    socket.setEncoding('latin1').on('data', (text) => {
      said += text;
    });
    socket.once('error', () => undefined).once('close', () => resolve(said));
    for (const piece of pieces) socket.write(piece);
  });
}

/** The sum of a metric over its labels. */
export async function metric(adminUrl: string, name: string, label = ''): Promise<number | undefined> {
  const { body } = await ask(adminUrl, '', { method: 'GET', path: '/metrics' });
  const values = body
    .toString()
    .split('\n')
    .filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`))
    .filter((line) => line.includes(label))
    .map((line) => Number(line.slice(line.lastIndexOf(' ') + 1)));
  return values.length === 0 ? undefined : values.reduce((sum, value) => sum + value, 0);
}

/** An engine by a script: what it is asked, and its own way to answer. It has no telemetry. */
export interface Scripted {
  url: string;
  asked: { path: string; headers: http.IncomingHttpHeaders; body: string }[];
}

export async function scripted(
  stage: Stage,
  answer: (response: http.ServerResponse, body: string) => void,
): Promise<Scripted> {
  const asked: Scripted['asked'] = [];
  const server = http.createServer(async (request, response) => {
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece);
    if (request.url === '/metrics') return response.writeHead(404).end();
    const body = Buffer.concat(pieces).toString();
    asked.push({ path: request.url!, headers: request.headers, body });
    return answer(response, body);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  stage.onEnd(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return { url: `http://127.0.0.1:${(server.address() as net.AddressInfo).port}`, asked };
}

/** A URL that nobody listens at. */
export async function deadUrl(): Promise<string> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return `http://127.0.0.1:${port}`;
}
