/**
 * Properties of plans and evaluations of random small problems, against the float reference, and against each other.
 *
 * The planner rounds every cost to its unit u (below 2⁻³⁰ of the dearest cost) and every replica's share down to a whole
 * unit; a weight to 2⁻³² of the greatest. The tolerances below follow from that and nothing else.
 */
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import {
  evaluatePlacements,
  holdProblem,
  type PlacementProblem,
  type Plan,
  Planner,
  type PlanOptions,
  planPlacement,
} from '../../lib/index.js';
import { DEFAULT_WEIGHTS, evaluateNaive, violations } from '../reference/naive.js';
import { check, choices, placementFrom, problems } from './arbitraries.js';

const QUICK = { effort: 'fast', rounds: 2, walkers: 2, threads: 2 } as const satisfies PlanOptions;
const planner = new Planner();
afterAll(() => planner.close());

interface Tolerances {
  load: number;
  commTotal: number;
  source: number;
  objective: number;
}

/** How far fixed point may stand from the float definition in one layer, ns. */
function tolerances(problem: PlacementProblem, layer: number): Tolerances {
  const { sources, experts, gpus, slotsPerGpu } = problem;
  const compute = typeof problem.computeCost === 'number' ? [problem.computeCost] : [...problem.computeCost];
  const dearest = Math.max(...compute, ...problem.commCost);
  // A dear migration makes the unit coarser: all moves together must fit 60 bits.
  const weights = { ...DEFAULT_WEIGHTS, ...problem.weights };
  const greatest = Math.max(weights.load, weights.commMax, weights.commTotal / gpus) || 1;
  const migration = ((problem.migrationCost ?? 0) * weights.migration) / greatest;
  const unit = Math.max(dearest * 2 ** -30, migration * problem.layers * gpus * slotsPerGpu * 2 ** -59);
  const all = problem.tokens.subarray(layer * sources * experts, (layer + 1) * sources * experts);
  const tokens = all.reduce((sum, count) => sum + count, 0);
  const load = (tokens / 2 + slotsPerGpu * sources) * unit;
  const commTotal = (tokens / 2 + gpus * slotsPerGpu * sources) * unit;
  const source = (tokens / 2 + 2 * experts) * unit;
  const moves = gpus * slotsPerGpu;
  // Each term by its weight, each weight by its rounding on the greatest term there could be, each product rounded down.
  const weighed = weights.load * load + weights.commMax * load + (weights.commTotal / gpus) * commTotal;
  const objective = weighed + greatest * (3 * 2 ** -31 * tokens * dearest + (4 + moves) * unit);
  const slack = 1e-12 * tokens * dearest; // the float sums' own
  return {
    load: load + slack,
    commTotal: commTotal + slack,
    source: source + slack,
    objective: objective + 4 * slack * Math.max(1, greatest),
  };
}

function expectNear(received: number, expected: number, tolerance: number, what: string): void {
  const message = `${what}: expected ${expected} ± ${tolerance} but received ${received}`;
  expect(Math.abs(received - expected), message).toBeLessThanOrEqual(tolerance);
}

/** Everything a plan claims, against the float definition. */
function expectTruePlan(problem: PlacementProblem, plan: Plan): void {
  expect(violations(problem, plan.physicalToLogical)).toEqual([]);
  const naive = evaluateNaive(problem, plan.physicalToLogical);
  for (const [layer, row] of plan.layers.entries()) {
    const expected = naive[layer]!;
    const near = tolerances(problem, layer);
    expectNear(row.loadMax, expected.loadMax, near.load, 'loadMax');
    expectNear(row.commMax, expected.commMax, near.load, 'commMax');
    expectNear(row.commTotal, expected.commTotal, near.commTotal, 'commTotal');
    expectNear(row.sourceMax, expected.sourceMax, near.source, 'sourceMax');
    expectNear(row.objective, expected.objective, near.objective, 'objective');
    expect(row.migrations).toBe(expected.migrations);
    expect(row.lowerBound).toBeLessThanOrEqual(row.objective);
    expect(row.forcedMigrations).toBeLessThanOrEqual(row.migrations);
  }
  const sum = (field: 'objective' | 'migrations' | 'forcedMigrations') =>
    plan.layers.reduce((total, row) => total + row[field], 0);
  for (const field of ['objective', 'migrations', 'forcedMigrations'] as const)
    expect(plan[field]).toBe(sum(field));
  expect(plan.lowerBound).toBeLessThanOrEqual(plan.objective);
}

/** What a plan says about the placement, without what it says about its run. */
function essence(plan: Plan) {
  const { physicalToLogical, replicaCount, layers, objective, lowerBound, gap, migrations } = plan;
  return { physicalToLogical, replicaCount, layers, objective, lowerBound, gap, migrations };
}

