/**
 * The exact optimum of one small layer under `even`, as a mixed-integer linear program solved by HiGHS, and an
 * exhaustive search that checks the program itself.
 *
 * Shares depend on the replica count, so the count is a choice too:
 *   y[e][r] = 1     expert e has r replicas                          Σ_r y[e][r] = 1
 *   x[e][g] = 1     GPU g holds expert e                             Σ_e x[e][g] = slotsPerGpu
 *   z[e][g][r]      = x[e][g] AND y[e][r], continuous in [0, 1]      Σ_r z = x,  z ≤ y,  Σ_g z = r·y
 *   load[g] = computeCost[g]·Σ_e T[e]·Σ_r z[e][g][r]/r ≤ Lmax, and likewise for comm[g] ≤ Cmax.
 * Since y picks one r, z[e][g][r] can differ from 0 only there, and then equals x[e][g]: no integrality needed.
 */
import loadHighs, { type Highs, type ModelData } from 'highs';
import type { PlacementProblem } from '../../lib/types.js';
import { computeCostOf, DEFAULT_WEIGHTS, evaluateLayerNaive, incumbentPairs } from './naive.js';

export interface ExactOptions {
  /** Default 0. */
  layer?: number;
  /** `[experts]`: fixes every replica count; default: the counts are free. */
  replicaCounts?: ArrayLike<number>;
  /** A J that some placement is known to have: the search leaves out all that is dearer, which shortens the proof. */
  knownObjective?: number;
  /** Default none. Running out of time is an error: the result would not be exact. */
  timeLimitSeconds?: number;
}

export interface ExactResult {
  /** J of `placement`, recomputed by the naive evaluation, ns. */
  objective: number;
  /** What the solver proved as the least possible J, ns; equal to `objective` up to its tolerance. */
  bound: number;
  /** `[gpus * slotsPerGpu]`, −1 on dead GPUs. */
  placement: Int32Array;
  /** New pairs that no placement avoids; outside the budget. */
  forcedMigrations: number;
}

/** Coefficients of the objective over the program's terms, in the program's own unit. */
interface Costs {
  load: number;
  commMax: number;
  commTotalPerGpu: number;
  perMigration: number;
}

/** What the program needs of one layer. Index g counts live GPUs; `unit` scales times to about 1. */
interface LayerData {
  experts: number;
  slotsPerGpu: number;
  liveGpus: number[];
  maxReplicas: number;
  unit: number;
  /** `[experts][live]`, time of all of e's tokens on g, in units. */
  loadTime: number[][];
  commTime: number[][];
  /** `[experts][live]`, 1 where the incumbent lacks the pair. */
  isNew: number[][];
  costs: Costs;
}

/** So that rounding never cuts off the known placement itself. */
const KNOWN_TOLERANCE = 1e-7;

/** Upper limits on the migrations and on J in the program's unit; absent: none. */
interface Limits {
  budget?: number | undefined;
  objective?: number | undefined;
}

let highsLoaded: Promise<Highs> | undefined;

export async function solveExact(
  problem: PlacementProblem,
  options: ExactOptions = {},
): Promise<ExactResult> {
  const layer = options.layer ?? 0;
  highsLoaded ??= loadHighs();
  const highs = await highsLoaded;
  const data = layerData(problem, layer);
  const forcedMigrations = problem.incumbent === undefined ? 0 : leastMigrations(highs, data, options);
  const known = options.knownObjective;
  const limits = {
    budget: problem.migrationBudget === undefined ? undefined : problem.migrationBudget + forcedMigrations,
    objective: known === undefined ? undefined : (known / data.unit) * (1 + KNOWN_TOLERANCE),
  };
  const program = buildProgram(data, data.costs, options.replicaCounts, limits, highs);
  const solved = runProgram(highs, program, options);
  const placement = readPlacement(problem, data, solved.values);
  return {
    objective: evaluateLayerNaive(problem, layer, placement).objective,
    bound: solved.bound * data.unit,
    placement,
    forcedMigrations,
  };
}

