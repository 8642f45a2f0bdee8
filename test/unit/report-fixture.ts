/**
 * A report without the native core: a seeded problem, two placements costed by the reference evaluation, and a plan's
 * figures around them. The plan is a plain greedy one; what is tested here is the page, not the placement.
 */
import { SHAPES, SKEWED_TOPICS, workload } from '../../bench/workloads.js';
import type { ReportInput } from '../../lib/report/data.js';
import { placementFigures } from '../../lib/report/figures.js';
import type { Evaluation, LayerPlan, PlacementProblem, Plan } from '../../lib/types.js';
import { evaluateNaive } from '../reference/naive.js';

export function naiveEvaluation(problem: PlacementProblem, placement: Int32Array): Evaluation {
  const layers = evaluateNaive(problem, placement);
  const column = (key: 'objective' | 'loadMax' | 'commMax' | 'commTotal' | 'migrations') =>
    Float64Array.from(layers, (layer) => layer[key]);
  return {
    objective: column('objective'),
    loadMax: column('loadMax'),
    commMax: column('commMax'),
    commTotal: column('commTotal'),
    migrations: column('migrations'),
  };
}

export function contiguous(problem: PlacementProblem): Int32Array {
  const slots = problem.gpus * problem.slotsPerGpu;
  return Int32Array.from({ length: problem.layers * slots }, (_, at) => (at % slots) % problem.experts);
}

/** Experts by falling tokens onto the least loaded GPU with room; spare slots repeat the hottest experts elsewhere. */
function greedy(problem: PlacementProblem): Int32Array {
  const { layers, sources, experts, gpus, slotsPerGpu } = problem;
  const placement = new Int32Array(layers * gpus * slotsPerGpu);
  for (let layer = 0; layer < layers; layer++) {
    const total = new Float64Array(experts);
    for (let at = 0; at < sources * experts; at++) {
      total[at % experts]! += problem.tokens[layer * sources * experts + at]!;
    }
    const hot = Array.from(total.keys()).sort((a, b) => total[b]! - total[a]!);
    const spare = gpus * slotsPerGpu - experts;
    const held: number[][] = Array.from({ length: gpus }, () => []);
    const load = new Float64Array(gpus);
    for (const [rank, expert] of [...hot.slice(0, spare), ...hot].entries()) {
      const share = total[expert]! / (hot.indexOf(expert) < spare ? 2 : 1);
      const open = Array.from(load.keys()).filter(
        (g) => held[g]!.length < slotsPerGpu && !held[g]!.includes(expert),
      );
      const gpu = open.sort((a, b) => load[a]! - load[b]! || a - b)[0];
      if (gpu === undefined) throw new Error(`layer ${layer}: no room for draw ${rank}`);
      held[gpu]!.push(expert);
      load[gpu]! += share;
    }
    placement.set(held.flat(), layer * gpus * slotsPerGpu);
  }
  return placement;
}

export function reportFixture(overrides: Partial<ReportInput> = {}, layers = 12): ReportInput {
  const shape = { ...SHAPES['deepseek-v3-288'], layers };
  const problem: PlacementProblem = {
    ...workload({
      shape,
      popularity: { kind: 'lognormal', sigma: 1 },
      nodes: 4,
      seed: 3,
      topics: SKEWED_TOPICS,
    }),
    layerIds: Int32Array.from({ length: layers }, (_, layer) => layer + 3),
    migrationCost: 100_000,
  };
  problem.incumbent = contiguous(problem);
  const placement = greedy(problem);
  const gpusPerNode = 8;
  const before = placementFigures(
    'contiguous',
    problem,
    problem.incumbent,
    naiveEvaluation(problem, problem.incumbent),
    { gpusPerNode },
  );
  const after = placementFigures('plan', problem, placement, naiveEvaluation(problem, placement), {
    gpusPerNode,
  });
  return {
    version: '0.0.0-test',
    command: ['gimbal', 'plan', '--counts', 'counts.npy'],
    createdAt: new Date('2026-01-02T03:04:05Z'),
    subject: 'DeepSeek-V3',
    hardware: 'H100',
    problem,
    nodes: 4,
    gpusPerNode,
    effort: 'balanced',
    plan: planOf(problem, placement),
    before,
    beforeKind: 'the incumbent',
    after,
    notes: ['compute cost: 6·H·I operations a token'],
    ...overrides,
  };
}

/** A plan whose bound lies 5 % below its objective in every layer. */
function planOf(problem: PlacementProblem, placement: Int32Array): Plan {
  const layers: LayerPlan[] = evaluateNaive(problem, placement).map((layer) => ({
    objective: layer.objective,
    loadMax: layer.loadMax,
    commMax: layer.commMax,
    commTotal: layer.commTotal,
    sourceMax: layer.sourceMax,
    migrations: layer.migrations,
    forcedMigrations: 0,
    lowerBound: layer.objective / 1.05,
    gap: 0.05,
  }));
  const objective = layers.reduce((sum, layer) => sum + layer.objective, 0);
  return {
    physicalToLogical: placement,
    replicaCount: new Int32Array(problem.layers * problem.experts).fill(1),
    layers,
    objective,
    lowerBound: objective / 1.05,
    gap: 0.05,
    migrations: layers.reduce((sum, layer) => sum + layer.migrations, 0),
    forcedMigrations: 0,
    backend: 'cpu',
    backendDetail: 'reference',
    seed: 0,
    walkers: 4,
    rounds: 8,
    elapsedMs: 12.3,
  };
}
