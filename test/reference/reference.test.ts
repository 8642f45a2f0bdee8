/**
 * The references check each other: the naive evaluation against figures worked out by hand, the linear program
 * against exhaustive search.
 */
import { describe, expect, it } from 'vitest';
import { Random } from '../../bench/random.js';
import { flashLbProblem, randomPlacement, smallProblem } from '../../bench/workloads.js';
import type { PlacementProblem } from '../../lib/types.js';
import { solveExact, solveExhaustively } from './milp.js';
import { balanceOf, evaluateNaive, violations } from './naive.js';

/** 2 sources, 3 experts, 2 GPUs × 2 slots; source s sits on GPU s. */
const TINY: PlacementProblem = {
  layers: 1,
  sources: 2,
  experts: 3,
  gpus: 2,
  slotsPerGpu: 2,
  tokens: Uint32Array.of(10, 20, 30, 4, 8, 2),
  computeCost: Float64Array.of(1, 2),
  commCost: Float64Array.of(0, 5, 7, 0),
  weights: { load: 1, commMax: 2, commTotal: 3, migration: 0.5 },
  migrationCost: 40,
  incumbent: Int32Array.of(0, 1, 1, 2),
};

describe('naive evaluation', () => {
  it('matches a sum done by hand, even', () => {
    // Expert 0 on both GPUs (7 tokens each), 1 on GPU 0 (28), 2 on GPU 1 (32).
    const [layer] = evaluateNaive(TINY, Int32Array.of(0, 1, 2, 0));
    expect([...layer!.load]).toEqual([35, 78]);
    expect([...layer!.comm]).toEqual([7 * (2 + 8), 5 * (30 + 5)]);
    expect([...layer!.source]).toEqual([175, 70]);
    expect(layer!.migrations).toBe(1); // (0, GPU 1)
    expect(layer!.objective).toBe(78 + 2 * 175 + (3 * 245) / 2 + 0.5 * 40);
  });

  it('matches a sum done by hand, nearest', () => {
    const [layer] = evaluateNaive({ ...TINY, replicaChoice: 'nearest' }, Int32Array.of(0, 1, 2, 0));
    expect([...layer!.load]).toEqual([10 + 28, 2 * (4 + 32)]);
    expect([...layer!.comm]).toEqual([7 * 8, 5 * 30]);
    expect(layer!.sourceMax).toBe(150);
  });

  it('shares evenly among the tied nearest replicas', () => {
    const tied: PlacementProblem = { ...TINY, commCost: new Float64Array(4), replicaChoice: 'nearest' };
    expect([...evaluateNaive(tied, Int32Array.of(0, 1, 2, 0))[0]!.load]).toEqual([35, 78]);
  });

  it('counts a pair once, whatever its copies, and none without an incumbent', () => {
    const swapped = Int32Array.of(2, 1, 0, 0);
    expect(evaluateNaive(TINY, swapped)[0]!.migrations).toBe(2); // (2, 0) and (0, 1)
    const { incumbent: _, ...fresh } = TINY;
    expect(evaluateNaive(fresh, swapped)[0]!.migrations).toBe(0);
  });

  it('knows an incumbent of another shape by its pairs', () => {
    const wider: PlacementProblem = {
      ...TINY,
      incumbent: Int32Array.of(0, -1, 2, 1, 0, 2),
      incumbentGpus: 3,
      incumbentSlotsPerGpu: 2,
    };
    expect(evaluateNaive(wider, Int32Array.of(0, 1, 2, 0))[0]!.migrations).toBe(2); // (1, 0) and (0, 1)
  });

  it('leaves dead GPUs out of the balance', () => {
    const problem: PlacementProblem = { ...TINY, slotsPerGpu: 3, deadGpus: [1] };
    const [layer] = evaluateNaive(
      { ...problem, incumbent: Int32Array.of(0, 1, 2, 0, 1, 2) },
      Int32Array.of(0, 1, 2, -1, -1, -1),
    );
    expect(balanceOf(problem, layer!.load)).toBe(1);
    expect(layer!.migrations).toBe(0);
  });

  it('refuses an expert without a replica', () => {
    expect(() => evaluateNaive(TINY, Int32Array.of(0, 1, 0, 1))).toThrow('expert 2 has no live replica');
  });
});

describe('violations', () => {
  it.each([
    ['a missing expert', [0, 1, 0, 1], 'expert 2 has no live replica'],
    ['a duplicate', [0, 1, 2, 2], '2 replicas of expert 2'],
    ['an expert out of range', [0, 1, 2, 3], 'received 3'],
    ['an empty live slot', [0, 1, 2, -1], 'received -1'],
  ])('names %s', (_, slots, text) => {
    expect(violations(TINY, Int32Array.from(slots)).join('; ')).toContain(text);
  });

  it('lets an incumbent keep its duplicate and wants -1 on dead GPUs', () => {
    const kept = { ...TINY, incumbent: Int32Array.of(0, 1, 2, 2) };
    expect(violations(kept, Int32Array.of(0, 1, 2, 2))).toEqual([]);
    const dead = { ...TINY, slotsPerGpu: 3, deadGpus: [1], incumbent: Int32Array.of(0, 1, 2, 0, 1, 2) };
    expect(violations(dead, Int32Array.of(0, 1, 2, 0, -1, -1)).join()).toContain('expected -1 (dead)');
    expect(violations(dead, Int32Array.of(0, 1, 2, -1, -1, -1))).toEqual([]);
  });
});

