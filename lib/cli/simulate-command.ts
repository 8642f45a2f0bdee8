/** `gimbal simulate`: what policies would do to a trace, as a table, JSON, an HTML page and a log of requests. */
import { writeFileAtomic } from '../files.js';
import { formatNumber, formatShare } from '../report/format.js';
import { renderSimulationReport } from '../report/simulation.js';
import {
  type ComparedPolicy,
  type ComparedRun,
  compareRuns,
  type FinishedRun,
  type Measure,
  measures,
  runMany,
} from '../simulator/compare.js';
import { findServedModel, findServingHardware, type ServedModel } from '../simulator/hardware.js';
import { findPolicy } from '../simulator/policies.js';
import { readRouting } from '../simulator/routing-files.js';
import { type LengthShape, syntheticTrace } from '../simulator/shapes.js';
import { readProfileTables } from '../simulator/tables.js';
import { atRate, readTrace, scaleArrivals, type TraceFormat } from '../simulator/traces.js';
import type {
  EngineSettings,
  SimulatedAllToAll,
  SimulatedRequest,
  SimulatedRouting,
  SimulationOptions,
} from '../simulator/types.js';
import type { ReplicaChoice } from '../types.js';
import type { Context } from './context.js';
import { UsageError } from './exit.js';
import { toJson } from './json.js';
import { write } from './output.js';
import { Progress } from './progress.js';
import { table } from './table.js';

export interface SimulateOptions {
  trace?: string;
  traceFormat?: TraceFormat;
  synthetic?: LengthShape;
  requests?: number;
  rate?: number;
  scaleArrivals?: number;
  model: string;
  hardware: string;
  dp: number;
  tp: number;
  ep?: number;
  nodes: number;
  maxNumSeqs?: number;
  maxNumBatchedTokens?: number;
  kvBlocks?: number;
  allToAll?: SimulatedAllToAll;
  replicaChoice?: ReplicaChoice;
  routing?: string[];
  sigma?: number;
  policy: string[];
  pacing?: true | number;
  redundantExperts?: number;
  rearrangeEvery?: number;
  profiles?: string;
  slo?: { ttftMs?: number; tpotMs?: number };
  seed: number;
  seeds: number;
  threads: number;
  log?: string;
  report?: string;
  json?: boolean;
  progress?: boolean;
}

const DEFAULT_REQUESTS = 2000;
const DEFAULT_RATE = 4;

export async function simulateCommand(options: SimulateOptions, context: Context): Promise<void> {
  const { output, signal } = context;
  const notes: string[] = [];
  const base = await commonOptions(options, signal);
  const traces = await tracesOf(options, notes, signal);
  const runs: ComparedRun[] = options.policy.flatMap((name) =>
    Array.from({ length: options.seeds }, (_, n) => {
      const seed = options.seed + n;
      const policy = { ...findPolicy(name), ...(name === 'gimbal' ? pacingOf(options) : {}) };
      return { policy: name, seed, options: { ...base, trace: traces(seed), policy, seed } };
    }),
  );
  const progress = new Progress(output.stderr, 'simulating', options.progress);
  let finished: FinishedRun[];
  try {
    finished = await runMany(runs, { threads: options.threads, signal, onProgress: progress.update });
  } finally {
    progress.finish();
  }
  notes.unshift(...finished[0]!.result.notes);
  if (options.log !== undefined) await writeLog(options.log, finished, runs);
  if (options.report !== undefined) {
    const subject = `${base.model} on ${base.hardware}`;
    const { version, command } = context;
    const reported = finished.map((run, n) => ({ ...run, trace: runs[n]!.options.trace }));
    const page = { version, command, createdAt: new Date(), subject, runs: reported, notes };
    await writeFileAtomic(options.report, renderSimulationReport(page));
  }
  const compared = compareRuns(finished);
  await write(
    output.stdout,
    options.json
      ? toJson(simulationJson(context, options, compared, finished, notes))
      : text(compared, notes),
  );
}

function pacingOf({ pacing }: SimulateOptions) {
  if (pacing === undefined) return {};
  return { pacing: pacing === true ? {} : { leastTokens: pacing } };
}

