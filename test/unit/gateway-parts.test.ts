/** The gateway's parts that need no server: configuration, what is read off bodies and answers, headers, keys, the last minute. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import {
  checkGatewayOptions,
  type GatewayConfig,
  mergeReload,
  readApiKeys,
  readGatewayConfig,
} from '../../lib/gateway/config.js';
import { answeredHeaders, forwardedHeaders, requestIdOf } from '../../lib/gateway/headers.js';
import { type InferencePath, inspect } from '../../lib/gateway/inspect.js';
import { ApiKeys } from '../../lib/gateway/keys.js';
import { createLog, traceOf } from '../../lib/gateway/log.js';
import { GatewayMetrics } from '../../lib/gateway/metrics.js';
import { MinuteSum } from '../../lib/gateway/minute.js';
import { NOTHING, TokenEstimator } from '../../lib/gateway/tokens.js';
import type { FleetEngine } from '../../lib/gateway/types.js';
import {
  AnswerTail,
  askForUsage,
  EventStripper,
  stripUsage,
  usageOf,
  withPriority,
} from '../../lib/gateway/usage.js';

const folder = mkdtempSync(path.join(tmpdir(), 'gimbal-gateway-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SERVERS = { servers: [{ url: 'http://127.0.0.1:1' }] };

describe('the configuration', () => {
  const file = (content: string | Buffer): string => {
    const at = path.join(folder, `${Math.random().toString(36).slice(2)}.yaml`);
    writeFileSync(at, content);
    return at;
  };

  it('needs servers and nothing else', () => {
    const config = checkGatewayOptions(SERVERS);
    expect(config.servers[0]).toMatchObject({ url: 'http://127.0.0.1:1', kind: 'vllm', ranks: 1 });
    expect(config).toMatchObject({ policy: 'gimbal', retries: 2, apiKeys: [], listen: { port: 8080 } });
  });

  it.each([
    [{}, 'servers'],
    [{ servers: [] }, 'servers'],
    [{ servers: [{ url: 'ftp://a' }] }, 'servers[0].url'],
    [{ servers: [{ url: 'http://u:p@a' }] }, 'servers[0].url'],
    [{ servers: [{ url: 'http://:p@a' }] }, 'servers[0].url'],
    [{ servers: [{ url: 'http://a?b' }] }, 'servers[0].url'],
    [{ servers: [{ url: 'http://a', kvTokens: 2 ** 31 }] }, 'servers[0].kvTokens'],
    [{ servers: [{ url: 'http://a', firstGlobalRank: 2 ** 31 }] }, 'servers[0].firstGlobalRank'],
    [{ servers: [{ url: 'http://a' }, { url: 'http://a/' }] }, 'servers[1].url'],
    [{ servers: [{ url: 'http://a', ranks: 0 }] }, 'servers[0].ranks'],
    [{ servers: [{ url: 'http://a', rank: 2 }] }, 'servers[0].rank'],
    [
      { servers: [{ url: 'http://a', ranks: 2, kvEvents: [{ endpoint: 'tcp://a:1' }] }] },
      'servers[0].kvEvents',
    ],
    [{ servers: [{ url: 'http://a', apiKey: 'x', apiKeyEnv: 'HOME' }] }, 'servers[0].apiKeyEnv'],
    [{ servers: [{ url: 'http://a', apiKeyEnv: 'GIMBAL_NOT_SET' }] }, 'servers[0].apiKeyEnv'],
    [{ ...SERVERS, policy: 'best' }, 'policy'],
    [{ ...SERVERS, listen: { port: 70_000 } }, 'listen.port'],
    [{ ...SERVERS, limits: { bodyBytes: '1' } }, 'limits.bodyBytes'],
    [{ ...SERVERS, queues: {} }, 'queues'],
    [{ ...SERVERS, retries: 11 }, 'retries'],
  ])('%j is refused by the name of the field', (options, field) => {
    expect(() => checkGatewayOptions(options, 'gimbal.yaml')).toThrow(
      expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field: `gimbal.yaml: ${field}` }),
    );
  });

  it('never repeats a value, which may be a key', () => {
    const options = {
      servers: [{ url: 'http://user:s3cret@a', apiKey: 's3cret' }],
      apiKeys: [{ a: 's3cret' }],
    };
    expect(() => checkGatewayOptions(options)).toThrow(/^(?!.*s3cret)/s);
    const badUrl = { servers: [{ url: 'http://user:s3cret@a' }] };
    expect(() => checkGatewayOptions(badUrl)).toThrow(expect.objectContaining({ received: 'string' }));
  });

  it('comes from YAML and from JSON, with what a caller says laid over it', async () => {
    const yaml = file('servers:\n  - url: http://a:1\n    ranks: 4\nlisten: { host: 0.0.0.0, port: 9 }\n');
    expect(await readGatewayConfig(yaml, { listen: { port: 0 } })).toMatchObject({
      servers: [{ url: 'http://a:1', ranks: 4 }],
      listen: { host: '0.0.0.0', port: 0 },
    });
    expect(await readGatewayConfig(file(JSON.stringify(SERVERS)))).toEqual(checkGatewayOptions(SERVERS));
  });

  it.each([
    ['servers: [', 'GIMBAL_FORMAT'],
    ['', 'GIMBAL_FORMAT'],
    ['- 1', 'GIMBAL_FORMAT'],
    ['servers: 1', 'GIMBAL_INVALID_INPUT'],
  ])('a file that holds %j is refused by its name', async (content, code) => {
    const at = file(content);
    await expect(readGatewayConfig(at)).rejects.toMatchObject({ code, field: expect.stringContaining(at) });
  });

  it('of a reload takes what can be taken, and says what cannot', () => {
    const current = checkGatewayOptions(SERVERS);
    const next = checkGatewayOptions({
      servers: [{ url: 'http://127.0.0.1:2' }],
      retries: 5,
      policy: 'vllm',
      listen: { port: 1 },
    });
    const { config, later } = mergeReload(current, next);
    expect(config).toMatchObject({
      servers: next.servers,
      retries: 5,
      policy: 'gimbal',
      listen: current.listen,
    });
    expect(later.toSorted()).toEqual(['listen', 'policy']);
  });

  it('of a reload says that connections go on as they were made', () => {
    const next = checkGatewayOptions({ ...SERVERS, limits: { connectMs: 5, idleMs: 7 } });
    const { config, later } = mergeReload(checkGatewayOptions(SERVERS), next);
    expect(config.limits).toMatchObject({ connectMs: 2000, idleMs: 7 });
    expect(later).toEqual(['limits.connectMs']);
  });

  it.each([
    ['not in UTF-8', Buffer.from([0x61, 0x3a, 0x20, 0xe9])],
    ['that only unfolds', `a: &a [${'x,'.repeat(99)}]\nb: [${'*a,'.repeat(999)}]\n`],
    ['that is no YAML', 'a: [s3cret\nb: s3cret: s3cret'],
  ])('of a file %s is refused, and not repeated', async (_, content) => {
    const refused = { code: 'GIMBAL_FORMAT', message: expect.not.stringContaining('s3cret') };
    await expect(readGatewayConfig(file(content))).rejects.toMatchObject(refused);
  });

  it('of keys from a file without any is refused, rather than open to everybody', async () => {
    for (const content of ['', '# none yet\n\n']) {
      const config = checkGatewayOptions({ ...SERVERS, apiKeysFile: file(content) });
      await expect(readApiKeys(config)).rejects.toMatchObject({ code: 'GIMBAL_FORMAT' });
    }
  });

  it('reads keys a line, without comments and blank lines', async () => {
    const apiKeysFile = file('one\n\n# old\n  two  \n');
    const config = checkGatewayOptions({ ...SERVERS, apiKeys: ['zero'], apiKeysFile });
    expect(await readApiKeys(config)).toEqual(['zero', 'one', 'two']);
    const missing: GatewayConfig = { ...config, apiKeysFile: path.join(folder, 'none') };
    await expect(readApiKeys(missing)).rejects.toMatchObject({ code: 'GIMBAL_IO' });
  });
});

describe('what is read off a body', () => {
  const look = (at: InferencePath, body: unknown, headers = {}) =>
    inspect(at, Buffer.from(JSON.stringify(body)), headers, 'x-session-id');

  it('is model, stream and session', () => {
    const messages = [{ role: 'user', content: 'hi' }];
    const chat = look('/v1/chat/completions', { model: 'm', messages, stream: true, user: 'u' });
    expect(chat).toMatchObject({ model: 'm', streams: true, sessionKey: 'u', streamOptions: 'none' });
    const named = {
      messages,
      user: 'u',
      prompt_cache_key: 'k',
      stream_options: { include_usage: true },
      priority: 1,
    };
    expect(look('/v1/chat/completions', named)).toMatchObject({
      streams: false,
      sessionKey: 'k',
      streamOptions: 'with-usage',
      hasPriority: true,
    });
    expect(look('/v1/chat/completions', named, { 'x-session-id': 'h' }).sessionKey).toBe('h');
    expect(look('/v1/embeddings', { input: 'a', stream: true }).streams).toBe(false);
  });

  it.each([['nonsense'], ['[1]'], ['null'], ['1'], ['']])('%j is no request', (text) => {
    expect(() => inspect('/v1/completions', Buffer.from(text), {}, 'x')).toThrow(
      expect.objectContaining({ code: 'GIMBAL_FORMAT', field: 'body' }),
    );
  });

  it('counts text, messages, attachments and token ids, wherever they stand', () => {
    const parts = [
      { type: 'text', text: 'abcd' },
      { type: 'image_url', image_url: { url: `data:image/png;base64,${'A'.repeat(9999)}` } },
    ];
    const chat = look('/v1/chat/completions', {
      messages: [
        { role: 'system', content: '日本' },
        { role: 'user', content: parts },
      ],
    });
    expect(chat.size).toEqual({ asciiBytes: 4, otherCharacters: 2, messages: 2, attachments: 1, tokens: 0 });
    expect(look('/v1/completions', { prompt: ['abc', 'de'] }).size.asciiBytes).toBe(5);
    const ids = look('/v1/completions', { prompt: [1, 2, 3] });
    expect(ids.size.tokens).toBe(3);
    expect(ids.promptTokenIds).toEqual([1, 2, 3]);
    expect(look('/v1/completions', { prompt: [[1, 2], [3]] }).size.tokens).toBe(3);
    const responses = look('/v1/responses', {
      instructions: 'ab',
      input: [{ role: 'user', content: [{ type: 'input_text', text: 'cd' }] }],
    });
    expect(responses.size).toMatchObject({ asciiBytes: 4, messages: 1, attachments: 0 });
  });

  it('does not break on any JSON', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 12 }), (value) => {
        const { size } = look('/v1/chat/completions', { messages: value, model: value, user: value });
        for (const one of Object.values(size)) expect(one).toBeGreaterThanOrEqual(0);
      }),
    );
  });

  it('hashes prompts by blocks: equal as far as they are equal, and different between models', () => {
    const of = (content: string, model = 'm') =>
      look('/v1/chat/completions', { model, messages: [{ role: 'user', content }] }).prefixHashes;
    const shared = 'x'.repeat(3000);
    const [a, b] = [of(`${shared}left`), of(`${shared}right`)];
    expect(a.length).toBe(3);
    expect(a.subarray(0, 2)).toEqual(b.subarray(0, 2));
    expect(a[2]).not.toBe(b[2]);
    expect(of(shared, 'n')[0]).not.toBe(of(shared)[0]);
    expect(of('x'.repeat(1e6)).length).toBe(128);
  });

  it('has tools before messages, as templates do', () => {
    const of = (tool: string, content: string) =>
      look('/v1/chat/completions', { tools: [{ name: tool }], messages: [{ role: 'user', content }] })
        .prefixHashes;
    const content = 'x'.repeat(3000);
    expect(of('a', `${content}more`)[0]).toBe(of('a', content)[0]);
    expect([...of('a', content)].some((hash) => of('b', content).includes(hash))).toBe(false);
  });

  it('leaves to the engine what is nested too deeply to be written again', () => {
    const deep = `${'['.repeat(1e5)}${']'.repeat(1e5)}`;
    const body = `{"tools":${deep},"messages":[{"role":"user","content":"abcd","tool_calls":${deep}}]}`;
    expect(inspect('/v1/chat/completions', Buffer.from(body), {}, 'x').size).toEqual({
      ...NOTHING,
      messages: 1,
      asciiBytes: 4,
    });
  });

  it('keeps a bounded part of what names the model, which is logged', () => {
    expect(look('/v1/completions', { model: 'm'.repeat(1e5) }).model).toHaveLength(256);
  });
});

describe('the estimate of tokens', () => {
  const text = { ...NOTHING, asciiBytes: 4000 };

  it('starts from four bytes a token, and counts token ids exactly', () => {
    const estimator = new TokenEstimator();
    expect(estimator.estimate('m', text)).toBe(1000);
    expect(estimator.estimate('m', { ...NOTHING, tokens: 17 })).toBe(17);
    expect(estimator.estimate('m', NOTHING)).toBe(1);
  });

  it('comes to what engines count, for each model by itself', () => {
    const estimator = new TokenEstimator();
    for (let n = 0; n < 40; n++) estimator.learn('dense', { ...text, asciiBytes: 4000 + n }, 1600);
    expect(estimator.estimate('dense', text)).toBeGreaterThan(1550);
    expect(estimator.estimate('dense', text)).toBeLessThan(1650);
    expect(estimator.estimate('other', text)).toBe(1000);
  });

  it('is not moved by usage that cannot be of the prompt', () => {
    const estimator = new TokenEstimator();
    for (const tokens of [0, -5, Number.NaN, 1e9, 1]) estimator.learn('m', text, tokens);
    expect(estimator.estimate('m', text)).toBe(1000);
  });

  it('is never more than the scheduler takes', () => {
    expect(new TokenEstimator().estimate('m', { ...NOTHING, attachments: 1_200_000 })).toBe(2 ** 28);
  });

  it('remembers no more than 64 models', () => {
    const estimator = new TokenEstimator();
    for (let n = 0; n < 100; n++) estimator.learn(`m${n}`, text, 2000);
    expect(estimator.estimate('m0', text)).toBe(1000);
    expect(estimator.estimate('m99', text)).toBe(2000);
  });
});

const event = (value: unknown, end = '\n\n') => `data: ${JSON.stringify(value)}${end}`;
const CHUNK = { choices: [{ delta: { content: '{"usage": null} "usage"' } }] };
const USAGE = {
  prompt_tokens: 9,
  completion_tokens: 3,
  total_tokens: 12,
  prompt_tokens_details: { cached_tokens: 4 },
};

describe('usage in answers', () => {
  const tailOf = (text: string, size: number) => {
    const tail = new AnswerTail();
    const bytes = Buffer.from(text);
    for (let at = 0; at < bytes.length; at += size) tail.push(bytes.subarray(at, at + size));
    return tail;
  };

  it.each([1, 7, 4095, 4096, 100_000])('is found at the end of a stream, in pieces of %d bytes', (size) => {
    const found = { promptTokens: 9, completionTokens: 3, cachedTokens: 4 };
    for (const events of [0, 500]) {
      const stream = `${event(CHUNK).repeat(events)}${event({ choices: [], usage: USAGE })}data: [DONE]\n\n`;
      expect(tailOf(stream, size).usage()).toEqual(found);
    }
    const responses = { response: { usage: { input_tokens: 2, output_tokens: 1 } } };
    expect(tailOf(event(responses), size).usage()).toEqual({ promptTokens: 2, completionTokens: 1 });
  });

  it('is found at the end of an answer in one piece', () => {
    const json = JSON.stringify({ choices: [{ text: 'x'.repeat(20_000) }], usage: USAGE, more: { a: 1 } });
    expect(usageOf(Buffer.from(json))).toEqual({ promptTokens: 9, completionTokens: 3, cachedTokens: 4 });
  });

  it.each([
    '',
    'x',
    '{"usage":null}',
    '{"usage":{"prompt_tokens":-1}}',
    '{"usage":{"prompt_tokens":',
    '{"usage":3}',
  ])('is not made up of %j', (text) => {
    expect(tailOf(text, 3).usage()).toBeUndefined();
    expect(usageOf(Buffer.from(text))).toBeUndefined();
  });

  it('keeps the last bytes of a stream in order, whatever pieces it comes in', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat({ max: 6000 }), { maxLength: 20 }),
        fc.nat({ max: 3000 }),
        (pieces, after) => {
          const tail = new AnswerTail();
          for (const bytes of pieces) tail.push(Buffer.alloc(bytes, 'x'));
          tail.push(Buffer.from(event({ choices: [], usage: USAGE })));
          tail.push(Buffer.alloc(after, 'y'));
          expect(tail.usage()?.promptTokens).toBe(9);
        },
      ),
    );
  });

  it('counts the events of a stream', () => {
    expect(tailOf(event(CHUNK).repeat(5), 4096).events).toBe(5);
  });
});

describe('a stream that the gateway asked for its usage', () => {
  const strip = (text: string, cuts: readonly number[]) => {
    const stripper = new EventStripper(stripUsage);
    const bytes = Buffer.from(text);
    const places = [0, ...cuts.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
    const out: Buffer[] = [];
    for (let n = 1; n < places.length; n++) out.push(stripper.push(bytes.subarray(places[n - 1], places[n])));
    out.push(stripper.end());
    return Buffer.concat(out).toString();
  };
  const cuts = fc.array(fc.nat(), { maxLength: 20 });

  it('loses the usage and nothing else, however it is cut', () => {
    const withNull = event({ ...CHUNK, usage: null });
    const first = event({ usage: null, ...CHUNK });
    const only = event({ usage: null });
    const middle = event({ a: 1, usage: null, b: 2 });
    const deeper = { choices: [{ usage: null }] };
    const text = `: hello\n\n${withNull}${first}${only}${middle}${event({ ...deeper, usage: null })}${event({ choices: [], usage: USAGE })}data: [DONE]\n\n`;
    const expected = `: hello\n\n${event(CHUNK)}${event(CHUNK)}${event({})}${event({ a: 1, b: 2 })}${event(deeper)}data: [DONE]\n\n`;
    fc.assert(
      fc.property(cuts, (at) => {
        expect(strip(text, at)).toBe(expected);
      }),
    );
  });

  it('is the same for all three kinds of line ends', () => {
    for (const end of ['\n\n', '\r\n\r\n', '\r\r']) {
      const text =
        event({ ...CHUNK, usage: null }, end) + event({ choices: [], usage: USAGE }, end) + event(CHUNK, end);
      const expected = event(CHUNK, end) + event(CHUNK, end);
      fc.assert(
        fc.property(cuts, (at) => {
          expect(strip(text, at)).toBe(expected);
        }),
      );
    }
  });

  it('passes everything else byte for byte', () => {
    const line = fc.oneof(
      fc.string({ unit: 'binary' }),
      fc.constantFrom(
        'data: {"usage":',
        'data: {"usage":{"prompt_tokens":1},"choices":[{}]}',
        'event: usage',
        ': "usage"',
        'data: x "usage":null',
      ),
    );
    fc.assert(
      fc.property(
        fc.array(line, { maxLength: 12 }),
        fc.constantFrom('\n', '\r\n', '\n\n'),
        cuts,
        (lines, end, at) => {
          const text = lines.join(end);
          expect(strip(text, at)).toBe(Buffer.from(text).toString());
        },
      ),
    );
    const long = `data: {"usage":null,"x":"${'y'.repeat(1 << 21)}"}\n\n`;
    expect(strip(long, [])).toBe(`data: {"x":"${'y'.repeat(1 << 21)}"}\n\n`);
    expect(strip(long, [1 << 20, 1.5 * (1 << 20)])).toBe(long);
  });

  it('is asked for by one member more', () => {
    for (const body of [{}, { a: 1 }, { a: { b: '{' } }]) {
      const asked = JSON.parse(askForUsage(Buffer.from(JSON.stringify(body))).toString());
      expect(asked).toEqual({ ...body, stream_options: { include_usage: true } });
      expect(JSON.parse(withPriority(Buffer.from(` ${JSON.stringify(body)} `), -3).toString())).toEqual({
        ...body,
        priority: -3,
      });
    }
    expect(JSON.parse(askForUsage(Buffer.from('{  }')).toString())).toHaveProperty('stream_options');
  });
});

describe('headers', () => {
  const options = {
    requestId: 'r',
    clientAddress: '10.0.0.9',
    secure: false,
    dropsAuthorization: true,
    extra: { authorization: 'Bearer engine' },
  };

  it('of a connection do not pass, nor those that the gateway sets', () => {
    const sent = forwardedHeaders(
      {
        host: 'a',
        connection: 'keep-alive, X-Secret',
        'x-secret': '1',
        'transfer-encoding': 'chunked',
        'content-length': '5',
        'x-data-parallel-rank': '3',
        authorization: 'Bearer client',
        'accept-encoding': 'gzip',
        'content-type': 'application/json',
        'x-forwarded-for': '1.2.3.4',
      },
      options,
    );
    expect(sent).toEqual({
      'content-type': 'application/json',
      authorization: 'Bearer engine',
      'x-forwarded-for': '1.2.3.4, 10.0.0.9',
      'x-forwarded-proto': 'http',
      'x-request-id': 'r',
    });
  });

  it("keep the client's authorization where the gateway has no keys", () => {
    const open = { ...options, dropsAuthorization: false, extra: {} };
    expect(forwardedHeaders({ authorization: 'Bearer client' }, open).authorization).toBe('Bearer client');
  });

  it('of an answer pass but for those of its connection', () => {
    const answered = answeredHeaders(
      { connection: 'x-a', 'x-a': '1', 'keep-alive': 't', 'set-cookie': ['a', 'b'] },
      'r',
    );
    expect(answered).toEqual({ 'set-cookie': ['a', 'b'], 'x-request-id': 'r' });
    // As undici gives it where it stands in several lines.
    const lines = { connection: ['close', 'x-a'] as never, 'x-a': '1' };
    expect(answeredHeaders(lines, 'r')).toEqual({ 'x-request-id': 'r' });
  });

  it("name a request by the client's id where it can be logged", () => {
    expect(requestIdOf({ 'x-request-id': 'abc-1' }, () => 'own')).toBe('abc-1');
    for (const id of ['a b', 'ü', '', 'x'.repeat(200)]) {
      expect(requestIdOf({ 'x-request-id': id }, () => 'own')).toBe('own');
    }
  });
});

describe('keys', () => {
  it('admit those who bring one, as a bearer or as a password', () => {
    const keys = new ApiKeys(['one', 'two']);
    const admits = (authorization?: string) =>
      keys.admits(authorization === undefined ? {} : { authorization });
    const basic = (text: string) => `Basic ${Buffer.from(text).toString('base64')}`;
    expect([admits('Bearer one'), admits('bearer two'), admits(basic('any:two'))]).toEqual([
      true,
      true,
      true,
    ]);
    for (const wrong of [
      undefined,
      '',
      'Bearer',
      'Bearer on',
      'Bearer onee',
      'one',
      basic('one:x'),
      'Digest one',
    ]) {
      expect(admits(wrong)).toBe(false);
    }
    keys.renew(['three']);
    expect([admits('Bearer one'), admits('Bearer three')]).toEqual([false, true]);
    keys.renew([]);
    expect(admits()).toBe(true);
  });
});

describe('the log', () => {
  it('is a line of JSON with the names of the OpenTelemetry log model', () => {
    const lines: string[] = [];
    const log = createLog('info', { write: (line: string) => lines.push(line) });
    log.debug('not told');
    log.warn({ status: 502 }, 'request');
    expect(lines.length).toBe(1);
    expect(JSON.parse(lines[0]!)).toMatchObject({
      severityText: 'WARN',
      severityNumber: 13,
      body: 'request',
      status: 502,
      timestamp: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
    });
  });

  it('names the trace of a request that says one', () => {
    const [trace, span] = ['0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'];
    expect(traceOf(`00-${trace}-${span}-01`)).toEqual({ traceId: trace, spanId: span });
    for (const wrong of [undefined, '', `00-${trace}-${span}`, `00-${trace.toUpperCase()}-${span}-01`]) {
      expect(traceOf(wrong)).toEqual({});
    }
  });
});

describe('the metrics', () => {
  it('have no series of engines that are gone', async () => {
    const metrics = new GatewayMetrics();
    const target = (name: string) => ({ name }) as FleetEngine;
    metrics.dispatched(target('a'), 'least-pressure', 1);
    metrics.dispatched(target('a'), 'no-fresh-sample', 1);
    metrics.dispatched(target('b'), 'least-pressure', 1);
    metrics.gone(target('a'));
    const told = await metrics.registry.getSingleMetricAsString('gimbal_dispatches_total');
    expect(told).not.toContain('engine="a"');
    expect(told).toContain('gimbal_dispatches_total{engine="b",reason="least-pressure"} 1');
  });
});

describe('the last minute', () => {
  it('sums what is at most a minute old', () => {
    let nowMs = 5_000_000;
    const sum = new MinuteSum(() => nowMs);
    sum.add(3);
    expect([sum.sum, sum.perSecond]).toEqual([3, 3]);
    nowMs += 30_000;
    sum.add(1);
    expect(sum.sum).toBe(4);
    nowMs += 30_000;
    expect(sum.sum).toBe(1);
    expect(sum.perSecond).toBeCloseTo(1 / 60, 10);
    nowMs += 1e9;
    expect(sum.sum).toBe(0);
  });
});
