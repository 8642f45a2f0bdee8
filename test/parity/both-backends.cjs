/**
 * Run by cuda.test.ts in a process of its own, whose environment names the CUDA plug-in: plans seeded problems on both
 * backends, and prints what it saw as JSON. `node both-backends.cjs parity|failure|freeChoice|manyLayers|kernelTimes|scores|
 * scoreFailure|backends`
 */
'use strict';

const { Planner, Scheduler, backends, evaluatePlacements } = require('../../dist/index.js');

/** The costs alone, without what ran and for how long. */
function costs({ objective, loadMax, commMax, commTotal, migrations }) {
  return JSON.stringify([objective, loadMax, commMax, commTotal, migrations]);
}

/** A small generator, so that a problem is its seed. */
function draws(seed) {
  let state = BigInt(seed) * 0x9e3779b97f4a7c15n + 1n;
  return (bound) => {
    state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n);
    return Number((state >> 33n) % BigInt(bound));
  };
}

function drawProblem(seed) {
  const draw = draws(seed);
  const layers = 1 + draw(3);
  const gpus = [2, 4, 8, 17][draw(4)];
  const sources = 1 + draw(6);
  const experts = gpus * (1 + draw(3));
  const slotsPerGpu = Math.min(experts, Math.ceil(experts / gpus) + 1 + draw(2));
  const tokens = Uint32Array.from({ length: layers * sources * experts }, () => draw(1000) ** 2 % 4096);
  const commCost = Float64Array.from({ length: sources * gpus }, (_, i) =>
    i % gpus === Math.floor(i / gpus) % gpus ? 0 : 10 + draw(3) * 20,
  );
  const problem = { layers, sources, experts, gpus, slotsPerGpu, tokens, computeCost: 25, commCost };
  if (draw(2) === 1) problem.replicaChoice = 'nearest';
  if (draw(2) === 1) {
    problem.incumbent = Int32Array.from({ length: layers * gpus * slotsPerGpu }, (_, i) => i % experts);
    problem.migrationCost = draw(500);
    if (draw(2) === 1) problem.migrationBudget = draw(layers * gpus);
  }
  if (gpus > 4 && draw(3) === 0) problem.deadGpus = [draw(gpus)];
  return problem;
}

async function parity() {
  const planner = new Planner();
  const rows = [];
  for (let seed = 1; seed <= 24; ++seed) {
    const problem = drawProblem(seed);
    const options = { seed, walkers: 3, rounds: 2 };
    const cpu = await planner.plan(problem, { ...options, backend: 'cpu' });
    const cuda = await planner.plan(problem, { ...options, backend: 'cuda' });
    const candidates = cpu.physicalToLogical;
    const [a, b] = await Promise.all(
      ['cpu', 'cuda'].map((backend) => evaluatePlacements(problem, candidates, { backend })),
    );
    const same =
      Buffer.from(cpu.physicalToLogical.buffer).equals(Buffer.from(cuda.physicalToLogical.buffer)) &&
      cpu.objective === cuda.objective &&
      cpu.lowerBound === cuda.lowerBound &&
      cpu.migrations === cuda.migrations &&
      costs(a) === costs(b);
    rows.push({ seed, same, backend: cuda.backend, objective: cuda.objective });
  }
  return rows;
}

/** What a plan says whose every try meets the failure that the environment set up once. */
async function failure() {
  const planner = new Planner();
  const problem = drawProblem(3);
  const tries = [];
  for (let n = 0; n < 3; ++n) {
    try {
      tries.push({ backend: (await planner.plan(problem, { backend: 'cuda', rounds: 1 })).backend });
    } catch (error) {
      tries.push({ code: error.code, field: error.field, message: error.message });
    }
  }
  return tries;
}

/** The same three tries where the choice is free, and what is known of the backends then. */
async function freeChoice() {
  const planner = new Planner();
  const problem = drawProblem(3);
  const tries = [];
  for (let n = 0; n < 2; ++n) {
    try {
      const { backend, backendReason } = await planner.plan(problem, { rounds: 1 });
      tries.push({ backend, reason: backendReason });
    } catch (error) {
      tries.push({ code: error.code, message: error.message });
    }
  }
  return { tries, cuda: backends()[1] };
}

