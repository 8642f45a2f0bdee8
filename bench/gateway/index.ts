/** The benches of the gateway. */
import type { Bench } from '../harness.js';
import * as overhead from './overhead.js';

export const gatewayBenches: Bench[] = [overhead];