function layerData(problem: PlacementProblem, layer: number): LayerData {
  const { sources, experts, gpus, slotsPerGpu } = problem;
  if (problem.replicaChoice === 'nearest')
    throw new Error('replicaChoice: expected even but received nearest');
  if (problem.allowDuplicates) throw new Error('allowDuplicates: expected false but received true');
  const liveGpus = Array.from({ length: gpus }, (_, g) => g).filter(
    (g) => !(problem.deadGpus ?? []).includes(g),
  );
  const redundant = liveGpus.length * slotsPerGpu - experts;
  if (redundant < 0) throw new Error(`slotsPerGpu: expected at least ${experts} live slots`);
  const had = incumbentPairs(problem, layer);
  const tokensOf = (s: number, e: number): number => problem.tokens[(layer * sources + s) * experts + e]!;
  const perPair = (time: (s: number, g: number) => number): number[][] =>
    Array.from({ length: experts }, (_, e) =>
      liveGpus.map((g) => {
        let sum = 0;
        for (let s = 0; s < sources; s += 1) sum += tokensOf(s, e) * time(s, g);
        return sum;
      }),
    );
  const loadNs = perPair((_, g) => computeCostOf(problem, g));
  const commNs = perPair((s, g) => problem.commCost[s * gpus + g]!);
  const unit = Math.max(1e-9, loadNs.flat().reduce((sum, value) => sum + value, 0) / liveGpus.length ** 2);
  const scale = (rows: number[][]): number[][] => rows.map((row) => row.map((value) => value / unit));
  const weights = { ...DEFAULT_WEIGHTS, ...problem.weights };
  return {
    experts,
    slotsPerGpu,
    liveGpus,
    maxReplicas: Math.min(liveGpus.length, redundant + 1),
    unit,
    loadTime: scale(loadNs),
    commTime: scale(commNs),
    isNew: Array.from({ length: experts }, (_, e) => liveGpus.map((g) => (had.has(e * gpus + g) ? 0 : 1))),
    costs: {
      load: weights.load,
      commMax: weights.commMax,
      commTotalPerGpu: weights.commTotal / gpus,
      perMigration: problem.incumbent ? (weights.migration * (problem.migrationCost ?? 0)) / unit : 0,
    },
  };
}

/** The smallest number of new pairs over all valid placements. */
function leastMigrations(highs: Highs, data: LayerData, options: ExactOptions): number {
  const onlyMoves: Costs = { load: 0, commMax: 0, commTotalPerGpu: 0, perMigration: 1 };
  return Math.round(runProgram(highs, buildProgram(data, onlyMoves, undefined, {}, highs), options).bound);
}

/** Rows in compressed form, appended one at a time. */
class Rows {
  readonly starts: number[] = [0];
  readonly indices: number[] = [];
  readonly values: number[] = [];
  readonly lower: number[] = [];
  readonly upper: number[] = [];

  add(lower: number, upper: number, terms: Iterable<readonly [column: number, value: number]>): void {
    for (const [column, value] of terms) {
      if (value === 0) continue;
      this.indices.push(column);
      this.values.push(value);
    }
    this.starts.push(this.indices.length);
    this.lower.push(lower);
    this.upper.push(upper);
  }
}

/** Column numbers: Lmax, Cmax, then x, y, z. Replica counts r run from 1. */
class Columns {
  readonly loadMax = 0;
  readonly commMax = 1;
  readonly count: number;
  private readonly live: number;

  constructor(private readonly data: LayerData) {
    this.live = data.liveGpus.length;
    this.count = this.z(data.experts, 0, 1);
  }
  x(e: number, g: number): number {
    return 2 + e * this.live + g;
  }
  y(e: number, r: number): number {
    return this.x(this.data.experts, 0) + e * this.data.maxReplicas + r - 1;
  }
  z(e: number, g: number, r: number): number {
    return this.y(this.data.experts, 1) + (e * this.live + g) * this.data.maxReplicas + r - 1;
  }
}

