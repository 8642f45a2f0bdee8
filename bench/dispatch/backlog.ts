/**
 * How long is the longest queue of a fleet, and how long do users wait for the first token, under our dispatch and under every
 * rival's? One small model of data-parallel engines in lockstep (fleet.ts), the same requests for all; at several loads, with
 * fresh samples and late ones, one gateway and two (with a ledger each, and with a shared one), and requests whose first token
 * nobody tells.
 */
import {
  type BenchResult,
  type Check,
  DEFAULT_SEED,
  mean,
  percent,
  type RunOptions,
  type Table,
} from '../harness.js';
import { capacity, type FleetOptions, runFleet } from './fleet.js';
import { azureTrace, mooncakeTrace, syntheticTrace, type Trace } from './traces.js';

export const name = 'dispatch-backlog';
export const question = 'is any rival better at keeping the longest backlog and the first token short?';

const POLICIES = [
  'gimbal',
  'vllm',
  'total-tokens',
  'round-robin',
  'power-of-two',
  'least-load',
  'dynamo',
  'llm-d',
] as const;
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
const TIE = 0.02;
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
const AZURE_REQUESTS = 8000;
const MOONCAKE_REQUESTS = 4000;

/** What is compared, least is best. */
const MEASURES = ['mean TTFT', 'p99 TTFT', 'mean longest backlog', 'p99 longest backlog'] as const;

interface Outcome {
  policy: (typeof POLICIES)[number];
  /** ms, by MEASURES. */
  values: number[];
}

interface Case {
  trace: string;
  variant: string;
  load: number;
  outcomes: Outcome[];
}

export async function run({ small, seed = DEFAULT_SEED }: RunOptions): Promise<BenchResult> {
  const traces: Trace[] = [syntheticTrace(small ? 400 : SYNTHETIC_REQUESTS, seed)];
  const notes: string[] = [];
  if (!small) {
    for (const [name, trace] of [
      ['Azure', azureTrace(AZURE_REQUESTS)],
      ['Mooncake', mooncakeTrace(MOONCAKE_REQUESTS)],
    ] as const) {
      if (trace === undefined) notes.push(`skipped: the trace of ${name} is not at hand.`);
      else traces.push(trace);
    }
  }
  const variants = Object.keys(VARIANTS).slice(0, small ? 2 : undefined);
  const loads = small ? [0.8] : LOADS;
  const cases = traces.flatMap((trace) =>
    variants.flatMap((variant) => loads.map((load) => runCase(trace, variant, load, seed))),
  );
  const rate = Math.round(capacity({ ...BASE, policy: 'gimbal', utilisation: 1 }));
  notes.push(
    `${BASE.engines} engines step together, ${BASE.stepMs} ms and a chunk of ${BASE.chunkTokens} tokens at ${BASE.prefillTokensPerSecond} tokens/s: ${rate} tokens/s each.`,
    'Load: prompts, uncached, against what the fleet can prefill; arrivals of recorded traces are brought closer or further apart.',
    'The rivals are written from their formulas; each sees the samples, and its own ledger where it has one.',
  );
  return {
    name,
    question,
    seed,
    small,
    tables: [summaryOf(cases), ...cases.filter(isShownWhole).map(tableOf)],
    checks: small ? [] : checksOf(cases.filter(({ variant }) => variant !== SHORT_OF_KV)),
    notes,
  };
}

function runCase(trace: Trace, variant: string, load: number, seed: number): Case {
  const outcomes = POLICIES.map((policy) => {
    const options = { ...BASE, ...VARIANTS[variant], policy, utilisation: load, seed };
    const { ttftMs, meanLongestMs, p99LongestMs } = runFleet(trace, options);
    const sorted = ttftMs.slice().sort();
    const p99 = sorted[Math.min(sorted.length - 1, Math.floor(0.99 * sorted.length))]!;
    return { policy, values: [mean([...ttftMs]), p99, meanLongestMs, p99LongestMs] };
  });
  return { trace: trace.name, variant, load, outcomes };
}

/** Against the best rival of each measure, whichever it is. */
function summaryOf(cases: Case[]): Table {
  return {
    title: 'ms: ours and the best of all rivals',
    columns: [
      'trace',
      'samples and requests',
      'load',
      ...MEASURES.flatMap((measure) => [measure, 'best rival']),
    ],
    rows: cases.map(({ trace, variant, load, outcomes }) => [
      trace,
      variant,
      load,
      ...MEASURES.flatMap((_, m) => {
        const best = bestRival(outcomes, m);
        return [Number(outcomes[0]!.values[m]!.toFixed(1)), `${best.values[m]!.toFixed(1)} (${best.policy})`];
      }),
    ]),
  };
}

function bestRival(outcomes: Outcome[], m: number): Outcome {
  return outcomes.slice(1).reduce((a, b) => (b.values[m]! < a.values[m]! ? b : a));
}

/** Every policy by itself, where samples are as good as they get. */
function isShownWhole({ variant, load }: Case): boolean {
  return variant === 'fresh samples' && load === BETTER_FROM;
}

function tableOf({ trace, variant, load, outcomes }: Case): Table {
  return {
    title: `${trace}, load ${load}, ${variant}: ms`,
    columns: ['policy', ...MEASURES],
    rows: outcomes.map(({ policy, values }) => [policy, ...values.map((value) => Number(value.toFixed(1)))]),
  };
}

function checksOf(cases: Case[]): Check[] {
  return MEASURES.map((measure, m) => {
    const misses = cases.flatMap(({ trace, variant, load, outcomes }) => {
      const own = outcomes[0]!.values[m]!;
      const best = bestRival(outcomes, m);
      const allowed = load >= BETTER_FROM ? best.values[m]! : best.values[m]! * (1 + TIE);
      const over = own / best.values[m]! - 1;
      return own < allowed ? [] : [`${trace}, ${load}, ${variant}: ${percent(over, 1)} above ${best.policy}`];
    });
    return {
      target: `${measure}: below every rival's from load ${BETTER_FROM} on, never more than ${percent(TIE, 0)} above below it`,
      measured:
        misses.length === 0
          ? `so in ${cases.length} cases`
          : `not in ${misses.length} of ${cases.length}: ${misses.join('; ')}`,
      pass: misses.length === 0,
      kind: 'quality' as const,
    };
  });
}
