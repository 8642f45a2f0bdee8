/** The stand-in engine by itself: that clients take it for an engine, that it keeps time, and that its faults are what they say. */
import { spawn } from 'node:child_process';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import OpenAI from 'openai';
import { afterEach, describe, expect, it } from 'vitest';
import { readSglangLoads, readSglangMetrics, readVllmMetrics } from '../../lib/index.js';
import type { Garbage } from '../stand-in/faults.js';
import { DEFAULT_TIMING, Pump, Rank, type RankOptions, Sequence, type Timing } from '../stand-in/rank.js';
import { StandIn, type StandInOptions } from '../stand-in/server.js';
import { answerText, chatText, countTokens, embedding, tokenIds } from '../stand-in/text.js';
import type { Kind } from '../stand-in/wire.js';

const KINDS: readonly Kind[] = ['vllm', 'sglang'];
const FAST = { timeScale: 50 };
/** Long enough that a test's next act comes before the end. */
const LONG = 5000;

const running: StandIn[] = [];
afterEach(async () => {
  for (const standIn of running.splice(0)) await standIn.stop();
});

async function start(options: Partial<StandInOptions> = {}): Promise<StandIn> {
  const standIn = await StandIn.start({ kind: 'vllm', ranks: 2, seed: 7, timing: FAST, ...options });
  running.push(standIn);
  return standIn;
}

const clientOf = ({ url }: StandIn) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 20_000 });
const saying = (content: string) => [{ role: 'user' as const, content }];

/** A request without a client's help. */
function post(
  standIn: StandIn,
  body: object,
  headers: Record<string, string> = {},
  url = '/v1/chat/completions',
) {
  return fetch(`${standIn.url}${url}`, { method: 'POST', body: JSON.stringify(body), headers });
}

