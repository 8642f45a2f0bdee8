/** The baselines do what their methods say, worked out by hand where that is possible, and are never invalid. */
import { describe, expect, it } from 'vitest';
import { withoutDuplicates } from '../../bench/baselines/annealer.js';
import { packHeaviestFirst, replicateHeaviest } from '../../bench/baselines/eplb.js';
import {
  annealer,
  annealLayer,
  contiguous,
  eplbGlobal,
  eplbHierarchical,
  random,
  topologyAwareSwap,
} from '../../bench/baselines/index.js';
import { maxWith, topThree, topTouched } from '../../bench/baselines/top-three.js';
import { Random } from '../../bench/random.js';
import {
  firstLayers,
  flashLbProblem,
  POPULARITIES,
  randomPlacement,
  SHAPES,
  SKEWED_TOPICS,
  smallProblem,
  workload,
} from '../../bench/workloads.js';
import type { PlacementProblem } from '../../lib/types.js';
import { solveExact } from '../reference/milp.js';
import { evaluateNaive, violations } from '../reference/naive.js';

const DEEPSEEK = firstLayers(
  workload({
    shape: { ...SHAPES['deepseek-v3-288'], layers: 2 },
    popularity: POPULARITIES.zipf,
    nodes: 4,
    seed: 7,
    topics: SKEWED_TOPICS,
  }),
  2,
);

function objectiveOf(problem: PlacementProblem, placement: Int32Array): number {
  return evaluateNaive(problem, placement).reduce((sum, layer) => sum + layer.objective, 0);
}

/** What is wrong beyond duplicates, which the EPLB family makes. */
function seriousViolations(problem: PlacementProblem, placement: Int32Array): string[] {
  return violations({ ...problem, allowDuplicates: true }, placement);
}

describe('EPLB', () => {
  it('replicates the expert with the heaviest replicas', () => {
    // 90 → 45 → 30; then 50 → 25; ties go to the lower id.
    expect([...replicateHeaviest([90, 50, 10], 5).counts]).toEqual([2, 2, 1]);
    expect([...replicateHeaviest([90, 50, 10], 6).counts]).toEqual([3, 2, 1]);
    expect([...replicateHeaviest([8, 8], 3).counts]).toEqual([2, 1]);
  });

  it('packs the heaviest first onto the lightest pack with room', () => {
    // 9→0, 7→1, 6→1 (7 < 9), pack 1 is full, 2→0.
    expect([...packHeaviestFirst([2, 9, 7, 6], 2, 2)]).toEqual([0, 0, 1, 1]);
  });

  it("reproduces the published maximum on FlashLB's vector", () => {
    const problem = flashLbProblem();
    expect(evaluateNaive(problem, eplbGlobal(problem))[0]!.loadMax).toBeCloseTo(232, 0);
  });

  it('loads the GPUs as the published figures say: Zipf without replicas leaves 60 % balance', () => {
    const shape = { ...SHAPES['qwen3-30b-128'], layers: 1 };
    const problem = workload({ shape, popularity: POPULARITIES.zipf, nodes: 1, seed: 3 });
    const { load, loadMax } = evaluateNaive(problem, eplbGlobal(problem))[0]!;
    expect(load.reduce((sum, value) => sum + value, 0) / load.length / loadMax).toBeCloseTo(0.604, 2);
  });

  it('keeps whole groups on a node when hierarchical', () => {
    const placement = eplbHierarchical(DEEPSEEK, { nodes: 4, groups: 8 });
    expect(seriousViolations(DEEPSEEK, placement)).toEqual([]);
    const width = DEEPSEEK.gpus * DEEPSEEK.slotsPerGpu;
    const nodeOfGroup = new Map<number, number>();
    for (const [slot, e] of placement.subarray(0, width).entries()) {
      const group = Math.floor(e / 32);
      const node = Math.floor(slot / (width / 4));
      expect(nodeOfGroup.get(group) ?? node).toBe(node);
      nodeOfGroup.set(group, node);
    }
    expect(nodeOfGroup.size).toBe(8);
  });

  it('is the global rule where groups do not divide over nodes, or a GPU is dead', () => {
    expect(eplbHierarchical(DEEPSEEK, { nodes: 4, groups: 2 })).toEqual(eplbGlobal(DEEPSEEK));
    const dead = { ...DEEPSEEK, deadGpus: [5] };
    expect(eplbHierarchical(dead, { nodes: 4, groups: 8 })).toEqual(eplbGlobal(dead));
    expect(seriousViolations(dead, eplbGlobal(dead))).toEqual([]);
  });

  it('puts two replicas on one GPU now and then, as the original does; the repair removes them', () => {
    // Few hot experts, whose replicas outnumber the GPUs that are still light when their turn comes.
    const tokens = Uint32Array.of(1000, 10, 10, 10, 10, 10);
    const single = {
      ...flashLbProblem(),
      experts: 6,
      gpus: 4,
      slotsPerGpu: 3,
      commCost: new Float64Array(4),
      tokens,
    };
    const placement = eplbGlobal(single);
    expect(violations(single, placement).join()).toContain('2 replicas of expert 0');
    expect(violations(single, withoutDuplicates(single, placement))).toEqual([]);
  });
});

