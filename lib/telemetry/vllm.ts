/**
 * vLLM's `/metrics`: one reading for each DP rank, which the label `engine` names. There is no figure of remaining prefill among
 * them; the scheduler's ledger knows what it has sent.
 */
import { checkKeys } from '../checks.js';
import {
  asCount,
  asShare,
  asTotal,
  byRank,
  type Check,
  commonRanks,
  type Figure,
  find,
  greatest,
  ofModel,
  rankOf,
  readSeries,
  type Series,
  sum,
  type Together,
  wrong,
} from './series.js';
import type { ReadMetricsOptions, VllmEngineReading } from './types.js';

const RANK = 'engine';
const RUNNING: Figure = ['vllm:num_requests_running'];
const WAITING: Figure = ['vllm:num_requests_waiting'];
/** Renamed in 0.9. */
const KV_USAGE: Figure = ['vllm:kv_cache_usage_perc', 'vllm:gpu_cache_usage_perc'];
/** The suffix is the client library's, and depends on its version. */
const PREEMPTIONS: Figure = ['vllm:num_preemptions_total', 'vllm:num_preemptions'];
/** 0 or 1 for each value of the label `sleep_state`. */
const SLEEP: Figure = ['vllm:engine_sleep_state'];
const FIGURES = [RUNNING, WAITING, KV_USAGE, PREEMPTIONS, SLEEP];
/** What the series of a sleep state is where an engine sleeps. */
const ASLEEP: ReadonlyMap<string, number> = new Map([
  ['awake', 0],
  ['weights_offloaded', 1],
  ['discard_all', 1],
]);

/**
 * In the order of the ranks.
 *
 * @throws GimbalError GIMBAL_FORMAT (a line that is wrong, a figure or a rank that is missing), GIMBAL_INVALID_INPUT (the options)
 */
export function readVllmMetrics(text: string, options: ReadMetricsOptions = {}): VllmEngineReading[] {
  checkKeys('options', options, ['source', 'modelName']);
  const { source = 'vLLM /metrics', modelName } = options;
  const series = readSeries(text, FIGURES, source);
  const values = (figure: Figure, check: Check, together: Together) =>
    byRank(source, ofModel(source, find(series, figure), modelName), RANK, check, together);
  const running = values(RUNNING, asCount, sum);
  const waiting = values(WAITING, asCount, sum);
  const kvUsage = values(KV_USAGE, asShare, greatest);
  const preemptions = values(PREEMPTIONS, asTotal, sum);
  const asleep = sleepingRanks(series);
  const ranks = commonRanks(series, RANK, [
    [RUNNING, running],
    [WAITING, waiting],
    [KV_USAGE, kvUsage],
  ]);
  return ranks.map((dpRank) => {
    const counted = preemptions.get(dpRank);
    return {
      dpRank,
      kvUsage: kvUsage.get(dpRank)!,
      running: running.get(dpRank)!,
      waiting: waiting.get(dpRank)!,
      ...(counted === undefined ? {} : { preemptions: counted }),
      asleep: asleep.has(dpRank),
    };
  });
}

/** Levels that this version does not know leave an engine as `awake` has it. */
function sleepingRanks(series: Series): Set<number> {
  const asleep = new Set<number>();
  for (const sample of find(series, SLEEP)) {
    const state = sample.labels.get('sleep_state');
    if (state === undefined) throw wrong(series.source, sample, 'a label sleep_state', 'none');
    if (sample.value !== 0 && sample.value !== 1) {
      throw wrong(series.source, sample, '0 or 1', String(sample.value));
    }
    const rank = rankOf(series.source, sample, RANK);
    if (ASLEEP.get(state) === sample.value) asleep.add(rank);
  }
  return asleep;
}
