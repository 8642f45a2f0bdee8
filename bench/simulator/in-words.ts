/** What tables of simulations say of an estimate. */
import type { Estimate } from '../../lib/simulator/compare.js';
import { percent } from '../harness.js';

/** A share or a change with half its 95 % interval, where there is one. */
export function inWords({ mean, half }: Estimate): string {
  return `${percent(mean, 1)}${Number.isNaN(half) ? '' : ` ± ${percent(half, 1)}`}`;
}
