/**
 * Another thread scribbles over shared tokens, incumbent and candidates while they are planned with. The answers mean
 * nothing then, but each is either a valid placement of whatever was copied, or a typed error; never a crash.
 */
'use strict';

const assert = require('node:assert/strict');
const { Worker, isMainThread, workerData } = require('node:worker_threads');

const SHAPE = { layers: 8, experts: 64, gpus: 16, slotsPerGpu: 5 };

function scribble({ tokens, incumbent, stop }) {
  let state = 1;
  while (Atomics.load(stop, 0) === 0) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    tokens[state % tokens.length] = state >>> 12;
    incumbent[state % incumbent.length] = state % 3 === 0 ? state : state % SHAPE.experts;
  }
}

async function main() {
  const { GimbalError, Planner, makeProblem, contiguous, shared } = require('./support.cjs');
  const problem = makeProblem(SHAPE);
  const tokens = shared(problem.tokens);
  const incumbent = shared(contiguous(SHAPE));
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(__filename, { workerData: { tokens, incumbent, stop } });
  await new Promise((resolve) => worker.once('online', resolve));
  const planner = new Planner();
  const refused = (error) => {
    assert.ok(error instanceof GimbalError, error);
    assert.notEqual(error.code, 'GIMBAL_INTERNAL', error);
  };
  for (let i = 0; i < 40; i++) {
    await planner.plan({ ...problem, tokens, incumbent }, { effort: 'fast', seed: i }).then((plan) => {
      for (const expert of plan.physicalToLogical) assert.ok(expert >= 0 && expert < SHAPE.experts);
    }, refused);
    await planner.evaluate({ ...problem, tokens }, incumbent).catch(refused);
  }
  Atomics.store(stop, 0, 1);
  await worker.terminate();
}

if (isMainThread) require('./support.cjs').script(main);
else scribble(workerData);
