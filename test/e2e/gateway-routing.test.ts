/** Routing through the gateway: stand-in engines say where they route, the gateway counts a share of it and shows clients none. */
import { afterEach, describe, expect, it } from 'vitest';
import type { GatewayOptions } from '../../lib/gateway/config.js';
import { encodePushedCounts } from '../../lib/statistics/pushed-counts.js';
import type { StandInRouting } from '../stand-in/routing.js';
import { routedText, routedTo } from '../stand-in/routing.js';
import type { StandInOptions } from '../stand-in/server.js';
import {
  ask,
  chat,
  contentOf,
  errorIn,
  metric,
  type Running,
  Stage,
  scripted,
  streamedText,
  until,
} from '../support/gateway.js';

const stage = new Stage();
afterEach(() => stage.end());

const MODEL: StandInRouting = { layers: 3, experts: 8, topK: 2, denseLayers: 1 };
const ROUTING = {
  layers: 3,
  experts: 8,
  topK: 2,
  firstLayer: 1,
  share: 1,
  windowTokens: 2 ** 20,
  priorTokens: 0,
};

async function start(engine: Partial<StandInOptions> = {}, options: Partial<GatewayOptions> = {}) {
  const standIn = await stage.standIn({ ranks: 2, routing: MODEL, ...engine });
  const servers = [{ url: standIn.url, ranks: 2, kind: engine.kind ?? ('vllm' as const) }];
  const running = await stage.gateway({ servers, routing: ROUTING, ...options });
  return { standIn, ...running };
}

/** [layers][2][experts] as the engines have it, of requests by rank and tokens that were routed. */
function expected(requests: readonly { rank: number; tokens: number }[]): number[] {
  const { layers, experts, topK } = MODEL;
  const counts = new Array<number>(layers * 2 * experts).fill(0);
  for (const { rank, tokens } of requests) {
    routedTo(MODEL, rank, tokens).forEach((id, at) => {
      const layer = (Math.floor(at / topK) % (1 + layers)) - 1;
      if (layer >= 0) counts[(layer * 2 + rank) * experts + id]! += 1;
    });
  }
  return counts;
}

async function sampled({ adminUrl }: Running, results: number): Promise<void> {
  await until(async () => expect(await metric(adminUrl, 'gimbal_routing_samples_total')).toBe(results));
}