function buildProgram(
  data: LayerData,
  costs: Costs,
  replicaCounts: ArrayLike<number> | undefined,
  limits: Limits,
  highs: Highs,
): ModelData {
  const columns = new Columns(data);
  const rows = new Rows();
  addPlacementRows(rows, data, columns);
  addMaximumRows(rows, data, columns);
  if (limits.budget !== undefined) {
    rows.add(
      0,
      limits.budget,
      pairs(data).map(([e, g]) => [columns.x(e, g), data.isNew[e]![g]!] as const),
    );
  }
  const colCost = objectiveRow(data, costs, columns);
  if (limits.objective !== undefined) rows.add(Number.NEGATIVE_INFINITY, limits.objective, colCost.entries());
  const upper = new Float64Array(columns.count).fill(1);
  const lower = new Float64Array(columns.count);
  upper[columns.loadMax] = highs.infinity;
  upper[columns.commMax] = highs.infinity;
  if (replicaCounts !== undefined) fixCounts(replicaCounts, data, columns, lower, upper);
  const { integer, continuous } = highs.constants.variableType;
  const isInteger = (column: number): boolean => column >= columns.x(0, 0) && column < columns.z(0, 0, 1);
  return {
    numCols: columns.count,
    numRows: rows.lower.length,
    colCost,
    colLower: lower,
    colUpper: upper,
    rowLower: rows.lower,
    rowUpper: rows.upper,
    integrality: Array.from({ length: columns.count }, (_, c) => (isInteger(c) ? integer : continuous)),
    matrix: {
      format: 'csr',
      numRows: rows.lower.length,
      numCols: columns.count,
      starts: rows.starts,
      indices: rows.indices,
      values: rows.values,
    },
  };
}

function pairs(data: LayerData): [e: number, g: number][] {
  return range(0, data.experts).flatMap((e) =>
    range(0, data.liveGpus.length).map((g): [number, number] => [e, g]),
  );
}

function range(from: number, end: number): number[] {
  return Array.from({ length: Math.max(0, end - from) }, (_, i) => from + i);
}

/** Slots are full, counts are chosen once, and z ties both together. */
function addPlacementRows(rows: Rows, data: LayerData, columns: Columns): void {
  const counts = range(1, data.maxReplicas + 1);
  const live = range(0, data.liveGpus.length);
  for (const g of live) {
    rows.add(
      data.slotsPerGpu,
      data.slotsPerGpu,
      range(0, data.experts).map((e) => [columns.x(e, g), 1] as const),
    );
  }
  for (const e of range(0, data.experts)) {
    rows.add(
      1,
      1,
      counts.map((r) => [columns.y(e, r), 1] as const),
    );
    for (const r of counts) {
      rows.add(0, 0, [...live.map((g) => [columns.z(e, g, r), 1] as const), [columns.y(e, r), -r]]);
    }
  }
  for (const [e, g] of pairs(data)) {
    rows.add(0, 0, [...counts.map((r) => [columns.z(e, g, r), 1] as const), [columns.x(e, g), -1]]);
    for (const r of counts) {
      rows.add(-1, 0, [
        [columns.z(e, g, r), 1],
        [columns.y(e, r), -1],
      ]);
    }
  }
}

/** load[g] ≤ Lmax, comm[g] ≤ Cmax, and for each expert alone: its largest share on its r fastest GPUs ≤ Lmax. */
function addMaximumRows(rows: Rows, data: LayerData, columns: Columns): void {
  const counts = range(1, data.maxReplicas + 1);
  const maxima = [
    { column: columns.loadMax, time: data.loadTime },
    { column: columns.commMax, time: data.commTime },
  ];
  for (const { column, time } of maxima) {
    for (const g of range(0, data.liveGpus.length)) {
      const shares = range(0, data.experts).flatMap((e) =>
        counts.map((r) => [columns.z(e, g, r), time[e]![g]! / r] as const),
      );
      rows.add(Number.NEGATIVE_INFINITY, 0, [...shares, [column, -1]]);
    }
    for (const e of range(0, data.experts)) {
      const cheapestFirst = [...time[e]!].sort((a, b) => a - b);
      rows.add(Number.NEGATIVE_INFINITY, 0, [
        ...counts.map((r) => [columns.y(e, r), cheapestFirst[r - 1]! / r] as const),
        [column, -1],
      ]);
    }
  }
}

function objectiveRow(data: LayerData, costs: Costs, columns: Columns): Float64Array {
  const cost = new Float64Array(columns.count);
  cost[columns.loadMax] = costs.load;
  cost[columns.commMax] = costs.commMax;
  for (const [e, g] of pairs(data)) {
    cost[columns.x(e, g)] = costs.perMigration * data.isNew[e]![g]!;
    for (const r of range(1, data.maxReplicas + 1)) {
      cost[columns.z(e, g, r)] = (costs.commTotalPerGpu * data.commTime[e]![g]!) / r;
    }
  }
  return cost;
}

