/**
 * Does the controller win what there is to win, and move little for it? Clusters of 8 and 32 GPUs whose experts' popularity stays,
 * drifts, comes in bursts, or whose GPU is lost for a while; the same dispatch and queue under six ways to place experts, so that
 * nothing else differs. The oracle knows what is coming and moves for nothing: its gain over the contiguous placement is the measure.
 */
import { Random } from '../../lib/random.js';
import { type Estimate, estimate } from '../../lib/simulator/compare.js';
import { findServedModel } from '../../lib/simulator/hardware.js';
import { syntheticTrace } from '../../lib/simulator/shapes.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type {
  Rearrangement,
  SimulatedController,
  SimulatedPlacement,
  SimulatedRequest,
  SimulationOptions,
  SimulationResult,
} from '../../lib/simulator/types.js';
import {
  type Check,
  type Findings,
  mean,
  percent,
  type RunOptions,
  rounded,
  type Table,
} from '../harness.js';
import { inWords } from './in-words.js';

export const name = 'closed-loop';
export const question =
  'how much of what placing experts can win does the controller win, and what does it move for it?';

interface Cluster {
  title: string;
  model: string;
  options: Omit<SimulationOptions, 'trace' | 'model'>;
  rearrangement: { redundantExperts: number };
  requestsPerSecond: number;
  durationMs: number;
}

const CLUSTERS: Cluster[] = [
  {
    title: 'Qwen3-235B-A22B, EP=8, 8 × H200',
    model: 'Qwen3-235B-A22B',
    options: {
      hardware: 'H200',
      dp: 8,
      simulatedLayers: 4,
      engine: { allToAll: 'a2a-dedup', maxNumSeqs: 256, maxNumBatchedTokens: 2048 },
    },
    // Of 152 slots, seven GPUs have 133: enough where one is lost.
    rearrangement: { redundantExperts: 24 },
    requestsPerSecond: 24,
    durationMs: 1_200_000,
  },
  {
    title: 'DeepSeek-V3, EP=32, 4 nodes of 8 × H100',
    model: 'DeepSeek-V3',
    options: {
      hardware: 'H100',
      dp: 32,
      nodes: 4,
      simulatedLayers: 2,
      engine: { allToAll: 'a2a-dedup', maxNumSeqs: 256, maxNumBatchedTokens: 512 },
    },
    rearrangement: { redundantExperts: 32 },
    requestsPerSecond: 30,
    durationMs: 1_200_000,
  },
];

const TOPICS = 8;
const HALF_LIFE_MS = 600_000;
/** Half of the traffic is of one topic, which is another one after so long. */
const SHIFT_MS = 300_000;
const SMALL_MS = 40_000;
/** In so much of a period requests come three times as fast, four fifths of them of one topic. */
const BURST = { periodMs: 120_000, lengthMs: 20_000, factor: 3, share: 0.8 };

interface Scenario {
  halfLifeMs?: number;
  /** The topic that stands out at a time, and its share beyond the others'. */
  favourite?: (timeMs: number) => { topic: number; share: number } | undefined;
  bursts?: boolean;
  losesGpu?: boolean;
}

const SCENARIOS: Record<string, Scenario> = {
  steady: {},
  drift: {
    halfLifeMs: HALF_LIFE_MS,
    favourite: (timeMs) => ({ topic: Math.floor(timeMs / SHIFT_MS) % TOPICS, share: 0.5 }),
  },
  bursts: {
    bursts: true,
    favourite: (timeMs) =>
      isBurst(timeMs)
        ? { topic: Math.floor(timeMs / BURST.periodMs) % TOPICS, share: BURST.share }
        : undefined,
  },
  'a lost GPU': { halfLifeMs: HALF_LIFE_MS, losesGpu: true },
};

interface Variant {
  placement: SimulatedPlacement;
  rearrangement: (cluster: Cluster) => Rearrangement;
}

/** A fifth of the requests is told; half-life some 40 s; sources alike, for the dispatcher does not look at topics. */
const OURS_SETTING: SimulatedController = {
  sampleShare: 0.2,
  halfLifeTokens: 2 ** 18,
  priorTokens: 2 ** 17,
};