describe('answers of vLLM', () => {
  it('reach clients without their routing, which is counted for the rank that served them', async () => {
    const { standIn, url, ...running } = await start({}, { policy: 'round-robin' });
    const { body, answer } = chat('Where do you go?');
    const plain = await stage.standIn({ ranks: 2 });
    const without = await ask(plain.url, body);
    const usage = JSON.parse(without.body.toString()).usage;
    for (let n = 0; n < 6; n++) {
      const answered = await ask(url, body);
      expect(contentOf(answered)).toBe(answer);
      const { id: _, created: __, ...rest } = JSON.parse(answered.body.toString());
      const { id: ___, created: ____, ...bare } = JSON.parse(without.body.toString());
      expect(JSON.stringify(rest)).toBe(JSON.stringify(bare));
      expect(Number(answered.headers['content-length'])).toBe(answered.body.length);
    }
    await sampled({ url, ...running }, 6);
    const statistics = running.gateway.statistics!;
    const tokens = usage.prompt_tokens + usage.completion_tokens - 1;
    const served = standIn.requests.map(({ rank }) => ({ rank: rank!, tokens }));
    expect([...statistics.counts()]).toEqual(expected(served));
    expect(new Set(served.map(({ rank }) => rank)).size).toBe(2);
  });

  it('keep it where the client asks, and are counted all the same', async () => {
    const { standIn, url, ...running } = await start();
    const { body } = chat('Tell me', 4, { return_routed_experts: true });
    const { body: bytes } = await ask(url, body);
    const { choices, usage } = JSON.parse(bytes.toString());
    const { rank } = standIn.requests[0]!;
    expect(choices[0].routed_experts).toBe(routedText(MODEL, 'vllm', rank!, usage.prompt_tokens + 3));
    await sampled({ url, ...running }, 1);
    expect(running.gateway.statistics!.tokensSeen).toBe(usage.prompt_tokens + 3);
    const some = await ask(url, chat('Tell me', 4, { routed_experts_prompt_start: 2 }).body);
    expect(some.body.toString()).toContain('routed_experts');
    await ask(url, chat('Tell me', 4).body);
    await sampled({ url, ...running }, 2);
  });

  it('are not touched by a gateway that counts nothing', async () => {
    const { url } = await start({}, { routing: undefined });
    expect((await ask(url, chat('Hello').body)).body.toString()).toContain('"routed_experts"');
  });

  it('lose it in streams too, should they have it', async () => {
    const { url, ...running } = await start({ routing: { ...MODEL, inStreams: true } });
    const { body, answer } = chat('Stream', 8, { stream: true, stream_options: { include_usage: true } });
    const answered = await ask(url, body);
    expect(streamedText(answered)).toBe(answer);
    expect(answered.body.toString()).not.toContain('routed_experts');
    await sampled({ url, ...running }, 1);
    expect(await metric(running.adminUrl, 'gimbal_routing_tokens_total')).toBeGreaterThan(8);
  });

  it('are held until they are whole however long their routing is', async () => {
    const model = { ...MODEL, layers: 60, topK: 8, experts: 64, denseLayers: 0 };
    const routing = { ...ROUTING, layers: 60, topK: 8, experts: 64, firstLayer: 0 };
    const long = await stage.standIn({ ranks: 1, routing: model });
    const routed = routedText(model, 'vllm', 0, 6000);
    expect(routed.length).toBeGreaterThan(2 ** 21);
    // One that dies half-way, and one that answers.
    let asked = 0;
    const dying = await scripted(stage, (response) => {
      asked += 1;
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': 10_000_000 });
      response.write(`{"choices":[{"message":{"content":"x"},"routed_experts":"${routed}`);
      setTimeout(() => response.destroy(), 20);
    });
    const servers = [{ url: dying.url }, { url: long.url }];
    const running = await stage.gateway({ servers, routing, policy: 'round-robin' });
    const { body, answer } = chat('Hello');
    for (let n = 0; n < 2; n++) expect(contentOf(await ask(running.url, body))).toBe(answer);
    expect(asked).toBeGreaterThan(0);
    await sampled(running, 2);
    // What the first one said was not counted, nor is it kept.
    expect(await metric(running.adminUrl, 'gimbal_routing_held_bytes')).toBe(0);
    expect(running.gateway.statistics!.confidence().unobserved).toEqual([0]);
  });

  it('are whole to their last byte, whatever they end with, and however long they are', async () => {
    const long = 'x'.repeat(2 ** 21);
    const said = [
      ['text/plain', 'well,', 'well,'],
      ['application/json', `{"a":"${long}","routed_experts":"AAAA"}`, `{"a":"${long}"}`],
    ] as const;
    let next = 0;
    const engine = await scripted(stage, (response) => {
      const [type, text] = said[next++]!;
      response.writeHead(200, { 'content-type': type, 'content-length': text.length });
      response.end(text);
    });
    const { url } = await stage.gateway({ servers: [{ url: engine.url }], routing: ROUTING });
    for (const [, , expectedText] of said) {
      const { body, complete } = await ask(url, chat('Hello').body);
      expect(complete).toBe(true);
      expect(body.toString() === expectedText).toBe(true);
    }
  });

  it('leave tokens out that came from the prefix cache', async () => {
    const { standIn, url, ...running } = await start({ ranks: 1, prefixCache: true }, {});
    const { body } = chat('word '.repeat(200), 4);
    const first = JSON.parse((await ask(url, body)).body.toString()).usage;
    await ask(url, body);
    await sampled({ url, ...running }, 2);
    const [, second] = standIn.requests;
    expect(second!.cachedTokens).toBeGreaterThan(100);
    const all = 2 * (first.prompt_tokens + 3) - second!.cachedTokens;
    expect(running.gateway.statistics!.tokensSeen).toBe(all);
  });
});

describe('SGLang', () => {
  it.each([false, true])('is asked for a share, and clients see none of it (stream: %s)', async (stream) => {
    const { standIn, url, ...running } = await start(
      { kind: 'sglang' },
      { routing: { ...ROUTING, share: 0.5 } },
    );
    const { body, answer } = chat('Hello', 8, { stream });
    const plain = await stage.standIn({ kind: 'sglang', ranks: 1 });
    const without = (await ask(plain.url, body)).body.toString();
    const events = (text: string) => text.split('data: ').length;
    for (let n = 0; n < 12; n++) {
      const answered = await ask(url, body);
      expect(stream ? streamedText(answered) : contentOf(answered)).toBe(answer);
      expect(answered.body.toString()).not.toMatch(/routed_experts|sglext/);
      expect(events(answered.body.toString())).toBe(events(without));
    }
    const asked = standIn.requests.filter(
      ({ body: sent }) => (sent as { return_routed_experts?: true }).return_routed_experts,
    );
    expect(asked.length).toBeGreaterThan(0);
    expect(asked.length).toBeLessThan(12);
    await sampled({ url, ...running }, asked.length);
    expect(running.gateway.statistics!.tokensSeen).toBeGreaterThan(8 * asked.length);
  });
});

