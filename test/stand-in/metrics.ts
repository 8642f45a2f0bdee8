/** What the stand-in says of its ranks: `/metrics` of vLLM and of SGLang, `/v1/loads` and its predecessor `/get_load`. */
import { labels, printed } from '../unit/telemetry-fixtures.js';
import type { Rank, Timing } from './rank.js';

export interface Reported {
  /** [ranks] */
  ranks: readonly Rank[];
  model: string;
  timing: Timing;
  asleep: boolean;
}

type Value = (rank: Rank) => number;
type Row = [
  name: string,
  type: 'gauge' | 'counter',
  ...series: [value: Value, more?: Record<string, string>][],
];

export function vllmMetrics({ ranks, model, timing, asleep }: Reported): string {
  const sleep = (state: string, on: boolean): [Value, Record<string, string>] => [
    () => Number(on),
    { sleep_state: state },
  ];
  const rows: Row[] = [
    ['vllm:num_requests_running', 'gauge', [({ running }) => running.length]],
    ['vllm:num_requests_waiting', 'gauge', [({ waiting }) => waiting.length]],
    [
      'vllm:num_requests_waiting_by_reason',
      'gauge',
      [({ waiting }) => waiting.length, { reason: 'capacity' }],
      [() => 0, { reason: 'deferred' }],
    ],
    [
      'vllm:engine_sleep_state',
      'gauge',
      sleep('awake', !asleep),
      sleep('weights_offloaded', asleep),
      sleep('discard_all', false),
    ],
    ['vllm:kv_cache_usage_perc', 'gauge', [({ usedTokens }) => usedTokens / timing.kvTokens]],
    ['vllm:prefix_cache_queries', 'counter', [({ counters }) => counters.promptTokens]],
    ['vllm:prefix_cache_hits', 'counter', [({ counters }) => counters.cachedTokens]],
    ['vllm:num_preemptions', 'counter', [({ counters }) => counters.preemptions]],
    ['vllm:prompt_tokens', 'counter', [({ counters }) => counters.promptTokens]],
    [
      'vllm:prompt_tokens_by_source',
      'counter',
      [({ counters }) => counters.promptTokens - counters.cachedTokens, { source: 'local_compute' }],
      [({ counters }) => counters.cachedTokens, { source: 'local_cache_hit' }],
      [() => 0, { source: 'external_kv_transfer' }],
    ],
    ['vllm:generation_tokens', 'counter', [({ counters }) => counters.outputTokens]],
    [
      'vllm:request_success',
      'counter',
      ...(['stop', 'length', 'abort'] as const).map((reason): [Value, Record<string, string>] => [
        ({ finished }) => finished[reason],
        { finished_reason: reason },
      ]),
    ],
  ];
  return exposition(rows, ranks, (rank) => ({ model_name: model, engine: String(rank) }));
}

export function sglangMetrics({ ranks, model, timing }: Reported): string {
  const rows: Row[] = [
    ['sglang:num_running_reqs', 'gauge', [({ running }) => running.length]],
    ['sglang:num_queue_reqs', 'gauge', [({ waiting }) => waiting.length]],
    ['sglang:num_used_tokens', 'gauge', [({ usedTokens }) => usedTokens]],
    ['sglang:kv_available_tokens', 'gauge', [({ usedTokens }) => timing.kvTokens - usedTokens]],
    ['sglang:token_usage', 'gauge', [({ usedTokens }) => usedTokens / timing.kvTokens]],
    ['sglang:cache_hit_rate', 'gauge', [hitRate]],
    ['sglang:num_retracted_requests', 'counter', [({ counters }) => counters.preemptions]],
    ['sglang:prompt_tokens', 'counter', [({ counters }) => counters.promptTokens]],
    ['sglang:generation_tokens', 'counter', [({ counters }) => counters.outputTokens]],
  ];
  return exposition(rows, ranks, (rank) => ({
    model_name: model,
    engine_type: 'unified',
    tp_rank: '0',
    pp_rank: '0',
    moe_ep_rank: '0',
    dp_rank: String(rank),
  }));
}

export function sglangLoads({ ranks, timing }: Reported): object {
  const loads = ranks.map((rank, n) => ({
    dp_rank: n,
    num_running_reqs: rank.running.length,
    num_waiting_reqs: rank.waiting.length,
    num_waiting_uncached_tokens: rank.waitingPrefillTokens,
    num_used_tokens: rank.usedTokens,
    num_total_tokens: rank.usedTokens + queuedTokens(rank),
    max_total_num_tokens: timing.kvTokens,
    max_running_requests: timing.maxNumSeqs,
    token_usage: Number((rank.usedTokens / timing.kvTokens).toFixed(4)),
    gen_throughput: 0,
    cache_hit_rate: Number(hitRate(rank).toFixed(4)),
    utilization: 0,
  }));
  return { timestamp: new Date().toISOString(), version: 'stand-in', loads };
}

export function sglangOlderLoads({ ranks }: Reported): object[] {
  return ranks.map((rank, n) => ({
    dp_rank: n,
    num_reqs: rank.running.length + rank.waiting.length,
    num_waiting_reqs: rank.waiting.length,
    num_tokens: rank.usedTokens + queuedTokens(rank),
  }));
}

function queuedTokens({ waiting }: Rank): number {
  return waiting.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
}

function hitRate({ counters }: Rank): number {
  return counters.promptTokens === 0 ? 0 : counters.cachedTokens / counters.promptTokens;
}

/** As Python's client library writes it: counters under their name and `_total`. */
function exposition(
  rows: readonly Row[],
  ranks: readonly Rank[],
  of: (rank: number) => Record<string, string>,
): string {
  const lines = rows.flatMap(([name, type, ...series]) => {
    const full = type === 'counter' ? `${name}_total` : name;
    const values = series.flatMap(([value, more]) =>
      ranks.map((rank, n) => `${full}${labels({ ...of(n), ...more })} ${printed(value(rank))}`),
    );
    return [`# HELP ${full} Of the stand-in.`, `# TYPE ${full} ${type}`, ...values];
  });
  return `${lines.join('\n')}\n`;
}
