/** The placement benches, in the order in which a reader asks. */
import type { Bench } from '../harness.js';
import * as anytime from './anytime.js';
import * as drift from './drift.js';
import * as esft from './esft.js';
import * as flashlb from './flashlb.js';
import * as latency from './latency.js';
import * as migration from './migration.js';
import * as optimum from './optimum.js';
import * as scaling from './scaling.js';
import * as suite from './suite.js';

export const placementBenches: Bench[] = [
  suite,
  optimum,
  anytime,
  flashlb,
  esft,
  drift,
  migration,
  latency,
  scaling,
];