describe('requests without a word of routing', () => {
  it.each(['/v1/embeddings', '/v1/responses'])('are not asked of SGLang: %s', async (path) => {
    const { standIn, url, ...running } = await start({ kind: 'sglang' });
    const { status } = await ask(url, { model: 'stand-in', input: 'Hello' }, { path });
    expect(status).toBe(200);
    expect(standIn.requests[0]!.body).not.toHaveProperty('return_routed_experts');
    expect(await metric(running.adminUrl, 'gimbal_routing_samples_total')).toBeUndefined();
  });
});

describe('the statistics over HTTP', () => {
  const COUNTS = '/v1/statistics/counts';
  const pushed = { source: 1, layers: 3, experts: 8, k: 2, counts: new Uint32Array(24).fill(3) };
  const push = (running: Running, form: 'binary' | 'json', headers: Record<string, string> = {}) =>
    ask(running.adminUrl, Buffer.from(encodePushedCounts(pushed, form)), { path: COUNTS, headers });
  const told = async ({ adminUrl }: Running) =>
    JSON.parse((await ask(adminUrl, '', { method: 'GET', path: '/v1/statistics' })).body.toString());

  it('take counts in both forms, once each, and tell what is known', async () => {
    const running = await start({}, { admin: { port: 0 } });
    const numbered = (n: number) => ({ 'x-gimbal-pusher': 'node-1', 'x-gimbal-sequence': String(n) });
    const results: string[] = [];
    for (const [form, headers] of [
      ['binary', {}],
      ['json', {}],
      ['binary', numbered(7)],
      ['json', numbered(7)],
      ['json', numbered(6)],
    ] as const) {
      const { status, body } = await push(running, form, headers);
      expect(status).toBe(200);
      results.push(JSON.parse(body.toString()).result);
    }
    expect(results).toEqual(['counted', 'counted', 'counted', 'duplicate', 'late']);
    // 24 pairs in a layer, of 2 a token, three times.
    expect(await told(running)).toMatchObject({
      layers: 3,
      sources: 2,
      experts: 8,
      tokensSeen: 36,
      tokens: [0, 36],
      unobserved: [0],
      confidence: [1, 1, 1],
      drift: { ready: false, drifted: false },
    });
    expect(await metric(running.adminUrl, 'gimbal_routing_pushes_total')).toBe(5);
    // They are for operators, and not where clients come.
    expect(errorIn(await ask(running.url, '', { method: 'GET', path: '/v1/statistics' })).status).toBe(404);
  });

  it('refuse what is amiss, and count nothing of it', async () => {
    const running = await start({}, { apiKeys: ['secret'] });
    const post = (body: object | string | Buffer, headers: Record<string, string> = {}) =>
      ask(running.adminUrl, body, { path: COUNTS, headers: { authorization: 'Bearer secret', ...headers } });
    const json = { version: 1, source: 0, k: 1, counts: [[1]] };
    expect(errorIn(await push(running, 'json'))).toMatchObject({ status: 401 });
    expect(errorIn(await post('nonsense'))).toMatchObject({ status: 400, code: 'invalid_counts' });
    expect(errorIn(await post(json))).toMatchObject({ status: 400, code: 'invalid_counts' });
    expect(errorIn(await post({ ...json, source: 2 }))).toMatchObject({ status: 400 });
    expect(errorIn(await post('x'.repeat(100_000)))).toMatchObject({ status: 413, code: 'body_too_long' });
    const sound = Buffer.from(encodePushedCounts(pushed));
    expect(errorIn(await post(sound, { 'x-gimbal-pusher': 'a' }))).toMatchObject({ status: 400 });
    expect(errorIn(await post(sound, { 'x-gimbal-sequence': '1' }))).toMatchObject({ status: 400 });
    // A number is only used up by what was counted.
    const numbered = { 'x-gimbal-pusher': 'a', 'x-gimbal-sequence': '1' };
    expect(errorIn(await post('nonsense', numbered))).toMatchObject({ status: 400 });
    expect(JSON.parse((await post(sound, numbered)).body.toString())).toEqual({
      result: 'counted',
      tokensSeen: 12,
    });
    const wrong = await ask(running.adminUrl, '', {
      method: 'GET',
      path: COUNTS,
      headers: { authorization: 'Bearer secret' },
    });
    expect(errorIn(wrong)).toMatchObject({ status: 405 });
  });
});
