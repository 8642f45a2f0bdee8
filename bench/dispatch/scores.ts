/**
 * How fast are many requests scored on many engines? Called as a user calls it, so that the columns, the job and the copy of the
 * result count; and how much of that the event loop waits for. On a GPU as well, where there is one, with every answer compared.
 */
import { timeOfDay } from '../../lib/dispatch/validate.js';
import { backends, type DispatchRequest, Scheduler, type Scores } from '../../lib/index.js';
import { type Findings, median, type RunOptions } from '../harness.js';
import { Random } from '../random.js';

export const name = 'dispatch-scores';
export const question = 'how many scores a second, requests times engines?';

/** [requests, engines] */
const SIZES: [number, number][] = [
  [64, 8],
  [1024, 64],
  [1024, 512],
  [2048, 512],
  [64, 4096],
  [256, 4096],
];
/** Scores of this size and beyond, a second, on one core. */
const LARGE = 2 ** 19;
const LEAST_PER_SECOND = 50e6;
const RUNS = 15;

interface Timing {
  scores: Scores;
  ms: number;
  /** Until the call has returned its promise. */
  callMs: number;
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const cuda = backends().find((backend) => backend.name === 'cuda')!;
  const rows: (string | number)[][] = [];
  const differ: string[] = [];
  let slowest = Number.POSITIVE_INFINITY;
  for (const [requests, engines] of small ? SIZES.slice(0, 2) : SIZES) {
    const { scheduler, asked } = drawn(requests, engines, seed);
    const cpu = await time(scheduler, asked, 'cpu', small);
    const perSecond = (requests * engines * 1000) / cpu.ms;
    if (requests * engines >= LARGE) slowest = Math.min(slowest, perSecond);
    const gpu = cuda.available ? await time(scheduler, asked, 'cuda', small) : undefined;
    if (gpu !== undefined && !same(cpu.scores, gpu.scores)) differ.push(`${requests} × ${engines}`);
    const figures = [cpu.ms, cpu.callMs, perSecond / 1e6].map((figure) => Number(figure.toPrecision(3)));
    const onGpu =
      gpu === undefined
        ? ['not measured', 'not measured']
        : [gpu.ms, (requests * engines) / gpu.ms / 1e3].map((figure) => Number(figure.toPrecision(3)));
    rows.push([requests, engines, ...figures, ...onGpu]);
  }
  const checks: Findings['checks'] = [];
  if (!small) {
    checks.push({
      target: `≥ ${LEAST_PER_SECOND / 1e6} million scores/s on one core, from ${LARGE.toLocaleString('en-US')} at a time on`,
      measured: `${Math.round(slowest / 1e6)} million/s`,
      pass: slowest >= LEAST_PER_SECOND,
      kind: 'time',
    });
  }
  if (cuda.available) {
    checks.push({
      target: 'both backends give the same scores',
      measured: differ.length === 0 ? 'so they do' : `not for ${differ.join(', ')}`,
      pass: differ.length === 0,
      kind: 'quality',
    });
  }
  return {
    tables: [
      {
        title: 'scores of requests on engines, milliseconds and millions a second',
        columns: ['requests', 'engines', 'CPU ms', 'of it the call', 'CPU M/s', 'GPU ms', 'GPU M/s'],
        rows,
      },
    ],
    checks,
    notes: [
      'CPU: one core, the median. The call: what it takes until `scores` has returned its promise; the event loop waits once more while the result is copied.',
      cuda.available ? `GPU: ${cuda.description}.` : `GPU: not measured here (${cuda.reason}).`,
    ],
  };
}

/** Engines under load, and requests of which every fourth has a session and none a known prefix. */
function drawn(requests: number, engines: number, seed: number) {
  const random = new Random(seed, requests * engines);
  const scheduler = new Scheduler({ engines, staleAfterMs: 1e6 });
  const timeMs = timeOfDay();
  scheduler.observe(
    Array.from({ length: engines }, (_, engine) => ({
      engine,
      timeMs,
      kvUsage: random.below(90) / 100,
      running: random.below(50),
      waiting: random.below(5),
      moePressure: random.below(4) / 4,
    })),
  );
  const asked = Array.from({ length: requests }, (_, id): DispatchRequest => {
    const promptTokens = 1 + random.below(8000);
    return id % 4 > 0 ? { id, promptTokens } : { id, promptTokens, sessionKey: `${id}` };
  });
  return { scheduler, asked };
}

async function time(
  scheduler: Scheduler,
  asked: DispatchRequest[],
  backend: 'cpu' | 'cuda',
  small: boolean,
): Promise<Timing> {
  const whole: number[] = [];
  const calls: number[] = [];
  let scores = await scheduler.scores(asked, { backend });
  for (let n = 0; n < (small ? 3 : RUNS); n += 1) {
    const began = performance.now();
    const pending = scheduler.scores(asked, { backend });
    calls.push(performance.now() - began);
    scores = await pending;
    whole.push(performance.now() - began);
  }
  return { scores, ms: median(whole), callMs: median(calls) };
}

/** NaN counts as the same as NaN. */
function same(a: Scores, b: Scores): boolean {
  const bytes = ({ pressureMs, best }: Scores) =>
    [pressureMs, best].map((array) => Buffer.from(array.buffer));
  return bytes(a).every((part, n) => part.equals(bytes(b)[n]!));
}
