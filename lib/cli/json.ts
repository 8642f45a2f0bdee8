/**
 * The JSON documents of `--json`. Field names are those of the library where it has them; times are ns, shares lie in 0..1,
 * and what JSON cannot write (an infinite gap) is null. docs/CLI.md describes each document.
 */
import { objectiveOf, type ReportInput } from '../report/data.js';
import type { PlacementFigures } from '../report/figures.js';

export function toJson(document: unknown): string {
  return `${JSON.stringify(document, jsonValue, 2)}\n`;
}

/** A bigint seed keeps its digits as a string. */
function jsonValue(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? value.toString() : value;
}

export function figuresJson({ name, gpus, slotsPerGpu, totals, layers }: PlacementFigures): unknown {
  return { name, gpus, slotsPerGpu, totals, layers };
}

export function problemJson(
  report: Pick<ReportInput, 'problem' | 'nodes' | 'gpusPerNode' | 'subject' | 'hardware'>,
): unknown {
  const { problem } = report;
  const { weights, replicaChoice } = objectiveOf(problem);
  return {
    subject: report.subject,
    hardware: report.hardware ?? null,
    layers: problem.layers,
    sources: problem.sources,
    experts: problem.experts,
    gpus: problem.gpus,
    slotsPerGpu: problem.slotsPerGpu,
    nodes: report.nodes ?? null,
    gpusPerNode: report.gpusPerNode ?? null,
    replicaChoice,
    weights,
    migrationCost: problem.migrationCost ?? 0,
    migrationBudget: problem.migrationBudget ?? null,
    deadGpus: problem.deadGpus ?? [],
    layerIds: problem.layerIds === undefined ? null : [...problem.layerIds],
  };
}

export function planJson(report: ReportInput, written: Record<string, string>): unknown {
  const { plan, problem } = report;
  const { physicalToLogical, replicaCount: _, ...figures } = plan;
  const width = problem.gpus * problem.slotsPerGpu;
  return {
    version: report.version,
    command: report.command,
    problem: problemJson(report),
    notes: report.notes,
    before: { kind: report.beforeKind, ...(figuresJson(report.before) as object) },
    after: figuresJson(report.after),
    plan: { ...figures, effort: report.effort },
    /** `[layers][gpus * slotsPerGpu]` */
    physicalToLogical: Array.from({ length: problem.layers }, (_row, layer) =>
      Array.from(physicalToLogical.subarray(layer * width, (layer + 1) * width)),
    ),
    written,
  };
}
