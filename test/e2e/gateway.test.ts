/** The gateway as its clients and its operators see it, where nothing goes wrong. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import OpenAI from 'openai';
import { Agent, fetch as undiciFetch } from 'undici';
import { afterEach, describe, expect, it } from 'vitest';
import { checkGatewayOptions } from '../../lib/gateway/config.js';
import { answerText, chatText, countTokens, embedding } from '../stand-in/text.js';
import type { Kind } from '../stand-in/wire.js';
import {
  ask,
  chat,
  clientOf,
  contentOf,
  errorIn,
  eventsIn,
  inFlight,
  MODEL,
  metric,
  raw,
  type Scripted,
  Stage,
  saying,
  scripted,
  streamedText,
  until,
} from '../support/gateway.js';

const KINDS: readonly Kind[] = ['vllm', 'sglang'];
const stage = new Stage();
afterEach(() => stage.end());

/** A gateway over one stand-in with two ranks. */
async function pair(kind: Kind = 'vllm', more: object = {}) {
  const engine = await stage.standIn({ kind, ranks: 2 });
  const gateway = await stage.gateway({ servers: [{ url: engine.url, kind, ranks: 2 }], ...more });
  return { engine, ...gateway };
}

describe.each(KINDS)('in front of %s, the client of openai', (kind) => {
  it('gets a chat, and a refusal of the engine as it is', async () => {
    const { url, engine } = await pair(kind);
    const client = clientOf(url);
    const answer = await client.chat.completions.create({
      model: MODEL,
      messages: saying('How are you?'),
      max_completion_tokens: 40,
    });
    const prompt = chatText(saying('How are you?'));
    expect(answer.choices[0]!.message.content).toBe(answerText(prompt, 40));
    expect(answer.usage).toMatchObject({ prompt_tokens: countTokens(prompt), completion_tokens: 40 });
    const refused = client.chat.completions.create({ model: MODEL, messages: saying('x'), max_tokens: 0 });
    await expect(refused).rejects.toBeInstanceOf(OpenAI.BadRequestError);
    expect(engine.requests).toHaveLength(2);
  });

  it('streams a chat, with the usage that it asks for', async () => {
    const { url } = await pair(kind, { usageShare: 1 });
    const stream = await clientOf(url).chat.completions.create({
      model: MODEL,
      messages: saying('Stream!'),
      max_tokens: 30,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = '';
    const usages = [];
    for await (const { choices, usage } of stream) {
      text += choices[0]?.delta.content ?? '';
      if (usage) usages.push(usage);
    }
    expect(text).toBe(answerText(chatText(saying('Stream!')), 30));
    expect(usages).toMatchObject([{ completion_tokens: 30 }]);
  });

  it('gets completions, responses, embeddings and the list of models', async () => {
    const { url, engine } = await pair(kind);
    const client = clientOf(url);
    const completion = await client.completions.create({ model: MODEL, prompt: ['one', 'two'], n: 2 });
    expect(completion.choices.map(({ text }) => text)).toEqual(
      ['one', 'one', 'two', 'two'].map((prompt, choice) => answerText(prompt, 16, 0, choice)),
    );
    let streamed = '';
    const parts = await client.completions.create({ model: MODEL, prompt: 'go', stream: true });
    for await (const { choices } of parts) streamed += choices[0]?.text ?? '';
    expect(streamed).toBe(answerText('go', 16));
    const whole = await client.responses.create({ model: MODEL, input: 'Hi', max_output_tokens: 9 });
    expect(whole.output_text).toBe(answerText(chatText(saying('Hi')), 9));
    let spoken = '';
    const events = await client.responses.create({ model: MODEL, input: 'Hi', stream: true });
    for await (const event of events) if (event.type === 'response.output_text.delta') spoken += event.delta;
    expect(spoken).toBe(answerText(chatText(saying('Hi')), 16));
    const { data } = await client.embeddings.create({ model: MODEL, input: ['a', 'b'] });
    expect(data.map((one) => one.embedding)).toEqual([embedding('a', 8), embedding('b', 8)]);
    const models = await client.models.list();
    expect(models.data.map(({ id }) => id)).toEqual([MODEL]);
    expect(engine.requests.map(({ path }) => path.slice(4))).toEqual([
      'completions',
      'completions',
      'responses',
      'responses',
      'embeddings',
    ]);
  });
});

describe('bytes of a stream', () => {
  /** An engine that says what it is told to, piece by piece. */
  const saysInPieces = (pieces: readonly Buffer[]) =>
    scripted(stage, async (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' });
      for (const piece of pieces) {
        response.write(piece);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      response.end();
    });
  const gatewayTo = ({ url }: Scripted, usageShare = 0) => stage.gateway({ servers: [{ url }], usageShare });
  const cut = (text: string, ...at: number[]) => {
    const bytes = Buffer.from(text);
    return [0, ...at].map((from, n) => bytes.subarray(from, at[n] ?? bytes.length));
  };
  const line = (fields: object, end = '\n') => `data: ${JSON.stringify(fields)}${end}${end}`;
  const long = 'ü'.repeat(32 * 1024);
  /** Comments, CR LF, an odd event, characters and line ends cut apart, a line of 64 KiB. */
  const odd = [
    ': a comment\r\n\r\n',
    line({ choices: [{ delta: { content: '漢字 😀' } }] }, '\r\n'),
    'event: odd\nid: 7\nretry: 10\ndata: {"usage"\ndata: :1}\n\n',
    'data:{"choices": [ ],  "no space" : null}\n\n',
    line({ choices: [{ delta: { content: long } }] }),
    'data: not json, "usage"\n\n\n\n',
    'data: [DONE]\r\n\r\n',
  ].join('');
  const everywhere = Array.from({ length: 60 }, (_, n) => 3 * n + 1);

  it.each([0, 1])('pass as they came, where the share of usage asked for is %d', async (usageShare) => {
    const engine = await saysInPieces(cut(odd, ...everywhere, 60_000));
    const { url } = await gatewayTo(engine, usageShare);
    const { body, complete, headers } = await ask(url, chat('x', 8, { stream: true }).body);
    expect(complete).toBe(true);
    expect(headers['content-type']).toBe('text/event-stream; charset=utf-8');
    expect(body.equals(Buffer.from(odd))).toBe(true);
  });

  it('lose the usage that the gateway asked for, and nothing else', async () => {
    const usage = { prompt_tokens: 5, completion_tokens: 2, total_tokens: 7 };
    const says = (end: string) => [
      `data: {"id":"a", "choices":[{"delta":{"content":"\\"usage\\":null, é"}}], "usage":null}${end}${end}`,
      `: ping${end}${end}`,
      `data: {"usage": null,"choices":[{"usage":null}]}${end}${end}`,
      line({ choices: [], usage }, end),
      `data: [DONE]${end}${end}`,
    ];
    const left = (end: string) => [
      `data: {"id":"a", "choices":[{"delta":{"content":"\\"usage\\":null, é"}}]}${end}${end}`,
      `: ping${end}${end}`,
      `data: {"choices":[{"usage":null}]}${end}${end}`,
      `data: [DONE]${end}${end}`,
    ];
    for (const end of ['\n', '\r\n']) {
      const engine = await saysInPieces(cut(says(end).join(''), ...everywhere));
      const { url, adminUrl } = await gatewayTo(engine, 1);
      const { body } = await ask(url, chat('x', 8, { stream: true }).body);
      expect(body.toString()).toBe(left(end).join(''));
      expect(JSON.parse(engine.asked[0]!.body).stream_options).toEqual({ include_usage: true });
      expect(await metric(adminUrl, 'gimbal_prompt_tokens_total')).toBe(5);
      expect(await metric(adminUrl, 'gimbal_output_tokens_total')).toBe(2);
      // Whoever asks for it gets it; so does whoever sets stream_options otherwise.
      const asks = chat('x', 8, { stream: true, stream_options: { include_usage: true } });
      expect((await ask(url, asks.body)).body.toString()).toBe(says(end).join(''));
    }
  });

  it('of real engines pass whatever they are cut like, and a body reaches them as it was', async () => {
    const sse = { comments: true, crlf: true, split: true, paddingChars: 64 * 1024 };
    const engine = await stage.standIn({ sse });
    const { url } = await stage.gateway({ servers: [{ url: engine.url }] });
    const { body, answer } = chat('漢字', 12, { stream: true });
    const [direct, passed] = [await ask(engine.url, body), await ask(url, body)];
    // Ids and times of creation differ.
    const same = (bytes: Buffer) => bytes.toString().replaceAll(/"(id|created)":("[^"]*"|\d+)/g, '"$1"');
    expect(same(passed.body)).toBe(same(direct.body));
    expect(streamedText(passed)).toBe(answer);
    expect(passed.body.length).toBeGreaterThan(12 * 64 * 1024);
    expect(eventsIn(passed.body).every((event) => !('usage' in event))).toBe(true);
    expect(engine.requests[1]!.body).toEqual(body);
  });
});

describe('headers', () => {
  it('of one connection stay on it, both ways, and the gateway sets its own', async () => {
    const engine = await scripted(stage, (response) => {
      response.writeHead(200, {
        'content-type': 'application/json',
        connection: 'close, x-hop',
        'x-hop': 'engine',
        'keep-alive': 'timeout=9',
        'x-kept': ['one', 'two'],
      });
      response.end('{}');
    });
    const { url } = await stage.gateway({ servers: [{ url: engine.url }] });
    const answer = await ask(url, chat('x').body, {
      headers: {
        connection: 'close, X-Secret-Hop',
        'x-secret-hop': '1',
        'proxy-authorization': 'Basic abc',
        te: 'trailers',
        'x-data-parallel-rank': '7',
        'x-forwarded-for': '192.0.2.1',
        'x-request-id': 'mine-1',
        'accept-encoding': 'gzip',
        authorization: 'Bearer of-the-engine',
        'x-kept': 'yes',
      },
    });
    const [{ headers }] = engine.asked as [Scripted['asked'][number]];
    for (const name of [
      'x-secret-hop',
      'proxy-authorization',
      'te',
      'x-data-parallel-rank',
      'accept-encoding',
    ]) {
      expect(headers, name).not.toHaveProperty(name);
    }
    expect(headers).toMatchObject({
      host: new URL(engine.url).host,
      'x-forwarded-for': '192.0.2.1, 127.0.0.1',
      'x-forwarded-proto': 'http',
      'x-request-id': 'mine-1',
      'x-kept': 'yes',
      // Without keys of its own the gateway passes on what clients bring.
      authorization: 'Bearer of-the-engine',
    });
    expect(answer.headers).toMatchObject({ 'x-request-id': 'mine-1', 'x-kept': 'one, two' });
    expect(answer.headers).not.toHaveProperty('x-hop');
    expect(answer.headers['keep-alive']).not.toBe('timeout=9');
  });

  it('with letters beyond ASCII pass byte for byte', async () => {
    const engine = await scripted(stage, (response) => {
      const head = 'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n';
      response.socket!.end(`${head}x-odd: \u6a21\r\ncontent-length: 9\r\n\r\n{"a":"b"}`);
    });
    const { url } = await stage.gateway({ servers: [{ url: engine.url }] });
    const odd = Buffer.from('\u6a21').toString('latin1');
    const answered = await ask(url, chat('x').body, { headers: { 'x-odd': odd } });
    expect(answered.headers['x-odd']).toBe(odd);
    expect(engine.asked[0]!.headers['x-odd']).toBe(odd);
    expect((await ask(url, '', { method: 'GET', path: '/v1/models' })).headers['x-odd']).toBe(odd);
  });

  it('name each request, also where its own name cannot be logged', async () => {
    const { url, engine, log } = await pair();
    const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`;
    const answer = await ask(url, chat('x').body, { headers: { 'x-request-id': 'two words', traceparent } });
    const id = answer.headers['x-request-id']!;
    expect(id).toMatch(/^\w+-1$/);
    expect(engine.requests[0]!.headers).toMatchObject({ 'x-request-id': id, traceparent });
    const line = log.find(({ requestId }) => requestId === id);
    expect(line).toMatchObject({
      severityText: 'INFO',
      severityNumber: 9,
      body: 'request',
      service: 'gimbal',
      path: '/v1/chat/completions',
      status: 200,
      model: MODEL,
      engine: expect.stringMatching(/#[01]$/),
      attempts: 1,
      outputTokens: 8,
      traceId: 'a'.repeat(32),
      spanId: 'b'.repeat(16),
    });
    expect(Number.isNaN(Date.parse(line!.timestamp as string))).toBe(false);
  });

  it('that smuggle a second request are refused by the gateway itself', async () => {
    const { url, engine } = await pair();
    const body = JSON.stringify(chat('x').body);
    const head = 'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n';
    const attempts = [
      `content-length: ${body.length}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n${body}`,
      `content-length: ${body.length}\r\ncontent-length: 3\r\n\r\n${body}`,
      `content-length: ${body.length}\r\nx-a: b\r\n folded: c\r\n\r\n${body}`,
      `content-length : ${body.length}\r\n\r\n${body}`,
      `transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n`,
      `transfer-encoding: chunked\r\n\r\n-1\r\n${body}\r\n0\r\n\r\n`,
    ];
    for (const attempt of attempts) expect(await raw(url, head, attempt)).toMatch(/^HTTP\/1\.1 400 /);
    expect(engine.requests).toEqual([]);
  });
});

describe('keys', () => {
  it('let clients in, do not reach engines, and each server gets its own', async () => {
    const [one, other] = [await stage.standIn(), await stage.standIn()];
    const { url, log } = await stage.gateway({
      servers: [{ url: one.url, apiKey: 'key-of-one' }, { url: other.url }],
      policy: 'round-robin',
      apiKeys: ['let-me-in'],
    });
    await expect(clientOf(url, 'wrong').models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
    const refused = await ask(url, chat('x').body);
    expect(errorIn(refused)).toEqual({ status: 401, type: 'authentication_error', code: 'invalid_api_key' });
    for (let n = 0; n < 2; n++) {
      await clientOf(url, 'let-me-in').chat.completions.create({ model: MODEL, messages: saying('x') });
    }
    expect(one.requests.map(({ headers }) => headers.authorization)).toEqual(['Bearer key-of-one']);
    expect(other.requests.map(({ headers }) => headers.authorization)).toEqual([undefined]);
    expect(JSON.stringify(log)).not.toMatch(/let-me-in|key-of-one/);
  });

  it('also open what operators see, save for what balancers ask', async () => {
    const { url } = await pair('vllm', { apiKeys: ['k'] });
    const status = async (path: string, authorization?: string) => {
      const headers = authorization === undefined ? {} : { authorization };
      return (await ask(url, '', { method: 'GET', path, headers })).status;
    };
    for (const path of ['/healthz', '/readyz']) expect(await status(path)).toBe(200);
    for (const path of ['/metrics', '/dashboard', '/dashboard/state']) {
      expect(await status(path)).toBe(401);
      expect(await status(path, `Basic ${Buffer.from('me:k').toString('base64')}`)).toBe(200);
      expect(await status(path, 'Bearer k')).toBe(200);
    }
  });
});

describe('what does not fit', () => {
  const cases: [string, string | Buffer, object, object][] = [
    ['no JSON', '{"model":', {}, { status: 400, code: 'invalid_body' }],
    ['no object', '[1]', {}, { status: 400, code: 'invalid_body' }],
    ['nothing', '', {}, { status: 400, code: 'invalid_body' }],
    ['an unknown path', '{}', { path: '/v1/images' }, { status: 404, code: 'not_found' }],
    ['an unknown method', '', { method: 'GET' }, { status: 405, code: 'method_not_allowed' }],
    ['a list that is posted', '{}', { path: '/v1/models' }, { status: 405, code: 'method_not_allowed' }],
    ['what operators post', '{}', { path: '/metrics' }, { status: 405, code: 'method_not_allowed' }],
    ['too long a body', Buffer.alloc(5000, 32), {}, { status: 413, code: 'body_too_long' }],
    [
      'too long a body of unknown length',
      Buffer.alloc(8 << 20, 32),
      { headers: { 'transfer-encoding': 'chunked' } },
      { status: 413, code: 'body_too_long' },
    ],
    ['a body that is far too long', Buffer.alloc(8 << 20, 32), {}, { status: 413, code: 'body_too_long' }],
  ];

  it.each(cases)('%s: is refused in the words of the API', async (_, body, asking, expected) => {
    const { url, engine } = await pair('vllm', { limits: { bodyBytes: 4096 } });
    expect(errorIn(await ask(url, body, asking))).toMatchObject(expected);
    expect(engine.requests).toEqual([]);
  });
});

describe('a connection on which too long a body was refused', () => {
  it('serves on', async () => {
    const { url } = await pair('vllm', { limits: { bodyBytes: 4096 } });
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    stage.onEnd(async () => agent.destroy());
    const headers = { 'transfer-encoding': 'chunked' };
    expect((await ask(url, Buffer.alloc(8 << 20, 32), { agent, headers })).status).toBe(413);
    const { body, answer } = chat('next');
    expect(contentOf(await ask(url, body, { agent }))).toBe(answer);
  });
});

describe('pins', () => {
  it('send each request to the rank that it was given to', async () => {
    const { url, engine, gateway } = await pair('vllm', { policy: 'round-robin' });
    await Promise.all(Array.from({ length: 20 }, (_, n) => ask(url, chat(`${n}`).body)));
    const ranks = engine.requests.map(({ headers, rank }) => [headers['x-data-parallel-rank'], rank]);
    expect(ranks.filter(([pin, rank]) => pin === '0' && rank === 0)).toHaveLength(10);
    expect(ranks.filter(([pin, rank]) => pin === '1' && rank === 1)).toHaveLength(10);
    const { engines } = await gateway.snapshot();
    expect(engines.map(({ dispatched }) => dispatched)).toEqual([10, 10]);
  });

  it('count from 0 on each of several servers, and are left out where there is one rank', async () => {
    const engines = [
      await stage.standIn({ ranks: 2 }),
      await stage.standIn({ ranks: 2, kind: 'sglang' }),
      await stage.standIn(),
    ];
    const servers = engines.map(({ url, ranks }, n) => ({
      url,
      ranks: ranks.length,
      kind: KINDS[n] ?? 'vllm',
      firstGlobalRank: 2 * n,
    }));
    const { url } = await stage.gateway({ servers, policy: 'round-robin' });
    await Promise.all(Array.from({ length: 15 }, (_, n) => ask(url, chat(`${n}`).body)));
    const pins = engines.map(({ requests }) =>
      requests.map(({ headers }) => headers['x-data-parallel-rank']).sort(),
    );
    expect(pins).toEqual([
      [...Array(3).fill('0'), ...Array(3).fill('1')],
      [...Array(3).fill('0'), ...Array(3).fill('1')],
      Array(3).fill(undefined),
    ]);
  });
});

describe('operators', () => {
  it('see what was asked and what it took, in the form that Prometheus reads', async () => {
    const { adminUrl, url } = await pair('vllm', { usageShare: 1 });
    await ask(url, chat('x', 8, { stream: true }).body);
    await ask(url, chat('x', 5).body);
    await ask(url, '{');
    const { body, headers } = await ask(adminUrl, '', { method: 'GET', path: '/metrics' });
    expect(headers['content-type']).toContain('text/plain; version=0.0.4');
    const sample = /^[a-zA-Z_:][\w:]*(\{(\w+="([^"\\]|\\.)*",?)*\})? (Na[Nn]|[+-]?Inf|[-+]?[\d.e+-]+)$/;
    const lines = body.toString().trimEnd().split('\n');
    expect(
      lines.filter((line) => line !== '' && !/^# (HELP|TYPE) /.test(line) && !sample.test(line)),
    ).toEqual([]);
    const requests = 'gimbal_requests_total{path="/v1/chat/completions",status=';
    expect(lines).toContain(`${requests}"200"} 2`);
    expect(lines).toContain(`${requests}"400"} 1`);
    expect(lines.filter((line) => /^gimbal_engine_state\{.*state="active"\} 1$/.test(line))).toHaveLength(2);
    for (const [name, value] of [
      ['gimbal_dispatches_total', 2],
      ['gimbal_output_tokens_total', 13],
      ['gimbal_prompt_tokens_total', 2 * countTokens(chatText(saying('x')))],
      ['gimbal_time_to_first_token_seconds_count', 1],
      ['gimbal_engine_in_flight', 0],
    ] as const) {
      expect(await metric(adminUrl, name), name).toBe(value);
    }
  });

  it('see whether it is alive, ready and drained, and on a port of their own where they want', async () => {
    const engine = await stage.standIn();
    const { url, adminUrl, gateway } = await stage.gateway({
      servers: [{ url: engine.url }],
      admin: { port: 0 },
      drain: { noticeMs: 300 },
    });
    const get = async (path: string, at = adminUrl) => {
      const { status, body } = await ask(at, '', { method: 'GET', path });
      return `${status} ${JSON.parse(body.toString()).status ?? ''}`;
    };
    expect(adminUrl).not.toBe(url);
    expect([await get('/healthz'), await get('/readyz')]).toEqual(['200 alive', '200 ready']);
    expect((await ask(url, '', { method: 'GET', path: '/metrics' })).status).toBe(404);
    expect((await ask(adminUrl, chat('x').body)).status).toBe(404);
    const closed = gateway.close();
    expect([await get('/healthz'), await get('/readyz')]).toEqual(['200 alive', '503 draining']);
    // Until balancers have seen it, requests are still taken.
    const { body, answer } = chat('late');
    const late = await ask(url, body);
    expect(contentOf(late)).toBe(answer);
    expect(late.headers.connection).toBe('close');
    await closed;
    await expect(ask(url, body)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  });

  it('see that nothing is ready where every engine sleeps', async () => {
    const { engine, url } = await pair();
    const ready = async () => (await ask(url, '', { method: 'GET', path: '/readyz' })).status;
    engine.asleep = true;
    await until(async () => expect(await ready()).toBe(503));
    engine.asleep = false;
    await until(async () => expect(await ready()).toBe(200));
  });

  it('see in the state what the engines say, and what is in flight', async () => {
    const { engine, gateway, url } = await pair();
    engine.pause();
    const answers = [ask(url, chat('a').body), ask(url, chat('b').body)];
    await until(async () => expect(inFlight(await gateway.snapshot())).toBe(2));
    await until(async () => {
      const { engines } = await gateway.snapshot();
      expect(engines.map(({ waiting, running }) => waiting! + running!)).toEqual([1, 1]);
    });
    engine.resume();
    await Promise.all(answers);
  });
});

const openssl = spawnSync('openssl', ['version']).error === undefined;

describe.skipIf(!openssl)(`TLS${openssl ? '' : ' (skipped: no openssl)'}`, () => {
  it('on both sides, and a certificate that is renewed while it runs', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'gimbal-tls-'));
    stage.onEnd(() => rm(folder, { recursive: true }));
    const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
    const renew = (name: string) =>
      execFileSync(
        'openssl',
        `req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=${name} -addext subjectAltName=IP:127.0.0.1 -keyout ${key} -out ${cert}`.split(
          ' ',
        ),
        { stdio: 'ignore' },
      );
    renew('first');
    const firstKey = await readFile(key);
    const engine = await stage.standIn();
    const { url, gateway } = await stage.gateway({
      servers: [{ url: engine.url }],
      listen: { tls: { cert, key } },
      limits: { headersMs: 300 },
    });
    expect(url).toMatch(/^https:/);
    const ca = await readFile(cert, 'utf8');
    const dispatcher = new Agent({ connect: { ca } });
    stage.onEnd(() => dispatcher.destroy());
    const client = new OpenAI({
      baseURL: `${url}/v1`,
      apiKey: 'none',
      maxRetries: 0,
      fetch: undiciFetch as never,
      fetchOptions: { dispatcher } as never,
    });
    const answer = await client.chat.completions.create({ model: MODEL, messages: saying('x') });
    expect(answer.choices[0]!.message.content).toBe(answerText(chatText(saying('x')), 16));
    expect(engine.requests[0]!.headers['x-forwarded-proto']).toBe('https');
    // Whoever does not begin to speak TLS is sent away.
    expect(await raw(url)).toBe('');
    renew('second');
    const mine = checkGatewayOptions({
      servers: [{ url: engine.url }],
      listen: { port: 0, tls: { cert, key } },
    });
    const secondKey = await readFile(key);
    await writeFile(key, firstKey);
    await expect(gateway.reload(mine)).rejects.toMatchObject({ code: 'GIMBAL_FORMAT' });
    await writeFile(key, secondKey);
    await gateway.reload(mine);
    const renewed = await readFile(cert, 'utf8');
    const subject = await new Promise((resolve, reject) => {
      const request = https.get(`${url}/healthz`, { ca: renewed, agent: false }, (response) => {
        resolve((response.socket as TLSSocket).getPeerCertificate().subject.CN);
        response.resume();
      });
      request.once('error', reject);
    });
    expect(subject).toBe('second');
  });
});
