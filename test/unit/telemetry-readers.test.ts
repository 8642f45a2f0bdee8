/** What vLLM and SGLang say of themselves, in all the ways they have said it, and what is not taken for it. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GimbalError } from '../../lib/errors.js';
import { readSglangLoads, readSglangMetrics } from '../../lib/telemetry/sglang.js';
import { readVllmMetrics } from '../../lib/telemetry/vllm.js';
import { PROPERTY_SEED } from '../property/arbitraries.js';
import { CURRENT, OLDER, type Rank, sglangLoads, sglangText, vllmText } from './telemetry-fixtures.js';

const VLLM = `# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-235B-A22B"} 12.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3-235B-A22B"} 9.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-235B-A22B"} 3.0
vllm:num_requests_waiting{engine="1",model_name="Qwen/Qwen3-235B-A22B"} 0.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting, by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3-235B-A22B",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3-235B-A22B",reason="deferred"} 1.0
# HELP vllm:engine_sleep_state Engine sleep state.
# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{engine="0",model_name="Qwen/Qwen3-235B-A22B",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="1",model_name="Qwen/Qwen3-235B-A22B",sleep_state="awake"} 0.0
vllm:engine_sleep_state{engine="0",model_name="Qwen/Qwen3-235B-A22B",sleep_state="weights_offloaded"} 0.0
vllm:engine_sleep_state{engine="1",model_name="Qwen/Qwen3-235B-A22B",sleep_state="weights_offloaded"} 1.0
vllm:engine_sleep_state{engine="0",model_name="Qwen/Qwen3-235B-A22B",sleep_state="discard_all"} 0.0
vllm:engine_sleep_state{engine="1",model_name="Qwen/Qwen3-235B-A22B",sleep_state="discard_all"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-235B-A22B"} 0.8125
vllm:kv_cache_usage_perc{engine="1",model_name="Qwen/Qwen3-235B-A22B"} 0.0
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="Qwen/Qwen3-235B-A22B"} 1.234567e+06
vllm:num_preemptions_total{engine="1",model_name="Qwen/Qwen3-235B-A22B"} 0.0
# HELP vllm:num_preemptions_created Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_created gauge
vllm:num_preemptions_created{engine="0",model_name="Qwen/Qwen3-235B-A22B"} 1.7643219471134853e+09
vllm:num_preemptions_created{engine="1",model_name="Qwen/Qwen3-235B-A22B"} 1.7643219471134853e+09
`;

const SGLANG = `# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="ds",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 24.0
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="ds",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.73
# HELP sglang:num_queue_reqs The number of requests in the waiting queue.
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="ds",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 3.0
`;

const RANK: Rank = { dpRank: 0, kvUsage: 0.5, running: 4, waiting: 2 };
const format = (field: string | RegExp, more: object = {}) =>
  expect.objectContaining({
    code: 'GIMBAL_FORMAT',
    field: typeof field === 'string' ? field : expect.stringMatching(field),
    ...more,
  });
const without = (text: string, name: string) => text.replace(new RegExp(`^${name}\\{.*\\n`, 'gm'), '');

describe('readVllmMetrics', () => {
  it('reads each DP rank of the current version', () => {
    expect(readVllmMetrics(VLLM)).toEqual([
      { dpRank: 0, kvUsage: 0.8125, running: 12, waiting: 3, preemptions: 1_234_567, asleep: false },
      { dpRank: 1, kvUsage: 0, running: 9, waiting: 0, preemptions: 0, asleep: true },
    ]);
  });

  it('reads versions with the older names, and without the label engine', () => {
    const text = `vllm:num_requests_running{model_name="m"} 2.0
vllm:num_requests_waiting{model_name="m"} 1.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:cpu_cache_usage_perc{model_name="m"} 0.75
vllm:num_preemptions{model_name="m"} 7.0
`;
    expect(readVllmMetrics(text)).toEqual([
      { dpRank: 0, kvUsage: 0.25, running: 2, waiting: 1, preemptions: 7, asleep: false },
    ]);
  });

  it('takes the current name where a version has both', () => {
    const both = `${VLLM}vllm:gpu_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-235B-A22B"} 1.0
vllm:gpu_cache_usage_perc{engine="1",model_name="Qwen/Qwen3-235B-A22B"} 1.0
`;
    expect(readVllmMetrics(both)).toEqual(readVllmMetrics(VLLM));
  });

  it('leaves out what a version does not say', () => {
    const text = without(without(VLLM, 'vllm:num_preemptions_total'), 'vllm:engine_sleep_state');
    expect(readVllmMetrics(text)).toEqual([
      { dpRank: 0, kvUsage: 0.8125, running: 12, waiting: 3, asleep: false },
      { dpRank: 1, kvUsage: 0, running: 9, waiting: 0, asleep: false },
    ]);
  });

  it('orders many ranks by number, with gaps', () => {
    const ranks = [11, 2, 100, 0].map((dpRank) => ({ ...RANK, dpRank, running: dpRank }));
    expect(readVllmMetrics(vllmText(ranks)).map(({ dpRank, running }) => [dpRank, running])).toEqual([
      [0, 0],
      [2, 2],
      [11, 11],
      [100, 100],
    ]);
  });

  it('adds up the requests of several models, and takes their fullest cache; or one model alone', () => {
    const a = vllmText([{ ...RANK, running: 4, kvUsage: 0.5, preemptions: 2 }], CURRENT, 'a');
    const b = vllmText([{ ...RANK, running: 3, kvUsage: 0.75, preemptions: 5 }], CURRENT, 'b');
    const both = { dpRank: 0, running: 7, waiting: 4, kvUsage: 0.75, preemptions: 7, asleep: false };
    expect(readVllmMetrics(a + b)).toEqual([both]);
    expect(readVllmMetrics(b + a)).toEqual([both]);
    expect(readVllmMetrics(a + b, { modelName: 'a' })).toEqual([
      { dpRank: 0, running: 4, waiting: 2, kvUsage: 0.5, preemptions: 2, asleep: false },
    ]);
    expect(() => readVllmMetrics(a + b, { modelName: 'c' })).toThrow(
      format(/num_requests_running$/, {
        expected: 'a series with model_name="c"',
        received: 'those of "a", "b"',
      }),
    );
  });

  it('takes the greatest of several processes of one model', () => {
    const text = vllmText([{ ...RANK, kvUsage: 0.5 }]).replace(
      /^vllm:kv_cache_usage_perc\{engine="0",(.*)\} .*$/m,
      'vllm:kv_cache_usage_perc{engine="0",$1,pid="7"} 0.25\nvllm:kv_cache_usage_perc{engine="0",$1,pid="9"} 0.75\nvllm:kv_cache_usage_perc{engine="0",$1,pid="11"} 0.125',
    );
    expect(readVllmMetrics(text)[0]!.kvUsage).toBe(0.75);
  });

  it.each([
    ['awake', 1, false],
    ['awake', 0, true],
    ['weights_offloaded', 1, true],
    ['weights_offloaded', 0, false],
    ['discard_all', 1, true],
    ['discard_all', 0, false],
    ['a_state_to_come', 1, false],
  ])('with %s at %i takes an engine for asleep: %s', (state, value, asleep) => {
    const text = `${vllmText([RANK])}vllm:engine_sleep_state{engine="0",sleep_state="${state}"} ${value}.0\n`;
    expect(readVllmMetrics(text)[0]!.asleep).toBe(asleep);
  });

  it.each(['vllm:num_requests_running', 'vllm:num_requests_waiting', 'vllm:kv_cache_usage_perc'])(
    'names %s where it is missing, and what is there',
    (name) => {
      expect(() => readVllmMetrics(without(VLLM, name), { source: 'http://a/metrics' })).toThrow(
        format(`http://a/metrics: ${name}`, {
          expected: expect.stringMatching(`^a series ${name}`),
          received: expect.stringMatching(/^6 names, of which 6 begin with vllm: \(vllm:num_requests_/),
        }),
      );
      const second = VLLM.replace(new RegExp(`^${name}\\{engine="1".*\\n`, 'm'), '');
      expect(() => readVllmMetrics(second)).toThrow(
        format(`vLLM /metrics: ${name}`, { expected: expect.stringMatching(/ with engine="1"$/) }),
      );
    },
  );

  it('says both names of the KV cache where neither is there', () => {
    expect(() => readVllmMetrics(without(VLLM, 'vllm:kv_cache_usage_perc'))).toThrow(
      format(/kv_cache_usage_perc$/, {
        expected: 'a series vllm:kv_cache_usage_perc or vllm:gpu_cache_usage_perc',
      }),
    );
  });

  it('does not take another server for vLLM', () => {
    expect(() => readVllmMetrics(SGLANG)).toThrow(
      format(/num_requests_running$/, { received: '3 names, of which 0 begin with vllm:' }),
    );
    expect(() => readVllmMetrics('')).toThrow(
      format(/num_requests_running$/, { received: '0 names, of which 0 begin with vllm:' }),
    );
  });

  it.each([
    ['not a number', '} 12.0', '} NaN', 'line 3, vllm:num_requests_running'],
    ['infinite', '} 12.0', '} +Inf', 'line 3, vllm:num_requests_running'],
    ['negative', '} 12.0', '} -1.0', 'line 3, vllm:num_requests_running'],
    ['half a request', '} 12.0', '} 12.5', 'line 3, vllm:num_requests_running'],
    ['a cache more than full', '} 0.8125', '} 1.01', 'line 23, vllm:kv_cache_usage_perc'],
    ['a cache in percent', '} 0.8125', '} 81.25', 'line 23, vllm:kv_cache_usage_perc'],
    ['a cache that is not a number', '} 0.8125', '} NaN', 'line 23, vllm:kv_cache_usage_perc'],
    ['a negative cache', '} 0.8125', '} -0.1', 'line 23, vllm:kv_cache_usage_perc'],
    ['a negative counter', '} 1.234567e+06', '} -3', 'line 27, vllm:num_preemptions_total'],
    ['a counter that is not a number', '} 1.234567e+06', '} NaN', 'line 27, vllm:num_preemptions_total'],
    [
      'half asleep',
      'sleep_state="awake"} 1.0',
      'sleep_state="awake"} 0.5',
      'line 15, vllm:engine_sleep_state',
    ],
    ['no state', ',sleep_state="awake"} 1.0', '} 1.0', 'line 15, vllm:engine_sleep_state'],
    ['a rank that is a word', 'engine="0"', 'engine="first"', 'line 3, vllm:num_requests_running'],
    ['a negative rank', 'engine="0"', 'engine="-1"', 'line 3, vllm:num_requests_running'],
    ['an empty rank', 'engine="0"', 'engine=""', 'line 3, vllm:num_requests_running'],
    ['a rank beyond all ranks', 'engine="0"', 'engine="123456"', 'line 3, vllm:num_requests_running'],
    ['a series twice', 'engine="1"', 'engine="0"', 'line 4, vllm:num_requests_running'],
  ])('refuses %s, with its line', (_, from, to, where) => {
    expect(VLLM).toContain(from);
    expect(() => readVllmMetrics(VLLM.replace(from, to))).toThrow(format(`vLLM /metrics: ${where}`));
  });

  it('finds a series twice though its labels are in another order', () => {
    const again = `${VLLM}vllm:kv_cache_usage_perc{model_name="Qwen/Qwen3-235B-A22B",engine="0"} 0.5\n`;
    expect(() => readVllmMetrics(again)).toThrow(
      format(/kv_cache_usage_perc$/, { expected: 'each series once' }),
    );
  });

  it('takes what rounding leaves above 1 for 1', () => {
    expect(readVllmMetrics(VLLM.replace('0.8125', '1.0000000002'))[0]!.kvUsage).toBe(1);
  });

  it('refuses every text that is cut off', () => {
    // From the first figure's last line on, so that a cut can leave nothing complete that is needed.
    const end = VLLM.indexOf('vllm:kv_cache_usage_perc{engine="1"');
    for (let at = 0; at <= end; at += 7) {
      expect(() => readVllmMetrics(VLLM.slice(0, at)), `cut at ${at}`).toThrow(GimbalError);
    }
  });

  it('refuses unknown options', () => {
    expect(() => readVllmMetrics(VLLM, { model: 'x' } as object)).toThrow(
      expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field: 'options.model' }),
    );
  });
});

describe('readSglangMetrics', () => {
  it('reads a server without data parallelism', () => {
    expect(readSglangMetrics(SGLANG)).toEqual([{ dpRank: 0, kvUsage: 0.73, running: 24, waiting: 3 }]);
  });

  it('takes one of the TP ranks that repeat the figures of a DP rank', () => {
    const ranks = [0, 1, 2].map((dpRank) => ({ ...RANK, dpRank, waiting: dpRank, preemptions: 9 }));
    expect(readSglangMetrics(sglangText(ranks, 4))).toEqual(ranks);
    // The first TP rank's, where they differ.
    const text = sglangText([RANK], 2).replace(/^(sglang:num_running_reqs\{.*tp_rank="0"\}) .*$/m, '$1 1.0');
    expect(readSglangMetrics(text)[0]!.running).toBe(1);
  });

  it('takes the total and not the priorities beside it, which may be of another moment', () => {
    const series =
      'sglang:num_running_reqs{engine_type="unified",model_name="ds",moe_ep_rank="0",pp_rank="0"';
    const text = SGLANG.replace(
      /^sglang:num_running_reqs.*$/m,
      `${series},priority="5",tp_rank="0"} 40.0\n${series},priority="",tp_rank="0"} 31.0\n${series},priority="1",tp_rank="0"} 1.0`,
    );
    expect(readSglangMetrics(text)[0]!.running).toBe(31);
  });

  it('names what is missing, and what is there', () => {
    expect(() => readSglangMetrics(without(SGLANG, 'sglang:token_usage'))).toThrow(
      format('SGLang /metrics: sglang:token_usage', {
        expected: 'a series sglang:token_usage',
        received: '2 names, of which 2 begin with sglang: (sglang:num_running_reqs, sglang:num_queue_reqs)',
      }),
    );
    expect(() => readSglangMetrics(VLLM)).toThrow(format('SGLang /metrics: sglang:num_running_reqs'));
    const ranks = [0, 1].map((dpRank) => ({ ...RANK, dpRank }));
    const lacking = sglangText(ranks).replace(/^sglang:num_queue_reqs\{dp_rank="1".*\n/m, '');
    expect(() => readSglangMetrics(lacking)).toThrow(
      format(/num_queue_reqs$/, { expected: 'a series sglang:num_queue_reqs with dp_rank="1"' }),
    );
  });

  it.each([
    ['not a number', '} 24.0', '} NaN'],
    ['negative', '} 24.0', '} -1.0'],
    ['a TP rank that is a word', 'tp_rank="0"} 24.0', 'tp_rank="x"} 24.0'],
    ['a share above 1', '} 0.73', '} 7.3'],
  ])('refuses %s', (_, from, to) => {
    expect(SGLANG).toContain(from);
    expect(() => readSglangMetrics(SGLANG.replace(from, to))).toThrow(format(/^SGLang \/metrics: line /));
  });
});

describe('readSglangLoads', () => {
  it('reads /v1/loads with remaining prefill, in the order of the ranks', () => {
    const json = `{"timestamp": "2026-08-06T09:15:23.481920+00:00", "version": "0.5.4", "loads": [
      {"dp_rank": 1, "num_running_reqs": 19, "num_waiting_reqs": 0, "num_waiting_uncached_tokens": 0,
       "num_used_tokens": 291044, "num_total_tokens": 291044, "max_total_num_tokens": 524288, "max_running_requests": 256,
       "token_usage": 0.5551, "gen_throughput": 1521.08, "cache_hit_rate": 0.713, "utilization": 0.0, "lora": null},
      {"dp_rank": 0, "num_running_reqs": 24, "num_waiting_reqs": 3, "num_waiting_uncached_tokens": 6144,
       "num_used_tokens": 382910, "num_total_tokens": 401294, "max_total_num_tokens": 524288, "max_running_requests": 256,
       "token_usage": 0.7303, "gen_throughput": 1842.55, "cache_hit_rate": 0.6412, "utilization": 0.0}]}`;
    expect(readSglangLoads(json)).toEqual([
      { dpRank: 0, kvUsage: 0.7303, running: 24, waiting: 3, waitingPrefillTokens: 6144 },
      { dpRank: 1, kvUsage: 0.5551, running: 19, waiting: 0, waitingPrefillTokens: 0 },
    ]);
  });

  const load = {
    dp_rank: 0,
    num_running_reqs: 1,
    num_waiting_reqs: 2,
    num_waiting_uncached_tokens: 3,
    num_used_tokens: 50,
    max_total_num_tokens: 200,
    token_usage: 0.5,
  };
  const loads = (...rows: object[]) => JSON.stringify({ loads: rows });

  it('takes what an early version does not say from what it says', () => {
    const { token_usage: _, num_waiting_uncached_tokens: __, ...early } = load;
    expect(readSglangLoads(loads(early))).toEqual([{ dpRank: 0, kvUsage: 0.25, running: 1, waiting: 2 }]);
    expect(readSglangLoads(loads({ ...load, dp_rank: null }))[0]!.dpRank).toBe(0);
  });

  it('reads /get_load: its requests are those that run and those that wait', () => {
    const json = '[{"dp_rank": 0, "num_reqs": 27, "num_waiting_reqs": 3, "num_tokens": 401294}]';
    expect(readSglangLoads(json)).toEqual([{ dpRank: 0, running: 24, waiting: 3 }]);
    expect(readSglangLoads(json, { kvTokens: 802_588 })).toEqual([
      { dpRank: 0, kvUsage: 0.5, running: 24, waiting: 3 },
    ]);
    // More than the cache holds, for waiting prompts count.
    expect(readSglangLoads(json, { kvTokens: 200_000 })[0]!.kvUsage).toBe(1);
    const later =
      '[{"num_reqs": 27, "num_waiting_reqs": 3, "num_tokens": 300, "num_pending_tokens": 200, "ts_tic": 1.5}]';
    expect(readSglangLoads(later, { kvTokens: 400 })[0]!.kvUsage).toBe(0.25);
  });

  it.each([
    ['an error page', '<html>', 'SGLang loads: JSON', {}],
    ['half of it', loads(load).slice(0, -5), 'SGLang loads: JSON', {}],
    ['nothing', '', 'SGLang loads: JSON', {}],
    ['null', 'null', 'SGLang loads', { expected: 'an object' }],
    [
      'another object',
      '{"detail": "Not Found"}',
      'SGLang loads: loads',
      { received: 'an object with detail' },
    ],
    ['loads that are no list', '{"loads": 3}', 'SGLang loads: loads', { expected: 'a list' }],
    ['no rows', '{"loads": []}', 'SGLang loads', { expected: 'a row for each DP rank', received: 'none' }],
    ['no rows of the older kind', '[]', 'SGLang loads', { expected: 'a row for each DP rank' }],
    ['a row that is a number', '{"loads": [1]}', 'SGLang loads: row 0', { expected: 'an object' }],
    ['a rank twice', loads(load, load), 'SGLang loads: dp_rank', { expected: 'each rank once' }],
    [
      'rows without ranks',
      loads({ ...load, dp_rank: null }, load),
      'SGLang loads: row 0',
      { expected: 'a row with dp_rank' },
    ],
    ['a word', loads({ ...load, num_running_reqs: '1' }), 'SGLang loads: row 0, num_running_reqs', {}],
    [
      'a negative count',
      loads({ ...load, num_waiting_reqs: -1 }),
      'SGLang loads: row 0, num_waiting_reqs',
      {},
    ],
    [
      'half a request',
      loads({ ...load, num_waiting_reqs: 0.5 }),
      'SGLang loads: row 0, num_waiting_reqs',
      {},
    ],
    ['negative tokens', loads({ ...load, num_waiting_uncached_tokens: -1 }), /uncached_tokens$/, {}],
    ['a share above 1', loads({ ...load, token_usage: 50 }), 'SGLang loads: row 0, token_usage', {}],
    [
      'a cache of nothing',
      loads({ ...load, token_usage: null, max_total_num_tokens: 0 }),
      /num_used_tokens$/,
      {},
    ],
    [
      'a row without requests',
      loads({ dp_rank: 0, token_usage: 0.5 }),
      'SGLang loads: row 0',
      { expected: 'a row with num_running_reqs', received: 'one with dp_rank, token_usage' },
    ],
    [
      'more waiting than there are',
      '[{"dp_rank": 0, "num_reqs": 1, "num_waiting_reqs": 3, "num_tokens": 1}]',
      'SGLang loads: row 0, num_reqs',
      { expected: 'at least num_waiting_reqs, 3', received: '1' },
    ],
  ])('refuses %s', (_, json, field, more) => {
    expect(() => readSglangLoads(json)).toThrow(format(field, more));
  });

  it('refuses a size of the cache that is none', () => {
    expect(() => readSglangLoads(loads(load), { kvTokens: 0 })).toThrow(
      expect.objectContaining({ code: 'GIMBAL_INVALID_INPUT', field: 'options.kvTokens' }),
    );
  });
});

describe('what is written is read', () => {
  const rank = fc.record({
    dpRank: fc.nat(99_999),
    kvUsage: fc.double({ min: 0, max: 1, noNaN: true }).map((share) => Math.abs(share)),
    running: fc.oneof(fc.nat(100), fc.nat(2 ** 24)),
    waiting: fc.nat(2 ** 24),
    preemptions: fc.maxSafeNat(),
    waitingPrefillTokens: fc.nat(),
    sleepState: fc.constantFrom('awake' as const, 'weights_offloaded' as const, 'discard_all' as const),
  });
  const ranks = fc
    .uniqueArray(rank, { selector: ({ dpRank }) => dpRank, minLength: 1, maxLength: 20 })
    .map((all) => all as Rank[]);
  const inOrder = (all: readonly Rank[]) => [...all].sort((a, b) => a.dpRank - b.dpRank);
  const check = (name: string, property: (all: Rank[]) => void) =>
    it(name, () => fc.assert(fc.property(ranks, property), { seed: PROPERTY_SEED, numRuns: 200 }));

  check('vLLM /metrics', (all) => {
    const expected = inOrder(all).map(({ dpRank, kvUsage, running, waiting, preemptions, sleepState }) => {
      return { dpRank, kvUsage, running, waiting, preemptions, asleep: sleepState !== 'awake' };
    });
    expect(readVllmMetrics(vllmText(all))).toEqual(expected);
    const older = vllmText([all[0]!], OLDER);
    expect(readVllmMetrics(older)).toEqual([
      { ...expected.find((e) => e.dpRank === all[0]!.dpRank), dpRank: 0 },
    ]);
  });

  check('SGLang /metrics', (all) => {
    const expected = inOrder(all).map(({ dpRank, kvUsage, running, waiting, preemptions }) => {
      return { dpRank, kvUsage, running, waiting, preemptions };
    });
    expect(readSglangMetrics(sglangText(all, 2))).toEqual(expected);
    expect(readSglangMetrics(sglangText([all[0]!], 3, false))).toEqual([
      { ...expected.find((e) => e.dpRank === all[0]!.dpRank), dpRank: 0 },
    ]);
  });

  check('SGLang /v1/loads', (all) => {
    const expected = inOrder(all).map(({ dpRank, kvUsage, running, waiting, waitingPrefillTokens }) => {
      return { dpRank, kvUsage, running, waiting, waitingPrefillTokens };
    });
    expect(readSglangLoads(sglangLoads(all))).toEqual(expected);
  });

  it('or refused as a GimbalError, whatever is changed in it', () => {
    const all = [0, 1].map((dpRank) => ({ ...RANK, dpRank, preemptions: 3, sleepState: 'awake' as const }));
    const sources = [
      [vllmText(all), readVllmMetrics],
      [sglangText(all, 2), readSglangMetrics],
      [sglangLoads(all), readSglangLoads],
    ] as const;
    const piece = fc.constantFrom(
      '',
      '\n',
      '"',
      '{',
      '}',
      ',',
      '\\',
      '-',
      'NaN',
      '1e999',
      ' ',
      '\0',
      '[]',
      'null',
    );
    const change = fc.record({
      which: fc.nat(2),
      at: fc.double({ min: 0, max: 1, noNaN: true }),
      cut: fc.nat(40),
      piece,
    });
    const property = fc.property(change, ({ which, at, cut, piece: put }) => {
      const [text, read] = sources[which]!;
      const from = Math.floor(at * text.length);
      try {
        for (const { kvUsage, running, waiting } of read(
          text.slice(0, from) + put + text.slice(from + cut),
        )) {
          expect(Number.isInteger(running) && running >= 0).toBe(true);
          expect(Number.isInteger(waiting) && waiting >= 0).toBe(true);
          expect(kvUsage! >= 0 && kvUsage! <= 1).toBe(true);
        }
      } catch (error) {
        if (!(error instanceof GimbalError)) throw error;
        expect(error.code).toBe('GIMBAL_FORMAT');
      }
    });
    fc.assert(property, { seed: PROPERTY_SEED, numRuns: 2000 });
  });
});
