/**
 * Is the advised number of redundant experts the best one in the simulator? Every candidate is simulated, and the advice is held
 * against the best of them, beside three rules of thumb: none, one for each GPU, and the 32 that DeepSeek's and SGLang's
 * recipes take.
 */
import { adviseRedundancy, type RedundancyAdvice, type RedundancyOptions } from '../../lib/index.js';
import { type Check, type Findings, mean, percent, type RunOptions } from '../harness.js';

export const name = 'redundancy';
export const question = 'is the advised number of redundant experts the best of those simulated?';

const RULES: Record<string, (gpus: number) => number> = {
  none: () => 0,
  'one a GPU': (gpus) => gpus,
  '32': () => 32,
};
/** Of the best simulated throughput, what the advice may give away. */
const LIMIT = 0.01;

type Case = Pick<RedundancyOptions, 'model' | 'hardware' | 'nodes' | 'candidates' | 'traffic'> & {
  title: string;
  sigma: number;
};

const QWEN = { candidates: [0, 8, 32] };
const DEEPSEEK = { model: 'DeepSeek-V3', hardware: 'H100', nodes: 4, candidates: [0, 32, 96] };
const CASES: Case[] = [
  {
    title: 'Qwen3-30B, 8 × H100, chat',
    ...QWEN,
    model: 'Qwen3-30B-A3B',
    hardware: 'H100',
    sigma: 0.5,
    traffic: { inputTokens: 1024, outputTokens: 256, concurrency: 512 },
  },
  {
    title: 'Qwen3-235B, 8 × H200, memory to spare, skewed',
    ...QWEN,
    model: 'Qwen3-235B-A22B',
    hardware: 'H200',
    sigma: 1.5,
    traffic: { inputTokens: 1024, outputTokens: 256, concurrency: 512 },
  },
  {
    title: 'Qwen3-235B, 8 × H200, memory short, skewed',
    ...QWEN,
    model: 'Qwen3-235B-A22B',
    hardware: 'H200',
    sigma: 1.5,
    traffic: { inputTokens: 1024, outputTokens: 256, concurrency: 1600 },
  },
  {
    title: 'DeepSeek-V3, 32 × H100, memory to spare, skewed',
    ...DEEPSEEK,
    sigma: 1,
    traffic: { inputTokens: 256, outputTokens: 256, concurrency: 4096 },
  },
  {
    title: 'DeepSeek-V3, 32 × H100, memory to spare, very skewed',
    ...DEEPSEEK,
    sigma: 2,
    traffic: { inputTokens: 256, outputTokens: 256, concurrency: 4096 },
  },
  {
    title: 'DeepSeek-V3, 32 × H100, memory to spare, even',
    ...DEEPSEEK,
    sigma: 0.3,
    traffic: { inputTokens: 256, outputTokens: 256, concurrency: 2048 },
  },
  {
    title: 'DeepSeek-V3, 32 × H100, memory short, skewed',
    ...DEEPSEEK,
    sigma: 1,
    traffic: { inputTokens: 4096, outputTokens: 256, concurrency: 3200 },
  },
];
const SMALL: Case = {
  ...CASES[0]!,
  candidates: [0, 8, 32],
  traffic: { inputTokens: 128, outputTokens: 24, concurrency: 64 },
};

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const cases = small ? [SMALL] : CASES;
  const rows: (string | number)[][] = [];
  const losses = new Map<string, number[]>(['advice', ...Object.keys(RULES)].map((rule) => [rule, []]));
  const errors: number[] = [];
  const checks: Check[] = [];
  for (const one of cases) {
    const advice = await advised(one, small, seed);
    const gpus = (one.nodes ?? 1) * 8;
    const best = bestOf(advice);
    const lost = (redundant: number) => 1 - rateOf(advice, redundant) / rateOf(advice, best);
    losses.get('advice')!.push(lost(advice.redundantExperts));
    for (const [rule, of] of Object.entries(RULES)) losses.get(rule)!.push(lost(of(gpus)));
    rows.push(...rowsOf(one, advice, best));
    const base = advice.candidates[0]!;
    for (const { gainShare, simulated } of advice.candidates.slice(1)) {
      const change = simulated!.outputTokensPerSecond / base.simulated!.outputTokensPerSecond - 1;
      errors.push(Math.abs(gainShare - change));
    }
    checks.push({
      target: `${one.title}: the advice within ${percent(LIMIT, 0)} of the best simulated`,
      measured: `${advice.redundantExperts} for ${best}: ${percent(lost(advice.redundantExperts))}`,
      pass: lost(advice.redundantExperts) <= LIMIT,
      kind: 'quality',
    });
  }
  const ruleRows = [...losses].map(([rule, own]) => [rule, percent(mean(own)), percent(Math.max(...own))]);
  return {
    tables: [
      {
        title: 'output tokens a second, predicted and simulated; → advised, * best simulated',
        columns: [
          'case',
          'redundant',
          'KV tokens',
          'batch',
          'predicted',
          'change',
          'simulated',
          'change',
          'preemptions',
        ],
        rows,
      },
      { title: 'given away against the best simulated', columns: ['rule', 'mean', 'most'], rows: ruleRows },
    ],
    checks,
    notes: [
      `Changes against the fewest redundant experts are predicted to within ${percent(mean(errors))} in the mean, ${percent(Math.max(...errors))} at most.`,
      'Simulated: the same plans, a full house of requests, output tokens of its middle.',
    ],
  };
}

function advised(
  { title: _, sigma, ...options }: Case,
  small: boolean,
  seed: number,
): Promise<RedundancyAdvice> {
  return adviseRedundancy({
    ...options,
    gpusPerNode: 8,
    routing: { kind: 'generative', sigmaExperts: sigma },
    engine: { allToAll: 'a2a-dedup' },
    splits: 2,
    simulate: options.candidates!.length,
    plan: { effort: small ? 'fast' : 'balanced', threads: 1, backend: 'cpu' },
    seed,
  });
}

function rateOf({ candidates }: RedundancyAdvice, redundant: number): number {
  return candidates.find(({ redundantExperts }) => redundantExperts === redundant)!.simulated!
    .outputTokensPerSecond;
}

function bestOf(advice: RedundancyAdvice): number {
  const numbers = advice.candidates.map(({ redundantExperts }) => redundantExperts);
  return numbers.reduce((best, own) => (rateOf(advice, own) > rateOf(advice, best) ? own : best));
}

function rowsOf({ title }: Case, advice: RedundancyAdvice, best: number): (string | number)[][] {
  const base = advice.candidates[0]!;
  return advice.candidates.map(
    ({ redundantExperts, kvTokens, batch, outputTokensPerSecond, gainShare, simulated }) => {
      const { outputTokensPerSecond: rate, preemptions } = simulated!;
      return [
        title,
        `${redundantExperts === advice.redundantExperts ? '→ ' : ''}${redundantExperts}${redundantExperts === best ? ' *' : ''}`,
        kvTokens,
        Math.round(batch * 10) / 10,
        Math.round(outputTokensPerSecond),
        percent(gainShare),
        Math.round(rate),
        percent(rate / base.simulated!.outputTokensPerSecond - 1),
        preemptions,
      ];
    },
  );
}
