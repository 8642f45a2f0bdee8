/** What the lifecycle scripts share: the library from its sources, a problem, and one word at the end. */
'use strict';

require('tsx/cjs');
const gimbal = require('../../lib/index.ts');
const problems = require('../support/problems.ts');

/** Large enough that a thorough plan outlasts every script's patience. */
const LONG_SHAPE = { layers: 48, experts: 128, gpus: 16, slotsPerGpu: 10 };
const LONG = problems.makeProblem(LONG_SHAPE);

/** Runs the script; what it throws ends the process with 1, so that nothing passes by accident. */
function script(run) {
  run().then(
    () => console.log('ok'),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

module.exports = { ...gimbal, ...problems, LONG, LONG_SHAPE, script, sleep };
