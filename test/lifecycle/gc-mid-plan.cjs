/** Planners, held problems and arrays that are collected while their plans run. Needs --expose-gc. */
'use strict';

const assert = require('node:assert/strict');
const { Planner, holdProblem, planPlacement, makeProblem, script, sleep } = require('./support.cjs');

const SHAPE = { layers: 20, experts: 128, gpus: 32, slotsPerGpu: 5 };
const OPTIONS = { effort: 'fast', rounds: 2 };

async function collect() {
  for (let i = 0; i < 3; i++) {
    global.gc();
    await sleep(2);
  }
}

const fromForgottenPlanner = () => new Planner().plan(makeProblem(SHAPE), OPTIONS);

function fromClosedPlanner() {
  const planner = new Planner();
  const promise = planner.plan(makeProblem(SHAPE), OPTIONS);
  planner.close();
  return promise;
}

async function fromForgottenProblem() {
  return planPlacement(await holdProblem(makeProblem(SHAPE)), OPTIONS);
}

async function fromReleasedProblem() {
  const held = await holdProblem(makeProblem(SHAPE));
  const promise = planPlacement(held, OPTIONS);
  held.release();
  return promise;
}

async function main() {
  const expected = await planPlacement(makeProblem(SHAPE), OPTIONS);
  for (const start of [fromForgottenPlanner, fromClosedPlanner, fromForgottenProblem, fromReleasedProblem]) {
    const promises = [start(), start()];
    await collect();
    for (const plan of await Promise.all(promises)) {
      assert.deepEqual(plan.physicalToLogical, expected.physicalToLogical, start.name);
    }
    await collect();
  }
}

script(main);