const STATIC = 'static';
const EPLB = 'EPLB, 0.7 s stalls';
const OURS = 'gimbal';
const ORACLE = 'oracle';
const VARIANTS: Record<string, Variant> = {
  [STATIC]: { placement: 'static', rearrangement: () => ({}) },
  [EPLB]: { placement: 'eplb', rearrangement: () => ({ stallMs: 700 }) },
  'EPLB, overlapped': { placement: 'eplb', rearrangement: () => ({ transfer: 'overlap' }) },
  'swift-like': {
    placement: 'swift',
    // Counting, planning, and a step for each layer that moves: vLLM-Ascend's cycle.
    rearrangement: ({ model }) => ({
      everySteps: 600 + 50 + findServedModel(model).moeLayers,
      windowSteps: 600,
    }),
  },
  [OURS]: { placement: 'gimbal', rearrangement: () => ({ controller: OURS_SETTING }) },
  [ORACLE]: { placement: 'oracle', rearrangement: () => ({ oracleEveryMs: 15_000 }) },
};

/** What is varied, one at a time, for the trade-off of gain and moves. */
const TRADES: Record<string, SimulatedController> = {
  'as above': {},
  'leastMoveShare 0': { rules: { leastMoveShare: 0 } },
  'leastMoveShare 0.003': { rules: { leastMoveShare: 0.003 } },
  'leastMoveShare 0.03': { rules: { leastMoveShare: 0.03 } },
  '2 % of requests told': { sampleShare: 0.02, halfLifeTokens: 2 ** 15 },
  'all requests told': { sampleShare: 1, halfLifeTokens: 5 * 2 ** 18 },
  'half-life 4 times as long': { halfLifeTokens: 2 ** 20 },
  'prior of the statistics’ default': { priorTokens: 128 },
  'minIntervalMs 20,000': { rules: { minIntervalMs: 20_000 } },
  'all told, half-life 20 s, minIntervalMs 20,000': {
    sampleShare: 1,
    halfLifeTokens: 2 ** 19,
    rules: { minIntervalMs: 20_000 },
  },
};
const TRADED = { cluster: 0, scenario: 'drift' } as const;

/** By variant and seed. */
type Runs = Map<string, SimulationResult[]>;

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const seeds = small ? 2 : 3;
  const tables: Table[] = [];
  const checks: Check[] = [];
  for (const cluster of small ? CLUSTERS.slice(0, 1) : CLUSTERS) {
    const rows: Table['rows'] = [];
    const shares: Table['rows'] = [];
    const all = new Map<string, Runs>();
    const scenarios = Object.keys(SCENARIOS);
    for (const scenario of small ? scenarios.slice(-1) : scenarios) {
      const runs = await runScenario(cluster, scenario, seed, seeds, small);
      all.set(scenario, runs);
      rows.push(...rowsOf(cluster, scenario, runs));
      shares.push(...sharesOf(scenario, runs));
    }
    tables.push(figuresTable(cluster, rows), sharesTable(cluster, shares));
    if (cluster === CLUSTERS[TRADED.cluster]) tables.push(await tradeTable(cluster, all, seed, small));
    if (!small) checks.push(...checksOf(cluster, [...all.values()]));
  }
  return {
    tables,
    checks,
    notes: [
      'Lost: the experts’ time over what it had been with the same work even over the GPUs, less 1: what “experts’ time” is a gain in. MoE time, collectives included, is over the same even time. All gains are over the contiguous placement.',
      'All start from the contiguous placement, with the same redundant experts, dispatch and queue; what the first plans move counts.',
      `± is 95 % over ${seeds} seeds, taken seed by seed. The oracle's moves are free and not comparable.`,
    ],
  };
}

async function runScenario(
  cluster: Cluster,
  scenario: string,
  seed: number,
  seeds: number,
  small: boolean,
): Promise<Runs> {
  const runs: Runs = new Map(Object.keys(VARIANTS).map((variant) => [variant, []]));
  for (let n = 0; n < seeds; n++) {
    for (const [variant, { placement, rearrangement }] of Object.entries(VARIANTS)) {
      const result = await runOne(cluster, scenario, placement, rearrangement(cluster), seed + n, small);
      runs.get(variant)!.push(result);
    }
  }
  return runs;
}