describe('a plan of any problem', () => {
  it('keeps the hard constraints and costs what it says', async () => {
    await check(problems(), 400, async (problem) => {
      const plan = await planner.plan(problem, QUICK);
      expectTruePlan(problem, plan);
      const counted = new Int32Array(problem.layers * problem.experts);
      const width = problem.gpus * problem.slotsPerGpu;
      plan.physicalToLogical.forEach((e, slot) => {
        if (e >= 0) counted[Math.floor(slot / width) * problem.experts + e]! += 1;
      });
      expect(plan.replicaCount).toEqual(counted);
    });
  });

  it('is the same for any threads, buffers, calls and memory', async () => {
    const many = fc.tuple(problems(), fc.integer({ min: 1, max: 7 }), fc.nat());
    await check(many, 150, async ([problem, threads, seed]) => {
      const options = { ...QUICK, seed };
      const expected = essence(await planPlacement(problem, { ...options, threads: 1 }));
      expect(essence(await planPlacement(problem, { ...options, threads }))).toEqual(expected);
      expect(essence(await planner.plan(problem, { ...options, threads }))).toEqual(expected);
      const held = await holdProblem(problem);
      const twice = await Promise.all([planner.plan(held, options), planPlacement(held, options)]);
      held.release();
      for (const plan of twice) expect(essence(plan)).toEqual(expected);
    });
  });

  it('has a bound that no random placement of its layers goes below', async () => {
    await check(fc.tuple(problems(), choices), 300, async ([problem, numbers]) => {
      const plan = await planner.plan(problem, QUICK);
      const rival = placementFrom(problem, numbers);
      const evaluation = await planner.evaluate(problem, rival);
      for (const [layer, row] of plan.layers.entries()) {
        expect(evaluation.objective[layer]).toBeGreaterThanOrEqual(row.lowerBound);
      }
    });
  });

  it('plans each layer as if it were alone, where nothing is shared', async () => {
    await check(problems({ budget: false }), 150, async (problem) => {
      const { incumbent, incumbentGpus = 0, incumbentSlotsPerGpu = 0 } = problem;
      const alone: PlacementProblem = {
        ...problem,
        layers: 1,
        tokens: problem.tokens.subarray(0, problem.sources * problem.experts),
      };
      if (incumbent !== undefined)
        alone.incumbent = incumbent.subarray(0, incumbentGpus * incumbentSlotsPerGpu);
      const [all, first] = [await planner.plan(problem, QUICK), await planner.plan(alone, QUICK)];
      const width = problem.gpus * problem.slotsPerGpu;
      expect(all.physicalToLogical.subarray(0, width)).toEqual(first.physicalToLogical);
      expect(all.layers[0]).toEqual(first.layers[0]);
    });
  });
});

describe('evaluation of any placement', () => {
  it('is the float definition up to rounding', async () => {
    await check(fc.tuple(problems(), choices, choices), 400, async ([problem, one, other]) => {
      const placements = [placementFrom(problem, one), placementFrom(problem, other)];
      const slots = placements[0]!.length;
      const candidates = new Int32Array(2 * slots);
      placements.forEach((placement, i) => {
        candidates.set(placement, i * slots);
      });
      const evaluation = await evaluatePlacements(problem, candidates);
      for (const [i, placement] of placements.entries()) {
        for (const [layer, expected] of evaluateNaive(problem, placement).entries()) {
          const near = tolerances(problem, layer);
          const at = i * problem.layers + layer;
          expectNear(evaluation.loadMax[at]!, expected.loadMax, near.load, 'loadMax');
          expectNear(evaluation.commMax[at]!, expected.commMax, near.load, 'commMax');
          expectNear(evaluation.commTotal[at]!, expected.commTotal, near.commTotal, 'commTotal');
          expectNear(evaluation.objective[at]!, expected.objective, near.objective, 'objective');
          expect(evaluation.migrations[at]).toBe(expected.migrations);
        }
      }
    });
  });

  it('is within 1e-9 where counts are those of real traffic', async () => {
    // Costs within a factor of 256 of each other and a thousand tokens for each expert: rounding is far below 1e-9.
    const real = problems({ incumbent: false }).map((problem) => ({
      ...problem,
      tokens: problem.tokens.map((count) => 1_000_000 + count),
      computeCost: 100,
      commCost: problem.commCost.map((cost) => Math.max(cost, 2)),
    }));
    await check(fc.tuple(real, choices), 100, async ([problem, numbers]) => {
      const placement = placementFrom(problem, numbers);
      const evaluation = await evaluatePlacements(problem, placement);
      for (const [layer, expected] of evaluateNaive(problem, placement).entries()) {
        for (const field of ['loadMax', 'commMax', 'commTotal', 'objective'] as const) {
          expectNear(
            evaluation[field][layer]!,
            expected[field],
            1e-9 * (expected.objective + expected.loadMax),
            field,
          );
        }
      }
    });
  });

  it('does not depend on what experts, GPUs and sources are called', async () => {
    await check(
      fc.tuple(problems({ incumbent: false }), choices, choices),
      200,
      async ([problem, names, numbers]) => {
        const placement = placementFrom(problem, numbers);
        const renamed = rename(problem, placement, names);
        const [before, after] = [
          await evaluatePlacements(problem, placement),
          await evaluatePlacements(renamed.problem, renamed.placement),
        ];
        expect(after).toEqual(before); // integers in another order: the very same sums
      },
    );
  });
});

