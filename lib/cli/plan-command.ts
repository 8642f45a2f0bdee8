/** `gimbal plan`: read, plan, compare, write. */
import { constants } from 'node:fs';
import { access, stat } from 'node:fs/promises';
import path from 'node:path';
import {
  encodePlacement,
  type PlacementFormat,
  placementFormats,
  writePlacement,
} from '../export/placement.js';
import { writeFileAtomic } from '../files.js';
import { planPlacement } from '../planner.js';
import type { ReportInput } from '../report/data.js';
import { renderReport } from '../report/html.js';
import type { Effort, PlacementProblem, Plan, PlanOptions } from '../types.js';
import { type Before, figuresBefore, figuresOf } from './before.js';
import type { Context } from './context.js';
import { RemediedError, UsageError } from './exit.js';
import { planJson, toJson } from './json.js';
import { type BudgetOption, exportFormats, type SlotsOption } from './options.js';
import { write } from './output.js';
import {
  type LoadedProblem,
  loadProblem,
  needIncumbent,
  type ProblemOptions,
  slotsPerGpu,
} from './problem.js';
import { Progress } from './progress.js';
import { planText } from './text.js';

export interface PlanCommandOptions extends ProblemOptions {
  slots?: SlotsOption;
  budget?: BudgetOption;
  allowDuplicates?: boolean;
  effort: Effort;
  walkers?: number;
  rounds?: number;
  seed?: number | bigint;
  timeLimit?: number;
  out?: string;
  format?: PlacementFormat;
  report?: string;
  json?: boolean;
  progress?: boolean;
}

const STDOUT = '-';

export async function planCommand(options: PlanCommandOptions, context: Context): Promise<void> {
  checkTogether(options);
  await checkWritable(options);
  const loaded = await loadProblem(options, context.signal);
  const { problem, notes } = planProblem(loaded, options);
  if (options.out !== undefined) checkExpressible(formatOf(options), problem);
  const plan = await planWithProgress(problem, options, context);
  const report = await makeReport(plan, problem, loaded, notes, options, context);
  // Everything that can fail for its content is made before anything is written.
  const html = options.report === undefined ? undefined : renderReport(report);
  context.signal.throwIfAborted();
  await writePlan(options, report, loaded, context);
  if (html !== undefined) await writeFileAtomic(options.report!, html);
  await tellPlan(options, report, context);
}

function checkTogether(options: PlanCommandOptions): void {
  if (options.budget !== undefined) needIncumbent('--budget', options);
  if (options.format !== undefined && options.out === undefined) {
    throw new UsageError(
      '--format needs --out',
      'e.g. --format sglang --out placement.json; --out - is stdout',
    );
  }
  if (options.json && options.out === STDOUT) {
    throw new UsageError(
      '--json and --out - both write to stdout',
      'give --out a file name, or leave --json away',
    );
  }
  if (options.report === STDOUT)
    throw new UsageError('--report takes a file name', 'e.g. --report plan.html');
}

/** A folder that is missing is better told before a search than after it. */
async function checkWritable({ out, report }: PlanCommandOptions): Promise<void> {
  for (const [option, file] of Object.entries({ '--out': out, '--report': report })) {
    if (file === undefined || file === STDOUT) continue;
    const folder = path.dirname(file);
    try {
      if (!(await stat(folder)).isDirectory()) throw new Error(`${folder} is not a folder`);
      await access(folder, constants.W_OK);
    } catch (cause) {
      const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
      const reason = missing ? `there is no folder ${folder}` : `${folder} cannot be written to`;
      throw new RemediedError('GIMBAL_IO', `${option} ${file}: ${reason}`, {
        field: option,
        cause,
        ...(missing ? { remedy: `make it first: mkdir -p ${folder}` } : {}),
      });
    }
  }
}

function planProblem(
  loaded: LoadedProblem,
  options: PlanCommandOptions,
): { problem: PlacementProblem; notes: string[] } {
  const { slotsPerGpu: slots, note } = slotsPerGpu(options.slots, loaded);
  const problem: PlacementProblem = { ...loaded.base, slotsPerGpu: slots };
  if (options.allowDuplicates) problem.allowDuplicates = true;
  if (options.budget !== undefined) problem.migrationBudget = budgetOf(options.budget, problem);
  return { problem, notes: note === undefined ? loaded.notes : [...loaded.notes, note] };
}

function budgetOf(budget: BudgetOption, { layers, gpus, slotsPerGpu }: PlacementProblem): number {
  return 'pairs' in budget ? budget.pairs : Math.floor(budget.share * layers * gpus * slotsPerGpu);
}

/** As asked, else as the file's extension says, where only one format has it. */
function formatOf({ format, out }: PlanCommandOptions): PlacementFormat {
  const extension = path.extname(out ?? '').toLowerCase();
  const byExtension: Record<string, PlacementFormat> = {
    '.npy': 'npy',
    '.npz': 'eplb',
    '.yaml': 'tensorrt-llm',
    '.yml': 'tensorrt-llm',
  };
  return format ?? byExtension[extension] ?? 'json';
}

