/**
 * Does the simulator say what was measured? A run of vLLM with two data-parallel engines, request by request, from kernels that
 * were profiled apart; and the time of a token of one request alone on an A100. docs/SIMULATION.md keeps the log of comparisons.
 */
import { findServedModel } from '../../lib/simulator/hardware.js';
import { simulate } from '../../lib/simulator/simulate.js';
import { kolmogorovSmirnov } from '../../lib/simulator/summary.js';
import { readProfileTables } from '../../lib/simulator/tables.js';
import {
  type Check,
  type Findings,
  mean,
  percent,
  type RunOptions,
  rounded,
  type Table,
} from '../harness.js';
import { hasProfiles, type MeasuredRun, measuredRun, PROFILES } from './recorded.js';
import { sglangCluster } from './sglang.js';

export const name = 'simulator-validation';
export const question = 'how far is the simulator from what was measured?';

const MODEL = 'Qwen3-30B-A3B';
const WITHIN = { 'TTFT mean': 0.1, 'TTFT p99': 0.1, 'TPOT mean': 0.02, 'E2E mean': 0.02 } as const;
/** ms a token of one request alone, by input tokens. */
const A100_TPOT_MS: Record<number, number> = { 128: 9.6, 1024: 9.8, 2048: 9.9, 4096: 10.3, 8192: 10.6 };
const A100_WITHIN = 0.08;

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const measured = measuredRun();
  const notes: string[] = [];
  const tables: Table[] = [];
  const sglang = await sglangCluster(seed, small);
  const checks: Check[] = [];
  if (measured === undefined || !hasProfiles()) {
    notes.push('skipped in part: the measured run and the profiles are not at hand.');
    return { tables: [sglang], checks, notes };
  }
  const run = await measuredCluster(measured, small ? 60 : measured.trace.length, seed);
  tables.push(run.table);
  const a100 = await a100Series(seed);
  tables.push(a100.table, sglang);
  // A part of the run has not the load of the whole.
  if (!small) checks.push(...run.checks, ...a100.checks);
  notes.push(
    'Measured: vLLM 0.19, DP=2, EP=2, 300 requests; times of arrival are put on the engine’s clock by the least difference that any request has between arrival and queue.',
    'The simulator gets arrivals, lengths, engine settings and profiled kernels; links are those published for the machine.',
  );
  return { tables, checks, notes };
}

async function measuredCluster(measured: MeasuredRun, count: number, seed: number) {
  const tables = await readProfileTables(PROFILES, { prefix: 'rtxpro6000' });
  const { requests, summary } = await simulate({
    trace: measured.trace.slice(0, count),
    model: MODEL,
    hardware: 'RTX-PRO-6000',
    dp: 2,
    tables,
    engine: { maxNumSeqs: 128, maxNumBatchedTokens: 2048, requestMs: 0 },
    policy: { dispatch: 'vllm', queue: 'fcfs', placement: 'static' },
    seed,
  });
  const ttft = requests.map((one) => one.firstTokenMs - one.arrivalMs);
  const tpot = requests.flatMap((one, n) => {
    const { outputTokens } = measured.trace[n]!;
    return outputTokens > 1 ? [(one.finishMs - one.firstTokenMs) / (outputTokens - 1)] : [];
  });
  const p99 = (values: readonly number[]) =>
    [...values].sort((a, b) => a - b)[Math.ceil(0.99 * values.length) - 1]!;
  const median = (values: readonly number[]) =>
    [...values].sort((a, b) => a - b)[Math.ceil(0.5 * values.length) - 1]!;
  const pairs: [figure: string, measured: number, simulated: number][] = [
    ['TTFT mean', mean(measured.ttftMs), summary.ttftMs.mean],
    ['TTFT median', median(measured.ttftMs), summary.ttftMs.p50],
    ['TTFT p99', p99(measured.ttftMs), summary.ttftMs.p99],
    ['TPOT mean', mean(measured.tpotMs), summary.tpotMs.mean],
    ['TPOT p99', p99(measured.tpotMs), summary.tpotMs.p99],
    ['E2E mean', mean(measured.e2eMs), summary.e2eMs.mean],
  ];
  const table: Table = {
    title: 'ms: measured and simulated',
    columns: ['figure', 'measured', 'simulated', 'difference'],
    rows: [
      ...pairs.map(([figure, was, is]) => [figure, rounded(was), rounded(is), percent(is / was - 1, 1)]),
      ['KS distance, TTFT', '', '', Number(kolmogorovSmirnov(measured.ttftMs, ttft).toFixed(3))],
      ['KS distance, TPOT', '', '', Number(kolmogorovSmirnov(measured.tpotMs, tpot).toFixed(3))],
    ].map((row) => row.map(String)),
  };
  const checks = Object.entries(WITHIN).map(([figure, within]): Check => {
    const [, was, is] = pairs.find(([one]) => one === figure)!;
    const off = is / was - 1;
    return {
      target: `${figure} within ${percent(within, 0)} of the measured run`,
      measured: percent(off, 1),
      pass: Math.abs(off) <= within,
      kind: 'quality',
    };
  });
  return { table, checks };
}

async function a100Series(seed: number) {
  const tables = await readProfileTables(PROFILES, { prefix: 'a100', model: findServedModel(MODEL) });
  const rows: (string | number)[][] = [];
  let most = 0;
  for (const [length, was] of Object.entries(A100_TPOT_MS)) {
    const trace = [{ arrivalMs: 0, inputTokens: Number(length), outputTokens: 128 }];
    const { summary } = await simulate({
      trace,
      model: MODEL,
      hardware: 'A100',
      dp: 1,
      tables,
      // This engine did not plan ahead.
      engine: { asyncScheduling: false },
      seed,
    });
    const off = summary.tpotMs.mean / was - 1;
    most = Math.max(most, Math.abs(off));
    rows.push([Number(length), was, rounded(summary.tpotMs.mean), percent(off, 1)]);
  }
  const check: Check = {
    target: `one request on an A100: ms a token within ${percent(A100_WITHIN, 0)}`,
    measured: `at most ${percent(most, 1)}`,
    pass: most <= A100_WITHIN,
    kind: 'quality',
  };
  return {
    table: {
      title: 'ms a token, one request on an A100',
      columns: ['input tokens', 'measured', 'simulated', 'difference'],
      rows,
    },
    checks: [check],
  };
}