describe('what a plan does not depend on', () => {
  it('is the order of the sources', async () => {
    await check(fc.tuple(problems(), choices), 150, async ([problem, names]) => {
      const { layers, sources, experts, gpus } = problem;
      const to = permutation(sources, names);
      const tokens = new Uint32Array(problem.tokens.length);
      const commCost = new Float64Array(problem.commCost.length);
      for (let s = 0; s < sources; s += 1) {
        commCost.set(problem.commCost.subarray(s * gpus, (s + 1) * gpus), to[s]! * gpus);
        for (let layer = 0; layer < layers; layer += 1) {
          const row = problem.tokens.subarray(
            (layer * sources + s) * experts,
            (layer * sources + s + 1) * experts,
          );
          tokens.set(row, (layer * sources + to[s]!) * experts);
        }
      }
      const expected = essence(await planner.plan(problem, QUICK));
      expect(essence(await planner.plan({ ...problem, tokens, commCost }, QUICK))).toEqual(expected);
    });
  });

  it('is the unit of the costs: eight times the costs, the same plan at eight times the price', async () => {
    await check(problems(), 150, async (problem) => {
      const times = (cost: number) => 8 * cost;
      const { computeCost } = problem;
      const dearer: PlacementProblem = {
        ...problem,
        computeCost: typeof computeCost === 'number' ? times(computeCost) : computeCost.map(times),
        commCost: problem.commCost.map(times),
      };
      if (problem.migrationCost !== undefined) dearer.migrationCost = times(problem.migrationCost);
      const [plan, scaled] = [await planner.plan(problem, QUICK), await planner.plan(dearer, QUICK)];
      expect(scaled.physicalToLogical).toEqual(plan.physicalToLogical);
      expect(scaled.objective).toBe(8 * plan.objective);
      expect(scaled.lowerBound).toBe(8 * plan.lowerBound);
      for (const [layer, row] of scaled.layers.entries()) {
        for (const field of [
          'objective',
          'loadMax',
          'commMax',
          'commTotal',
          'sourceMax',
          'lowerBound',
        ] as const) {
          expect(row[field]).toBe(8 * plan.layers[layer]![field]);
        }
      }
    });
  });

  it('is the unit of the weights', async () => {
    await check(problems(), 100, async (problem) => {
      const given = { ...DEFAULT_WEIGHTS, ...problem.weights };
      const weights = Object.fromEntries(Object.entries(given).map(([key, value]) => [key, value / 4]));
      const [plan, scaled] = [
        await planner.plan({ ...problem, weights: given }, QUICK),
        await planner.plan({ ...problem, weights }, QUICK),
      ];
      expect(scaled.physicalToLogical).toEqual(plan.physicalToLogical);
      // With all weights of the terms 0, migrations alone are weighed, and not on a scale of their own.
      if (given.load + given.commMax + given.commTotal > 0) expect(scaled.objective).toBe(plan.objective / 4);
    });
  });

  it('is a second source with no tokens, or the split of a source in two', async () => {
    // Under `nearest` each source's share is rounded by itself, so only `even` may be split.
    const even = problems().map((problem) => ({ ...problem, replicaChoice: 'even' as const }));
    await check(even, 100, async (problem) => {
      const { layers, sources, experts, gpus } = problem;
      const tokens = new Uint32Array(layers * (sources + 1) * experts);
      for (let layer = 0; layer < layers; layer += 1) {
        for (let at = 0; at < sources * experts; at += 1) {
          const count = problem.tokens[layer * sources * experts + at]!;
          const split = at >= (sources - 1) * experts ? count >> 1 : 0;
          tokens[layer * (sources + 1) * experts + at] = count - split;
          if (split > 0) tokens[layer * (sources + 1) * experts + at + experts] = split;
        }
      }
      const commCost = new Float64Array((sources + 1) * gpus);
      commCost.set(problem.commCost);
      commCost.set(problem.commCost.subarray((sources - 1) * gpus), sources * gpus);
      const plan = await planner.plan(problem, QUICK);
      const split = await planner.plan({ ...problem, sources: sources + 1, tokens, commCost }, QUICK);
      expect(split.physicalToLogical).toEqual(plan.physicalToLogical);
      expect(split.objective).toBe(plan.objective);
    });
  });
});