const chat = (more: object = {}) => ({ messages: saying('hello'), max_tokens: 4, ...more });
const textOf = async (standIn: StandIn, url: string) => (await fetch(`${standIn.url}${url}`)).text();

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe.each(KINDS)('%s, asked by the client of openai', (kind) => {
  it('answers a chat with the text that belongs to it, and counts its tokens', async () => {
    const standIn = await start({ kind });
    const answer = await clientOf(standIn).chat.completions.create({
      model: 'stand-in',
      messages: saying('How are you?'),
      max_completion_tokens: 40,
    });
    const prompt = chatText(saying('How are you?'));
    const text = answerText(prompt, 40, 7);
    expect(answer.choices).toMatchObject([
      { index: 0, finish_reason: 'length', message: { role: 'assistant', content: text } },
    ]);
    expect(countTokens(text)).toBe(40);
    expect(answer.usage).toMatchObject({
      prompt_tokens: Math.ceil(prompt.length / 4),
      completion_tokens: 40,
      total_tokens: Math.ceil(prompt.length / 4) + 40,
    });
    expect(answer.id).toBe(standIn.requests[0]!.id);
  });

  it('streams a chat: the role, a token an event, the reason, the usage', async () => {
    const standIn = await start({ kind });
    const stream = await clientOf(standIn).chat.completions.create({
      model: 'stand-in',
      messages: saying('Stream!'),
      max_tokens: 30,
      n: 2,
      stream: true,
      stream_options: { include_usage: true },
    });
    const texts = ['', ''];
    const reasons: string[] = [];
    const chunks = [];
    for await (const chunk of stream) {
      chunks.push(chunk);
      for (const { index, delta, finish_reason } of chunk.choices) {
        texts[index] += delta.content ?? '';
        if (finish_reason) reasons.push(finish_reason);
      }
    }
    const prompt = chatText(saying('Stream!'));
    expect(texts).toEqual([0, 1].map((choice) => answerText(prompt, 30, 7, choice)));
    expect(texts[0]).not.toBe(texts[1]);
    expect(reasons).toEqual(['length', 'length']);
    expect(chunks[0]!.choices[0]!.delta).toMatchObject({ role: 'assistant', content: '' });
    expect(chunks.filter(({ usage }) => usage)).toHaveLength(1);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 60 } });
    // SGLang's ends have events of their own.
    expect(chunks).toHaveLength(2 + 60 + (kind === 'sglang' ? 2 : 0) + 1);
  });

  it('completes prompts, several at once', async () => {
    const client = clientOf(await start({ kind }));
    const prompt = ['one', 'two and a half'];
    const whole = await client.completions.create({ model: 'stand-in', prompt, n: 2 });
    expect(whole.choices.map(({ text, finish_reason }) => [text, finish_reason])).toEqual([
      [answerText('one', 16, 7, 0), 'stop'],
      [answerText('one', 16, 7, 1), 'stop'],
      [answerText('two and a half', 16, 7, 2), 'stop'],
      [answerText('two and a half', 16, 7, 3), 'stop'],
    ]);
    expect(whole.usage).toMatchObject({ prompt_tokens: 1 + 4, completion_tokens: 64 });
    const texts = ['', '', '', ''];
    for await (const { choices } of await client.completions.create({
      model: 'stand-in',
      prompt,
      n: 2,
      stream: true,
    })) {
      for (const { index, text } of choices) texts[index] += text;
    }
    expect(texts).toEqual(whole.choices.map(({ text }) => text));
  });

  it('responds, whole and streamed', async () => {
    const client = clientOf(await start({ kind }));
    const asked = { model: 'stand-in', input: 'Well?', instructions: 'Be brief.', max_output_tokens: 12 };
    const prompt = chatText([{ role: 'system', content: 'Be brief.' }, ...saying('Well?')]);
    const text = answerText(prompt, 12, 7);
    const whole = await client.responses.create(asked);
    expect(whole).toMatchObject({ output_text: text, status: 'incomplete', usage: { output_tokens: 12 } });
    const types: string[] = [];
    let deltas = '';
    for await (const event of client.responses.stream(asked)) {
      types.push(event.type);
      if (event.type === 'response.output_text.delta') deltas += event.delta;
      expect(event.sequence_number).toBe(types.length - 1);
    }
    expect(deltas).toBe(text);
    expect([types[0], types.at(-1)]).toEqual(['response.created', 'response.completed']);
  });

  it('embeds', async () => {
    const client = clientOf(await start({ kind }));
    for (const encoding_format of ['base64', 'float', undefined] as const) {
      const { data, usage } = await client.embeddings.create({
        model: 'stand-in',
        input: ['a', 'bcdef'],
        dimensions: 5,
        ...(encoding_format === undefined ? {} : { encoding_format }),
      });
      const expected = embedding('bcdef', 5, 7);
      const given: unknown = data[1]!.embedding;
      const floats =
        typeof given === 'string'
          ? [...new Float32Array(Uint8Array.from(Buffer.from(given, 'base64')).buffer)]
          : given;
      expect(floats).toEqual(expected);
      expect(usage.prompt_tokens).toBe(3);
    }
  });

  it('lists its model, and is well', async () => {
    const standIn = await start({ kind, model: 'some/model' });
    const models = await clientOf(standIn).models.list();
    expect(models.data).toMatchObject([{ id: 'some/model', owned_by: kind }]);
    expect((await fetch(`${standIn.url}/health`)).status).toBe(200);
  });

  it('serves the rank that a request is pinned to, and refuses others', async () => {
    const standIn = await start({ kind, ranks: 3 });
    for (const rank of [2, 0, 1, 1]) await post(standIn, chat(), { 'x-data-parallel-rank': String(rank) });
    expect(standIn.requests.map(({ rank }) => rank)).toEqual([2, 0, 1, 1]);
    for (const rank of ['3', '-1']) {
      const answer = await post(standIn, chat(), { 'x-data-parallel-rank': rank });
      expect(answer.status).toBe(400);
      expect(standIn.requests.at(-1)!.rank).toBeUndefined();
    }
  });

  it('bears streams that are odd but right', async () => {
    const sse = { comments: true, crlf: true, split: true, paddingChars: 70_000 };
    const standIn = await start({ kind, sse });
    const asked = { model: 'stand-in', messages: saying('Odd'), max_tokens: 25, stream: true as const };
    let text = '';
    for await (const { choices } of await clientOf(standIn).chat.completions.create(asked)) {
      text += choices[0]?.delta.content ?? '';
    }
    expect(text).toBe(answerText(chatText(saying('Odd')), 25, 7));
    const raw = await (await post(standIn, chat({ stream: true }))).text();
    expect(raw).toMatch(/^: still here\r\n\r\ndata: \{"padding":"x{70000}","id"/);
    expect(raw.replaceAll('\r\n', '')).not.toMatch(/[\r\n]/);
  });

  it('frees the places of a client that leaves', async () => {
    const standIn = await start({ kind, ranks: 1, timing: { maxNumSeqs: 2 } });
    const leave = new AbortController();
    const ask = () =>
      fetch(`${standIn.url}/v1/chat/completions`, {
        method: 'POST',
        body: JSON.stringify(chat({ stream: true, max_tokens: LONG })),
        signal: leave.signal,
      }).catch(() => undefined);
    void [ask(), ask(), ask()];
    const [rank] = standIn.ranks;
    await until(() => rank!.running.length === 2 && rank!.waiting.length === 1 && rank!.usedTokens > 4);
    leave.abort();
    await until(() => standIn.requests.every(({ outcome }) => outcome === 'aborted'));
    expect([rank!.running, rank!.waiting, rank!.usedTokens]).toEqual([[], [], 0]);
    expect(rank!.finished.abort).toBe(3);
  });
});

