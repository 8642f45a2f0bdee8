/**
 * What is published of SGLang's DeepSeek-V3 on 96 H100s with prefill and decode apart: tokens a second of a prefill node, with the
 * balance that EPLB gives and with a perfect one, and what EPLB makes of either part. The simulator has neither parts of its own
 * nor overlapped halves of a batch, so each part is simulated alone, and collectives stand in the open.
 */
import { findServingHardware, type ServingHardware } from '../../lib/simulator/hardware.js';
import { simulate } from '../../lib/simulator/simulate.js';
import type { SimulatedRouting, SimulationResult } from '../../lib/simulator/types.js';
import { mean, percent, rounded, type Table } from '../harness.js';

const GPUS_PER_NODE = 8;
const MS_PER_SECOND = 1000;
/** Published: four nodes prefill 4,096-token prompts, 16,384 tokens a step and GPU; 32 redundant experts. */
const PREFILL = { nodes: 4, inputTokens: 4096, stepTokens: 16_384 };
/** Nine nodes decode, 256 requests a GPU, after 2,000 tokens of prompt. */
const DECODE = { nodes: 9, inputTokens: 2000, requestsPerGpu: 256, outputTokens: 260 };
const REDUNDANT = 32;
const PUBLISHED = { usual: 50_302, perfect: 59_337, prefillGain: 1.49, decodeGain: 2.54 };
/** Steps before the plan, and prefill steps of the run in all. */
const PLAN_STEP = 16;
const PREFILL_STEPS = 48;
const SMALL_STEPS = 6;
const H100 = findServingHardware('H100');

type Balance = 'contiguous' | 'EPLB' | 'perfect';

const PLACEMENT: Record<Balance, 'static' | 'eplb'> = {
  contiguous: 'static',
  EPLB: 'eplb',
  perfect: 'static',
};
const ROUTING: Record<Balance, SimulatedRouting> = {
  contiguous: { kind: 'generative' },
  EPLB: { kind: 'generative' },
  perfect: { kind: 'uniform' },
};

interface Case {
  balance: Balance;
  hardware: ServingHardware;
  seed: number;
}

function cluster({ balance, hardware, seed }: Case, nodes: number, firstStep: number) {
  return {
    model: 'DeepSeek-V3',
    hardware,
    dp: nodes * GPUS_PER_NODE,
    nodes,
    routing: ROUTING[balance],
    policy: {
      dispatch: 'round-robin',
      queue: 'fcfs',
      placement: PLACEMENT[balance],
      feedback: false,
    },
    rearrangement: {
      // Redundant experts are of no use to who does not know the load.
      redundantExperts: balance === 'EPLB' ? REDUNDANT : 0,
      firstStep,
      everySteps: 100_000,
    },
    seed,
  } as const;
}

/** Prompts that are done under the plan, in tokens a second and node. */
async function prefillTokensPerNode(own: Case, steps: number): Promise<number> {
  const { nodes, inputTokens, stepTokens } = PREFILL;
  const count = (steps * nodes * GPUS_PER_NODE * stepTokens) / inputTokens;
  const { requests } = await simulate({
    ...cluster(own, nodes, Math.min(PLAN_STEP, Math.floor(steps / 3))),
    trace: Array.from({ length: count }, () => ({ arrivalMs: 0, inputTokens, outputTokens: 1 })),
    engine: { allToAll: 'a2a-dedup', maxNumBatchedTokens: stepTokens, maxNumSeqs: 1024 },
  });
  // The last third: the plan is in force.
  const ends = requests.map(({ finishMs }) => finishMs).sort((a, b) => a - b);
  const from = ends[Math.floor((2 * count) / 3)]!;
  const done = ends.filter((endMs) => endMs > from).length;
  return (done * inputTokens * MS_PER_SECOND) / (ends.at(-1)! - from) / nodes;
}

/** While every GPU decodes as many requests as it is to. */
async function decodeTokensPerNode(own: Case): Promise<number> {
  const { nodes, inputTokens, requestsPerGpu, outputTokens } = DECODE;
  const gpus = nodes * GPUS_PER_NODE;
  const result = await simulate({
    ...cluster(own, nodes, PLAN_STEP),
    trace: Array.from({ length: gpus * requestsPerGpu }, () => ({ arrivalMs: 0, inputTokens, outputTokens })),
    engine: {
      allToAll: 'a2a-dedup',
      maxNumBatchedTokens: PREFILL.stepTokens,
      maxNumSeqs: requestsPerGpu,
      kvBlocks: Math.ceil((requestsPerGpu * (inputTokens + outputTokens)) / 16) + requestsPerGpu,
    },
    seriesEveryMs: 200,
  });
  return (GPUS_PER_NODE * requestsPerGpu * MS_PER_SECOND) / decodeStepMs(result);
}

/** Steps between the last first token and the first end. */
function decodeStepMs({ requests, series }: SimulationResult): number {
  const fromMs = Math.max(...requests.map(({ firstTokenMs }) => firstTokenMs));
  const toMs = Math.min(...requests.map(({ finishMs }) => finishMs));
  const steps = series.stepMs.filter(
    (_, n) => series.timeMs[n]! > fromMs && (series.timeMs[n + 1] ?? Number.POSITIVE_INFINITY) < toMs,
  );
  return mean(steps);
}

/** As modelled, and as if the other half of a batch hid all that travels. */
const LINKS: Record<string, ServingHardware> = {
  'links as modelled': H100,
  'links free': withFreeLinks(H100),
};

function withFreeLinks(hardware: ServingHardware): ServingHardware {
  const free = { micros: 0, GBps: 1e6 };
  return {
    ...hardware,
    links: hardware.links.map(({ gpus }) => ({ gpus, allToAll: free, allGather: free, reduceScatter: free })),
    interNodeGBps: 1e6,
    interNodeMicros: 0,
  };
}

export async function sglangCluster(seed: number, small: boolean): Promise<Table> {
  const rows: (string | number)[][] = [];
  for (const [links, hardware] of Object.entries(LINKS)) {
    const prefill = (balance: Balance) =>
      prefillTokensPerNode({ balance, hardware, seed }, small ? SMALL_STEPS : PREFILL_STEPS);
    const [none, usual, perfect] = [
      await prefill('contiguous'),
      await prefill('EPLB'),
      await prefill('perfect'),
    ];
    const add = (figure: string, was: number, is: number) =>
      rows.push([links, figure, rounded(was), rounded(is), percent(is / was - 1, 1)]);
    add('prefill with EPLB, tokens a second and node', PUBLISHED.usual, usual);
    add('prefill, perfect balance', PUBLISHED.perfect, perfect);
    add('prefill, EPLB over perfect balance', PUBLISHED.usual / PUBLISHED.perfect, usual / perfect);
    add('prefill, EPLB over none', PUBLISHED.prefillGain, usual / none);
    if (small) continue;
    const decode = (balance: Balance) => decodeTokensPerNode({ balance, hardware, seed });
    add(
      'decode, EPLB over none',
      PUBLISHED.decodeGain,
      (await decode('EPLB')) / (await decode('contiguous')),
    );
  }
  return {
    title: 'SGLang on 96 × H100, DeepSeek-V3: prefill of 4 nodes, decode of 9',
    columns: ['', 'figure', 'published', 'simulated', 'difference'],
    rows,
  };
}