describe('a migration budget', () => {
  /**
   * The search is a heuristic and the budget steers it, so a larger budget may by bad luck cost more than a smaller one;
   * what is guaranteed is that each holds its budget, that none costs more than staying put, and that a budget no plan can
   * exceed is no budget.
   */
  it('is kept, and one that no plan can exceed is none', async () => {
    const moving = problems().filter((problem) => problem.incumbent !== undefined);
    await check(moving, 150, async (problem) => {
      const slots = problem.layers * problem.gpus * problem.slotsPerGpu;
      const { migrationBudget: _, ...unlimited } = problem;
      const free = await planner.plan(unlimited, QUICK);
      for (const migrationBudget of [0, 1, slots >> 2, slots >> 1, slots - 1]) {
        const plan = await planner.plan({ ...problem, migrationBudget }, QUICK);
        expectTruePlan({ ...problem, migrationBudget }, plan);
        expect(plan.forcedMigrations).toBe(free.forcedMigrations);
        expect(plan.migrations - plan.forcedMigrations).toBeLessThanOrEqual(migrationBudget);
      }
      expect(essence(await planner.plan({ ...problem, migrationBudget: slots }, QUICK))).toEqual(
        essence(free),
      );
    });
  });

  it('of any size costs no more than staying put', async () => {
    const fresh = fc.tuple(problems({ incumbent: false, dead: false }), choices, fc.nat({ max: 2000 }));
    await check(fresh, 150, async ([problem, numbers, migrationCost]) => {
      const slots = problem.layers * problem.gpus * problem.slotsPerGpu;
      const incumbent = placementFrom(problem, numbers);
      const staying = (await planner.evaluate(problem, incumbent)).objective.reduce((sum, j) => sum + j, 0);
      for (const migrationBudget of [0, 1, slots >> 1, slots]) {
        const plan = await planner.plan({ ...problem, incumbent, migrationCost, migrationBudget }, QUICK);
        // The price of migrations may coarsen the unit: the same placement to the last digit or two.
        expect(plan.objective).toBeLessThanOrEqual(staying * (1 + 1e-9) + 1e-9);
      }
    });
  });

  it('of 0 on an unchanged shape is the incumbent itself', async () => {
    const fresh = problems({ incumbent: false, dead: false, duplicates: false });
    await check(fc.tuple(fresh, choices), 150, async ([problem, numbers]) => {
      const incumbent = placementFrom(problem, numbers);
      const plan = await planner.plan({ ...problem, incumbent, migrationBudget: 0 }, QUICK);
      expect(plan.physicalToLogical).toEqual(incumbent);
      expect(plan.migrations).toBe(0);
    });
  });
});

function permutation(count: number, numbers: readonly number[]): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i -= 1) {
    const j = numbers[i % numbers.length]! % (i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** The same problem and placement with experts, GPUs and sources under other numbers. */
function rename(problem: PlacementProblem, placement: Int32Array, numbers: readonly number[]) {
  const { layers, sources, experts, gpus, slotsPerGpu } = problem;
  const expertTo = permutation(experts, numbers);
  const gpuTo = permutation(gpus, numbers.slice(20));
  const sourceTo = permutation(sources, numbers.slice(40));
  const tokens = new Uint32Array(problem.tokens.length);
  for (let at = 0; at < tokens.length; at += 1) {
    const [layer, s, e] = [
      Math.floor(at / sources / experts),
      Math.floor(at / experts) % sources,
      at % experts,
    ];
    tokens[(layer * sources + sourceTo[s]!) * experts + expertTo[e]!] = problem.tokens[at]!;
  }
  const commCost = new Float64Array(sources * gpus);
  problem.commCost.forEach((cost, at) => {
    commCost[sourceTo[Math.floor(at / gpus)]! * gpus + gpuTo[at % gpus]!] = cost;
  });
  const { computeCost } = problem;
  const renamedCompute = typeof computeCost === 'number' ? computeCost : new Float64Array(gpus);
  if (typeof computeCost !== 'number') {
    computeCost.forEach((cost, g) => {
      (renamedCompute as Float64Array)[gpuTo[g]!] = cost;
    });
  }
  const renamed = new Int32Array(placement.length);
  placement.forEach((e, at) => {
    const width = gpus * slotsPerGpu;
    const [layer, g, k] = [Math.floor(at / width), Math.floor((at % width) / slotsPerGpu), at % slotsPerGpu];
    renamed[layer * width + gpuTo[g]! * slotsPerGpu + k] = e < 0 ? e : expertTo[e]!;
  });
  const deadGpus = (problem.deadGpus ?? []).map((g) => gpuTo[g]!);
  return {
    problem: { ...problem, layers, tokens, commCost, computeCost: renamedCompute, deadGpus },
    placement: renamed,
  };
}
