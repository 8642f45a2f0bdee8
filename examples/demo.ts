/**
 * The main job, start to end, on a workload that the demo makes itself (`npm run demo`): DeepSeek-V3's shape on 32 GPUs of 4
 * nodes, sources that favour different experts. It plans, compares with what engines start with and with the EPLB family,
 * writes a placement that SGLang loads, then lets the traffic drift and plans again with a budget of moves.
 *
 * Usage: npm run demo [-- FOLDER]   (default ./out)
 */
import { mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { eplbGlobal, eplbHierarchical } from '../bench/baselines/eplb.js';
import { drift, SHAPES, SKEWED_TOPICS, workload } from '../bench/workloads.js';
import { contiguousPlacement, figuresOf } from '../lib/cli/before.js';
import { table } from '../lib/cli/table.js';
import { writePlacement } from '../lib/export/placement.js';
import { writeFileAtomic } from '../lib/files.js';
import { findModel, type PlacementProblem, type Plan, Planner, topology } from '../lib/index.js';
import type { PlacementFigures } from '../lib/report/figures.js';
import { formatChange, formatCount, formatRatio, formatShare, formatTime } from '../lib/report/format.js';
import { renderReport } from '../lib/report/html.js';

const NODES = 4;
const SEED = 1;
const DRIFT_SIGMA = 0.1;
const BUDGET_SHARE = 0.05;
const EXPERT_GROUPS = 8;

interface Contender {
  name: string;
  figures: PlacementFigures;
  elapsedMs: number | undefined;
  gap?: number;
}

/** The seeded problem, with the costs that the presets derive for H100s. */
function demoProblem(): PlacementProblem {
  const shape = SHAPES['deepseek-v3-288'];
  const { computeCost, commCost } = topology({
    nodes: NODES,
    gpusPerNode: shape.gpus / NODES,
    model: 'DeepSeek-V3',
    hardware: 'H100',
  });
  const made = workload({
    shape,
    nodes: NODES,
    seed: SEED,
    popularity: { kind: 'lognormal', sigma: 1 },
    topics: SKEWED_TOPICS,
  });
  const { layers, moeLayers } = findModel('DeepSeek-V3');
  const layerIds = Int32Array.from({ length: moeLayers }, (_, row) => layers - moeLayers + row);
  return { ...made, computeCost, commCost, layerIds };
}

async function contender(
  name: string,
  problem: PlacementProblem,
  physicalToLogical: Int32Array,
  elapsedMs?: number,
): Promise<Contender> {
  const figures = await figuresOf(name, problem, { ...problem, physicalToLogical }, problem.gpus / NODES, {});
  return { name, figures, elapsedMs };
}

async function timed(name: string, problem: PlacementProblem, make: () => Int32Array): Promise<Contender> {
  const start = performance.now();
  const placement = make();
  return contender(name, problem, placement, performance.now() - start);
}

async function planned(name: string, problem: PlacementProblem, plan: Plan): Promise<Contender> {
  return { ...(await contender(name, problem, plan.physicalToLogical, plan.elapsedMs)), gap: plan.gap };
}

/** Columns are contenders, the last one ours; rows are figures. */
function comparison(contenders: readonly Contender[], slots: number): string {
  const row = (label: string, cell: (one: Contender) => string) => [label, ...contenders.map(cell)];
  return table(
    [
      row('', (one) => one.name),
      row('imbalance (max/mean load), mean', ({ figures }) => formatRatio(figures.totals.imbalanceMean)),
      row('imbalance, worst layer', ({ figures }) => formatRatio(figures.totals.imbalanceWorst)),
      row('tokens that cross nodes', ({ figures }) => formatShare(figures.totals.crossNodeShare ?? 0)),
      row('communication, busiest GPU', ({ figures }) => formatTime(figures.totals.commMax)),
      row('predicted time J', ({ figures }) => formatTime(figures.totals.objective)),
      row('gap to the proved lower bound', ({ gap }) => (gap === undefined ? '' : formatShare(gap))),
      row('moves', ({ figures }) => movesCell(figures.totals.migrations, slots)),
      row('time to plan', ({ elapsedMs }) => (elapsedMs === undefined ? '' : formatTime(elapsedMs * 1e6))),
    ],
    { indent: '  ' },
  );
}

function movesCell(moves: number, slots: number): string {
  return moves === 0 ? '0' : `${formatCount(moves)} (${formatShare(moves / slots)})`;
}

function layerTable(contenders: readonly Contender[]): string {
  const [first] = contenders;
  const rows = first!.figures.layers.map(({ layer }, index) => [
    String(layer),
    ...contenders.map(({ figures }) => formatRatio(figures.layers[index]!.imbalance)),
    ...contenders.map(({ figures }) => formatTime(figures.layers[index]!.commMax)),
  ]);
  const heads = (what: string) => contenders.map(({ name }) => `${what} ${name}`);
  return table([['layer', ...heads('imb.'), ...heads('comm.')], ...rows], { indent: '  ', left: [] });
}

/** The first plan: nothing is in force but what the engine starts with, so moves are free. */
async function firstPlan(planner: Planner, problem: PlacementProblem): Promise<Plan> {
  const plan = await planner.plan(problem, { seed: SEED });
  const fast = await planner.plan(problem, { seed: SEED, effort: 'fast' });
  const start = contiguousPlacement(problem).physicalToLogical;
  // Moves are counted from the start; they cost nothing yet.
  const counted = { ...problem, incumbent: start };
  const contenders = [
    await contender('contiguous', counted, start),
    await timed('EPLB global', counted, () => eplbGlobal(problem)),
    await timed('EPLB hierarchical', counted, () =>
      eplbHierarchical(problem, { nodes: NODES, groups: EXPERT_GROUPS }),
    ),
    await planned('gimbal, fast', counted, fast),
    await planned('gimbal', counted, plan),
  ];
  const width = problem.gpus * problem.slotsPerGpu;
  const shown = ['contiguous', 'EPLB global', 'gimbal'];
  console.log(layerTable(contenders.filter(({ name }) => shown.includes(name))));
  console.log(comparison(contenders, problem.layers * width));
  const [before, eplb, , , ours] = contenders.map(({ figures }) => figures.totals.objective);
  console.log(
    `  J against the engine's default: ${formatChange(before!, ours!)}; against EPLB: ${formatChange(eplb!, ours!)}.\n` +
      `  gimbal ran on ${plan.backend} (${plan.backendDetail}); same seed, same plan, on any machine. EPLB here is this repository's, in TypeScript.\n`,
  );
  return plan;
}

/** The second plan: the traffic has drifted, and moving weights costs, so a budget limits it. */
async function secondPlan(planner: Planner, problem: PlacementProblem, incumbent: Int32Array): Promise<void> {
  const width = problem.gpus * problem.slotsPerGpu;
  const later: PlacementProblem = { ...drift(problem, DRIFT_SIGMA, SEED + 1), incumbent };
  const budget = Math.floor(BUDGET_SHARE * problem.layers * width);
  const tight = await planner.plan({ ...later, migrationBudget: budget }, { seed: SEED });
  const free = await planner.plan(later, { seed: SEED });
  console.log(
    `Every expert's traffic drifts by a lognormal factor (σ = ${DRIFT_SIGMA}). A second plan may move ${formatShare(BUDGET_SHARE)} of the slots:\n`,
  );
  const contenders = [
    await contender('keep the plan', later, incumbent),
    await timed('EPLB global, anew', later, () => eplbGlobal(later)),
    await planned('gimbal, free to move', later, free),
    await planned('gimbal, budget', later, tight),
  ];
  console.log(comparison(contenders, problem.layers * width));
}

async function writeFiles(folder: string, problem: PlacementProblem, plan: Plan): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const placement = path.join(folder, 'deepseek-v3-sglang.json');
  const { layers, gpus, slotsPerGpu, experts, layerIds } = problem;
  await writePlacement(
    placement,
    {
      layers,
      gpus,
      slotsPerGpu,
      experts,
      physicalToLogical: plan.physicalToLogical,
      ...(layerIds && { layerIds }),
    },
    'sglang',
  );
  const report = path.join(folder, 'report.html');
  await writeFileAtomic(report, await reportPage(problem, plan));
  console.log(`Wrote ${placement}, for SGLang's --init-expert-location, and ${report}, to look at offline.`);
}

