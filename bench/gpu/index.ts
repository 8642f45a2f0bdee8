/** The benches of the CUDA backend: what can be told without a GPU, and what a GPU measures. */
import type { Bench } from '../harness.js';
import * as kernels from './kernels.js';
import * as latency from './latency.js';

export const gpuBenches: Bench[] = [kernels, latency];