/** A problem of many layers on both backends. */
async function manyLayers() {
  const draw = draws(9);
  const [layers, sources, experts, gpus, slotsPerGpu] = [40, 16, 128, 16, 9];
  const tokens = Uint32Array.from({ length: layers * sources * experts }, () => draw(4096));
  const commCost = Float64Array.from({ length: sources * gpus }, (_, i) =>
    i % gpus === Math.floor(i / gpus) ? 0 : 50,
  );
  const problem = { layers, sources, experts, gpus, slotsPerGpu, tokens, computeCost: 25, commCost };
  // A planner each, closed after it, so that the one's buffers do not take the other's memory.
  const plan = (options) => {
    const planner = new Planner();
    return planner.plan(problem, { effort: 'fast', seed: 4, ...options }).finally(() => planner.close());
  };
  const done = [];
  const plans = [
    await plan({ backend: 'cpu' }),
    await plan({ backend: 'cuda', onProgress: (progress) => done.push(progress.done / progress.total) }),
  ];
  const together = await plan({ backend: 'cuda', timeLimitMs: 1e6 }).then(
    () => 'fits',
    (error) => error.message,
  );
  const evaluations = [];
  for (const backend of ['cpu', 'cuda']) {
    evaluations.push(await evaluatePlacements(problem, plans[0].physicalToLogical, { backend }));
  }
  return {
    same:
      Buffer.from(plans[0].physicalToLogical.buffer).equals(Buffer.from(plans[1].physicalToLogical.buffer)) &&
      Buffer.from(plans[0].replicaCount.buffer).equals(Buffer.from(plans[1].replicaCount.buffer)) &&
      costs(evaluations[0]) === costs(evaluations[1]),
    backend: plans[1].backend,
    // Progress ends at the whole, and reaches it once.
    steady: done.at(-1) === 1 && done.filter((share) => share === 1).length === 1,
    together,
  };
}

async function kernelTimes() {
  const planner = new Planner();
  const problem = drawProblem(5);
  const times = {};
  for (const backend of ['cpu', 'cuda']) {
    const plan = await planner.plan(problem, { backend, rounds: 2 });
    const evaluation = await planner.evaluate(problem, plan.physicalToLogical, { backend });
    times[backend] = { plan: plan.kernelMs, evaluation: evaluation.kernelMs };
    if (backend === 'cuda') times[backend].elapsed = plan.elapsedMs;
  }
  return times;
}

/** A scheduler with a past, and requests of every kind. */
function drawScores(seed, engineCount) {
  const draw = draws(seed);
  const clock = { nowMs: 1000 };
  const engines = Array.from({ length: engineCount ?? [1, 3, 31, 64, 257][draw(5)] }, () => ({
    group: draw(3),
    role: ['both', 'both', 'prefill', 'decode'][draw(4)],
    prefillTokensPerSecond: 100 + draw(50_000),
    kvTokens: 1000 + draw(500_000),
  }));
  const scheduler = new Scheduler({ engines, clock: () => clock.nowMs });
  const request = (id) => ({
    id,
    promptTokens: draw(10) === 0 ? 2 ** 28 : draw(8000),
    ...(draw(3) === 0 && { sessionKey: `session ${draw(9)}` }),
    ...(draw(3) === 0 && { prefixHashes: Array.from({ length: 1 + draw(8) }, (_, n) => 100 * draw(2) + n) }),
    ...(draw(5) === 0 && { stage: 'decode' }),
  });
  for (let n = 0; n < 200; ++n) {
    clock.nowMs += draw(50);
    const engine = draw(engines.length);
    const load = { running: draw(60), waiting: draw(9), moePressure: draw(4) === 0 ? draw(300) / 100 : 0 };
    if (seed % 5 > 0)
      scheduler.observe([{ engine, timeMs: clock.nowMs, kvUsage: draw(1001) / 1000, ...load }]);
    try {
      scheduler.dispatch(request(n));
    } catch (error) {
      if (error.code !== 'GIMBAL_NO_ENGINE') throw error;
    }
  }
  return { scheduler, requests: Array.from({ length: 1 + draw(70) }, (_, n) => request(n)) };
}

/** Scores on both backends; the last ones take two launches. */
async function scores() {
  const rows = [];
  const bytes = ({ pressureMs, best }) =>
    Buffer.concat([Buffer.from(pressureMs.buffer), Buffer.from(best.buffer)]);
  for (let seed = 1; seed <= 30; ++seed) {
    const { scheduler, requests } = drawScores(seed, seed < 30 ? undefined : 4096);
    const count = seed < 30 ? requests.length : 200;
    const asked = Array.from({ length: count }, (_, n) => requests[n % requests.length]);
    const cpu = await scheduler.scores(asked, { backend: 'cpu' });
    const cuda = await scheduler.scores(asked, { backend: 'cuda' });
    const picked = cpu.best.filter((engine) => engine >= 0).length;
    rows.push({ seed, same: bytes(cpu).equals(bytes(cuda)), backend: cuda.backend, picked });
  }
  return rows;
}

/** What scores say whose every try meets the failure that the environment set up once; the last one by a free choice. */
async function scoreFailure() {
  const { scheduler, requests } = drawScores(2);
  const tries = [];
  for (const options of [{ backend: 'cuda' }, { backend: 'cuda' }, {}]) {
    try {
      tries.push({ backend: (await scheduler.scores(requests, options)).backend });
    } catch (error) {
      tries.push({ code: error.code, field: error.field, message: error.message });
    }
  }
  return tries;
}

const MODES = {
  parity,
  failure,
  freeChoice,
  manyLayers,
  kernelTimes,
  scores,
  scoreFailure,
  backends: async () => backends(),
};

async function main() {
  const what = MODES[process.argv[2]];
  console.log(JSON.stringify(await what()));
}

main();
