/** What a state file must hold, placements still as text. */
import { z } from 'zod';
import type { DecisionRecord } from './types.js';

const whole = z.number().int().nonnegative();
/** Wall-clock ms; finite, but for the rest anything: clocks jump. */
const instant = z.number();
const placement = z.object({
  planId: z.string().min(1),
  placement: z.string(),
  gpus: whole.min(1),
  slotsPerGpu: whole.min(1),
  /** When it was planned. */
  deadGpus: z.array(whole),
  /** MoE time over its lower bound; not known of the first placement. */
  score: z.number().positive().optional(),
});
export const stateSchema = z.object({
  layers: whole.min(1),
  experts: whole.min(1),
  /** Names of plans are this and a number, so that they are not used again where a state is lost. */
  series: z.string().regex(/^[0-9a-f]{8}$/),
  lastPlan: whole,
  /** Of the lease under which this was written. */
  fencingToken: whole,
  deadGpus: z.array(whole),
  failures: whole,
  failedAtMs: instant.optional(),
  committed: placement.extend({ atMs: instant }),
  change: placement
    .extend({
      step: z.enum(['intent', 'applying', 'rolling-back']),
      forced: z.boolean(),
      migrations: whole,
      gainShare: z.number(),
      /** Times that a rollback has failed. */
      tries: whole,
    })
    .optional(),
  decisions: z.array(z.custom<DecisionRecord>((value) => typeof value === 'object' && value !== null)),
  history: z.array(z.object({ planId: z.string(), atMs: instant, migrations: whole, gainShare: z.number() })),
});