describe('what each kind does its own way', () => {
  it('vLLM sends the headers of a stream at once, SGLang with the first token', async () => {
    for (const kind of KINDS) {
      const standIn = await start({ kind, ranks: 1, timing: { prefillTokensPerSecond: 5 } });
      const leave = new AbortController();
      const answer = fetch(`${standIn.url}/v1/completions`, {
        method: 'POST',
        body: JSON.stringify({ prompt: 'a'.repeat(400), stream: true }),
        signal: leave.signal,
      });
      const rest = new Promise((resolve) => setTimeout(resolve, kind === 'vllm' ? 20_000 : 300, 'none'));
      const first = await Promise.race([answer.then(({ status }) => status), rest]);
      expect(first).toBe(kind === 'vllm' ? 200 : 'none');
      answer.catch(() => undefined);
      leave.abort();
    }
  });

  it('vLLM leaves a pin that is no number, SGLang refuses it; SGLang takes one from the body', async () => {
    const [vllm, sglang] = [await start(), await start({ kind: 'sglang' })];
    expect((await post(vllm, chat(), { 'x-data-parallel-rank': 'one' })).status).toBe(200);
    const refused = await post(sglang, chat(), { 'x-data-parallel-rank': 'one' });
    expect(await refused.json()).toMatchObject({ object: 'error', code: 400, type: 'BadRequestError' });
    await post(sglang, chat({ routed_dp_rank: 1 }));
    await post(sglang, chat({ routed_dp_rank: 1 }), { 'x-data-parallel-rank': '0' });
    expect(sglang.requests.slice(-2).map(({ rank }) => rank)).toEqual([1, 0]);
  });

  it('vLLM refuses unknown models and prompts that are too long, and tokenizes', async () => {
    const standIn = await start({ timing: { kvTokens: 100 } });
    expect((await post(standIn, chat({ model: 'other' }))).status).toBe(404);
    for (const wrong of [{ n: 0 }, { max_tokens: 0 }, { messages: 'hello' }]) {
      expect((await post(standIn, chat(wrong))).status).toBe(400);
    }
    expect((await post(standIn, chat({ messages: [null, { role: 'user', content: [null] }] }))).status).toBe(
      200,
    );
    const long = await post(standIn, chat({ max_tokens: 96 }));
    expect(await long.json()).toMatchObject({ error: { code: 400, type: 'BadRequestError' } });
    const answer = await post(standIn, { prompt: 'hello you' }, {}, '/tokenize');
    expect(await answer.json()).toMatchObject({
      count: 3,
      tokens: tokenIds('hello you'),
      max_model_len: 100,
    });
  });

  it('orders its queue by priority where told: vLLM the lower first, SGLang the higher', async () => {
    for (const kind of KINDS) {
      const standIn = await start({ kind, ranks: 1, scheduling: 'priority', timing: { maxNumSeqs: 1 } });
      standIn.pause();
      const answers = [3, 1, 2].map((priority) => post(standIn, chat({ priority })));
      await until(() => standIn.ranks[0]!.waiting.length === 3);
      standIn.resume();
      await Promise.all(answers);
      const byToken = standIn.requests.toSorted((a, b) => a.firstTokenMs! - b.firstTokenMs!);
      const order = byToken.map(({ body }) => (body as { priority: number }).priority);
      expect(order).toEqual(kind === 'vllm' ? [1, 2, 3] : [3, 2, 1]);
    }
  });

  it('without a pin vLLM takes the least loaded, by counts that are up to 100 ms old; SGLang goes round', async () => {
    const sglang = await start({ kind: 'sglang', ranks: 3 });
    for (let n = 0; n < 6; n++) await post(sglang, chat());
    expect(sglang.requests.map(({ rank }) => rank)).toEqual([0, 1, 2, 0, 1, 2]);
    // So slow that one snapshot, of a request running on rank 1, serves for all that follow.
    const vllm = await start({ ranks: 3, timing: { timeScale: 0.01 } });
    const leave = new AbortController();
    const ask = async (headers: Record<string, string> = {}) => {
      const asked = vllm.requests.length;
      const init = { method: 'POST', body: JSON.stringify(chat()), headers, signal: leave.signal };
      void fetch(`${vllm.url}/v1/chat/completions`, init).catch(() => undefined);
      await until(() => vllm.requests.length > asked);
    };
    await ask({ 'x-data-parallel-rank': '1' });
    for (let n = 0; n < 4; n++) await ask();
    // Scores 0 1 0; then 4 1 0; then 4 1 4; then 4 5 4, from rank 0 on again.
    expect(vllm.requests.slice(1).map(({ rank }) => rank)).toEqual([0, 2, 1, 0]);
    leave.abort();
  });
});