describe('contiguous and random', () => {
  it('are valid on small problems with dead GPUs and redundant slots', () => {
    for (let seed = 0; seed < 50; seed += 1) {
      const problem = smallProblem(seed);
      expect(violations(problem, contiguous(problem)), `seed ${seed}`).toEqual([]);
      expect(violations(problem, random(problem, seed)), `seed ${seed}`).toEqual([]);
    }
  });

  it('start again from 0 after the last expert', () => {
    const problem = { ...flashLbProblem(), gpus: 5, commCost: new Float64Array(5), deadGpus: [1] };
    expect([...contiguous(problem)]).toEqual([0, 1, -1, -1, 2, 3, 4, 5, 6, 7]);
    expect([...contiguous(flashLbProblem())]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]);
  });

  it('draw another placement per layer and seed', () => {
    const a = random(DEEPSEEK, 1);
    const width = a.length / 2;
    expect(a.subarray(0, width)).not.toEqual(a.subarray(width));
    expect(random(DEEPSEEK, 2)).not.toEqual(a);
    expect(random(DEEPSEEK, 1)).toEqual(a);
  });
});

describe('topology-aware swap', () => {
  it('saves communication, keeps the replica counts and the load limit', () => {
    const start = eplbGlobal(DEEPSEEK);
    const swapped = topologyAwareSwap(DEEPSEEK, start, { loadSlack: 0.01 });
    expect(seriousViolations(DEEPSEEK, swapped)).toEqual([]);
    const before = evaluateNaive(DEEPSEEK, start);
    const after = evaluateNaive(DEEPSEEK, swapped);
    for (const [layer, row] of after.entries()) {
      expect(row.commTotal).toBeLessThan(before[layer]!.commTotal * 0.97);
      expect(row.loadMax).toBeLessThanOrEqual(before[layer]!.loadMax * 1.01 * (1 + 1e-9));
    }
    expect([...swapped].sort()).toEqual([...start].sort());
    expect(start).toEqual(eplbGlobal(DEEPSEEK));
  });

  it('makes no second replica on a GPU', () => {
    const single = firstLayers(DEEPSEEK, 1);
    const start = withoutDuplicates(single, eplbGlobal(single));
    const swapped = topologyAwareSwap(single, start, { loadSlack: 1 });
    expect(violations(single, swapped)).toEqual([]);
    expect(swapped).not.toEqual(start);
  });

  it('finds the exchange that brings both experts home', () => {
    const problem: PlacementProblem = {
      layers: 1,
      sources: 2,
      experts: 4,
      gpus: 2,
      slotsPerGpu: 2,
      tokens: Uint32Array.of(9, 9, 1, 1, 1, 1, 9, 9),
      computeCost: 1,
      commCost: Float64Array.of(0, 1, 1, 0),
    };
    const swapped = topologyAwareSwap(problem, Int32Array.of(0, 2, 1, 3));
    expect([...swapped.subarray(0, 2)].sort()).toEqual([0, 1]);
    expect(evaluateNaive(problem, swapped)[0]!.commTotal).toBe(4);
  });
});

