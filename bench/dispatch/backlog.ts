/**
 * How long is the longest queue of a fleet, and how long do users wait for the first token, under our dispatch and under every
 * rival's? One small model of data-parallel engines in lockstep (fleet.ts), the same requests for all; at several loads, with
 * fresh samples and late ones, one gateway and two (with a ledger each, and with a shared one), and requests whose first token
 * nobody tells.
 *
 * One run says little: a p99 hangs on a few long prompts, and which engine they meet hangs on a tie. So each case is run over
 * and over, with other requests each time; policies are compared run by run, and the difference is stated with its interval.
 */
import { POLICIES } from '../../lib/dispatch/validate.js';
import {
  type Check,
  type Estimate,
  estimate,
  type Findings,
  mean,
  percent,
  type RunOptions,
  type Table,
} from '../harness.js';
import { capacity, type FleetOptions, runFleet } from './fleet.js';
import { azureTrace, mooncakeTrace, partsOf, syntheticTrace, type Trace } from './traces.js';

export const name = 'dispatch-backlog';
export const question = 'is any rival better at keeping the longest backlog and the first token short?';

const VARIANTS: Record<string, Partial<FleetOptions>> = {
  'fresh samples': {},
  'samples 1 s late': { sampleLateMs: 1000 },
  'two gateways': { gateways: 2 },
  'two with a shared ledger': { gateways: 2, toldLateMs: 2 },
  'no first token told': { streams: false },
  'prefill not told': { tellsPrefill: false },
  'a third of the KV cache': { kvTokens: 500_000 },
};
/** Where memory and not prefill is what is short: shown, and held to no target of prefill. */
const SHORT_OF_KV = 'a third of the KV cache';
const LOADS = [0.5, 0.8, 0.95];
/** From this load on, better than all; below it, ties are fine. */
const BETTER_FROM = 0.8;
const BASE: Omit<FleetOptions, 'policy' | 'utilisation'> = {
  engines: 8,
  stepMs: 25,
  chunkTokens: 2048,
  prefillTokensPerSecond: 40_000,
  kvTokens: 1_500_000,
  gateways: 1,
  sampleEveryMs: 100,
  sampleLateMs: 0,
  tellsPrefill: true,
  streams: true,
  seed: 0,
};
const SYNTHETIC_REQUESTS = 8000;
/** Seeds of the synthetic trace, and parts of a recorded one: more would be too short to fill the queues. */
const SYNTHETIC_RUNS = 24;
const RECORDED_RUNS = 8;
/** Apart by more than there are gateways, each of which has a seed of its own. */
const SEED_STEP = 16;

/** What is compared, least is best. */
const MEASURES = ['mean TTFT', 'p99 TTFT', 'mean longest backlog', 'p99 longest backlog'] as const;

/** Of one policy, ms: [runs][MEASURES] */
type Values = number[][];

interface Rival {
  policy: string;
  /** Ours against its, of each run: ours / its − 1. */
  difference: Estimate;
}

interface Case {
  trace: string;
  variant: string;
  load: number;
  /** By POLICIES, of which ours is the first. */
  values: Values[];
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const notes: string[] = [];
  const traces = tracesOf(small, seed, notes);
  const variants = Object.keys(VARIANTS).slice(0, small ? 2 : undefined);
  const loads = small ? [BETTER_FROM] : LOADS;
  const cases = traces.flatMap((runs) =>
    variants.flatMap((variant) => loads.map((load) => runCase(runs, variant, load, seed))),
  );
  const rate = Math.round(capacity({ ...BASE, policy: 'gimbal', utilisation: 1 }));
  notes.push(
    `${BASE.engines} engines step together, ${BASE.stepMs} ms and a chunk of ${BASE.chunkTokens} tokens at ${BASE.prefillTokensPerSecond} tokens/s: ${rate} tokens/s each.`,
    'Load: prompts, uncached, against what the fleet can prefill; arrivals of recorded traces are brought closer or further apart.',
    'The rivals are written from their formulas; each sees the samples, and its own ledger where it has one.',
    "Differences: the mean over the runs of ours / its − 1, with the 95 % interval by Student's t.",
  );
  return {
    tables: [summaryOf(cases), ...cases.filter(isShownWhole).map(tableOf)],
    checks: small ? [] : checksOf(cases.filter(({ variant }) => variant !== SHORT_OF_KV)),
    notes,
  };
}