/** What a format cannot say is known before the search, and better told then. */
function checkExpressible(format: PlacementFormat, problem: PlacementProblem): void {
  if (problem.deadGpus?.length && !placementFormats[format].expressesEmptySlots) {
    const able = exportFormats().filter((name) => placementFormats[name].expressesEmptySlots);
    throw new UsageError(
      `--format ${format} cannot express the empty slots of --dead-gpus: its engine wants an expert in every slot`,
      `${able.join(' and ')} can; or plan for a --topology without the dead GPUs`,
    );
  }
  if (format === 'tensorrt-llm' && problem.layerIds === undefined) {
    throw new UsageError(
      '--format tensorrt-llm needs the model layer of each row, by which the engine finds it, and the counts do not tell',
      'give --model with the model whose MoE layers the counts are of, or counts with layer numbers',
    );
  }
}

async function planWithProgress(
  problem: PlacementProblem,
  options: PlanCommandOptions,
  { output, signal }: Context,
): Promise<Plan> {
  const progress = new Progress(output.stderr, 'planning', options.progress);
  const planOptions: PlanOptions = {
    backend: options.backend,
    effort: options.effort,
    signal,
    onProgress: progress.update,
    ...(options.walkers === undefined ? {} : { walkers: options.walkers }),
    ...(options.rounds === undefined ? {} : { rounds: options.rounds }),
    ...(options.seed === undefined ? {} : { seed: options.seed }),
    ...(options.threads === undefined ? {} : { threads: options.threads }),
    ...(options.timeLimit === undefined ? {} : { timeLimitMs: options.timeLimit }),
  };
  try {
    return await planPlacement(problem, planOptions);
  } finally {
    progress.finish();
  }
}

async function makeReport(
  plan: Plan,
  problem: PlacementProblem,
  loaded: LoadedProblem,
  notes: string[],
  options: PlanCommandOptions,
  { signal, version, command }: Context,
): Promise<ReportInput> {
  const { nodes, gpusPerNode } = loaded.cluster.topology;
  const evaluate = {
    signal,
    backend: options.backend,
    ...(options.threads === undefined ? {} : { threads: options.threads }),
  };
  const before: Before = await figuresBefore(problem, loaded.incumbent, gpusPerNode, evaluate);
  const planned = { ...problem, physicalToLogical: plan.physicalToLogical };
  const after = await figuresOf('plan', problem, planned, gpusPerNode, evaluate);
  return {
    version,
    command,
    createdAt: new Date(),
    subject: loaded.subject,
    hardware: loaded.cluster.hardware,
    problem,
    nodes,
    gpusPerNode,
    effort: options.effort,
    plan,
    before: before.figures,
    beforeKind: before.kind,
    after,
    notes: before.note === undefined ? notes : [...notes, before.note],
  };
}

async function writePlan(
  options: PlanCommandOptions,
  { plan, problem, version }: ReportInput,
  loaded: LoadedProblem,
  context: Context,
): Promise<void> {
  if (options.out === undefined) return;
  const placement = {
    layers: problem.layers,
    gpus: problem.gpus,
    slotsPerGpu: problem.slotsPerGpu,
    experts: problem.experts,
    physicalToLogical: plan.physicalToLogical,
    ...(problem.layerIds === undefined ? {} : { layerIds: problem.layerIds }),
    ...(loaded.modelLayers === undefined ? {} : { modelLayers: loaded.modelLayers }),
    metadata: { generator: `gimbal-moe ${version}` },
  };
  const format = formatOf(options);
  if (options.out === STDOUT) await write(context.output.stdout, encodePlacement(placement, format));
  else await writePlacement(options.out, placement, format);
}

async function tellPlan(
  options: PlanCommandOptions,
  report: ReportInput,
  { output }: Context,
): Promise<void> {
  const written = writtenFiles(options);
  if (options.json) {
    await write(output.stdout, toJson(planJson(report, written)));
    return;
  }
  const lines = Object.entries(written).map(([what, file]) => `Wrote the ${what} to ${file}.\n`);
  if (options.out !== undefined)
    lines.push(`Format ${formatOf(options)}, loaded by ${placementFormats[formatOf(options)].loadedBy}.\n`);
  // With the placement on stdout, the words go beside it.
  const stream = options.out === STDOUT ? output.stderr : output.stdout;
  await write(stream, planText(report) + lines.join(''));
}

function writtenFiles(options: PlanCommandOptions): Record<string, string> {
  return {
    ...(options.out === undefined || options.out === STDOUT ? {} : { placement: options.out }),
    ...(options.report === undefined ? {} : { report: options.report }),
  };
}
