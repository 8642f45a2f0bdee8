/**
 * How fast is a decision? The core by itself, asked for a thousand at a time, and `dispatch` as a gateway calls it, each call
 * timed; for fleets of 8 to 4,096 engines.
 */
import { binding } from '../../lib/binding.js';
import { DEFAULT_WEIGHTS, timeOfDay } from '../../lib/dispatch/validate.js';
import { Scheduler } from '../../lib/index.js';
import type { Check, Findings, RunOptions, Table } from '../harness.js';
import { Random } from '../random.js';

export const name = 'dispatch-speed';
export const question = 'how many decisions a second, and how long does one take?';

const ENGINES = [8, 64, 512, 4096];
/** The least decisions a second of the core, by number of engines. */
const TARGETS: Record<number, number> = { 8: 2_000_000, 512: 300_000 };
const P99_LIMIT_US = 10;
const BATCH = 1000;
const IN_FLIGHT = 256;
const RATE = 20_000;

interface Row {
  engines: number;
  lockstep: boolean;
  corePerSecond: number;
  callsPerSecond: number;
  batchPerSecond: number;
  /** µs of a call of `dispatch`: p50, p99, p99.9. */
  quantilesUs: number[];
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const rows = (small ? ENGINES.slice(0, 1) : ENGINES).flatMap((engines) =>
    [true, false].map((lockstep) => measure(engines, lockstep, small, seed)),
  );
  return {
    tables: [tableOf(rows)],
    checks: small ? [] : checksOf(rows),
    notes: [
      `Core: native code alone, ${BATCH} decisions a call. Calls: \`dispatch\`, \`firstToken\` and \`finished\` of each request, ${IN_FLIGHT} in flight.`,
      'Quantiles are of single calls of `dispatch`, the clock being read before and after; garbage collection counts.',
      'That the core allocates nothing in a decision is a native test.',
    ],
  };
}

function measure(engines: number, lockstep: boolean, small: boolean, seed: number): Row {
  const count = Math.max(2000, Math.round((small ? 2000 : 2_000_000) / Math.sqrt(engines)));
  const random = new Random(seed, engines);
  const prompts = Float64Array.from({ length: BATCH }, () => 1 + random.below(4000));
  return {
    engines,
    lockstep,
    corePerSecond: timeCore(engines, lockstep, prompts, count),
    ...timeCalls(engines, lockstep, prompts, count),
  };
}

function timeCore(engines: number, lockstep: boolean, prompts: Float64Array, count: number): number {
  const native = new (binding().NativeScheduler)({
    policy: 0,
    weights: DEFAULT_WEIGHTS,
    staleAfterMs: 1e6,
    expertsStaleAfterMs: 1e6,
    gateways: 1,
    seed: 1n,
  });
  for (let n = 0; n < engines; n += 1) native.addEngine(lockstep ? 0 : n, 0, RATE, 1_000_000);
  const nowMs = timeOfDay();
  for (let n = 0; n < engines; n += 1)
    native.observe(n, nowMs, (n % 50) / 100, n % 7, n % 3, -1, -1, 0, nowMs);
  const cached = new Float64Array(BATCH);
  const streams = new Uint8Array(BATCH).fill(1);
  const decisions = new Float64Array(4 * BATCH);
  let elapsedMs = 0;
  for (let done = -BATCH; done < count; done += BATCH) {
    const began = performance.now();
    native.dispatchBatch(prompts, cached, streams, decisions, nowMs + done);
    if (done >= 0) elapsedMs += performance.now() - began;
    for (let n = 0; n < BATCH; n += 1) native.finished(decisions[4 * n + 1]!, nowMs + done);
  }
  return (Math.ceil(count / BATCH) * BATCH * 1000) / elapsedMs;
}

function timeCalls(engines: number, lockstep: boolean, prompts: Float64Array, count: number) {
  const scheduler = new Scheduler({
    engines: Array.from({ length: engines }, (_, n) => ({ group: lockstep ? 0 : n })),
    prefillTokensPerSecond: RATE,
    staleAfterMs: 1e6,
  });
  const timeMs = timeOfDay();
  scheduler.observe(
    Array.from({ length: engines }, (_, engine) => ({
      engine,
      timeMs,
      kvUsage: (engine % 50) / 100,
      running: engine % 7,
      waiting: engine % 3,
    })),
  );
  const took = new Float64Array(count);
  const one = (n: number): number => {
    const request = { id: n, promptTokens: prompts[n % BATCH]! };
    const began = performance.now();
    scheduler.dispatch(request);
    return performance.now() - began;
  };
  const end = (n: number) => {
    scheduler.firstToken(n);
    scheduler.finished(n);
  };
  for (let n = -1000; n < 0; n += 1) {
    one(n + 1e9);
    end(n + 1e9);
  }
  const began = performance.now();
  for (let n = 0; n < count; n += 1) {
    took[n] = one(n);
    if (n >= IN_FLIGHT) end(n - IN_FLIGHT);
  }
  const callsPerSecond = (count * 1000) / (performance.now() - began);
  for (let n = count - IN_FLIGHT; n < count; n += 1) end(n);
  const batch = Array.from({ length: BATCH }, (_, n) => ({ id: n, promptTokens: prompts[n]! }));
  let batchMs = 0;
  const batches = Math.max(1, Math.round(count / BATCH / 4));
  for (let n = 0; n < batches; n += 1) {
    const start = performance.now();
    scheduler.dispatchBatch(batch);
    batchMs += performance.now() - start;
    for (const { id } of batch) end(id);
  }
  if (scheduler.inFlight !== 0) throw new Error('expected every request to have ended');
  took.sort();
  const at = (share: number) => took[Math.min(count - 1, Math.floor(share * count))]! * 1000;
  return {
    callsPerSecond,
    batchPerSecond: (batches * BATCH * 1000) / batchMs,
    quantilesUs: [at(0.5), at(0.99), at(0.999)],
  };
}

function tableOf(rows: Row[]): Table {
  return {
    title: 'decisions a second, and microseconds of one',
    columns: [
      'engines',
      'in lockstep',
      'core',
      'dispatchBatch',
      'dispatch and events',
      'p50 µs',
      'p99 µs',
      'p99.9 µs',
    ],
    rows: rows.map(({ engines, lockstep, corePerSecond, batchPerSecond, callsPerSecond, quantilesUs }) => [
      engines,
      lockstep ? 'all' : 'none',
      Math.round(corePerSecond),
      Math.round(batchPerSecond),
      Math.round(callsPerSecond),
      ...quantilesUs.map((us) => Number(us.toFixed(2))),
    ]),
  };
}

function checksOf(rows: Row[]): Check[] {
  const checks = Object.entries(TARGETS).map(([engines, least]): Check => {
    const slowest = Math.min(
      ...rows.filter((row) => row.engines === Number(engines)).map((row) => row.corePerSecond),
    );
    return {
      target: `≥ ${least.toLocaleString('en-US')} decisions/s of the core at ${engines} engines`,
      measured: `${Math.round(slowest).toLocaleString('en-US')}/s`,
      pass: slowest >= least,
      kind: 'time',
    };
  });
  const within = rows.filter(({ engines }) => engines <= 512);
  const p99 = Math.max(...within.map(({ quantilesUs }) => quantilesUs[1]!));
  checks.push({
    target: `p99 of a call < ${P99_LIMIT_US} µs up to 512 engines`,
    measured: `${p99.toFixed(2)} µs`,
    pass: p99 < P99_LIMIT_US,
    kind: 'time',
  });
  return checks;
}
