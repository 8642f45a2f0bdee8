/**
 * Does the simulator give what "Coordinated Scheduling for MoE LLM Serving" reports? Its cluster and model, five shapes of prompt
 * length, loads relative to what the baseline can carry, its ablation, and two rival systems; our figures beside the paper's.
 */
import { Random } from '../../lib/random.js';
import { compareRuns, estimate, type FinishedRun } from '../../lib/simulator/compare.js';
import { findServedModel, findServingHardware } from '../../lib/simulator/hardware.js';
import { type LengthShape, lengthShapes, syntheticTrace } from '../../lib/simulator/shapes.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulatedRequest, SimulationOptions, SimulationResult } from '../../lib/simulator/types.js';
import { type Findings, mean, percent, type RunOptions, type Table } from '../harness.js';
import { inWords } from './in-words.js';
import { ABLATION, paperRivals, type Variant, withTopics } from './rivals.js';
import { sustainedRate } from './saturation.js';

export const name = 'simulator-paper';
export const question = 'how much of the paper’s gains over vLLM does the simulated cluster show?';

const LOADS = [0.5, 0.7, 0.85, 0.95, 1.05];
const BUDGETS = [4096, 8192, 16_384];
/** So long that what runs at once is a small part of it. */
const REQUESTS = 10_000;
/** With which budgets are tried, by cell. */
const TUNING_REQUESTS = 4000;
const SATURATION_REQUESTS = 16_000;
const SEEDS = 4;
const RANKS = 2;
const GPUS = 4;
/** Two kinds of traffic: BurstGPT's mean lengths, about, and prompts that fill steps. */
const TRAFFIC = {
  chat: { meanInputTokens: 1024, meanOutputTokens: 256, shapes: [...lengthShapes], loads: LOADS },
  'long prompts': {
    meanInputTokens: 4096,
    meanOutputTokens: 128,
    shapes: ['random', 'two-end'] as LengthShape[],
    loads: [0.7, 0.85, 0.95, 1.05],
  },
} as const;
type Traffic = keyof typeof TRAFFIC;

/** % against vLLM, and against the two systems: as printed in the paper. */
const PAPER: Record<string, [ttft: string, tpot: string]> = {
  'DP only': ['-25.1', '-13.4'],
  'EP only': ['-26.2', '-22.7'],
  'both, no feedback': ['-29.8', '-27.3'],
  full: ['-41.4 (mean of shapes -42.9)', '-32.0 (-33.3)'],
};

const model = findServedModel('Qwen3-30B-A3B');
const hardware = findServingHardware('H100');
const CLUSTER: Omit<SimulationOptions, 'trace'> = {
  model,
  hardware,
  dp: RANKS,
  tp: GPUS / RANKS,
  rearrangement: { everySteps: 3000, windowSteps: 1000, firstStep: 500 },
};
const ROUTING = { kind: 'generative' } as const;

interface Cell {
  traffic: Traffic;
  shape: LengthShape;
  load: number;
  saturation: number;
  budget: number;
  runs: FinishedRun[];
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const requests = small ? 200 : REQUESTS;
  const seeds = small ? 2 : SEEDS;
  const cells: Cell[] = [];
  for (const traffic of Object.keys(TRAFFIC) as Traffic[]) {
    const { shapes, loads } = TRAFFIC[traffic];
    for (const shape of small ? shapes.slice(0, 1) : shapes) {
      const saturation = await saturationOf(traffic, shape, small ? requests : SATURATION_REQUESTS, seed);
      for (const load of small ? [0.85] : loads) {
        const make = (n: number) => traceOf(traffic, shape, requests, load * saturation, seed + n);
        const budget = await tunedBudget(make(seeds), seed);
        cells.push({
          traffic,
          shape,
          load,
          saturation,
          budget,
          runs: await runCell(make, budget, seed, seeds),
        });
      }
    }
    if (small) break;
  }
  return {
    tables: [besideThePaper(cells), ...summaries(cells), detail(cells)],
    checks: [],
    notes: [
      '4 × H100, DP=2, TP=2, EP=4, Qwen3-30B-A3B, all-gather and reduce-scatter; traffic is synthetic, its five shapes are our reading of the paper’s names.',
      'Saturation: the most requests a second, evenly spaced, with which vLLM’s waiting prompts do not grow in number, under the best budget of tokens. The budget of a cell is that of 4,096 to 16,384 with which vLLM’s mean time end to end is least, and all policies get it.',
      'Experts are planned after 500 steps and every 3,000; EPLB’s plans stall the engines, ours are transferred beside the work.',
      'MoE-Tuner-like and Sem-MoE-like: bench/simulator/rivals.ts says what was assumed.',
    ],
  };
}

