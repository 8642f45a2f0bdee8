/** The benches of the simulator. */
import type { Bench } from '../harness.js';
import * as affinity from './affinity.js';
import * as beyond from './beyond.js';
import * as closedLoop from './closed-loop.js';
import * as paper from './paper.js';
import * as redundancy from './redundancy.js';
import * as speed from './speed.js';
import * as spread from './spread.js';
import * as validation from './validation.js';

export const simulatorBenches: Bench[] = [
  validation,
  paper,
  beyond,
  spread,
  closedLoop,
  affinity,
  redundancy,
  speed,
];
