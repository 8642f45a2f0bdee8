/** The dispatch benches. */
import type { Bench } from '../harness.js';
import * as backlog from './backlog.js';
import * as cached from './cached.js';
import * as scores from './scores.js';
import * as speed from './speed.js';

export const dispatchBenches: Bench[] = [backlog, speed, scores, cached];
