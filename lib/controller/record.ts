/** What of a look is told: to listeners, in the log, and in the state file. */
import type { Finding } from './consider.js';
import type { ControllerStatus, DecisionRecord } from './types.js';

export type Told = Omit<DecisionRecord, 'atMs' | 'decision'>;

/** All but what came of it. */
export function toldOf({ decision, detail, plan, prospect, schedule, optimismMs }: Finding): Told {
  return {
    reason: decision.reason,
    ...(detail !== undefined && { detail }),
    ...(prospect !== undefined && {
      gainMs: prospect.incumbentMs - prospect.candidateMs,
      spreadMs: prospect.spreadMs,
      costMs: prospect.costMs,
      gainShare: gainShare(prospect),
    }),
    ...(optimismMs !== undefined && { optimismMs }),
    ...(plan !== undefined && { migrations: plan.migrations }),
    ...(schedule !== undefined && {
      rounds: schedule.rounds,
      transferBytes: schedule.transferBytes ?? 0,
      stagingBytes: schedule.stagingBytes ?? 0,
    }),
  };
}

export function gainShare({
  incumbentMs,
  candidateMs,
}: {
  incumbentMs: number;
  candidateMs: number;
}): number {
  return incumbentMs === 0 ? 0 : (incumbentMs - candidateMs) / incumbentMs;
}

/** Of a look that planned. */
export function previewOf({ decision, prospect }: Finding): ControllerStatus['preview'] {
  if (prospect === undefined) return undefined;
  const { incumbentMs, candidateMs, costMs, migrations } = prospect;
  const gainMs = incumbentMs - candidateMs;
  return { gainMs, gainShare: gainShare(prospect), costMs, migrations, reason: decision.reason };
}