function traceOf(
  traffic: Traffic,
  shape: LengthShape,
  requests: number,
  rate: number,
  seed: number,
): SimulatedRequest[] {
  const { meanInputTokens, meanOutputTokens } = TRAFFIC[traffic];
  const made = syntheticTrace({
    shape,
    requests,
    requestsPerSecond: rate,
    seed,
    meanInputTokens,
    meanOutputTokens,
  });
  const random = new Random(seed, 1);
  return withTopics(made, (bound) => random.below(bound));
}

async function simulateWith(
  trace: SimulatedRequest[],
  { policy, initial }: Variant,
  budget: number,
  seed: number,
): Promise<SimulationResult> {
  return simulate({
    ...CLUSTER,
    trace,
    routing: ROUTING,
    policy,
    seed,
    engine: { maxNumBatchedTokens: budget },
    rearrangement: { ...CLUSTER.rearrangement, ...(initial === undefined ? {} : { initial }) },
  });
}

const VLLM: Variant = { policy: ABLATION.vLLM! };

/** Under the budget with which vLLM keeps up with most. */
async function saturationOf(
  traffic: Traffic,
  shape: LengthShape,
  requests: number,
  seed: number,
): Promise<number> {
  const trace = traceOf(traffic, shape, requests, 1, seed);
  const rates: number[] = [];
  for (const budget of BUDGETS) {
    rates.push(await sustainedRate(trace, (evenly) => simulateWith(evenly, VLLM, budget, seed)));
  }
  return Math.max(...rates);
}

/** The budget that serves vLLM best on this traffic, by mean time end to end. */
async function tunedBudget(trace: SimulatedRequest[], seed: number): Promise<number> {
  let best = { budget: BUDGETS[0]!, ms: Number.POSITIVE_INFINITY };
  const short = trace.slice(0, TUNING_REQUESTS);
  for (const budget of BUDGETS) {
    const { summary } = await simulateWith(short, VLLM, budget, seed);
    if (summary.e2eMs.mean < best.ms) best = { budget, ms: summary.e2eMs.mean };
  }
  return best.budget;
}

async function runCell(
  make: (n: number) => SimulatedRequest[],
  budget: number,
  seed: number,
  seeds: number,
): Promise<FinishedRun[]> {
  const runs: FinishedRun[] = [];
  for (let n = 0; n < seeds; n++) {
    const trace = make(n);
    const setting = { model, hardware, ranks: RANKS, gpus: GPUS, routing: ROUTING, seed: seed + n };
    const variants: Record<string, Variant> = {
      ...Object.fromEntries(Object.entries(ABLATION).map(([policy, own]) => [policy, { policy: own }])),
      ...(await paperRivals(setting, trace)),
    };
    for (const [policy, variant] of Object.entries(variants)) {
      const result = await simulateWith(trace, variant, budget, seed + n);
      // Its log of requests is not looked at, and would fill the memory over all cells.
      runs.push({ policy, seed: seed + n, result: { ...result, requests: [] } });
    }
  }
  return runs;
}

