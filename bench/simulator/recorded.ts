/** What benches of the simulator read from the folder of recorded data, where it is at hand; each gives undefined where not. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { SimulatedRequest } from '../../lib/simulator/types.js';

/** Another folder may be named by GIMBAL_TEST_DATA. */
const DATA = process.env.GIMBAL_TEST_DATA ?? join(__dirname, '..', '..', '..', 'shared', 'data');
export const PROFILES = join(DATA, 'profiles');
const MEASURED = join(DATA, 'measured', 'rtxpro6000_qwen3_30b_dp2ep2', 'requests.jsonl');

export const hasProfiles = (): boolean => existsSync(PROFILES);

export interface MeasuredRun {
  trace: SimulatedRequest[];
  /** ms, `[requests]` each; TPOT only of requests with more than one token. */
  ttftMs: number[];
  tpotMs: number[];
  e2eMs: number[];
}

interface MeasuredRow {
  input_toks: number;
  output_toks: number;
  arrival_time: number;
  queued_ts: number;
  first_token_ts: number;
  last_token_ts: number;
}

/** Two data-parallel engines of vLLM with their experts spread over both: a log of every request, times in seconds. */
export function measuredRun(): MeasuredRun | undefined {
  if (!existsSync(MEASURED)) return undefined;
  const lines = readFileSync(MEASURED, 'utf8').trim().split('\n');
  const rows = lines
    .map((line) => JSON.parse(line) as MeasuredRow)
    .sort((a, b) => a.arrival_time - b.arrival_time);
  const first = rows[0]!.arrival_time;
  // The engine's clock began at another time. The request that was queued soonest after its arrival ties the two together; what
  // it took is left out of all.
  const offset = Math.min(...rows.map((row) => row.queued_ts - row.arrival_time));
  const sinceArrivalMs = (row: MeasuredRow, at: number) => (at - row.arrival_time - offset) * 1000;
  return {
    trace: rows.map((row) => ({
      arrivalMs: (row.arrival_time - first) * 1000,
      inputTokens: row.input_toks,
      outputTokens: row.output_toks,
    })),
    ttftMs: rows.map((row) => sinceArrivalMs(row, row.first_token_ts)),
    tpotMs: rows
      .filter((row) => row.output_toks > 1)
      .map((row) => ((row.last_token_ts - row.first_token_ts) * 1000) / (row.output_toks - 1)),
    e2eMs: rows.map((row) => sinceArrivalMs(row, row.last_token_ts)),
  };
}
