/** The benches of the routing statistics. */
import type { Bench } from '../harness.js';
import * as prior from './prior.js';
import * as speed from './speed.js';

export const statisticsBenches: Bench[] = [speed, prior];
