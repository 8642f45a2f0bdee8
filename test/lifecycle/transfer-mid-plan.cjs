/**
 * Buffers that are transferred away, and overwritten by their new owner, while a plan runs. A planner that has its memory
 * ready copies within the call, so the plan must not notice; a cold one comes back for the arrays, and must say that they
 * are gone. Neither may read memory that is no longer ours.
 */
'use strict';

const assert = require('node:assert/strict');
const { Planner, planPlacement, makeProblem, script } = require('./support.cjs');

const SHAPE = { layers: 20, experts: 128, gpus: 32, slotsPerGpu: 5 };
const OPTIONS = { effort: 'fast', rounds: 1 };

function takeAway(array) {
  const [taken] = structuredClone([array.buffer], { transfer: [array.buffer] });
  new Uint8Array(taken).fill(255);
}

async function main() {
  const planner = new Planner();
  const expected = await planner.plan(makeProblem(SHAPE), OPTIONS);

  for (let i = 0; i < 5; i++) {
    const problem = makeProblem(SHAPE);
    const promise = planner.plan(problem, OPTIONS);
    takeAway(problem.tokens);
    const plan = await promise;
    assert.deepEqual(plan.physicalToLogical, expected.physicalToLogical);
    assert.equal(plan.objective, expected.objective);
  }

  const problem = makeProblem(SHAPE);
  const promise = planPlacement(problem, OPTIONS);
  takeAway(problem.tokens);
  await assert.rejects(promise, { code: 'GIMBAL_INVALID_INPUT', field: 'tokens', received: /detached/ });

  // An incumbent and candidates go the same way.
  const again = { ...makeProblem(SHAPE), incumbent: expected.physicalToLogical.slice() };
  const second = planner.plan(again, OPTIONS);
  takeAway(again.incumbent);
  takeAway(again.tokens);
  await second.catch((error) => assert.equal(error.field, 'incumbent'));
  const candidates = expected.physicalToLogical.slice();
  const evaluation = planner.evaluate(makeProblem(SHAPE), candidates);
  takeAway(candidates);
  await assert.rejects(evaluation, { code: 'GIMBAL_INVALID_INPUT', field: /^candidates/ });
  assert.equal((await planner.plan(makeProblem(SHAPE), OPTIONS)).objective, expected.objective);
}

script(main);
