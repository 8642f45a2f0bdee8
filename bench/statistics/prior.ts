/**
 * How much should thin sources give way to the mean? Sources send requests with topics, half of them the source's favourite, and all
 * tokens of a request choose experts by its topic. One source is thin. The error is the total variation between its row of `counts()`
 * and what it would send in the long run.
 */
import { RoutingStatistics } from '../../lib/index.js';
import { type Check, type Findings, mean, percent, type RunOptions } from '../harness.js';
import { Random } from '../random.js';

export const name = 'statistics-prior';
export const question = 'how much should the mean weigh beside what a thin source sent?';

const TOPICS = 8;
const K = 8;
const BUSY_TOKENS = 2000;
const SHAPES = [
  { experts: 128, sources: 8 },
  { experts: 256, sources: 32 },
];
const REQUEST_TOKENS = [1, 50, 200];
const THIN_TOKENS = [200, 1000, 4000];
/** Of the number of experts. */
const PRIORS = [0, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 16];
const DEFAULT_PRIOR = PRIORS.indexOf(1);
/** How much larger the error may be than with the best prior, on average over all cases, and than without one, in any case. */
const MOST_REGRET = 0.1;

type Shape = (typeof SHAPES)[number];

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const rounds = small ? 2 : 24;
  const shapes = small ? SHAPES.slice(0, 1) : SHAPES;
  const rows = shapes.flatMap((shape) =>
    REQUEST_TOKENS.flatMap((requestTokens) =>
      THIN_TOKENS.map((thinTokens) => ({
        head: [shape.experts, requestTokens, thinTokens],
        errors: errorsOf(shape, requestTokens, thinTokens, rounds, seed),
      })),
    ),
  );
  return {
    tables: [
      {
        title: 'error of the thin source’s row by priorTokens / experts',
        columns: ['experts', 'tokens a request', 'tokens of the source', ...PRIORS.map(String)],
        rows: rows.map(({ head, errors }) => [...head, ...errors.map((error) => Number(error.toFixed(3)))]),
      },
    ],
    checks: small ? [] : checksOf(rows.map(({ errors }) => errors)),
    notes: [`Means of ${rounds} draws of ${TOPICS} topics. The default is 1: as many tokens as experts.`],
  };
}

/** [PRIORS] */
function errorsOf(
  shape: Shape,
  requestTokens: number,
  thinTokens: number,
  rounds: number,
  seed: number,
): number[] {
  const errors: number[][] = PRIORS.map(() => []);
  for (let round = 0; round < rounds; round++) {
    const random = new Random(seed, round);
    const topics = drawTopics(random, shape.experts);
    const all = PRIORS.map(
      (prior) =>
        new RoutingStatistics({
          layers: 1,
          ...shape,
          windowTokens: 2 ** 20,
          priorTokens: prior * shape.experts,
        }),
    );
    for (let source = 0; source < shape.sources; source++) {
      const tokens = source === 0 ? thinTokens : BUSY_TOKENS;
      for (let sent = 0; sent < tokens; sent += requestTokens) {
        const topic = random.uniform() < 0.5 ? source % TOPICS : random.below(TOPICS);
        const topk = Uint8Array.from({ length: requestTokens * K }, () =>
          random.pick(topics.cumulative[topic]!),
        );
        for (const statistics of all) statistics.observe({ source, topk, tokens: requestTokens, k: K });
      }
    }
    all.forEach((statistics, at) => {
      errors[at]!.push(distance(statistics.counts().subarray(0, shape.experts), topics.favourite));
    });
  }
  return errors.map(mean);
}

/** Popularity that all topics share times one of each topic's own, both lognormal. */
function drawTopics(
  random: Random,
  experts: number,
): { cumulative: Float64Array[]; favourite: Float64Array } {
  const common = Float64Array.from({ length: experts }, () => Math.exp(random.normal()));
  const shares = Array.from({ length: TOPICS }, () => {
    const weights = common.map((weight) => weight * Math.exp(random.normal()));
    const sum = weights.reduce((a, b) => a + b);
    return weights.map((weight) => weight / sum);
  });
  const cumulative = shares.map((row) => {
    let sum = 0;
    return row.map((share) => (sum += share));
  });
  const favourite = shares[0]!.map((share, e) => share / 2 + mean(shares.map((row) => row[e]!)) / 2);
  return { cumulative, favourite };
}

function distance(counts: Uint32Array, truth: Float64Array): number {
  const all = counts.reduce((sum, pairs) => sum + pairs, 0);
  return truth.reduce((sum, share, e) => sum + Math.abs(counts[e]! / all - share), 0) / 2;
}

/** `errors`: [cases][PRIORS] */
function checksOf(errors: number[][]): Check[] {
  const regret = (prior: number) => mean(errors.map((row) => row[prior]! / Math.min(...row) - 1));
  const harm = Math.max(...errors.map((row) => row[DEFAULT_PRIOR]! / row[0]! - 1));
  return [
    {
      target: `the default errs at most ${percent(MOST_REGRET, 0)} more than the best prior, on average`,
      measured: `${percent(regret(DEFAULT_PRIOR), 1)}; without a prior ${percent(regret(0), 1)}`,
      pass: regret(DEFAULT_PRIOR) <= MOST_REGRET,
      kind: 'quality',
    },
    {
      target: `and nowhere more than ${percent(MOST_REGRET, 0)} more than plain counts`,
      measured: harm <= 0 ? 'nowhere more' : `at most ${percent(harm, 1)} more`,
      pass: harm <= MOST_REGRET,
      kind: 'quality',
    },
  ];
}
