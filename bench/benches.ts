/** All benches, in the order in which they run. */
import { dispatchBenches } from './dispatch/index.js';
import { gatewayBenches } from './gateway/index.js';
import { gpuBenches } from './gpu/index.js';
import type { Bench } from './harness.js';
import { placementBenches } from './placement/index.js';
import { simulatorBenches } from './simulator/index.js';
import { statisticsBenches } from './statistics/index.js';

export const BENCHES: readonly Bench[] = [
  ...placementBenches,
  ...gpuBenches,
  ...dispatchBenches,
  ...gatewayBenches,
  ...simulatorBenches,
  ...statisticsBenches,
];