describe('telemetry', () => {
  it('is read by the readers, rank by rank', async () => {
    for (const kind of KINDS) {
      const standIn = await start({
        kind,
        timing: { maxNumSeqs: 1, kvTokens: 20_000, prefillTokensPerSecond: 100 },
      });
      const leave = new AbortController();
      const body = JSON.stringify({ prompt: 'x'.repeat(4000), max_tokens: LONG });
      for (let n = 0; n < 3; n++) {
        const headers = { 'x-data-parallel-rank': '1' };
        const asked = { method: 'POST', body, headers, signal: leave.signal };
        void fetch(`${standIn.url}/v1/completions`, asked).catch(() => undefined);
      }
      await until(() => standIn.ranks[1]!.waiting.length === 2);
      const idle = { dpRank: 0, kvUsage: 0, running: 0, waiting: 0 };
      // One prompt of 1,000 tokens is in its first step, in a cache of 20,000.
      const busy = { dpRank: 1, kvUsage: 0.05, running: 1, waiting: 2 };
      const text = await textOf(standIn, '/metrics');
      if (kind === 'vllm') {
        const more = { preemptions: 0, asleep: false };
        expect(readVllmMetrics(text)).toEqual([
          { ...idle, ...more },
          { ...busy, ...more },
        ]);
        standIn.asleep = true;
        expect(readVllmMetrics(await textOf(standIn, '/metrics')).map(({ asleep }) => asleep)).toEqual([
          true,
          true,
        ]);
      } else {
        expect(readSglangMetrics(text)).toMatchObject([idle, busy]);
        expect(readSglangLoads(await textOf(standIn, '/v1/loads'))).toEqual([
          { ...idle, waitingPrefillTokens: 0 },
          { ...busy, waitingPrefillTokens: 3000 },
        ]);
        const older = readSglangLoads(await textOf(standIn, '/get_load'), { kvTokens: 20_000 });
        // The older answer does not tell the cache's tokens from those of waiting prompts.
        expect(older).toEqual([idle, { ...busy, kvUsage: 0.15 }]);
      }
      leave.abort();
    }
  });

  it('does not move while the engine stands still', async () => {
    const standIn = await start({ ranks: 1 });
    const leave = new AbortController();
    const asked = {
      method: 'POST',
      body: JSON.stringify(chat({ max_tokens: 50_000 })),
      signal: leave.signal,
    };
    const over = fetch(`${standIn.url}/v1/chat/completions`, asked).catch(() => 'left');
    await until(() => standIn.requests[0]?.firstTokenMs !== undefined);
    standIn.pause();
    // The step that was on may end.
    await new Promise((resolve) => setTimeout(resolve, 100));
    const before = await textOf(standIn, '/metrics');
    const { outputTokens } = standIn.requests[0]!;
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(await textOf(standIn, '/metrics')).toBe(before);
    standIn.resume();
    await until(() => standIn.requests[0]!.outputTokens > outputTokens);
    leave.abort();
    expect(await over).toBe('left');
  });

  it('begins anew after a restart', async () => {
    const standIn = await start();
    await post(standIn, chat());
    expect(await textOf(standIn, '/metrics')).toMatch(/generation_tokens_total\{engine="0".*\} 4\.0/);
    const { url } = standIn;
    await standIn.restart();
    expect(standIn.url).toBe(url);
    // Clients may not have noticed yet that their kept connection is gone.
    await textOf(standIn, '/metrics').catch(() => undefined);
    expect(await textOf(standIn, '/metrics')).toMatch(/generation_tokens_total\{engine="0".*\} 0\.0/);
  });
});