function fixCounts(
  replicaCounts: ArrayLike<number>,
  data: LayerData,
  columns: Columns,
  lower: Float64Array,
  upper: Float64Array,
): void {
  for (const e of range(0, data.experts)) {
    const wanted = replicaCounts[e]!;
    if (wanted < 1 || wanted > data.maxReplicas) {
      throw new RangeError(`replicaCounts[${e}]: expected 1…${data.maxReplicas} but received ${wanted}`);
    }
    for (const r of range(1, data.maxReplicas + 1)) {
      lower[columns.y(e, r)] = r === wanted ? 1 : 0;
      upper[columns.y(e, r)] = r === wanted ? 1 : 0;
    }
  }
}

function runProgram(
  highs: Highs,
  program: ModelData,
  options: ExactOptions,
): { values: Float64Array; bound: number } {
  return highs.withModel(program, (model) => {
    model.options.set({
      output_flag: false,
      mip_rel_gap: 0,
      mip_abs_gap: 1e-9,
      mip_feasibility_tolerance: 1e-9,
      primal_feasibility_tolerance: 1e-9,
      ...(options.timeLimitSeconds === undefined ? {} : { time_limit: options.timeLimitSeconds }),
    });
    const { modelStatus } = model.run();
    if (modelStatus !== highs.constants.modelStatus.optimal) {
      throw new Error(
        `HiGHS: expected status optimal (${highs.constants.modelStatus.optimal}) but received ${modelStatus}`,
      );
    }
    return { values: model.getSolution().colValue, bound: Number(model.info.get('mip_dual_bound')) };
  });
}

function readPlacement(problem: PlacementProblem, data: LayerData, values: Float64Array): Int32Array {
  const columns = new Columns(data);
  const placement = new Int32Array(problem.gpus * problem.slotsPerGpu).fill(-1);
  for (const [g, gpu] of data.liveGpus.entries()) {
    const held = range(0, data.experts).filter((e) => values[columns.x(e, g)]! > 0.5);
    if (held.length !== data.slotsPerGpu) throw new Error(`HiGHS: GPU ${gpu} holds ${held.length} experts`);
    placement.set(held, gpu * problem.slotsPerGpu);
  }
  return placement;
}

/**
 * The optimum by trying every set of experts on every live GPU: C(E, K)^G placements, so only for the tiniest ones.
 * Shares nothing with the program but the naive evaluation. `replicaCounts` fixes the counts.
 */
export function solveExhaustively(
  problem: PlacementProblem,
  replicaCounts?: ArrayLike<number>,
): { objective: number; placement: Int32Array } {
  const { experts, gpus, slotsPerGpu } = problem;
  const live = range(0, gpus).filter((g) => !(problem.deadGpus ?? []).includes(g));
  const sets = subsets(experts, slotsPerGpu);
  const slots = new Int32Array(gpus * slotsPerGpu).fill(-1);
  const replicas = new Int32Array(experts);
  let best = { objective: Number.POSITIVE_INFINITY, placement: slots.slice() };

  const visit = (depth: number): void => {
    if (depth === live.length) {
      const valid = replicas.every((count, e) => (replicaCounts ? count === replicaCounts[e] : count > 0));
      if (!valid) return;
      const { objective } = evaluateLayerNaive(problem, 0, slots);
      if (objective < best.objective) best = { objective, placement: slots.slice() };
      return;
    }
    for (const set of sets) {
      slots.set(set, live[depth]! * slotsPerGpu);
      for (const e of set) replicas[e] = replicas[e]! + 1;
      visit(depth + 1);
      for (const e of set) replicas[e] = replicas[e]! - 1;
    }
  };
  visit(0);
  return best;
}

/** All ascending `size`-subsets of 0…count−1. */
function subsets(count: number, size: number): number[][] {
  if (size === 0) return [[]];
  return range(size - 1, count).flatMap((last) => subsets(last, size - 1).map((rest) => [...rest, last]));
}