function runOne(
  cluster: Cluster,
  scenario: string,
  placement: SimulatedPlacement,
  rearrangement: Rearrangement,
  seed: number,
  small: boolean,
): Promise<SimulationResult> {
  const { halfLifeMs, losesGpu } = SCENARIOS[scenario]!;
  const durationMs = small ? SMALL_MS : cluster.durationMs;
  return simulate({
    ...cluster.options,
    model: cluster.model,
    trace: traceOf(cluster, SCENARIOS[scenario]!, durationMs, seed),
    seed,
    routing: { kind: 'generative', ...(halfLifeMs === undefined ? {} : { halfLifeMs }) },
    policy: { placement, feedback: false },
    rearrangement: { ...cluster.rearrangement, ...rearrangement },
    ...(losesGpu ? { failures: [{ atMs: 0.4 * durationMs, gpu: 3, backMs: 0.7 * durationMs }] } : {}),
  });
}

/** Of the first seed. */
async function tradeTable(
  cluster: Cluster,
  all: ReadonlyMap<string, Runs>,
  seed: number,
  small: boolean,
): Promise<Table> {
  const [scenario, runs] = [...all].find(([name_]) => name_ === TRADED.scenario) ?? [...all][0]!;
  const one: Runs = new Map([...runs].map(([variant, results]) => [variant, results.slice(0, 1)]));
  const rows: Table['rows'] = [];
  for (const [title, setting] of Object.entries(TRADES).slice(0, small ? 2 : undefined)) {
    const controller = { ...OURS_SETTING, ...setting };
    one.set(title, [await runOne(cluster, scenario, 'gimbal', { controller }, seed, small)]);
    const share = (read: (result: SimulationResult) => number) => percent(gains(one, title, read)[0]!, 1);
    rows.push([
      title,
      share(READ.moe),
      share(READ.lost),
      share(READ.tpot),
      percent(movedShares(one, title)[0]!, 1),
    ]);
  }
  return {
    title: `${cluster.title}, ${scenario}, one seed: gain against moves`,
    columns: ['controller', 'MoE time', 'experts’ time', 'TPOT', 'moved'],
    rows,
  };
}

function isBurst(timeMs: number): boolean {
  return timeMs % BURST.periodMs >= BURST.periodMs - BURST.lengthMs;
}

/** Evenly paced time to time in which bursts are `factor` times as dense; a period takes as long in both. */
function burstTime(timeMs: number): number {
  const { periodMs, lengthMs, factor } = BURST;
  const calmMs = periodMs - lengthMs;
  const calmRate = periodMs / (calmMs + factor * lengthMs);
  const within = timeMs % periodMs;
  const calmEnds = calmRate * calmMs;
  const moved = within < calmEnds ? within / calmRate : calmMs + (within - calmEnds) / (factor * calmRate);
  return timeMs - within + moved;
}

function traceOf(
  { requestsPerSecond }: Cluster,
  { favourite, bursts }: Scenario,
  durationMs: number,
  seed: number,
): SimulatedRequest[] {
  const made = syntheticTrace({
    shape: 'random',
    requests: Math.round((requestsPerSecond * durationMs) / 1000),
    requestsPerSecond,
    seed,
  });
  const random = new Random(seed, 1);
  return made.map((request) => {
    const arrivalMs = bursts ? burstTime(request.arrivalMs) : request.arrivalMs;
    const special = favourite?.(arrivalMs);
    const [stands, drawn] = [random.uniform(), random.below(TOPICS)];
    const topic = special !== undefined && stands < special.share ? special.topic : drawn;
    return { ...request, arrivalMs, topic };
  });
}

/** What is said of a run. */
const READ = {
  /** Steps of different placements hold different batches: all MoE time is over what their experts had to do. */
  moe: ({ counters }: SimulationResult) => counters.moeMs / counters.evenExpertMs,
  lost: ({ counters }: SimulationResult) => counters.expertMs / counters.evenExpertMs - 1,
  imbalance: ({ series }: SimulationResult) => mean(series.expertImbalance),
  tpot: ({ summary }: SimulationResult) => summary.tpotMs.mean,
  tpotP99: ({ summary }: SimulationResult) => summary.tpotMs.p99,
  ttft: ({ summary }: SimulationResult) => summary.ttftMs.mean,
  ttftP99: ({ summary }: SimulationResult) => summary.ttftMs.p99,
} as const;

