/** Texts as engines write them: Python's client library around the figures, with all the series that nobody asks for. */
import type { EngineReading } from '../../lib/telemetry/types.js';

export interface Rank extends EngineReading {
  kvUsage: number;
  /** What `sleep_state` is 1; left out where the version does not say. */
  sleepState?: 'awake' | 'weights_offloaded' | 'discard_all';
}

export interface VllmNames {
  kvUsage: string;
  preemptions: string;
  /** Versions before data parallelism have no label `engine`. */
  engineLabel: boolean;
}

export const CURRENT: VllmNames = {
  kvUsage: 'vllm:kv_cache_usage_perc',
  preemptions: 'vllm:num_preemptions_total',
  engineLabel: true,
};
export const OLDER: VllmNames = {
  kvUsage: 'vllm:gpu_cache_usage_perc',
  preemptions: 'vllm:num_preemptions',
  engineLabel: false,
};

/** As the client library prints floats: Go's way from a million on. */
export function printed(value: number): string {
  if (Number.isNaN(value)) return 'NaN';
  if (!Number.isFinite(value)) return value > 0 ? '+Inf' : '-Inf';
  if (value >= 1e6 && Number.isInteger(value)) {
    const digits = String(value);
    const mantissa = `${digits[0]}.${digits.slice(1)}`.replace(/\.?0*$/, '');
    return `${mantissa}e+${String(digits.length - 1).padStart(2, '0')}`;
  }
  return Number.isInteger(value) ? `${value}.0` : String(value);
}

/** Label values with the format's escapes; names in order, as the library sorts them. */
export function labels(values: Readonly<Record<string, string>>): string {
  const escaped = (value: string) => value.replace(/\\/g, '\\\\').replace(/\n/g, '\\n').replace(/"/g, '\\"');
  const pairs = Object.entries(values).sort(([a], [b]) => (a < b ? -1 : 1));
  return pairs.length === 0
    ? ''
    : `{${pairs.map(([name, value]) => `${name}="${escaped(value)}"`).join(',')}}`;
}

const PROCESS = `# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 10467.0
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3",minor="12",patchlevel="11",version="3.12.11"} 1.0
`;

export function vllmText(ranks: readonly Rank[], names = CURRENT, model = 'Qwen/Qwen3-235B-A22B'): string {
  const lines: string[] = [];
  const head = (name: string, type: string) => lines.push(`# HELP ${name} Help.`, `# TYPE ${name} ${type}`);
  const each = (
    name: string,
    value: (rank: Rank) => number | undefined,
    more: Record<string, string> = {},
  ) => {
    for (const rank of ranks) {
      const given = value(rank);
      const engine: Record<string, string> = names.engineLabel ? { engine: String(rank.dpRank) } : {};
      const all = labels({ model_name: model, ...engine, ...more });
      if (given !== undefined) lines.push(`${name}${all} ${printed(given)}`);
    }
  };
  head('vllm:num_requests_running', 'gauge');
  each('vllm:num_requests_running', ({ running }) => running);
  head('vllm:num_requests_waiting', 'gauge');
  each('vllm:num_requests_waiting', ({ waiting }) => waiting);
  head('vllm:num_requests_waiting_by_reason', 'gauge');
  each('vllm:num_requests_waiting_by_reason', ({ waiting }) => waiting, { reason: 'capacity' });
  head('vllm:engine_sleep_state', 'gauge');
  for (const state of ['awake', 'weights_offloaded', 'discard_all']) {
    const is = ({ sleepState }: Rank) =>
      sleepState === undefined ? undefined : Number(sleepState === state);
    each('vllm:engine_sleep_state', is, { sleep_state: state });
  }
  head(names.kvUsage, 'gauge');
  each(names.kvUsage, ({ kvUsage }) => kvUsage);
  head(names.preemptions, 'counter');
  each(names.preemptions, ({ preemptions }) => preemptions);
  head('vllm:num_preemptions_created', 'gauge');
  each('vllm:num_preemptions_created', () => 1.7643219471e9);
  head('vllm:time_to_first_token_seconds', 'histogram');
  each('vllm:time_to_first_token_seconds_bucket', () => 11, { le: '0.25' });
  each('vllm:time_to_first_token_seconds_bucket', () => 12, { le: '+Inf' });
  each('vllm:time_to_first_token_seconds_sum', () => 1.75);
  return `${PROCESS}${lines.join('\n')}\n`;
}

export function sglangText(ranks: readonly Rank[], tpRanks = 1, dpLabel = true): string {
  const lines: string[] = [];
  const each = (name: string, type: string, value: (rank: Rank) => number | undefined) => {
    lines.push(`# HELP ${name} Help.`, `# TYPE ${name} ${type}`);
    for (const rank of ranks) {
      // The last one first: no reader may hang on the order.
      for (let tp = tpRanks - 1; tp >= 0; tp--) {
        const dp: Record<string, string> = dpLabel ? { dp_rank: String(rank.dpRank) } : {};
        const all = {
          engine_type: 'unified',
          model_name: 'deepseek-ai/DeepSeek-V3.1',
          moe_ep_rank: String(tp),
          pp_rank: '0',
          tp_rank: String(tp),
          ...dp,
        };
        const given = value(rank);
        if (given !== undefined) lines.push(`${name}${labels(all)} ${printed(given)}`);
      }
    }
  };
  each('sglang:num_running_reqs', 'gauge', ({ running }) => running);
  each('sglang:num_used_tokens', 'gauge', ({ kvUsage }) => Math.round(kvUsage * 524_288));
  each('sglang:token_usage', 'gauge', ({ kvUsage }) => kvUsage);
  each('sglang:gen_throughput', 'gauge', () => 1842.55);
  each('sglang:num_queue_reqs', 'gauge', ({ waiting }) => waiting);
  each('sglang:num_retracted_requests_total', 'counter', ({ preemptions }) => preemptions);
  return `${PROCESS}${lines.join('\n')}\n`;
}

export function sglangLoads(ranks: readonly Rank[]): string {
  return JSON.stringify({
    timestamp: '2026-08-06T09:15:23.481920+00:00',
    version: '0.5.4',
    loads: ranks.map(({ dpRank, kvUsage, running, waiting, waitingPrefillTokens }) => ({
      dp_rank: dpRank,
      num_running_reqs: running,
      num_waiting_reqs: waiting,
      ...(waitingPrefillTokens === undefined ? {} : { num_waiting_uncached_tokens: waitingPrefillTokens }),
      num_used_tokens: Math.round(kvUsage * 524_288),
      num_total_tokens: Math.round(kvUsage * 524_288) + 2000 * waiting,
      max_total_num_tokens: 524_288,
      max_running_requests: 256,
      token_usage: kvUsage,
      gen_throughput: 1842.55,
      cache_hit_rate: 0.6412,
      utilization: 0,
    })),
  });
}