/** Ranks without a server or a clock. */
describe('the timing model', () => {
  const rankOf = (timing: Partial<Timing> = {}, more: Partial<RankOptions> = {}) =>
    new Rank({ timing: { ...DEFAULT_TIMING, ...timing }, order: 'fcfs', prefixCache: false, ...more });

  /** Names the sequences in the order of their tokens. */
  function scene(rank: Rank) {
    const seen: string[] = [];
    const add = (name: string, prompt: number, output: number, priority = 0, blocks: string[] = []) => {
      const sequence = new Sequence(prompt, output, priority, blocks, () => seen.push(name));
      rank.submit(sequence);
      return sequence;
    };
    const step = () => {
      const stepMs = rank.begin();
      rank.end();
      return stepMs;
    };
    return { seen, add, step };
  }

  it('charges a step for its prefill and its decodes', () => {
    const rank = rankOf({ prefillTokensPerSecond: 1000, stepTokens: 100 });
    const { seen, add, step } = scene(rank);
    add('a', 150, 3);
    add('b', 30, 2);
    // 100 of a; then 50 of a and 30 of b; then both decode; then a alone; then nothing.
    expect([step(), step(), step(), step(), step()]).toEqual([101, 81, 1 + 8 + 0.1, 1 + 8 + 0.05, 0]);
    expect(seen).toEqual(['a', 'b', 'a', 'b', 'a']);
    expect(rank.usedTokens).toBe(0);
    expect(rank.counters).toEqual({ promptTokens: 180, cachedTokens: 0, outputTokens: 5, preemptions: 0 });
  });

  it('lets nobody in beyond its places, and goes by arrival or by priority', () => {
    for (const [order, expected] of [
      ['fcfs', 'abc'],
      ['lower-first', 'cba'],
      ['higher-first', 'abc'],
    ] as const) {
      const { seen, add, step } = scene(rankOf({ maxNumSeqs: 1 }, { order }));
      add('a', 10, 1, 5);
      add('b', 10, 1, 3);
      add('c', 10, 1, 1);
      while (step() > 0);
      expect(seen.join('')).toBe(expected);
    }
  });

  it('sends the last back where the cache is full, and finishes it all the same', () => {
    const rank = rankOf({ kvTokens: 50 });
    const { seen, add, step } = scene(rank);
    add('a', 20, 20);
    add('b', 20, 20);
    while (step() > 0) expect(rank.usedTokens).toBeLessThanOrEqual(50);
    expect(rank.counters.preemptions).toBe(1);
    expect(rank.counters.outputTokens).toBe(40);
    expect(rank.counters.promptTokens).toBe(40);
    expect(seen.slice(-14)).toEqual(new Array(14).fill('b'));
  });

  it('computes a prefix once, but for the last token', () => {
    const rank = rankOf({}, { prefixCache: true });
    const { add, step } = scene(rank);
    const first = add('a', 40, 1, 0, ['1', '2']);
    step();
    const second = add('b', 40, 1, 0, ['1', '2']);
    const whole = add('c', 32, 1, 0, ['1', '2']);
    const other = add('d', 40, 1, 0, ['3', '2']);
    step();
    expect([first, second, whole, other].map(({ cachedTokens }) => cachedTokens)).toEqual([0, 32, 16, 0]);
    expect(rank.counters).toMatchObject({ promptTokens: 152, cachedTokens: 48 });
  });

  it('frees what was aborted while a step was on', () => {
    const rank = rankOf();
    const { seen, add } = scene(rank);
    const sequence = add('a', 10, 5);
    rank.begin();
    rank.abort(sequence);
    rank.end();
    expect([seen, rank.running, rank.usedTokens, rank.begin()]).toEqual([[], [], 0, 0]);
  });

  it('in lockstep every rank waits for the slowest', async () => {
    const stepsOf = async (lockstep: boolean) => {
      const ranks = [rankOf({ prefillTokensPerSecond: 1000 }), rankOf()];
      const pumps = lockstep ? [new Pump(ranks, 1)] : ranks.map((rank) => new Pump([rank], 1));
      let tokens = 0;
      // 300 ms of prefill on one rank, while the other decodes at 9 ms a token.
      const done = new Promise<number>((resolve) => {
        ranks[0]!.submit(new Sequence(300, 1, 0, [], () => resolve(tokens)));
      });
      ranks[1]!.submit(new Sequence(1, 1000, 0, [], () => tokens++));
      for (const pump of pumps) pump.wake();
      const seen = await done;
      for (const pump of pumps) pump.stop();
      return seen;
    };
    expect(await stepsOf(true)).toBe(0);
    expect(await stepsOf(false)).toBeGreaterThan(5);
  });
});

