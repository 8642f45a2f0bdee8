/**
 * Prints what the first plan of a process costs the JS thread, in ms of processor time: nothing is warm then, and
 * copying 5.9 MB into memory that was never touched would cost several times what the copy does. Linux only.
 */
'use strict';

const fs = require('node:fs');
const { backends, planPlacement, makeProblem, KIMI_64 } = require('./support.cjs');

const cell = new Int32Array(new SharedArrayBuffer(4));

/** Processor time of this thread; the short sleep makes the kernel bring its books up to date. */
function processorMs() {
  Atomics.wait(cell, 0, 0, 0.2);
  return Number(fs.readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ')[0]) / 1e6;
}

async function main() {
  backends(); // loads the addon, which is not what this is about
  const problem = makeProblem(KIMI_64);
  for (let i = 0; i < 100; i++) await new Promise(setImmediate);
  processorMs();
  const before = processorMs();
  const promise = planPlacement(problem, { effort: 'fast', rounds: 1, walkers: 1 });
  const called = processorMs();
  await promise;
  console.log(JSON.stringify({ callMs: called - before, restMs: processorMs() - called }));
}

main();
