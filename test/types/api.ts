/**
 * The public types, checked by the compiler alone: what a user may write, and, after each "ts-expect-error", what not.
 * Nothing here runs.
 */
import {
  type BackendInfo,
  type backends,
  type Dispatched,
  type Evaluation,
  evaluatePlacements,
  GimbalError,
  type GimbalErrorCode,
  type HeldProblem,
  holdProblem,
  type ModelShape,
  models,
  type PlacementProblem,
  type Plan,
  Planner,
  parseTopology,
  planPlacement,
  RequestQueue,
  RoutingStatistics,
  Scheduler,
  topology,
} from '../../lib/index.js';

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function isTrue<T extends true>(): T | undefined {
  return undefined;
}

const problem: PlacementProblem = {
  layers: 1,
  sources: 2,
  experts: 4,
  gpus: 2,
  slotsPerGpu: 2,
  tokens: new Uint32Array(8),
  computeCost: 100,
  commCost: new Float64Array(4),
};

export async function right(): Promise<void> {
  const plan = await planPlacement(problem, {
    seed: 3n,
    signal: new AbortController().signal,
    effort: 'fast',
  });
  isTrue<Equal<typeof plan, Plan>>();
  isTrue<Equal<Plan['physicalToLogical'], Int32Array>>();
  isTrue<Equal<Plan['seed'], number | bigint>>();
  isTrue<Equal<ReturnType<typeof backends>, BackendInfo[]>>();
  await planPlacement({
    ...problem,
    computeCost: new Float64Array(2),
    deadGpus: [1],
    replicaChoice: 'nearest',
  });
  await planPlacement({ ...problem, tokens: new Uint32Array(new SharedArrayBuffer(32)) });
  await planPlacement({ ...problem, tokens: statistics.counts() });
  await planPlacement({
    ...topology({ nodes: 1, gpusPerNode: 2 }),
    layers: 1,
    experts: 4,
    slotsPerGpu: 2,
    tokens: problem.tokens,
  });

  const scheduler = new Scheduler({ engines: [{ group: 'a', role: 'prefill' }], policy: 'dynamo', seed: 5n });
  const dispatched: Dispatched = scheduler.dispatch({ id: 1, promptTokens: 5, prefixHashes: [1n, 2] });
  isTrue<Equal<typeof dispatched.engine, number>>();
  scheduler.observe([{ engine: 0, timeMs: 0, kvUsage: 0.5, running: 1, waiting: 0 }]);
  const queue = new RequestQueue({ policy: 'hrrn' });
  isTrue<Equal<ReturnType<typeof queue.pop>, string | number | undefined>>();
  // @ts-expect-error a policy that does not exist
  new Scheduler({ engines: 2, policy: 'random' });
  // @ts-expect-error a sample needs its time
  scheduler.observe([{ engine: 0, kvUsage: 0.5, running: 1, waiting: 0 }]);

  const held = await holdProblem(problem);
  isTrue<Equal<typeof held, HeldProblem>>();
  const planner = new Planner();
  await planner.plan(held, { onProgress: ({ done, total }) => console.log(done / total) });
  isTrue<Equal<Awaited<ReturnType<typeof planner.evaluate>>, Evaluation>>();
  planner.close();

  async function* chunks() {
    yield new Int32Array(4);
  }
  await evaluatePlacements(problem, chunks(), { threads: 2 });
  await evaluatePlacements(held, [new Int32Array(4)]);

  topology({ nodes: 1, gpusPerNode: 8, model: 'Kimi-K2', hardware: { ...hardwareOfMine } });
  const own: ModelShape = { ...models['DeepSeek-V3'], experts: 320 };
  parseTopology('4x8', { model: own, nsPerCostUnit: 10 });
}

export function codeOf(error: unknown): GimbalErrorCode | undefined {
  return error instanceof GimbalError ? error.code : undefined;
}

export function wrong(): void {
  // @ts-expect-error: tokens are unsigned
  planPlacement({ ...problem, tokens: new Int32Array(8) });
  // @ts-expect-error: costs are doubles
  planPlacement({ ...problem, commCost: [0, 1, 1, 0] });
  // @ts-expect-error: a misspelt option
  planPlacement(problem, { sead: 1 });
  // @ts-expect-error: no such backend
  planPlacement(problem, { backend: 'rocm' });
  // @ts-expect-error: no such effort
  planPlacement(problem, { effort: 'quick' });
  // @ts-expect-error: seeds are integers
  planPlacement(problem, { seed: '1' });
  // @ts-expect-error: layers are missing
  planPlacement({ sources: 1, experts: 1, gpus: 1, slotsPerGpu: 1, tokens: new Uint32Array(1) });
  // @ts-expect-error: candidates are Int32Arrays
  evaluatePlacements(problem, new Float32Array(4));
  // @ts-expect-error: an evaluation has no seed
  evaluatePlacements(problem, new Int32Array(4), { seed: 1 });
  // @ts-expect-error: a cluster needs both numbers
  topology({ nodes: 1 });
  // @ts-expect-error: plans are awaited
  planPlacement(problem).physicalToLogical;
  // @ts-expect-error: a window either fades or slides
  new RoutingStatistics({ layers: 1, sources: 1, experts: 1, halfLifeTokens: 100, windowTokens: 100 });
  // @ts-expect-error: choices have 8 or 16 bits
  statistics.observe({ source: 0, topk: new Uint32Array(1), tokens: 1, k: 1 });
  // @ts-expect-error: codes are a closed set
  new GimbalError('GIMBAL_OOPS', '');
}

declare const statistics: RoutingStatistics;
declare const hardwareOfMine: import('../../lib/index.js').Hardware;
