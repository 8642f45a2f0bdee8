/** The reports as text for a terminal: a line a layer, then the sums, so that what matters stands last. */
import type { ReportInput } from '../report/data.js';
import { liveSlots } from '../report/data.js';
import type { PlacementFigures } from '../report/figures.js';
import {
  formatChange,
  formatCount,
  formatNumber,
  formatPoints,
  formatRatio,
  formatShare,
  formatTime,
  plural,
  timeUnit,
} from '../report/format.js';
import { shapeSentence } from '../report/summary.js';
import { table } from './table.js';

export function planText(report: ReportInput): string {
  const notes = report.notes.map((note) => `  note: ${note}\n`).join('');
  return `${report.subject}: ${shapeSentence(report)}\n${notes}\n${layersText(report)}\n${totalsText(report)}\n${searchLine(report)}`;
}

/** The share of tokens that a cluster pays most for: across nodes, or off the GPU where there is one node. */
function farShare(report: ReportInput): { label: string; of: (figures: FarFigures) => number } {
  const known = report.before.totals.crossNodeShare !== null && report.after.totals.crossNodeShare !== null;
  return known && report.nodes !== 1
    ? { label: 'cross-node', of: (figures) => figures.crossNodeShare ?? 0 }
    : { label: 'off-GPU', of: (figures) => figures.remoteShare };
}

interface FarFigures {
  crossNodeShare: number | null;
  remoteShare: number;
}

function layersText(report: ReportInput): string {
  const { before, after, plan } = report;
  const far = farShare(report);
  const [scale, unit] = timeUnit(Math.max(...before.layers.map((layer) => layer.objective), 0));
  const time = (ns: number) => formatNumber(ns / scale);
  const head = [
    'layer',
    'imbalance',
    far.label,
    `comm. max ${unit}`,
    `J ${unit}`,
    `bound ${unit}`,
    'gap',
    'moves',
  ];
  const rows = plan.layers.map((planned, index) => {
    const was = before.layers[index]!;
    const is = after.layers[index]!;
    return [
      String(is.layer),
      `${formatRatio(was.imbalance)} → ${formatRatio(is.imbalance)}`,
      `${formatShare(far.of(was))} → ${formatShare(far.of(is))}`,
      `${time(was.commMax)} → ${time(is.commMax)}`,
      `${time(was.objective)} → ${time(planned.objective)}`,
      time(planned.lowerBound),
      formatShare(planned.gap),
      movesCell(report, planned.migrations),
    ];
  });
  return table([head, ...rows], { left: [] });
}

function movesCell(report: ReportInput, moves: number): string {
  return report.problem.incumbent === undefined ? '–' : formatCount(moves);
}

function totalsText(report: ReportInput): string {
  const { plan } = report;
  const was = report.before.totals;
  const is = report.after.totals;
  const far = farShare(report);
  const compared = (label: string, from: number, to: number, format: (value: number) => string) => [
    label,
    format(from),
    format(to),
    format === formatShare ? formatPoints(from, to) : formatChange(from, to),
  ];
  const rows = [
    ['', `before: ${report.beforeKind}`, 'after', 'change'],
    compared('imbalance (max/mean load), mean', was.imbalanceMean, is.imbalanceMean, formatRatio),
    compared('imbalance, worst layer', was.imbalanceWorst, is.imbalanceWorst, formatRatio),
    compared(`${far.label} share of tokens`, far.of(was), far.of(is), formatShare),
    compared('compute, busiest GPU', was.loadMax, is.loadMax, formatTime),
    compared('communication, busiest GPU', was.commMax, is.commMax, formatTime),
    compared('communication, mean of GPUs', was.commMean, is.commMean, formatTime),
    compared('predicted time J', was.objective, plan.objective, formatTime),
    ['lower bound on J', '', formatTime(plan.lowerBound), ''],
    ['gap to the bound', '', formatShare(plan.gap), ''],
    ['moves', '', movesTotal(report), ''],
  ];
  return table(rows);
}

function movesTotal(report: ReportInput): string {
  const { plan, problem } = report;
  if (problem.incumbent === undefined) return 'no incumbent';
  const slots = liveSlots(problem);
  const forced = plan.forcedMigrations > 0 ? `, ${formatCount(plan.forcedMigrations)} forced` : '';
  return `${formatCount(plan.migrations)} of ${formatCount(slots)} (${formatShare(plan.migrations / slots)}${forced})`;
}

function searchLine({ plan, effort }: ReportInput): string {
  const time = formatTime(plan.elapsedMs * 1e6);
  return `Planned in ${time} on ${plan.backend} (${plan.backendDetail}): effort ${effort}, ${plural(plan.walkers, 'walker')}, ${plural(plan.rounds, 'round')}, seed ${plan.seed}.\n`;
}

/** Placements side by side; the best of each figure is not marked: a glance finds it, and colour would not survive a pipe. */
export function evaluateText(
  subject: string,
  notes: readonly string[],
  placements: readonly PlacementFigures[],
  hasIncumbent: boolean,
): string {
  const crossNode = placements.every((placement) => placement.totals.crossNodeShare !== null);
  const rows = placements.map(({ name, totals }) => [
    name,
    formatTime(totals.objective),
    formatTime(totals.loadMax),
    formatTime(totals.commMax),
    formatTime(totals.commMean),
    `${formatRatio(totals.imbalanceMean)} / ${formatRatio(totals.imbalanceWorst)}`,
    formatShare(crossNode ? totals.crossNodeShare! : totals.remoteShare),
    hasIncumbent ? formatCount(totals.migrations) : '–',
  ]);
  const head = [
    'placement',
    'J',
    'compute max',
    'comm. max',
    'comm. mean',
    'imbalance mean / worst',
    crossNode ? 'cross-node' : 'off-GPU',
    'moves',
  ];
  const noteLines = notes.map((note) => `  note: ${note}\n`).join('');
  return `${subject}\n${noteLines}\n${table([head, ...rows])}`;
}
