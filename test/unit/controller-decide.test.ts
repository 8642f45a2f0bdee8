/** The decision, case by case, and the estimates that it rests on. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { changeMs, roundMs } from '../../lib/controller/cost.js';
import { judge } from '../../lib/controller/judge.js';
import { GrowthRate } from '../../lib/controller/rate.js';
import { resample } from '../../lib/controller/resample.js';
import { Slices } from '../../lib/controller/slices.js';
import {
  DECISION_DEFAULTS,
  decide,
  evaluatePlacements,
  type MigrationSchedule,
  type Prospect,
  planPlacement,
  reasonToWait,
} from '../../lib/index.js';
import { Random } from '../../lib/random.js';
import { contiguous, makeProblem, SMALL } from '../support/problems.js';

/** fast-check prints it where a property fails. */
const SEED = Number(process.env.GIMBAL_TEST_SEED ?? 1);
const RULES = {
  ...DECISION_DEFAULTS,
  minIntervalMs: 60_000,
  leastGainShare: 0.01,
  certainty: 2,
  hysteresis: 0.01,
  leastTokens: 256,
  staleStatisticsMs: 120_000,
  backoffMs: 30_000,
  mostBackoffMs: 200_000,
};

describe('what speaks against a plan', () => {
  const calm = { nowMs: 1_000_000, tokens: 256, gpusChanged: false };
  it.each([
    ['nothing', {}, { failures: 0 }, undefined],
    ['a commit just now', {}, { failures: 0, committedAtMs: 940_001 }, 'too-soon'],
    ['a commit as long ago as it must be', {}, { failures: 0, committedAtMs: 940_000 }, undefined],
    ['too few tokens', { tokens: 255 }, { failures: 0 }, 'too-little-data'],
    ['no tokens', { tokens: 0 }, { failures: 0 }, 'too-little-data'],
    ['old statistics', { statisticsAgeMs: 120_001 }, { failures: 0 }, 'stale-statistics'],
    ['statistics just young enough', { statisticsAgeMs: 120_000 }, { failures: 0 }, undefined],
    ['one failure', {}, { failures: 1, failedAtMs: 970_001 }, 'backing-off'],
    ['one failure, long ago', {}, { failures: 1, failedAtMs: 970_000 }, undefined],
    ['two failures', {}, { failures: 2, failedAtMs: 940_001 }, 'backing-off'],
    ['two failures, long ago', {}, { failures: 2, failedAtMs: 940_000 }, undefined],
    ['a hundred failures', {}, { failures: 100, failedAtMs: 800_001 }, 'backing-off'],
    ['a hundred failures, longer ago than any wait', {}, { failures: 100, failedAtMs: 800_000 }, undefined],
    [
      'GPUs that are gone',
      { gpusChanged: true, tokens: 0 },
      { failures: 0, committedAtMs: 999_999 },
      undefined,
    ],
    [
      'GPUs that are gone, and a failure',
      { gpusChanged: true },
      { failures: 1, failedAtMs: 999_999 },
      'backing-off',
    ],
  ] as const)('%s', (_, occasion, history, reason) => {
    expect(reasonToWait(RULES, { ...calm, ...occasion }, history)).toBe(reason);
  });
});

