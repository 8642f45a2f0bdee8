/** Workers that are terminated while several of their plans run, at every stage; then a plan here, to see that all is well. */
'use strict';

const { Worker, isMainThread } = require('node:worker_threads');
const {
  planPlacement,
  evaluatePlacements,
  makeProblem,
  contiguous,
  LONG,
  LONG_SHAPE,
  SMALL,
  script,
  sleep,
} = require('./support.cjs');

const ROUNDS = 12;

function keepPlanning() {
  const ignore = () => {};
  for (let i = 0; i < 6; i++) {
    const options = { effort: 'thorough', threads: 1, onProgress: ignore };
    planPlacement(LONG, options).catch(ignore);
  }
  evaluatePlacements(LONG, Array(50).fill(contiguous(LONG_SHAPE))).catch(ignore);
  const small = makeProblem(SMALL);
  const again = () => planPlacement(small, { effort: 'fast' }).then(again, ignore);
  again();
}

async function main() {
  for (let round = 0; round < ROUNDS; round++) {
    const worker = new Worker(__filename);
    await new Promise((resolve) => worker.once('online', resolve));
    // From before the addon is loaded to well into the plans.
    await sleep(round * 60);
    await worker.terminate();
  }
  const plan = await planPlacement(makeProblem(SMALL), { effort: 'fast' });
  if (plan.layers.length !== SMALL.layers) throw new Error('the plan after the workers is wrong');
}

if (isMainThread) script(main);
else keepPlanning();