/** The runs of each trace. */
function tracesOf(small: boolean, seed: number, notes: string[]): Trace[][] {
  const seeds = Array.from(
    { length: small ? RECORDED_RUNS : SYNTHETIC_RUNS },
    (_, n) => seed + SEED_STEP * n,
  );
  const traces = [seeds.map((own) => syntheticTrace(small ? 60 : SYNTHETIC_REQUESTS, own))];
  if (small) return traces;
  for (const [name, trace] of [
    ['Azure', azureTrace()],
    ['Mooncake', mooncakeTrace()],
  ] as const) {
    if (trace === undefined) notes.push(`skipped: the trace of ${name} is not at hand.`);
    else traces.push(partsOf(trace, RECORDED_RUNS));
  }
  return traces;
}

function runCase(runs: Trace[], variant: string, load: number, seed: number): Case {
  const values = POLICIES.map((policy) =>
    runs.map((trace, n) => {
      const options = {
        ...BASE,
        ...VARIANTS[variant],
        policy,
        utilisation: load,
        seed: seed + SEED_STEP * n,
      };
      const { ttftMs, meanLongestMs, p99LongestMs } = runFleet(trace, options);
      const sorted = ttftMs.slice().sort();
      const p99 = sorted[Math.min(sorted.length - 1, Math.floor(0.99 * sorted.length))]!;
      return [mean([...ttftMs]), p99, meanLongestMs, p99LongestMs];
    }),
  );
  return { trace: runs[0]!.name, variant, load, values };
}

/** The one of all rivals that is best by a measure, against ours. */
function bestRival({ values }: Case, m: number): Rival {
  const [ours, ...theirs] = values;
  const rivals = theirs.map((its, n) => ({
    policy: POLICIES[n + 1]!,
    difference: estimate(its.map((run, r) => ours![r]![m]! / run[m]! - 1)),
  }));
  return rivals.reduce((a, b) => (b.difference.mean > a.difference.mean ? b : a));
}

function summaryOf(cases: Case[]): Table {
  return {
    title: 'ours in ms, and what it is above (+) or below (−) the best of all rivals',
    columns: [
      'trace',
      'samples and requests',
      'load',
      ...MEASURES.flatMap((measure) => [measure, 'best rival']),
    ],
    rows: cases.map((one) => [
      one.trace,
      one.variant,
      one.load,
      ...MEASURES.flatMap((_, m) => {
        const { policy, difference } = bestRival(one, m);
        return [meanOf(one.values[0]!, m), `${signed(difference)} (${policy})`];
      }),
    ]),
  };
}

function meanOf(values: Values, m: number): number {
  return Number(mean(values.map((run) => run[m]!)).toFixed(1));
}

function signed({ mean, halfWidth }: Estimate): string {
  return `${mean < 0 ? '−' : '+'}${(100 * Math.abs(mean)).toFixed(1)} ± ${percent(halfWidth, 1)}`;
}

/** Every policy by itself, where samples are as good as they get. */
function isShownWhole({ variant, load }: Case): boolean {
  return variant === 'fresh samples' && load === BETTER_FROM;
}

function tableOf({ trace, variant, load, values }: Case): Table {
  return {
    title: `${trace}, load ${load}, ${variant}: ms`,
    columns: ['policy', ...MEASURES],
    rows: POLICIES.map((policy, p) => [policy, ...MEASURES.map((_, m) => meanOf(values[p]!, m))]),
  };
}

/**
 * A difference is told from none where its interval is on one side of 0, and that is all the tolerance there is. Better means
 * below in the mean, and no worse means not told to be above.
 */
function checksOf(cases: Case[]): Check[] {
  return MEASURES.map((measure, m) => {
    const told = { below: 0, above: 0 };
    const open: string[] = [];
    const missed: string[] = [];
    for (const one of cases) {
      const { policy, difference } = bestRival(one, m);
      const isAbove = difference.mean - difference.halfWidth > 0;
      const words = `${one.trace}, ${one.load}, ${one.variant}: ${signed(difference)} to ${policy}`;
      if (isAbove) told.above += 1;
      else if (difference.mean + difference.halfWidth < 0) told.below += 1;
      else open.push(words);
      if (isAbove || (one.load >= BETTER_FROM && difference.mean >= 0)) missed.push(words);
    }
    return {
      target: `${measure}: below every rival's in the mean of the runs from load ${BETTER_FROM} on, and nowhere above it by more than the 95 % interval`,
      measured: [
        `told to be below in ${told.below} of ${cases.length} cases, above in ${told.above}`,
        ...(missed.length === 0 ? [] : [`not so in ${missed.join('; ')}`]),
        ...(open.length === 0 ? [] : [`not told apart: ${open.join('; ')}`]),
      ].join('. '),
      pass: missed.length === 0,
      kind: 'quality' as const,
    };
  });
}