async function commonOptions(
  options: SimulateOptions,
  signal: AbortSignal,
): Promise<Omit<SimulationOptions, 'trace'>> {
  const { dp, tp, ep, nodes, maxNumSeqs, maxNumBatchedTokens, kvBlocks, allToAll, replicaChoice, slo } =
    options;
  const model = findServedModel(options.model);
  const engine: EngineSettings = {
    ...(maxNumSeqs === undefined ? {} : { maxNumSeqs }),
    ...(maxNumBatchedTokens === undefined ? {} : { maxNumBatchedTokens }),
    ...(kvBlocks === undefined ? {} : { kvBlocks }),
    ...(allToAll === undefined ? {} : { allToAll }),
    ...(replicaChoice === undefined ? {} : { replicaChoice }),
  };
  const { redundantExperts, rearrangeEvery } = options;
  return {
    model: model.name,
    hardware: findServingHardware(options.hardware).name,
    dp,
    tp,
    nodes,
    engine,
    ...(ep === undefined ? {} : { ep }),
    ...(slo === undefined ? {} : { slo }),
    routing: await routingOf(options, model, signal),
    rearrangement: {
      ...(redundantExperts === undefined ? {} : { redundantExperts }),
      ...(rearrangeEvery === undefined
        ? {}
        : { everySteps: rearrangeEvery, windowSteps: Math.max(1, Math.floor(rearrangeEvery / 3)) }),
    },
    ...(options.profiles === undefined
      ? {}
      : { tables: await readProfileTables(options.profiles, { model }) }),
  };
}

async function routingOf(
  { routing, sigma }: SimulateOptions,
  model: ServedModel,
  signal: AbortSignal,
): Promise<SimulatedRouting> {
  if (routing === undefined)
    return {
      kind: 'generative',
      ...(sigma === undefined ? {} : { sigmaTopics: sigma, sigmaExperts: sigma }),
    };
  if (sigma !== undefined) throw new UsageError('--sigma: not beside --routing, which brings its own');
  return readRouting(routing, model, signal);
}

/** The trace of a seed: recorded traffic is the same for all. */
async function tracesOf(
  options: SimulateOptions,
  notes: string[],
  signal: AbortSignal,
): Promise<(seed: number) => SimulatedRequest[]> {
  const { trace, synthetic, requests, rate, traceFormat } = options;
  if ((trace === undefined) === (synthetic === undefined)) {
    throw new UsageError(
      'either --trace or --synthetic says what arrives',
      'e.g. --trace requests.csv, or --synthetic random --requests 2000 --rate 4',
    );
  }
  if (trace === undefined) {
    notes.push(`traffic: synthetic, lengths of shape ${synthetic}`);
    return (seed) =>
      syntheticTrace({
        shape: synthetic!,
        requests: requests ?? DEFAULT_REQUESTS,
        requestsPerSecond: rate ?? DEFAULT_RATE,
        seed,
      });
  }
  const read = await readTrace(trace, {
    signal,
    ...(traceFormat === undefined ? {} : { format: traceFormat }),
    ...(requests === undefined ? {} : { limit: requests }),
  });
  notes.push(`traffic: ${trace} (${read.format}), ${read.requests.length} requests`, ...read.notes);
  let own = read.requests;
  if (rate !== undefined) own = atRate(own, rate);
  if (options.scaleArrivals !== undefined) own = scaleArrivals(own, options.scaleArrivals);
  return () => own;
}

function text(compared: readonly ComparedPolicy[], notes: readonly string[]): string {
  const names = Object.keys(measures) as Measure[];
  const rows = [
    ['', ...names.map((name) => (name.endsWith('/s') ? name : `${name}, ms`))],
    ...compared.flatMap(({ policy, values, changes }, n) => {
      const half = names.map((name) => values[name].half);
      return [
        [policy, ...names.map((name) => formatNumber(values[name].mean))],
        ...(half.some(Number.isNaN) ? [] : [['  ±', ...half.map(formatNumber)]]),
        ...(n === 0 ? [] : [['  change', ...names.map((name) => changeInWords(changes[name]))]]),
      ];
    }),
  ];
  const told = notes.map((note) => `note: ${note}\n`).join('');
  return `${table(rows)}\n${told}`;
}

function changeInWords({ mean, half }: { mean: number; half: number }): string {
  const sign = mean > 0 ? '+' : '';
  return `${sign}${formatShare(mean)}${Number.isNaN(half) ? '' : ` ± ${formatShare(half)}`}`;
}

function simulationJson(
  { version, command }: Context,
  options: SimulateOptions,
  compared: readonly ComparedPolicy[],
  finished: readonly FinishedRun[],
  notes: readonly string[],
): unknown {
  return {
    version,
    command,
    notes,
    policies: compared,
    runs: finished.map(({ policy, seed, result }) => {
      const { requests, ...rest } = result;
      return { policy, seed, ...rest, ...(options.log === undefined ? { requests } : {}) };
    }),
    written: { log: options.log ?? null, report: options.report ?? null },
  };
}

/** A line of JSON for each request of each run. */
async function writeLog(
  file: string,
  finished: readonly FinishedRun[],
  runs: readonly ComparedRun[],
): Promise<void> {
  const lines = finished.flatMap(({ policy, seed, result }, n) => {
    const { trace } = runs[n]!.options;
    return result.requests.map((one, id) => {
      const { inputTokens, outputTokens } = trace[id]!;
      return `${JSON.stringify({ policy, seed, request: id, inputTokens, outputTokens, ...one })}\n`;
    });
  });
  await writeFileAtomic(file, lines.join(''));
}
