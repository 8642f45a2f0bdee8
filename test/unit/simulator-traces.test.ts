/** Traces of every format, shapes of synthetic ones, and what is refused. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { lengthShapes, syntheticTrace } from '../../lib/simulator/shapes.js';
import { simulate } from '../../lib/simulator/simulate.js';
import { atRate, readTrace, scaleArrivals } from '../../lib/simulator/traces.js';
import type { SimulationOptions } from '../../lib/simulator/types.js';
import { BASE, randomTrace } from './simulator-fixture.js';

const folder = mkdtempSync(path.join(tmpdir(), 'gimbal-traces-'));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, text: string): string {
  const full = path.join(folder, name);
  writeFileSync(full, text);
  return full;
}

const EXPECTED = [
  { arrivalMs: 0, inputTokens: 374, outputTokens: 44 },
  { arrivalMs: 1500, inputTokens: 396, outputTokens: 109 },
];

describe('traces', () => {
  it.each([
    [
      'azure',
      'TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5000000,374,44\n2023-11-16 18:15:48.0000000,396,109\n',
    ],
    [
      'burstgpt',
      'Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,s1,1,GPT-4,374,44,418,Conversation log\n6.5,s2,1,GPT-4,396,109,505,API log\n7,s2,1,GPT-4,396,0,396,API log\n',
    ],
    [
      'burstgpt',
      'Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,374,44,418,x\n6.5,ChatGPT,396,109,505,x\n',
    ],
    [
      'mooncake',
      '{"timestamp": 100, "input_length": 374, "output_length": 44, "hash_ids": [0, 1]}\n{"timestamp": 1600, "input_length": 396, "output_length": 109, "hash_ids": [0, 2]}\n',
    ],
    [
      'vllm-bench',
      JSON.stringify({
        request_rate: 'inf',
        input_lens: [374, 396, 5],
        output_lens: [44, 109, 0],
        start_times: [9, 10.5, 11],
      }),
    ],
    ['csv', 'arrival_ms,input_tokens,output_tokens\n1600,396,109\n100,374,44\n'],
    ['csv', 'arrival_time,prompt_tokens,completion_tokens\n0.1,374,44\n1.6,396,109\n'],
    [
      'jsonl',
      '{"arrivalMs":3,"inputTokens":374,"outputTokens":44,"session":"a"}\n{"arrivalMs":1503,"inputTokens":396,"outputTokens":109}\n',
    ],
  ])('%s', async (format, text) => {
    const read = await readTrace(file('trace', text));
    expect(read.format).toBe(format);
    expect(read.requests).toMatchObject(EXPECTED);
    expect(read.requests.length).toBe(2);
    expect(read.notes.length).toBe(
      text.includes('0,396,API') || text.includes('"output_lens":[44,109,0]') ? 1 : 0,
    );
    if (format === 'mooncake') expect(read.requests[1]!.prefixHashes).toEqual([0, 2]);
    expect((await readTrace(file('trace', text), { limit: 1 })).requests.length).toBe(1);
  });

  it.each([
    ['nothing', '', /expected a trace/],
    ['words', 'hello', /expected a trace/],
    ['no lengths', 'arrivalMs,size\n1,2\n', /columns arrivalMs/],
    [
      'a negative length',
      'arrivalMs,inputTokens,outputTokens\n1,-5,2\n',
      /request 1: inputTokens: expected a number/,
    ],
    ['half a line', '{"arrivalMs":1,"inputTokens":1,"outputTokens":1}\n{"arr', /not jsonl/],
    ['no time', 'TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,374,44\n', /request 1: TIMESTAMP/],
    ['no requests', 'arrivalMs,inputTokens,outputTokens\n', /columns|at least one request/],
    ['no rate', JSON.stringify({ request_rate: 'inf', input_lens: [3], output_lens: [4] }), /start_times/],
  ])('refuses %s', async (_, text, message) => {
    const error = await readTrace(file('bad', text)).catch((caught: unknown) => caught);
    expect(error).toMatchObject({ code: 'GIMBAL_FORMAT', message: expect.stringMatching(message) });
  });

  it('come at the rate that is asked for', () => {
    const trace = randomTrace({ count: 101, gapMs: 7, seed: 1 });
    const faster = atRate(trace, 50);
    expect(faster.at(-1)!.arrivalMs - faster[0]!.arrivalMs).toBeCloseTo(2000, 6);
    expect(scaleArrivals(trace, 0.5)[9]!.arrivalMs).toBe(trace[9]!.arrivalMs / 2);
    expect(() => atRate(trace.slice(0, 1), 5)).toThrow(/different times/);
  });

  it('of every shape have the mean that is asked for, and shapes of their own', () => {
    const spread = lengthShapes.map((shape) => {
      const trace = syntheticTrace({ shape, requests: 20_000, requestsPerSecond: 10, seed: 3 });
      const lengths = trace.map(({ inputTokens }) => inputTokens);
      const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;
      expect(mean / 1024, shape).toBeCloseTo(1, 1);
      const output = trace.reduce((sum, { outputTokens }) => sum + outputTokens, 0) / trace.length;
      expect(output / 256, shape).toBeCloseTo(1, 1);
      expect(20_000 / (trace.at(-1)!.arrivalMs / 1000), shape).toBeCloseTo(10, 0);
      return (
        Math.sqrt(lengths.reduce((sum, length) => sum + (length - mean) ** 2, 0) / lengths.length) / mean
      );
    });
    const [random, central, descending, twoEnd, average] = spread;
    expect(average).toBeLessThan(central!);
    expect(central).toBeLessThan(random!);
    expect(random).toBeLessThan(descending!);
    expect(descending).toBeLessThan(twoEnd!);
    expect(syntheticTrace({ shape: 'random', requests: 5, requestsPerSecond: 1, seed: 1 })).toEqual(
      syntheticTrace({ shape: 'random', requests: 5, requestsPerSecond: 1, seed: 1 }),
    );
  });
});

describe('options', () => {
  const trace = [{ arrivalMs: 0, inputTokens: 10, outputTokens: 10 }];
  it.each<[string, object, RegExp]>([
    ['an unknown key', { dpp: 2 }, /options\.dpp/],
    ['no trace', { trace: [] }, /options\.trace/],
    ['an unknown model', { model: 'Qwen3-30B' }, /model/],
    ['times out of order', { trace: [{ ...trace[0], arrivalMs: 5 }, trace[0]] }, /trace\[1\]\.arrivalMs/],
    ['no output', { trace: [{ ...trace[0], outputTokens: 0 }] }, /trace\[0\]\.outputTokens/],
    [
      'a request larger than the memory',
      { trace: [{ ...trace[0], inputTokens: 20_000 }] },
      /trace\[0\].*KV cache/,
    ],
    ['experts that do not divide', { dp: 4, ep: 3 }, /options\.ep/],
    ['nodes that split an engine', { dp: 1, tp: 2, nodes: 2 }, /options\.nodes/],
    [
      'a budget below the requests',
      { engine: { maxNumSeqs: 64, maxNumBatchedTokens: 32 } },
      /maxNumBatchedTokens/,
    ],
    [
      'a model that does not fit',
      { hardware: { ...(BASE.hardware as object), memoryGB: 0.1 }, engine: {} },
      /GB of weights/,
    ],
    ['an unknown policy', { policy: { dispatch: 'vlm' } }, /did you mean 'vllm'/],
    ['a placement of another shape', { rearrangement: { initial: new Int32Array(3) } }, /32 slots/],
    ['a stall below 0', { rearrangement: { stallMs: -1 } }, /options\.rearrangement\.stallMs/],
    ['no sample', { rearrangement: { controller: { sampleShare: 0 } } }, /controller\.sampleShare/],
    [
      'looks without a pause',
      { rearrangement: { controller: { lookEveryMs: 0 } } },
      /controller\.lookEveryMs/,
    ],
    ['an unknown rule', { rearrangement: { controller: { rules: { horizon: 1 } } } }, /horizonMs/],
    ['more layers than there are', { simulatedLayers: 3 }, /simulatedLayers.*at most 2/],
    ['a GPU that is not there', { failures: [{ atMs: 0, gpu: 2 }] }, /failures\[0\]\.gpu/],
    ['a GPU back before it is lost', { failures: [{ atMs: 5, gpu: 1, backMs: 5 }] }, /failures\[0\]\.backMs/],
    [
      'a GPU lost twice',
      {
        rearrangement: { redundantExperts: 16 },
        failures: [
          { atMs: 5, gpu: 1 },
          { atMs: 9, gpu: 1 },
        ],
      },
      /failures\[1\].*lost already/,
    ],
    ['a loss that leaves too few slots', { failures: [{ atMs: 5, gpu: 1 }] }, /16 slots.*redundantExperts/],
    [
      'the loss of the last engine',
      {
        rearrangement: { redundantExperts: 16 },
        failures: [
          { atMs: 5, gpu: 1 },
          { atMs: 9, gpu: 0 },
        ],
      },
      /failures\[1\].*an engine/,
    ],
    ['a negative seed', { seed: -1 }, /options\.seed/],
    [
      'routing of another model',
      { routing: { kind: 'counts', tokens: [1], layers: 1, sources: 1, experts: 1 } },
      /routing\.experts/,
    ],
  ])('refuses %s', async (_, changed, message) => {
    const options = { ...BASE, trace, ...changed } as SimulationOptions;
    await expect(simulate(options)).rejects.toMatchObject({
      code: 'GIMBAL_INVALID_INPUT',
      message: expect.stringMatching(message),
    });
  });

  it('stops where the signal says so, with its reason', async () => {
    const abort = new AbortController();
    const long = randomTrace({ count: 3000, gapMs: 2, seed: 1 });
    const running = simulate({
      ...BASE,
      trace: long,
      signal: abort.signal,
      onProgress: () => abort.abort(new Error('enough')),
    });
    await expect(running).rejects.toThrow('enough');
  });
});