describe('faults', () => {
  it('befall as many requests as told, those that are meant', async () => {
    const standIn = await start();
    const takeBack = standIn.fault({ kind: 'status', status: 503, retryAfter: '2' }, { times: 2 });
    const ofModels = { when: ({ path: asked }: { path: string }) => asked === '/v1/models' };
    standIn.fault({ kind: 'status', status: 500 }, { times: Number.POSITIVE_INFINITY, ...ofModels });
    const statuses = [];
    for (let n = 0; n < 3; n++) statuses.push((await post(standIn, chat())).status);
    expect(statuses).toEqual([503, 503, 200]);
    expect((await fetch(`${standIn.url}/v1/models`)).status).toBe(500);
    expect(standIn.requests.map(({ outcome }) => outcome)).toEqual(['error', 'error', 'finished']);
    takeBack();
    standIn.fault({ kind: 'status', status: 429, retryAfter: '3' })();
    expect((await post(standIn, chat())).status).toBe(200);
    standIn.fault({ kind: 'status', status: 429, retryAfter: '3' });
    expect((await post(standIn, chat())).headers.get('retry-after')).toBe('3');
  });

  it('break a stream after as many events as told', async () => {
    const standIn = await start();
    for (const after of [0, 1, 4]) {
      standIn.fault({ kind: 'die', after });
      const { events, error } = await drained(await post(standIn, chat({ stream: true, max_tokens: 500 })));
      expect([events, error]).toEqual([after, true]);
      const log = standIn.requests.at(-1)!;
      await until(() => log.outcome === 'error');
      expect(log.events).toBe(after);
    }
    await until(() => standIn.ranks.every(({ running: left }) => left.length === 0));
    standIn.fault({ kind: 'end', after: 2 });
    expect(await drained(await post(standIn, chat({ stream: true })))).toEqual({
      events: 2,
      error: false,
      done: false,
    });
    standIn.fault({ kind: 'error-event', after: 2 });
    expect(await drained(await post(standIn, chat({ stream: true })))).toEqual({
      events: 4,
      error: false,
      done: true,
    });
    // The role, four tokens and the end; nobody asked for usage.
    const whole = { events: 6, error: false, done: true };
    expect(await drained(await post(standIn, chat({ stream: true })))).toEqual(whole);
  });

  it('break off before the headers, after them, and within a body', async () => {
    const standIn = await start();
    standIn.fault({ kind: 'die', after: 'request' });
    await expect(post(standIn, chat())).rejects.toThrow();
    for (const after of ['headers', 1] as const) {
      standIn.fault({ kind: 'die', after });
      const answer = await post(standIn, chat());
      expect(answer.status).toBe(200);
      await expect(answer.text()).rejects.toThrow();
    }
  });

  it('hang before the headers, after them, and within a stream, until the client leaves', async () => {
    const standIn = await start();
    for (const after of ['request', 'headers', 3] as const) {
      standIn.fault({ kind: 'hang', after });
      const leave = new AbortController();
      const asked = { method: 'POST', body: JSON.stringify(chat({ stream: true })), signal: leave.signal };
      const seen: (number | string)[] = [];
      const over = fetch(`${standIn.url}/v1/chat/completions`, asked)
        .then(async (answer) => {
          seen.push(answer.status);
          for await (const chunk of answer.body!) seen.push(...eventsIn(Buffer.from(chunk).toString()));
        })
        .catch(() => 'left');
      await until(() => seen.length === (after === 'request' ? 0 : after === 'headers' ? 1 : 4));
      const rest = new Promise((resolve) => setTimeout(resolve, 100, 'hangs'));
      expect(await Promise.race([over, rest])).toBe('hangs');
      leave.abort();
      expect(await over).toBe('left');
      await until(() => standIn.requests.at(-1)?.outcome === 'aborted');
    }
  });

  it('answer garbage', async () => {
    const standIn = await start();
    const outcomes: Record<Garbage, string> = {
      'not-http': 'no answer',
      html: 'no JSON',
      'truncated-json': 'no JSON',
      'too-long': 'half a body',
      'too-short': 'no JSON',
    };
    for (const [what, expected] of Object.entries(outcomes)) {
      standIn.fault({ kind: 'garbage', what: what as Garbage });
      const outcome = await post(standIn, chat()).then(
        (answer) => answer.text().then(readable, () => 'half a body'),
        () => 'no answer',
      );
      expect([what, outcome]).toEqual([what, expected]);
    }
  });

  it('come late, or slowly', async () => {
    const standIn = await start();
    const fromMs = performance.now();
    standIn.fault({ kind: 'delay', delayMs: 150 });
    expect((await post(standIn, chat())).status).toBe(200);
    expect(performance.now() - fromMs).toBeGreaterThan(145);
    standIn.fault({ kind: 'slow', bytes: 50, intervalMs: 10 });
    const answer = await post(standIn, chat());
    const begunMs = performance.now();
    const text = await answer.text();
    expect(JSON.parse(text)).toMatchObject({ object: 'chat.completion' });
    expect(performance.now() - begunMs).toBeGreaterThan((text.length / 50 - 3) * 9);
  });

  it('repeat old metrics', async () => {
    const standIn = await start();
    const metrics = { when: ({ path: asked }: { path: string }) => asked === '/metrics', times: 2 };
    const old = await textOf(standIn, '/metrics');
    standIn.fault({ kind: 'stale' }, metrics);
    await post(standIn, chat());
    expect([await textOf(standIn, '/metrics'), await textOf(standIn, '/metrics')]).toEqual([old, old]);
    expect(await textOf(standIn, '/metrics')).not.toBe(old);
  });

  it('kill: what is open breaks, what comes is refused; it comes back where it was', async () => {
    const standIn = await start({ timing: { timeScale: 1 } });
    const answer = await post(standIn, chat({ stream: true, max_tokens: LONG }));
    const over = drained(answer);
    await until(() => standIn.requests[0]!.outputTokens > 1);
    await standIn.kill();
    expect(await over).toMatchObject({ error: true, done: false });
    expect(standIn.requests[0]!.outcome).toBe('error');
    await expect(post(standIn, chat())).rejects.toMatchObject({ cause: { code: 'ECONNREFUSED' } });
    await standIn.restart();
    standIn.fault({ kind: 'delay', delayMs: 50 });
    const late = post(standIn, chat()).catch(() => 'broken');
    await until(() => standIn.requests.length === 2);
    await standIn.restart();
    expect(await late).toBe('broken');
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(standIn.requests[1]).toMatchObject({ outcome: 'error' });
    expect(standIn.requests[1]!.rank).toBeUndefined();
    expect((await post(standIn, chat())).status).toBe(200);
  });
});