async function reportPage(problem: PlacementProblem, plan: Plan): Promise<string> {
  const gpusPerNode = problem.gpus / NODES;
  const start = contiguousPlacement(problem);
  const manifest = readFileSync(path.join(__dirname, '..', 'package.json'), 'utf8');
  return renderReport({
    version: (JSON.parse(manifest) as { version: string }).version,
    command: ['npm', 'run', 'demo'],
    createdAt: new Date(),
    subject: 'DeepSeek-V3, the demo',
    hardware: 'H100',
    problem,
    nodes: NODES,
    gpusPerNode,
    effort: 'balanced',
    plan,
    before: await figuresOf('contiguous', problem, start, gpusPerNode, {}),
    beforeKind: "the engine's default (contiguous)",
    after: await figuresOf(
      'plan',
      problem,
      { ...problem, physicalToLogical: plan.physicalToLogical },
      gpusPerNode,
      {},
    ),
    notes: [
      'The traffic is made by a seeded generator: sources favour different experts, as where sessions stick to engines.',
    ],
  });
}

async function main(): Promise<void> {
  const folder = process.argv[2] ?? 'out';
  const problem = demoProblem();
  const { layers, experts, gpus, slotsPerGpu, sources } = problem;
  console.log(
    `DeepSeek-V3: ${layers} MoE layers × ${experts} experts, ${gpus * slotsPerGpu} slots on ${gpus} H100s of ${NODES} nodes, ${sources} source DP ranks.\n` +
      `Traffic: made from seed ${SEED}; lognormal popularity, ${SKEWED_TOPICS.count} topics that stick to their sources.\n` +
      'imb. = max/mean load of the GPUs, comm. = receiving time of the busiest GPU over the statistics window.\n',
  );
  // As a controller does: one planner, whose buffers stay between plans.
  const planner = new Planner();
  const plan = await firstPlan(planner, problem);
  await secondPlan(planner, problem, plan.physicalToLogical);
  planner.close();
  await writeFiles(folder, problem, plan);
}

void main();