function rowsOf(cluster: Cluster, scenario: string, runs: Runs): Table['rows'] {
  const { moeLayers, experts, expertBytes } = findServedModel(cluster.model);
  const slots = experts + cluster.rearrangement.redundantExperts;
  return [...runs].map(([variant, results]) => {
    const of = (read: (result: SimulationResult) => number) => mean(results.map(read));
    const moved = of(({ counters }) => counters.migrations);
    return [
      scenario,
      variant,
      rounded(of(READ.ttft)),
      rounded(of(READ.ttftP99)),
      rounded(of(READ.tpot)),
      rounded(of(READ.tpotP99)),
      variant === STATIC ? '' : inWords(changes(runs, variant, READ.tpot)),
      rounded(of(READ.imbalance)),
      percent(of(READ.lost), 1),
      rounded(of(({ counters }) => counters.rearrangements)),
      percent(moved / (moeLayers * slots), 0),
      rounded((moved * expertBytes) / 1e9),
      Math.round(of(({ counters }) => counters.stallMs)),
    ];
  });
}

/** Seed by seed, against the contiguous placement. */
function changes(runs: Runs, variant: string, read: (result: SimulationResult) => number): Estimate {
  const base = runs.get(STATIC)!;
  return estimate(runs.get(variant)!.map((result, n) => read(result) / read(base[n]!) - 1));
}

/** Of the oracle's gain over the contiguous placement, seed by seed. */
function gains(runs: Runs, variant: string, read: (result: SimulationResult) => number): number[] {
  const [base, best] = [runs.get(STATIC)!, runs.get(ORACLE)!];
  return runs
    .get(variant)!
    .map((result, n) => (read(base[n]!) - read(result)) / (read(base[n]!) - read(best[n]!)));
}

function movedShares(runs: Runs, variant: string): number[] {
  const eplb = runs.get(EPLB)!;
  return runs
    .get(variant)!
    .map(({ counters }, n) => counters.migrations / Math.max(1, eplb[n]!.counters.migrations));
}

function sharesOf(scenario: string, runs: Runs): Table['rows'] {
  const others = [...runs.keys()].filter((variant) => variant !== STATIC && variant !== ORACLE);
  return others.map((variant) => [
    scenario,
    variant,
    ...[READ.moe, READ.lost, READ.imbalance, READ.tpot].map((read) =>
      inWords(estimate(gains(runs, variant, read))),
    ),
    inWords(estimate(movedShares(runs, variant))),
  ]);
}

function figuresTable({ title }: Cluster, rows: Table['rows']): Table {
  return {
    title: `${title}: ms`,
    columns: [
      'scenario',
      'placement',
      'TTFT mean',
      'TTFT p99',
      'TPOT mean',
      'TPOT p99',
      'TPOT against static',
      'expert imbalance',
      'lost',
      'rearrangements',
      'moved, of all slots',
      'moved GB',
      'stalls ms',
    ],
    rows,
  };
}

function sharesTable({ title }: Cluster, rows: Table['rows']): Table {
  return {
    title: `${title}: share of the oracle’s gain over static, and of EPLB’s moved bytes`,
    columns: ['scenario', 'placement', 'MoE time', 'experts’ time', 'imbalance', 'TPOT', 'moved'],
    rows,
  };
}

function checksOf({ title }: Cluster, all: readonly Runs[]): Check[] {
  const over = (of: (runs: Runs) => number[]) => all.map((runs) => mean(of(runs)));
  const won = over((runs) => gains(runs, OURS, READ.moe));
  const moved = over((runs) => movedShares(runs, OURS));
  const each = (shares: number[]) =>
    `${percent(mean(shares), 1)} (${shares.map((share) => percent(share, 0)).join(', ')})`;
  return [
    {
      target: `${title}: ≥ 90 % of the oracle’s gain in MoE time, mean of the scenarios`,
      measured: each(won),
      pass: mean(won) >= 0.9,
      kind: 'quality',
    },
    {
      target: `${title}: ≤ 10 % of EPLB’s moved bytes, mean of the scenarios`,
      measured: each(moved),
      pass: mean(moved) <= 0.1,
      kind: 'quality',
    },
  ];
}
