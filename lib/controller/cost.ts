/**
 * What a change costs the engines, ms. A round of the schedule takes as long as one expert over one link. Under `stall` the engines
 * wait for all rounds, and for each layer in which something moves. Under `overlap` the rounds take 1 / linkShare as long, and
 * meanwhile communication, commShare of the MoE time, takes 1 / (1 − linkShare) as long:
 *
 *   rounds · roundMs / linkShare · commShare · (1 / (1 − linkShare) − 1)  =  rounds · roundMs · commShare / (1 − linkShare)
 */
import type { MigrationSchedule } from '../migration.js';
import type { MigrationCosts } from './types.js';

const BYTES_PER_MS_AT_1_GBPS = 1e6;

/** Of one expert. */
export function roundMs({ expertBytes, linkGBps }: Required<MigrationCosts>): number {
  return expertBytes / (linkGBps * BYTES_PER_MS_AT_1_GBPS);
}

export function changeMs(
  costs: Required<MigrationCosts>,
  schedule: MigrationSchedule,
  commShare: number,
): number {
  const { transfer, linkShare, stallMs, layerStallMs } = costs;
  const layers = new Set([...schedule.transfers.layer, ...schedule.storageLoads.layer]).size;
  if (layers === 0) return 0;
  const linksMs = schedule.rounds * roundMs(costs);
  return transfer === 'stall'
    ? stallMs + layers * layerStallMs + linksMs
    : stallMs + (linksMs * commShare) / (1 - linkShare);
}
