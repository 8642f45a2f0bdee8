/**
 * A report in sentences, for the head of the HTML page, and the line that says what was planned.
 */
import { liveSlots, type ReportInput } from './data.js';
import { formatChange, formatCount, formatRatio, formatShare, formatTime, plural } from './format.js';

export function shapeSentence(input: ReportInput): string {
  const { problem } = input;
  const slots = problem.gpus * problem.slotsPerGpu;
  const nodes = input.nodes === undefined ? '' : ` on ${plural(input.nodes, 'node')}`;
  return [
    `${plural(problem.layers, 'layer')} × ${plural(problem.experts, 'expert')}`,
    `${formatCount(slots)} slots (${formatCount(problem.slotsPerGpu)} a GPU)`,
    `${plural(problem.gpus, 'GPU')}${nodes}`,
    plural(problem.sources, 'source DP rank'),
  ].join(', ');
}

export function summarySentences(input: ReportInput): string[] {
  return [balanceSentence(input), trafficSentence(input), objectiveSentence(input), movesSentence(input)];
}

function balanceSentence({ before, after, beforeKind }: ReportInput): string {
  const layers = after.layers.length;
  const mean = layers === 1 ? '' : ` (mean over ${plural(layers, 'layer')})`;
  const worst =
    layers === 1
      ? ''
      : ` In the worst layer, ${after.totals.worstLayer}, it is ${formatRatio(after.totals.imbalanceWorst)}×; before, in layer ${before.totals.worstLayer}, it was ${formatRatio(before.totals.imbalanceWorst)}×.`;
  return `Compared with ${beforeKind}, the busiest GPU carries ${formatRatio(after.totals.imbalanceMean)}× the mean load instead of ${formatRatio(before.totals.imbalanceMean)}×${mean}.${worst}`;
}

function trafficSentence({ before, after, nodes }: ReportInput): string {
  const from = before.totals;
  const to = after.totals;
  const communication = `The busiest GPU's communication goes from ${formatTime(from.commMax)} to ${formatTime(to.commMax)} (${formatChange(from.commMax, to.commMax)}).`;
  if (nodes !== 1 && from.crossNodeShare !== null && to.crossNodeShare !== null) {
    return `${formatShare(to.crossNodeShare)} of tokens cross nodes instead of ${formatShare(from.crossNodeShare)}. ${communication}`;
  }
  return `${formatShare(to.remoteShare)} of tokens leave their source's GPUs instead of ${formatShare(from.remoteShare)}. ${communication}`;
}

function objectiveSentence({ before, plan }: ReportInput): string {
  const from = before.totals.objective;
  const change = `The predicted time J goes from ${formatTime(from)} to ${formatTime(plan.objective)} (${formatChange(from, plan.objective)}).`;
  if (!(plan.lowerBound > 0)) return `${change} No lower bound above 0 is proved for this problem.`;
  return `${change} No placement costs less than ${formatTime(plan.lowerBound)}, so the plan is at most ${formatShare(plan.gap)} above the optimum.`;
}

function movesSentence({ plan, problem }: ReportInput): string {
  if (problem.incumbent === undefined) return 'No incumbent was given, so moves are not counted.';
  const slots = liveSlots(problem);
  const forced = plan.forcedMigrations === 0 ? '' : `, ${formatCount(plan.forcedMigrations)} of them forced`;
  const budget =
    problem.migrationBudget === undefined ? '' : ` The budget was ${formatCount(problem.migrationBudget)}.`;
  return `${formatCount(plan.migrations)} of ${formatCount(slots)} slots take an expert that their GPU did not hold (${formatShare(plan.migrations / slots)}${forced}).${budget}`;
}
