/**
 * Ten thousand small plans, of every kind and outcome. Prints how much the process has grown, in MB, after the first two
 * thousand. Needs --expose-gc, and a young generation of one size (--max-semi-space-size=1): it would look like a leak.
 */
'use strict';

const support = require('../lifecycle/support.cjs');
const { Planner, planPlacement, holdProblem, makeProblem, contiguous, SMALL, sleep } = support;

const PLANS = 10_000;
const WARM_UP = 2_000;
const SHAPE = { ...SMALL, layers: 1 };

const problem = makeProblem(SHAPE);
const candidates = contiguous(SHAPE);
/** 32 KB, so that one that is never freed shows. */
const larger = makeProblem({ layers: 8, experts: 64, gpus: 16, slotsPerGpu: 5 });
const fast = { effort: 'fast', threads: 1 };
const ignore = () => {};

/** Nine calls of different kinds, overlapping. */
function batch(planner, seed) {
  const controller = new AbortController();
  const aborted = planPlacement(problem, { ...fast, rounds: 1000, signal: controller.signal }).catch(ignore);
  controller.abort();
  return [
    planner.plan(problem, { ...fast, seed }),
    planner.plan({ ...problem, incumbent: candidates }, { ...fast, seed, onProgress: ignore }),
    planPlacement(problem, fast),
    planner.plan({ ...problem, slotsPerGpu: 1 }, fast).catch(ignore),
    planner.evaluate(problem, candidates),
    holdProblem(problem).then((held) => planPlacement(held, fast).finally(() => held.release())),
    holdProblem(larger).then((held) => held.release()),
    holdProblem(larger), // the garbage collector's
    aborted,
  ];
}

async function run(planner, plans) {
  for (let i = 0; i < plans; i += 9) await Promise.all(batch(planner, i));
}

async function residentMb() {
  for (let i = 0; i < 2; i++) {
    global.gc();
    await sleep(20); // finalizers run between turns of the loop
  }
  return process.memoryUsage.rss() / 2 ** 20;
}

async function main() {
  const planner = new Planner();
  await run(planner, WARM_UP);
  const before = await residentMb();
  await run(planner, PLANS - WARM_UP);
  console.log((await residentMb()) - before);
  planner.close();
}

main();