describe('the decision', () => {
  const good: Prospect = {
    incumbentMs: 1000,
    candidateMs: 900,
    spreadMs: 10,
    costMs: 50,
    incumbentScore: 1.2,
    candidateScore: 1.08,
    migrations: 5,
  };
  it.each([
    ['a gain', {}, undefined, 'gain', true],
    ['no moves', { migrations: 0 }, undefined, 'same-placement', false],
    ['a score as committed', { candidateScore: 1.2 }, 1.2, 'within-hysteresis', false],
    ['a score at the edge', { incumbentScore: 1.212, candidateScore: 1.2 }, 1.2, 'within-hysteresis', false],
    ['a score past the edge', { incumbentScore: 1.213, candidateScore: 1.2 }, 1.2, 'gain', true],
    ['a score of traffic that could not be served as well', {}, 1.5, 'gain', true],
    ['a gain of less than a hundredth', { candidateMs: 991 }, undefined, 'gain-too-small', false],
    ['a loss', { candidateMs: 1100 }, undefined, 'gain-too-small', false],
    ['a spread of half the gain', { spreadMs: 50 }, undefined, 'gain-uncertain', false],
    ['a cost of what is sure of the gain', { costMs: 80 }, undefined, 'cost-above-gain', false],
    ['a cost just below', { costMs: 79.9 }, undefined, 'gain', true],
  ] as const)('on %s', (_, change, committedScore, reason, rearrange) => {
    const history = { failures: 0, ...(committedScore !== undefined && { committedScore }) };
    const decision = decide(RULES, { ...good, ...change }, history, { gpusChanged: false });
    expect(decision).toEqual({ rearrange, reason });
  });

  it('is for a move only where what is sure of the gain is above the cost, whatever the figures', () => {
    const positive = fc.double({ min: 0, max: 1e9, noNaN: true });
    const score = fc.double({ min: 1, max: 10, noNaN: true });
    fc.assert(
      fc.property(
        fc.record({
          incumbentMs: positive,
          candidateMs: positive,
          spreadMs: positive,
          costMs: positive,
          incumbentScore: score,
          candidateScore: score,
          migrations: fc.nat(100),
        }),
        fc.option(score, { nil: undefined }),
        (prospect, committedScore) => {
          const history = { failures: 0, ...(committedScore !== undefined && { committedScore }) };
          const { rearrange, reason } = decide(RULES, prospect, history, { gpusChanged: false });
          expect(rearrange).toBe(reason === 'gain');
          if (!rearrange) return;
          const gainMs = prospect.incumbentMs - prospect.candidateMs;
          expect(gainMs - 2 * prospect.spreadMs).toBeGreaterThan(prospect.costMs);
          expect(gainMs).toBeGreaterThanOrEqual(0.01 * prospect.incumbentMs);
          expect(prospect.migrations).toBeGreaterThan(0);
        },
      ),
      { numRuns: 2000, seed: SEED },
    );
  });

  it('on GPUs that have gone is made whatever it costs', () => {
    const bad = { ...good, candidateMs: 5000, costMs: 1e9 };
    const decision = decide(RULES, bad, { failures: 0, committedScore: 2 }, { gpusChanged: true });
    expect(decision).toEqual({ rearrange: true, reason: 'gpus-changed' });
  });
});

describe('counts drawn anew', () => {
  it.each([3, 40, 1000])('have the mean %i, and the variance that was asked for', async (mean) => {
    const cells = 40_000;
    const drawn = await resample(new Uint32Array(cells).fill(mean), 4, new Random(11), new Slices());
    const found = drawn.reduce((sum, value) => sum + value, 0) / cells;
    const variance = drawn.reduce((sum, value) => sum + (value - found) ** 2, 0) / cells;
    // Four standard errors of the mean; of the variance, a fifteenth.
    expect(Math.abs(found - mean)).toBeLessThan(4 * Math.sqrt((4 * mean) / cells));
    expect(Math.abs(variance / (4 * mean) - 1)).toBeLessThan(0.07);
  });

  it('are the same for the same seed, and none where there were none', async () => {
    const counts = Uint32Array.from({ length: 1000 }, (_, at) => at % 50);
    const draw = (seed: number) => resample(counts, 8, new Random(seed), new Slices());
    expect(await draw(1)).toEqual(await draw(1));
    expect(await draw(1)).not.toEqual(await draw(2));
    expect((await resample(new Uint32Array(9), 8, new Random(1), new Slices())).every((n) => n === 0)).toBe(
      true,
    );
  });

  it('leave the event loop in between', async () => {
    let turns = 0;
    const timer = setInterval(() => {
      turns += 1;
    }, 1);
    await resample(new Uint32Array(2_000_000).fill(20), 8, new Random(1), new Slices());
    clearInterval(timer);
    expect(turns).toBeGreaterThan(2);
  });
});