describe('three largest', () => {
  it('give the maximum after any change of two values, and say when they are out of date', () => {
    const random = new Random(6);
    let kept = 0;
    for (let round = 0; round < 3000; round += 1) {
      // Small integers, so that ties are common.
      const values = Float64Array.from({ length: random.between(2, 10) }, () => random.below(8));
      const top = Int32Array.of(-1, -1, -1);
      topThree(values, top);
      const sorted = [...values].sort((a, b) => b - a);
      expect([...top].filter((i) => i >= 0).map((i) => values[i])).toEqual(sorted.slice(0, 3));
      const p = random.below(values.length);
      const q = (p + 1 + random.below(values.length - 1)) % values.length;
      const changed = values.slice();
      changed[p] = random.below(9);
      changed[q] = random.below(9);
      expect(maxWith(values, top, p, q, changed[p]!, changed[q]!)).toBe(Math.max(...changed));
      if (topTouched(values, top, p, q, changed[p]!, changed[q]!)) continue;
      kept += 1;
      expect([...top].map((i) => changed[i])).toEqual([...changed].sort((a, b) => b - a).slice(0, 3));
    }
    expect(kept).toBeGreaterThan(100);
  });
});

describe('annealer', () => {
  it.each(['even', 'nearest'] as const)(
    'reports the J that the naive evaluation gives, %s',
    (replicaChoice) => {
      for (let seed = 0; seed < 40; seed += 1) {
        const problem: PlacementProblem = { ...smallProblem(seed), replicaChoice };
        const result = annealLayer(problem, 0, { steps: 3000, seed });
        expect(violations(problem, result.placement), `seed ${seed}`).toEqual([]);
        const naive = evaluateNaive(problem, result.placement)[0]!.objective;
        expect(result.objective / naive, `seed ${seed}`).toBeCloseTo(1, 10);
        // The last figure of the trace comes from the running sums, which judged every move.
        expect(result.trace.at(-1)!.objective / naive, `seed ${seed}`).toBeCloseTo(1, 9);
        expect(result.steps).toBe(3000);
      }
    },
  );

  it('keeps its running sums right over many steps at a large shape', () => {
    const single = firstLayers(DEEPSEEK, 1);
    const result = annealLayer(single, 0, { steps: 200_000, seed: 1 });
    expect(result.objective).toBeCloseTo(objectiveOf(single, result.placement), 3);
    // The last figure of the trace came from the running sums.
    expect(result.trace.at(-1)!.objective / result.objective).toBeCloseTo(1, 9);
    expect(result.objective).toBeLessThan(objectiveOf(single, eplbGlobal(single)) * 0.95);
  });

  it('finds the proved optimum of most small instances', { timeout: 240_000 }, async () => {
    let optimal = 0;
    for (let seed = 0; seed < 10; seed += 1) {
      const problem = smallProblem(seed);
      const exact = await solveExact(problem);
      const gap = annealLayer(problem, 0, { steps: 30_000, seed, hot: 0.1 }).objective / exact.objective - 1;
      expect(gap, `seed ${seed}`).toBeGreaterThan(-1e-9);
      if (gap < 1e-9) optimal += 1;
    }
    expect(optimal).toBeGreaterThanOrEqual(8);
  });

  it('repeats itself for the same seed and steps, layer by layer', () => {
    const options = { steps: 5000, seed: 9 };
    const placement = annealer(DEEPSEEK, options);
    expect(annealer(DEEPSEEK, options)).toEqual(placement);
    expect(annealer(DEEPSEEK, { ...options, seed: 10 })).not.toEqual(placement);
    const width = placement.length / 2;
    expect(placement.subarray(width)).toEqual(annealLayer(DEEPSEEK, 1, options).placement);
  });

  it('stops at its time budget and traces a falling J', () => {
    const result = annealLayer(DEEPSEEK, 0, { timeMs: 60 });
    expect(result.elapsedMs).toBeGreaterThanOrEqual(60);
    expect(result.elapsedMs).toBeLessThan(1000);
    const objectives = result.trace.map((point) => point.objective);
    expect(objectives.length).toBeGreaterThan(2);
    expect(objectives).toEqual([...objectives].sort((a, b) => b - a));
    expect(() => annealLayer(DEEPSEEK, 0, {})).toThrow('exactly one');
  });

  it('starts from the incumbent where moving costs more than it saves', () => {
    const single = firstLayers(DEEPSEEK, 1);
    const incumbent = randomPlacement(single, new Random(4), []);
    const problem = { ...single, incumbent, migrationCost: 1e12 };
    const result = annealLayer(problem, 0, { steps: 20_000 });
    expect(evaluateNaive(problem, result.placement)[0]!.migrations).toBe(0);
  });
});