it('cuts events within characters', async () => {
  const standIn = await start({ sse: { split: true }, ranks: 1 });
  const asked = JSON.stringify(chat({ stream: true, max_tokens: 64 }));
  const { port } = new URL(standIn.url);
  const pieces: Buffer[] = [];
  await new Promise<void>((resolve) => {
    const socket = net.connect(Number(port), '127.0.0.1', () =>
      socket.write(`POST /v1/chat/completions HTTP/1.0\r\ncontent-length: ${asked.length}\r\n\r\n${asked}`),
    );
    socket.on('data', (piece) => pieces.push(piece));
    socket.on('close', () => resolve());
  });
  const cut = pieces.filter((piece) => Buffer.from(piece.toString()).compare(piece) !== 0);
  expect(cut.length).toBeGreaterThan(0);
  expect(Buffer.concat(pieces).toString()).not.toContain('\ufffd');
});

it('serves 2,000 streams at once, each with its own answer', async () => {
  const streams = 2000;
  const timing = { timeScale: 1, maxNumSeqs: 1000, kvTokens: 1e6, prefillTokensPerSecond: 1e6 };
  const standIn = await start({ timing, keepLog: false });
  const agent = new http.Agent({ maxSockets: streams });
  standIn.pause();
  const prompts = Array.from({ length: streams }, (_, n) => `stream ${n}`);
  const answers = prompts.map((prompt) =>
    streamed(standIn.url, { prompt, max_tokens: 20, stream: true }, agent),
  );
  const waiting = () => standIn.ranks.reduce((sum, rank) => sum + rank.waiting.length, 0);
  await until(() => waiting() === streams);
  standIn.resume();
  const texts = (await Promise.all(answers)).map((raw) =>
    eventsIn(raw).map((event) => (event === '[DONE]' ? '' : JSON.parse(event).choices[0].text)),
  );
  agent.destroy();
  const wrong = prompts.filter((prompt, n) => texts[n]!.join('') !== answerText(prompt, 20, 7));
  expect(wrong).toEqual([]);
  expect(standIn.ranks.map(({ counters }) => counters.outputTokens)).toEqual([20_000, 20_000]);
});

