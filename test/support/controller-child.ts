/**
 * A controller that kills its own process, as a process: before or after the nth time that the state is replaced, or around the hook. The
 * engines are a folder: what is in force is in `in-force.json`. Arguments: the folder, the step, and `before` or `after` it.
 */
import fs from 'node:fs';
import path from 'node:path';
import type { ApplyHook } from '../../lib/index.js';
import { rig } from './controller.js';

const [folder = '', stepText, edge] = process.argv.slice(2);
const fatal = Number(stepText);
let step = 0;

function die(): never {
  process.kill(process.pid, 'SIGKILL');
  throw new Error('unreachable');
}

/** Counts a step, and dies at its edge where it is the one. */
async function around<T>(work: () => Promise<T>): Promise<T> {
  step += 1;
  const isFatal = step === fatal;
  if (isFatal && edge === 'before') die();
  const result = await work();
  if (isFatal) die();
  return result;
}

// The compiled modules look the function up at each call.
const promises = require('node:fs/promises') as { rename: typeof fs.promises.rename };
const { rename } = promises;
promises.rename = (from, to) => {
  return String(to) === path.join(folder, 'state') ? around(() => rename(from, to)) : rename(from, to);
};

const inForce = path.join(folder, 'in-force.json');
const apply: ApplyHook = {
  apply: (change) =>
    around(async () => {
      const { planId, placement } = change;
      fs.appendFileSync(path.join(folder, 'asked'), `${planId}\n`);
      fs.writeFileSync(inForce, JSON.stringify({ planId, placement: Array.from(placement) }));
    }),
  verify: async () =>
    fs.existsSync(inForce) ? JSON.parse(fs.readFileSync(inForce, 'utf8')).planId : undefined,
};

async function main(): Promise<void> {
  const controller = rig({ apply, stateFile: path.join(folder, 'state') }).controller;
  await controller.start();
  await controller.look();
  await controller.stop();
  process.stdout.write(`${step}\n`);
}

void main();
