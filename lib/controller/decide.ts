/**
 * Whether to rearrange: a pure function of what is predicted and of what has happened, so that the controller and the simulator
 * decide alike. Times are ms on the caller's clock.
 *
 * A rearrangement pays where the MoE time that it saves until the next one, less what that estimate may be wrong by, is more than
 * the time that moving experts takes; and it is worth the risk where the saving is not just noise around the score that the plan
 * in force was committed with.
 */
export interface DecisionRules {
  /** For how long a plan is taken to serve. Default 600,000. */
  horizonMs?: number;
  /** From one commit to the next look that may commit. Default 60,000. */
  minIntervalMs?: number;
  /** The gain must be this share of the incumbent's MoE time, 0…1. Default 0.01. */
  leastGainShare?: number;
  /** Standard deviations that are taken off the gain. Default 2. */
  certainty?: number;
  /** The incumbent's score must be past the committed one by this share, or the candidate's below it. Default 0.01. */
  hysteresis?: number;
  /**
   * What a move must save, as a share of the time of a layer whose experts' load is even: less than that is mostly noise, and is moved
   * back with the next plan. Part of the plan's price for a move. Default 0.01.
   */
  leastMoveShare?: number;
  /** Tokens that a source must have behind it on average, in every layer. Default 256. */
  leastTokens?: number;
  /** Statistics to which nothing has come for so long tell of another time. Default 120,000. */
  staleStatisticsMs?: number;
  /** After the first failure; doubles with each further one, up to `mostBackoffMs`. Defaults 30,000 and 3,600,000. */
  backoffMs?: number;
  mostBackoffMs?: number;
}

export const DECISION_DEFAULTS: Required<DecisionRules> = {
  horizonMs: 600_000,
  minIntervalMs: 60_000,
  leastGainShare: 0.01,
  certainty: 2,
  hysteresis: 0.01,
  leastMoveShare: 0.01,
  leastTokens: 256,
  staleStatisticsMs: 120_000,
  backoffMs: 30_000,
  mostBackoffMs: 3_600_000,
};

/** What the next placement promises against the one in force. */
export interface Prospect {
  /** MoE time over the horizon, ms: with the placement in force, and with the candidate. */
  incumbentMs: number;
  candidateMs: number;
  /** Standard deviation of their difference. */
  spreadMs: number;
  /** What moving costs the engines, ms. */
  costMs: number;
  /** MoE time over its proved lower bound, at least 1. */
  incumbentScore: number;
  candidateScore: number;
  /** New (expert, GPU) pairs. */
  migrations: number;
}

export interface DecisionHistory {
  /** Of the plan in force; not given where none has been committed. */
  committedAtMs?: number;
  committedScore?: number;
  /** In a row, the last of them at `failedAtMs`. */
  failures: number;
  failedAtMs?: number;
}

/** What a look may find before anything is planned. */
export interface Occasion {
  nowMs: number;
  /** Of a source on average, in the layer that has the fewest. Thin sources are shrunk towards the mean, and an idle one stops nothing. */
  tokens: number;
  /** Since the statistics last grew; 0 where that is not watched. */
  statisticsAgeMs?: number;
  /** GPUs have gone or come: experts may have lost their last replica, and nothing that takes time to find out is waited for. */
  gpusChanged: boolean;
}

export type DecisionReason =
  | 'gpus-changed'
  | 'gain'
  | 'backing-off'
  | 'too-soon'
  | 'too-little-data'
  | 'stale-statistics'
  | 'same-placement'
  | 'within-hysteresis'
  | 'gain-too-small'
  | 'gain-uncertain'
  | 'cost-above-gain'
  /** Costs no less than the placement in force on the newest counts. */
  | 'worse-on-audit'
  /** The engines say that another plan is in force than the one that was committed. */
  | 'not-in-force';

export interface Decision {
  rearrange: boolean;
  reason: DecisionReason;
}

/** What speaks against even making a plan now; undefined where nothing does. */
export function reasonToWait(
  rules: Required<DecisionRules>,
  { nowMs, tokens, gpusChanged, statisticsAgeMs = 0 }: Occasion,
  history: DecisionHistory,
): DecisionReason | undefined {
  const { committedAtMs } = history;
  if (isBackingOff(rules, nowMs, history)) return 'backing-off';
  if (gpusChanged) return undefined;
  if (committedAtMs !== undefined && nowMs - committedAtMs < rules.minIntervalMs) return 'too-soon';
  if (tokens < rules.leastTokens) return 'too-little-data';
  return statisticsAgeMs > rules.staleStatisticsMs ? 'stale-statistics' : undefined;
}

export function isBackingOff(
  { backoffMs, mostBackoffMs }: Required<DecisionRules>,
  nowMs: number,
  { failures, failedAtMs }: DecisionHistory,
): boolean {
  const waitMs = Math.min(mostBackoffMs, backoffMs * 2 ** (failures - 1));
  return failures > 0 && nowMs - failedAtMs! < waitMs;
}

/** Whether the candidate is worth its moves. */
export function decide(
  rules: Required<DecisionRules>,
  prospect: Prospect,
  { committedScore }: DecisionHistory,
  { gpusChanged }: Pick<Occasion, 'gpusChanged'>,
): Decision {
  if (gpusChanged) return { rearrange: true, reason: 'gpus-changed' };
  const { incumbentMs, candidateMs, spreadMs, costMs, migrations } = prospect;
  const no = (reason: DecisionReason): Decision => ({ rearrange: false, reason });
  const gainMs = incumbentMs - candidateMs;
  const sureMs = gainMs - rules.certainty * spreadMs;
  if (migrations === 0) return no('same-placement');
  if (committedScore !== undefined && isAsPromised(rules, prospect, committedScore))
    return no('within-hysteresis');
  if (gainMs < rules.leastGainShare * incumbentMs) return no('gain-too-small');
  if (sureMs <= 0) return no('gain-uncertain');
  return sureMs > costMs ? { rearrange: true, reason: 'gain' } : no('cost-above-gain');
}

/**
 * The plan in force still serves as well as it was committed for, and no other serves better than that. A score of other traffic, which
 * could not be served well, is no reason to stay once better is to be had.
 */
function isAsPromised(
  { hysteresis }: Required<DecisionRules>,
  { incumbentScore, candidateScore }: Prospect,
  committedScore: number,
): boolean {
  return (
    incumbentScore <= committedScore * (1 + hysteresis) && candidateScore * (1 + hysteresis) >= committedScore
  );
}