/** Changes of a policy against another over cells, each cell one value: the mean over its seeds. */
function changes(
  cells: readonly Cell[],
  policy: string,
  against: string,
  measure: 'TTFT mean' | 'TPOT mean' | 'TTFT p99' | 'requests/s',
) {
  return estimate(
    cells.map(({ runs }) => {
      const pair = [
        ...runs.filter((run) => run.policy === against),
        ...runs.filter((run) => run.policy === policy),
      ];
      return compareRuns(pair).at(-1)!.changes[measure].mean;
    }),
  );
}

function besideThePaper(cells: readonly Cell[]): Table {
  const own = (traffic: Traffic) => cells.filter((cell) => cell.traffic === traffic);
  const kinds = (Object.keys(TRAFFIC) as Traffic[]).filter((traffic) => own(traffic).length > 0);
  const row = (policy: string, against: string, paper: [string, string]) => [
    policy,
    against,
    paper[0],
    ...kinds.map((traffic) => inWords(changes(own(traffic), policy, against, 'TTFT mean'))),
    paper[1],
    ...kinds.map((traffic) => inWords(changes(own(traffic), policy, against, 'TPOT mean'))),
  ];
  return {
    title: 'Change of mean TTFT and TPOT, %, over all cells (± over cells): the paper’s and ours',
    columns: [
      'policy',
      'against',
      'paper TTFT',
      ...kinds.map((traffic) => `TTFT, ${traffic}`),
      'paper TPOT',
      ...kinds.map((traffic) => `TPOT, ${traffic}`),
    ],
    rows: [
      ...Object.entries(PAPER).map(([policy, paper]) => row(policy, 'vLLM', paper)),
      row('full', 'MoE-Tuner-like', ['-47.0', '-36.2']),
      row('full', 'Sem-MoE-like', ['-34.7', '-29.5']),
    ],
  };
}

function summaries(cells: readonly Cell[]): Table[] {
  return (Object.keys(TRAFFIC) as Traffic[]).flatMap((traffic) => {
    const own = cells.filter((cell) => cell.traffic === traffic);
    if (own.length === 0) return [];
    const loads = [...new Set(own.map(({ load }) => load))];
    const policies = [...new Set(own[0]!.runs.map(({ policy }) => policy))].slice(1);
    return [
      {
        title: `${traffic}: change against vLLM by load, mean over shapes`,
        columns: ['policy', 'load', 'TTFT mean', 'TTFT p99', 'TPOT mean', 'requests/s'],
        rows: policies.flatMap((policy) =>
          loads.map((load) => {
            const at = own.filter((cell) => cell.load === load);
            const of = (measure: Parameters<typeof changes>[3]) =>
              percent(changes(at, policy, 'vLLM', measure).mean, 1);
            return [policy, load, of('TTFT mean'), of('TTFT p99'), of('TPOT mean'), of('requests/s')];
          }),
        ),
      },
    ];
  });
}

function detail(cells: readonly Cell[]): Table {
  return {
    title: 'each cell: vLLM, and full against it (± 95 % over seeds)',
    columns: [
      'traffic',
      'shape',
      'load',
      'requests/s',
      'budget',
      'vLLM TTFT ms',
      'TPOT ms',
      'full TTFT',
      'TPOT',
      'engine imbalance',
      'expert imbalance',
    ],
    rows: cells.map(({ traffic, shape, load, saturation, budget, runs }) => {
      const compared = compareRuns(runs);
      const base = compared[0]!.values;
      const full = compared.find(({ policy }) => policy === 'full')!.changes;
      const { series } = runs.find(({ policy }) => policy === 'full')!.result;
      return [
        traffic,
        shape,
        load,
        Number((load * saturation).toFixed(1)),
        budget,
        Number(base['TTFT mean'].mean.toFixed(1)),
        Number(base['TPOT mean'].mean.toFixed(2)),
        inWords(full['TTFT mean']),
        inWords(full['TPOT mean']),
        Number(mean(series.engineImbalance).toFixed(3)),
        Number(mean(series.expertImbalance).toFixed(3)),
      ];
    }),
  };
}