/** Small enough to enumerate: C(E, K)^G placements. */
function enumerable(problem: PlacementProblem): boolean {
  const live = problem.gpus - (problem.deadGpus?.length ?? 0);
  let sets = 1;
  for (let k = 0; k < problem.slotsPerGpu; k += 1) sets = (sets * (problem.experts - k)) / (k + 1);
  return sets ** live <= 9000;
}

function countReplicas(problem: PlacementProblem, placement: Int32Array): Int32Array {
  const counts = new Int32Array(problem.experts);
  for (const e of placement) if (e >= 0) counts[e] = counts[e]! + 1;
  return counts;
}

const ENUMERABLE = Array.from({ length: 400 }, (_, seed) => seed).filter((seed) =>
  enumerable(smallProblem(seed)),
);

describe('exact optimum', () => {
  it('has enough instances of every kind to enumerate', () => {
    const problems = ENUMERABLE.slice(0, 40).map(smallProblem);
    expect(problems.length).toBe(40);
    expect(problems.some((p) => p.deadGpus !== undefined)).toBe(true);
    expect(problems.some((p) => p.incumbent !== undefined && p.migrationCost! > 0)).toBe(true);
    expect(problems.some((p) => typeof p.computeCost !== 'number')).toBe(true);
    expect(problems.some((p) => p.weights?.commMax === 0)).toBe(true);
  });

  it('agrees with exhaustive search, counts free and fixed', { timeout: 240_000 }, async () => {
    for (const seed of ENUMERABLE.slice(0, 25)) {
      const problem = smallProblem(seed);
      const exact = await solveExact(problem);
      const searched = solveExhaustively(problem);
      const where = `seed ${seed}`;
      expect(violations(problem, exact.placement), where).toEqual([]);
      expect(exact.objective / searched.objective, where).toBeCloseTo(1, 9);
      expect(exact.bound / searched.objective, where).toBeCloseTo(1, 7);

      // Counts of some other placement, so that fixing them binds.
      const other = randomPlacement(problem, new Random(seed), problem.deadGpus ?? []);
      const replicaCounts = countReplicas(problem, other);
      const fixed = await solveExact(problem, { replicaCounts });
      expect(countReplicas(problem, fixed.placement), where).toEqual(replicaCounts);
      expect(fixed.objective / solveExhaustively(problem, replicaCounts).objective, where).toBeCloseTo(1, 9);
      expect(fixed.objective, where).toBeGreaterThanOrEqual(exact.objective * (1 - 1e-9));
    }
  });

  it('proves the same with a known J, and finds nothing below a J that no placement has', async () => {
    for (const seed of ENUMERABLE.slice(0, 8)) {
      const problem = smallProblem(seed);
      const { objective } = await solveExact(problem);
      const known = await solveExact(problem, { knownObjective: objective });
      expect(known.objective / objective, `seed ${seed}`).toBeCloseTo(1, 9);
      await expect(
        solveExact(problem, { knownObjective: objective * 0.999 }),
        `seed ${seed}`,
      ).rejects.toThrow('HiGHS');
    }
  });

  it('keeps to the budget beyond the moves that a dead GPU forces', { timeout: 240_000 }, async () => {
    let bound = 0;
    for (const seed of ENUMERABLE.slice(0, 40)) {
      const problem = smallProblem(seed);
      if (problem.incumbent === undefined) continue;
      const exact = await solveExact({ ...problem, migrationCost: 0, migrationBudget: 1 });
      const moved = evaluateNaive(problem, exact.placement)[0]!.migrations;
      expect(moved, `seed ${seed}`).toBeLessThanOrEqual(exact.forcedMigrations + 1);
      if (problem.deadGpus === undefined) expect(exact.forcedMigrations, `seed ${seed}`).toBe(0);
      else expect(exact.forcedMigrations, `seed ${seed}`).toBeLessThanOrEqual(problem.slotsPerGpu);
      const free = await solveExact({ ...problem, migrationCost: 0 });
      if (free.objective < exact.objective * (1 - 1e-9)) bound += 1;
    }
    expect(bound).toBeGreaterThan(0);
  });

  it("proves the optimum of FlashLB's vector, 590/3", { timeout: 240_000 }, async () => {
    const exact = await solveExact(flashLbProblem(), { knownObjective: 590 / 3 });
    expect(exact.objective).toBeCloseTo(590 / 3, 9);
    expect(exact.bound).toBeCloseTo(590 / 3, 6);
  });
});
