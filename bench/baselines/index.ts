/** The rivals of the planner, for tests and benches only. */
export {
  type AnnealOptions,
  type AnnealResult,
  type AnnealTracePoint,
  annealer,
  annealLayer,
} from './annealer.js';
export { eplbGlobal, eplbHierarchical, type HierarchicalOptions } from './eplb.js';
export { contiguous, random } from './simple.js';
export { type SwapOptions, topologyAwareSwap } from './swap.js';