it('runs as a process', async () => {
  const root = path.join(__dirname, '..', '..');
  const args = [
    '--import',
    'tsx',
    'test/stand-in/run.ts',
    '--kind',
    'sglang',
    '--ranks',
    '3',
    '--timing',
    '{"timeScale":50}',
  ];
  const child = spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
  const line = await new Promise<string>((resolve) =>
    child.stdout.once('data', (chunk) => resolve(String(chunk))),
  );
  const { url } = JSON.parse(line);
  expect(readSglangLoads(await (await fetch(`${url}/v1/loads`)).text())).toHaveLength(3);
  const code = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGTERM');
  expect(await code).toBe(0);
});

function eventsIn(raw: string): string[] {
  return [...raw.matchAll(/^data: (.*)$/gm)].map(([, event]) => event!);
}

/** What is left of a stream, to its end. */
async function drained(answer: Response): Promise<{ events: number; error: boolean; done: boolean }> {
  let raw = '';
  let error = false;
  try {
    for await (const chunk of answer.body!) raw += Buffer.from(chunk).toString('latin1');
  } catch {
    error = true;
  }
  const events = eventsIn(raw);
  return { events: events.length, error, done: events.at(-1) === '[DONE]' };
}

function readable(text: string): string {
  try {
    JSON.parse(text);
    return 'JSON';
  } catch {
    return 'no JSON';
  }
}

function streamed(url: string, body: object, agent: http.Agent): Promise<string> {
  return new Promise((resolve, reject) => {
    const request = http.request(`${url}/v1/completions`, { method: 'POST', agent }, (response) => {
      let raw = '';
      response.setEncoding('utf8');
      response.on('data', (text) => {
        raw += text;
      });
      response.on('end', () => resolve(raw));
      response.on('error', reject);
    });
    request.on('error', reject);
    request.end(JSON.stringify(body));
  });
}
