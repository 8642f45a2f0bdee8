/** The generators make what they say, the same for the same seed, with the magnitudes of the hardware they name. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { mix32, Random } from '../../bench/random.js';
import {
  commCostMatrix,
  computeCostNs,
  drift,
  esftProblem,
  firstLayers,
  flashLbProblem,
  linkCostNs,
  POPULARITIES,
  SHAPES,
  SKEWED_TOPICS,
  smallProblem,
  suite,
  workload,
} from '../../bench/workloads.js';
import type { PlacementProblem } from '../../lib/types.js';
import { violations } from '../reference/naive.js';

const SMALL_SHAPE = { ...SHAPES['qwen3-30b-144'], layers: 3 };

describe('random stream', () => {
  it('repeats for a seed and differs by seed and stream', () => {
    const draw = (seed: number, stream: number): number[] => {
      const random = new Random(seed, stream);
      return Array.from({ length: 8 }, () => random.uint32());
    };
    expect(draw(1, 2)).toEqual(draw(1, 2));
    expect(draw(1, 2)).not.toEqual(draw(1, 3));
    expect(draw(1, 2)).not.toEqual(draw(2, 2));
    expect(draw(2 ** 32, 0)).not.toEqual(draw(0, 0));
    expect(() => new Random(-1)).toThrow('seed');
  });

  it('is uniform and normal enough', () => {
    const random = new Random(5);
    const uniform = Array.from({ length: 20_000 }, () => random.uniform());
    const normal = Array.from({ length: 20_000 }, () => random.normal());
    const mean = (values: number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
    expect(mean(uniform)).toBeCloseTo(0.5, 1);
    expect(mean(normal)).toBeCloseTo(0, 1);
    expect(mean(normal.map((value) => value * value))).toBeCloseTo(1, 1);
    const buckets = new Int32Array(16);
    for (const value of uniform) buckets[Math.floor(value * 16)]! += 1;
    expect(Math.min(...buckets)).toBeGreaterThan(1100);
    expect(new Set(Array.from({ length: 1000 }, (_, i) => mix32(i))).size).toBe(1000);
  });
});

describe('workload', () => {
  const options = { shape: SMALL_SHAPE, popularity: POPULARITIES.zipf, nodes: 1, seed: 3 } as const;

  it('has the stated shape and repeats for its seed', () => {
    const problem = workload(options);
    expect(problem.tokens.length).toBe(3 * 8 * 128);
    expect(problem.commCost.length).toBe(8 * 8);
    expect(workload(options)).toEqual(problem);
    expect(workload({ ...options, seed: 4 }).tokens).not.toEqual(problem.tokens);
  });

  it('sends what each source sends, in Zipf shares', () => {
    const { tokens } = workload({ ...options, tokensPerSource: 10_000 });
    const row = [...tokens.subarray(0, 128)].sort((a, b) => b - a);
    const total = row.reduce((sum, value) => sum + value, 0);
    expect(total / 80_000).toBeCloseTo(1, 1);
    expect(row[0]! / row[9]!).toBeGreaterThan(8);
    expect(row[0]! / row[9]!).toBeLessThan(12);
  });

  it('makes sources differ only where topics are asked for', () => {
    const distance = (problem: PlacementProblem): number => {
      let sum = 0;
      for (let e = 0; e < 128; e += 1) sum += Math.abs(problem.tokens[e]! - problem.tokens[7 * 128 + e]!);
      return sum / (16_384 * 8);
    };
    expect(distance(workload(options))).toBeLessThan(0.06);
    expect(distance(workload({ ...options, topics: SKEWED_TOPICS }))).toBeGreaterThan(0.4);
    expect(distance(workload({ ...options, topics: { ...SKEWED_TOPICS, stickiness: 0 } }))).toBeLessThan(
      0.06,
    );
  });

  it('keeps layer l whatever the number of layers', () => {
    const shorter = workload({ ...options, shape: { ...SMALL_SHAPE, layers: 2 } });
    expect(firstLayers(workload(options), 2)).toEqual(shorter);
  });

  it('has costs of the magnitude of an H100', () => {
    // 6·2048·768 FLOP at 440 TFLOP/s; 3 bytes × 2048 at 265 and 50 GB/s.
    expect(computeCostNs(SHAPES['qwen3-30b-144'])).toBeCloseTo(21.4, 1);
    expect(linkCostNs(SHAPES['qwen3-30b-144']).sameNode).toBeCloseTo(23.2, 1);
    expect(linkCostNs(SHAPES['qwen3-30b-144']).otherNode).toBeCloseTo(122.9, 1);
    expect(computeCostNs(SHAPES['deepseek-v3-288'])).toBeCloseTo(213.8, 1);
  });
});

describe('communication costs', () => {
  const link = { sameNode: 1, otherNode: 4 };

  it('are 0 at home, cheaper in the node', () => {
    expect([...commCostMatrix(4, 4, 2, link)]).toEqual([0, 1, 4, 4, 1, 0, 4, 4, 4, 4, 0, 1, 4, 4, 1, 0]);
  });

  it('come from the nearest GPU of a source that spans several, and several sources may share a GPU', () => {
    expect([...commCostMatrix(2, 4, 2, link)]).toEqual([0, 0, 4, 4, 4, 4, 0, 0]);
    expect([...commCostMatrix(1, 4, 2, link)]).toEqual([0, 0, 0, 0]);
    // Source 0 sits on GPUs 0 to 2, so in nodes 0 and 1.
    expect([...commCostMatrix(2, 6, 3, link)]).toEqual([0, 0, 0, 1, 4, 4, 4, 4, 1, 0, 0, 0]);
    expect([...commCostMatrix(4, 2, 2, link)]).toEqual([0, 4, 0, 4, 4, 0, 4, 0]);
    expect(() => commCostMatrix(4, 4, 3, link)).toThrow('nodes');
  });
});

describe('drift', () => {
  it('multiplies each expert by one factor of the asked spread, the same for all sources', () => {
    const problem = workload({
      shape: SMALL_SHAPE,
      popularity: POPULARITIES['lognormal-0.5'],
      nodes: 1,
      seed: 3,
    });
    const moved = drift(problem, 0.1, 8);
    const logs: number[] = [];
    for (let e = 0; e < 128; e += 1) {
      const factor = moved.tokens[e]! / problem.tokens[e]!;
      expect(moved.tokens[5 * 128 + e]! / problem.tokens[5 * 128 + e]!).toBeCloseTo(factor, 1);
      logs.push(Math.log(factor));
    }
    const spread = Math.sqrt(logs.reduce((sum, value) => sum + value * value, 0) / logs.length);
    expect(spread).toBeGreaterThan(0.08);
    expect(spread).toBeLessThan(0.12);
    expect(drift(problem, 0, 8).tokens).toEqual(problem.tokens);
  });
});

describe('suite', () => {
  it('covers every combination once', () => {
    const instances = suite(1);
    expect(instances.length).toBe(4 * 3 * 2 * 3);
    expect(new Set(instances.map((instance) => instance.name)).size).toBe(instances.length);
    expect(new Set(instances.map((instance) => instance.options.seed)).size).toBe(instances.length);
  });
});

describe('small instances', () => {
  it('stay in their ranges, with a valid incumbent and every kind among them', () => {
    const problems = Array.from({ length: 300 }, (_, seed) => smallProblem(seed));
    for (const [seed, problem] of problems.entries()) {
      const { experts, gpus, slotsPerGpu, sources } = problem;
      expect(
        [experts >= 4, experts <= 12, gpus <= 4, slotsPerGpu <= 4, sources <= 4],
        `seed ${seed}`,
      ).not.toContain(false);
      expect((gpus - (problem.deadGpus?.length ?? 0)) * slotsPerGpu, `seed ${seed}`).toBeGreaterThanOrEqual(
        experts,
      );
      if (problem.incumbent) {
        const { deadGpus: _, ...alive } = problem;
        expect(violations(alive, problem.incumbent), `seed ${seed}`).toEqual([]);
      }
    }
    const share = (has: (problem: PlacementProblem) => boolean): number =>
      problems.filter(has).length / problems.length;
    expect(share((p) => p.incumbent !== undefined)).toBeCloseTo(0.5, 1);
    expect(share((p) => p.deadGpus !== undefined)).toBeGreaterThan(0.08);
    expect(share((p) => typeof p.computeCost !== 'number')).toBeGreaterThan(0.25);
    expect(share((p) => p.gpus * p.slotsPerGpu > p.experts)).toBeGreaterThan(0.5);
    expect(share((p) => p.sources > 1)).toBeGreaterThan(0.5);
    expect(share((p) => p.weights?.commMax === 0)).toBeGreaterThan(0.1);
  });
});

describe('published vector', () => {
  it('has the mean load 181.25', () => {
    expect(flashLbProblem().tokens.reduce((sum, value) => sum + value, 0) / 8).toBe(181.25);
  });
});

const HAS_ESFT = existsSync(
  join(__dirname, '..', '..', '..', 'shared', 'data', 'routing', 'esft_counts.npy'),
);

describe.skipIf(!HAS_ESFT)('real routing counts (esft_counts.npy)', () => {
  it.each([8, 16])('spread each task evenly over its block of %i ranks', (gpus) => {
    const problem = esftProblem({ gpus, nodes: 2 })!;
    expect(problem.tokens.length).toBe(26 * gpus * 64);
    expect(problem.slotsPerGpu).toBe(64 / gpus);
    const layerTotal = problem.tokens.subarray(0, gpus * 64).reduce((sum, value) => sum + value, 0);
    expect(layerTotal).toBe(103_320);
    const perTask = gpus / 4;
    for (const [task, total] of [24_264, 22_032, 29_220, 27_804].entries()) {
      for (let rank = task * perTask; rank < (task + 1) * perTask; rank += 1) {
        const row = problem.tokens.subarray(rank * 64, (rank + 1) * 64);
        expect(Math.abs(row.reduce((sum, value) => sum + value, 0) - total / perTask)).toBeLessThan(16);
        for (let e = 0; e < 64; e += 1) {
          expect(Math.abs(row[e]! - problem.tokens[task * perTask * 64 + e]!)).toBeLessThanOrEqual(1);
        }
      }
    }
  });
});

describe.skipIf(HAS_ESFT)('without the real routing counts', () => {
  it('gives null', () => {
    expect(esftProblem({ gpus: 8, nodes: 2 })).toBeNull();
  });
});