describe('the estimate of the gain', () => {
  /** What is true, and what a window of it shows: counts around it, by the same law that the estimate assumes. */
  it('is not the flattery of the counts that the plan was made for', async () => {
    const shape = { ...SMALL, layers: 4, experts: 24, slotsPerGpu: 8 };
    const windows = new Float64Array(4).fill(1);
    const overdispersion = 8;
    let [told, flattered, real] = [0, 0, 0];
    for (let seed = 1; seed <= 12; seed++) {
      const truth = makeProblem(shape, seed);
      truth.tokens = truth.tokens.map((tokens) => 40 + (tokens >> 3));
      const tokens = await resample(truth.tokens, overdispersion, new Random(seed, 99), new Slices());
      const problem = { ...truth, tokens };
      const incumbent = contiguous(shape);
      const plan = await planPlacement(problem, { effort: 'fast', threads: 1 });
      const candidate = plan.physicalToLogical;
      const of = { problem, incumbent, candidate, windows, overdispersion, resamples: 12, seed };
      const found = await judge(of, evaluatePlacements);
      const cost = async (placement: Int32Array) =>
        (await evaluatePlacements(truth, placement)).objective.reduce((sum, value) => sum + value / 1e6, 0);
      told += found.incumbentMs - found.candidateMs;
      flattered += found.seenMs.incumbent - found.seenMs.candidate;
      real += (await cost(incumbent)) - (await cost(candidate));
    }
    expect(flattered).toBeGreaterThan(real * 1.05);
    expect(Math.abs(told - real)).toBeLessThan(Math.abs(flattered - real) / 2);
  });

  it('is in ms over the horizon, layer by layer', async () => {
    const problem = makeProblem();
    const incumbent = contiguous(SMALL);
    const windows = Float64Array.from([3, 5]);
    const of = {
      problem,
      incumbent,
      candidate: incumbent,
      windows,
      overdispersion: 1,
      resamples: 2,
      seed: 1,
    };
    const { seenMs, spreadMs, incumbentMs, candidateMs, commShare } = await judge(of, evaluatePlacements);
    const { objective, loadMax, commMax } = await evaluatePlacements(problem, incumbent);
    const expected = (3 * objective[0]! + 5 * objective[1]!) / 1e6;
    expect(seenMs.incumbent).toBeCloseTo(expected, 9);
    expect(spreadMs, 'the same placement does not differ from itself').toBe(0);
    // As far below what is seen as the draws are above it: here the candidate, the same placement, is their mean.
    expect(candidateMs).not.toBeCloseTo(expected, 3);
    expect(incumbentMs).toBeCloseTo(2 * expected - candidateMs, 9);
    const comm = 3 * commMax[0]! + 5 * commMax[1]!;
    expect(commShare).toBeCloseTo(comm / (comm + 3 * loadMax[0]! + 5 * loadMax[1]!), 12);
  });
});

describe('what a change costs', () => {
  const costs = {
    expertBytes: 5e7,
    linkGBps: 50,
    linkShare: 0.25,
    stallMs: 7,
    layerStallMs: 2,
    stagingSlots: 4,
  };
  const schedule = (rounds: number, layer: number[]) =>
    ({ rounds, transfers: { layer }, storageLoads: { layer: [] } }) as unknown as MigrationSchedule;

  it('is a round for each expert that one link must carry', () => {
    expect(roundMs({ ...costs, transfer: 'stall' })).toBeCloseTo(1, 12);
  });

  it('is the rounds and the stalls of the layers while engines stand', () => {
    expect(changeMs({ ...costs, transfer: 'stall' }, schedule(3, [1, 1, 4]), 0.5)).toBeCloseTo(
      7 + 2 * 2 + 3,
      12,
    );
  });

  it('is what communication takes longer where they go on', () => {
    // 3 rounds of 1 ms at a quarter of the links: 12 ms, of which half is communication at 1/0.75 of its time.
    expect(changeMs({ ...costs, transfer: 'overlap' }, schedule(3, [1]), 0.5)).toBeCloseTo(
      7 + 12 * 0.5 * (1 / 0.75 - 1),
      12,
    );
  });

  it('is nothing where nothing moves', () => {
    expect(changeMs({ ...costs, transfer: 'stall' }, schedule(0, []), 0.5)).toBe(0);
  });
});

describe('how fast statistics grow', () => {
  it('is told over the last minutes', () => {
    const rate = new GrowthRate(0, 100);
    expect(rate.tokensPerSecond).toBe(0);
    rate.note(500, 1_000_000);
    expect(rate.tokensPerSecond, 'too short to tell').toBe(0);
    for (let second = 1; second <= 1000; second++)
      rate.note(second * 1000, second <= 500 ? 50_100 : 50_100 + (second - 500) * 20);
    expect(rate.tokensPerSecond).toBeCloseTo(20, 6);
  });

  it('begins anew where they are reset', () => {
    const rate = new GrowthRate(0, 1_000_000);
    rate.note(10_000, 5);
    expect(rate.tokensPerSecond).toBe(0);
    rate.note(20_000, 105);
    expect(rate.tokensPerSecond).toBeCloseTo(10, 9);
    expect(rate.ageMs(26_000)).toBe(6000);
  });
});
