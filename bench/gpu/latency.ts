/**
 * How long does the GPU take for a plan and for candidates, copies included, and how long the CPU for the same answer? Both
 * backends in one run, with every answer compared. Without a GPU the host execution layer plays one, for the shape of things
 * alone: the answers are compared, and no time is printed.
 */
import { execFileSync } from 'node:child_process';
import { backends, Planner } from '../../lib/index.js';
import type { DeviceInfo, Effort, Evaluation, PlacementProblem, Plan } from '../../lib/types.js';
import { random } from '../baselines/index.js';
import {
  type Check,
  type Findings,
  median,
  type RunOptions,
  type Table,
  totalObjective,
} from '../harness.js';
import { type EplbTiming, timeEplb } from '../placement/latency.js';
import { firstLayers, SHAPES, type Shape, skewedWorkload } from '../workloads.js';
import { hostlayerMissing, runOnHostlayer } from './hostlayer.js';
import { evaluationRoofline, type Throughput } from './model.js';

export const name = 'gpu-latency';
export const question = 'how long do plans and evaluations take on a GPU and on the CPU, copies included?';

interface Case {
  shape: Shape;
  nodes: number;
  efforts: Effort[];
}

/** The shapes of the other latency bench, and DeepSeek-V3 on 512 GPUs, beyond what shared memory holds. */
const CASES: Case[] = [
  { shape: SHAPES['qwen3-30b-144'], nodes: 1, efforts: ['fast', 'balanced'] },
  { shape: SHAPES['deepseek-v3-288'], nodes: 4, efforts: ['fast', 'balanced'] },
  { shape: SHAPES['kimi-k2-448'], nodes: 8, efforts: ['fast', 'balanced'] },
  {
    shape: {
      ...SHAPES['deepseek-v3-288'],
      name: 'DeepSeek-V3 58×256, 1,024 slots, 512 GPUs',
      gpus: 512,
      slotsPerGpu: 2,
    },
    nodes: 64,
    efforts: ['fast'],
  },
];
/** The shape and the walkers of a layer that the kernels' modelled time is stated for. */
const STATED = SHAPES['deepseek-v3-288'];
const WALKERS = 64;
const STATED_LIMIT_MS = 2;
const ROOFLINE_LIMIT = 2;
const CANDIDATES = [64, 512, 4096];
/** Candidates are drawn once and given again and again: drawing thousands would take longer than evaluating them. */
const DRAWN = 64;
const RUNS: Record<Effort, number> = { fast: 15, balanced: 5, thorough: 1 };

/** What is measured, and how much of it. */
interface Job {
  seed: number;
  cases: number;
  layers: number | undefined;
  /** The effort's number where undefined. */
  walkers: (number | undefined)[];
  efforts: number;
  candidates: number[];
  repeat: boolean;
}

interface PlanRow {
  shape: string;
  effort: Effort;
  walkers: number;
  same: boolean;
  cpuMs: number;
  cudaMs: number;
  cudaWorstMs: number;
  kernelMs: number;
  /** Of the first plan of the process, where this is it: the device's memory is got, kernels are loaded. */
  firstMs: number | undefined;
  eplbMs: number;
  overEplb: number;
}

interface EvaluationRow {
  shape: string;
  experts: number;
  slots: number;
  candidates: number;
  layers: number;
  same: boolean;
  cpuMs: number;
  cudaMs: number;
  kernelMs: number;
}

export interface Measured {
  /** The first look at the backends: the plug-in is opened, the driver started. */
  openMs: number;
  plans: PlanRow[];
  evaluations: EvaluationRow[];
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const began = performance.now();
  const cuda = backends().find((backend) => backend.name === 'cuda')!;
  const openMs = performance.now() - began;
  const device = cuda.devices?.[0];
  if (device !== undefined && !isPlayed(device)) {
    const measured = { openMs, ...(await measure(small ? smallJob(seed) : wholeJob(seed))) };
    return { ...figures(measured, device, small) };
  }
  const notes = [`No GPU here: ${cuda.reason ?? `${device?.name} is none`}. No time of a GPU is given.`];
  const missing = hostlayerMissing();
  if (missing !== undefined) {
    notes.push(`skipped: nothing is played on the CPU either, since ${missing}`);
    return { tables: [], checks: [], notes };
  }
  notes.push(
    'The host execution layer played the GPU, on few layers: answers are compared, times mean nothing.',
  );
  const measured: Omit<Measured, 'openMs'> = JSON.parse(
    await runOnHostlayer(__filename, small ? smallJob(seed) : playedJob(seed)),
  );
  return { tables: [playedTable(measured)], checks: parityChecks(measured), notes };
}

/** What a run on a GPU says. Exported for the tests, which have none. */
export function figures(
  measured: Measured,
  device: DeviceInfo,
  small: boolean,
): Pick<Findings, 'tables' | 'checks' | 'notes'> {
  return {
    tables: [
      deviceTable(device, measured.openMs),
      planTable(measured.plans),
      evaluationTable(measured.evaluations, device),
    ],
    checks: [...parityChecks(measured), ...(small ? [] : targetChecks(measured, device))],
    notes: [
      'Times are from call to result in JavaScript, on a planner that keeps its buffers; kernels are timed by the device.',
      `The share of the roofline is the kernels'. Of many candidates, ${DRAWN} are different, and given over and over.`,
    ],
  };
}

function isPlayed(device: DeviceInfo): boolean {
  return device.name.startsWith('Host execution layer');
}

function wholeJob(seed: number): Job {
  return {
    seed,
    cases: CASES.length,
    layers: undefined,
    walkers: [undefined, WALKERS],
    efforts: 2,
    candidates: CANDIDATES,
    repeat: true,
  };
}

function playedJob(seed: number): Job {
  return {
    seed,
    cases: CASES.length,
    layers: 2,
    walkers: [2],
    efforts: 1,
    candidates: [DRAWN],
    repeat: false,
  };
}

function smallJob(seed: number): Job {
  return { seed, cases: 1, layers: 1, walkers: [2], efforts: 1, candidates: [8], repeat: false };
}

async function measure(job: Job): Promise<Omit<Measured, 'openMs'>> {
  const measured: Omit<Measured, 'openMs'> = { plans: [], evaluations: [] };
  for (const { shape, nodes, efforts } of CASES.slice(0, job.cases)) {
    const whole = skewedWorkload(shape, nodes, job.seed);
    const problem = job.layers === undefined ? whole : firstLayers(whole, job.layers);
    const eplb = timeEplb(problem);
    for (const effort of efforts.slice(0, job.efforts)) {
      for (const walkers of job.walkers) {
        const isFirst = measured.plans.length === 0;
        measured.plans.push(await timePlan(problem, shape.name, effort, walkers, eplb, job, isFirst));
      }
    }
    for (const candidates of job.candidates) {
      measured.evaluations.push(await timeEvaluation(problem, shape.name, candidates, job));
    }
  }
  return measured;
}

async function timePlan(
  problem: PlacementProblem,
  shape: string,
  effort: Effort,
  walkers: number | undefined,
  eplb: EplbTiming,
  { seed, repeat }: Job,
  isFirst: boolean,
): Promise<PlanRow> {
  const options = { effort, seed, ...(walkers === undefined ? {} : { walkers }) };
  const time = async (backend: 'cpu' | 'cuda') => {
    const planner = new Planner();
    const elapsed: number[] = [];
    const kernels: number[] = [];
    let plan: Plan | undefined;
    // Two to warm up: buffers, then the recording of graphs.
    for (let n = 0; n < (repeat ? 2 + RUNS[effort] : 1); n += 1) {
      const began = performance.now();
      plan = await planner.plan(problem, { ...options, backend });
      elapsed.push(performance.now() - began);
      kernels.push(plan.kernelMs ?? 0);
    }
    planner.close();
    return { plan: plan!, firstMs: elapsed[0]!, elapsed: elapsed.slice(repeat ? 2 : 0), kernels };
  };
  const cuda = await time('cuda');
  const cpu = await time('cpu');
  return {
    shape,
    effort,
    walkers: cuda.plan.walkers,
    same: samePlan(cpu.plan, cuda.plan),
    cpuMs: median(cpu.elapsed),
    cudaMs: median(cuda.elapsed),
    cudaWorstMs: Math.max(...cuda.elapsed),
    kernelMs: median(cuda.kernels),
    firstMs: isFirst ? cuda.firstMs : undefined,
    eplbMs: eplb.elapsedMs,
    overEplb: totalObjective(problem, cuda.plan.physicalToLogical) / eplb.objective,
  };
}

async function timeEvaluation(
  problem: PlacementProblem,
  shape: string,
  candidates: number,
  { seed, repeat }: Job,
): Promise<EvaluationRow> {
  const width = problem.layers * problem.gpus * problem.slotsPerGpu;
  const drawn = new Int32Array(Math.min(DRAWN, candidates) * width);
  for (let n = 0; n * width < drawn.length; n += 1) drawn.set(random(problem, seed + n), n * width);
  const given = Array.from({ length: candidates / Math.min(DRAWN, candidates) }, () => drawn);
  const planner = new Planner();
  const time = async (backend: 'cpu' | 'cuda') => {
    if (repeat) await planner.evaluate(problem, drawn, { backend });
    const began = performance.now();
    const evaluation = await planner.evaluate(problem, given, { backend });
    return { evaluation, ms: performance.now() - began };
  };
  const cuda = await time('cuda');
  const cpu = await time('cpu');
  planner.close();
  return {
    shape,
    experts: problem.experts,
    slots: problem.gpus * problem.slotsPerGpu,
    candidates,
    layers: problem.layers,
    same: sameEvaluation(cpu.evaluation, cuda.evaluation),
    cpuMs: cpu.ms,
    cudaMs: cuda.ms,
    kernelMs: cuda.evaluation.kernelMs ?? 0,
  };
}

const equal = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  a.length === b.length && Array.prototype.every.call(a, (value, n) => value === b[n]);

function samePlan(cpu: Plan, cuda: Plan): boolean {
  return (
    cuda.backend === 'cuda' &&
    equal(cpu.physicalToLogical, cuda.physicalToLogical) &&
    cpu.objective === cuda.objective &&
    cpu.lowerBound === cuda.lowerBound
  );
}

function sameEvaluation(cpu: Evaluation, cuda: Evaluation): boolean {
  const columns = ['objective', 'loadMax', 'commMax', 'commTotal', 'migrations'] as const;
  return columns.every((column) => equal(cpu[column], cuda[column]));
}

// ---- tables

function throughput(device: DeviceInfo): Throughput {
  return {
    multiprocessors: device.multiprocessors,
    clockGhz: device.clockMhz / 1e3,
    // Two transfers a clock, on every memory that GPUs have had since 2008.
    memoryBandwidth: (2 * device.memoryClockMhz * device.memoryBusBits) / 8 / 1e3,
  };
}

function deviceTable(device: DeviceInfo, openMs: number): Table {
  const { multiprocessors, clockGhz, memoryBandwidth } = throughput(device);
  return {
    title: 'device',
    columns: ['', 'value'],
    rows: [
      ['name', device.name],
      ['compute capability', device.computeCapability],
      ['multiprocessors', multiprocessors],
      ['memory, GiB', Number((device.memoryBytes / 2 ** 30).toFixed(1))],
      ['highest clock, GHz', clockGhz],
      ['memory bandwidth, GB/s', Number(memoryBandwidth.toFixed(0))],
      ['CUDA of the driver', device.driver],
      ['CUDA of the plug-in', device.runtime],
      ['plug-in opened, driver started, ms', Number(openMs.toFixed(1))],
      ...stateOfDevice(),
    ],
  };
}

/** What nvidia-smi adds: the driver's version, and the clocks as they are now. */
function stateOfDevice(): [string, string][] {
  const fields = ['driver_version', 'clocks.sm', 'clocks.mem', 'clocks.applications.graphics', 'power.limit'];
  try {
    const query = [`--query-gpu=${fields.join(',')}`, '--format=csv,noheader', '--id=0'];
    const values = execFileSync('nvidia-smi', query, { encoding: 'utf8', timeout: 10_000 })
      .trim()
      .split(', ');
    return fields.map((field, n) => [`nvidia-smi ${field}`, values[n] ?? '']);
  } catch {
    return [['nvidia-smi', 'not to be had']];
  }
}

function planTable(plans: PlanRow[]): Table {
  return {
    title: 'whole plans, ms',
    columns: [
      'shape',
      'effort',
      'walkers',
      'CPU',
      'CUDA',
      'worst',
      'kernels',
      'first',
      'EPLB',
      'J / EPLB',
      'same',
    ],
    rows: plans.map((row) => [
      row.shape,
      row.effort,
      row.walkers,
      row.cpuMs,
      row.cudaMs,
      row.cudaWorstMs,
      row.kernelMs,
      row.firstMs ?? '',
      row.eplbMs,
      row.overEplb,
      row.same ? 'yes' : 'NO',
    ]),
  };
}

const rooflineOf = (row: EvaluationRow, device: DeviceInfo) =>
  evaluationRoofline(throughput(device), { ...row, count: row.candidates * row.layers });

function evaluationTable(evaluations: EvaluationRow[], device: DeviceInfo): Table {
  const rate = (row: EvaluationRow, ms: number) =>
    Number(((row.candidates * row.layers) / ms / 1e3).toFixed(2));
  return {
    title: 'evaluations; rates in millions of candidate layers a second',
    columns: [
      'shape',
      'candidates',
      'CPU ms',
      'CUDA ms',
      'kernels ms',
      'CPU rate',
      'CUDA rate',
      'kernels rate',
      'by memory',
      'by instructions',
      'of roofline',
      'same',
    ],
    rows: evaluations.map((row) => {
      const { memoryMs, issueMs } = rooflineOf(row, device);
      return [
        row.shape,
        row.candidates,
        row.cpuMs,
        row.cudaMs,
        row.kernelMs,
        rate(row, row.cpuMs),
        rate(row, row.cudaMs),
        rate(row, row.kernelMs),
        rate(row, memoryMs),
        rate(row, issueMs),
        Number((Math.max(memoryMs, issueMs) / row.kernelMs).toFixed(3)),
        row.same ? 'yes' : 'NO',
      ];
    }),
  };
}

/** No times: those of a GPU that a CPU plays are none. */
function playedTable({ plans, evaluations }: Pick<Measured, 'plans' | 'evaluations'>): Table {
  return {
    title: 'answers compared, the GPU played by the CPU',
    columns: ['shape', 'what', 'same'],
    rows: [
      ...plans.map((row) => [
        row.shape,
        `plan, effort ${row.effort}, walkers ${row.walkers}`,
        row.same ? 'yes' : 'NO',
      ]),
      ...evaluations.map((row) => [
        row.shape,
        `${row.candidates} candidates × layers ${row.layers}`,
        row.same ? 'yes' : 'NO',
      ]),
    ],
  };
}

// ---- checks

function parityChecks({ plans, evaluations }: Pick<Measured, 'plans' | 'evaluations'>): Check[] {
  const check = (what: string, rows: { same: boolean }[]): Check => ({
    target: `CUDA's ${what} are the CPU's, bit for bit`,
    measured: `${rows.filter(({ same }) => same).length} of ${rows.length}`,
    pass: rows.length > 0 && rows.every(({ same }) => same),
    kind: 'quality',
  });
  return [check('plans', plans), check('evaluations', evaluations)];
}

/** What the kernels are modelled to do on an H100, on one. */
function targetChecks({ plans, evaluations }: Measured, device: DeviceInfo): Check[] {
  if (!device.name.includes('H100')) return [];
  const plan = plans.find(
    (row) => row.shape === STATED.name && row.effort === 'fast' && row.walkers === WALKERS,
  )!;
  const evaluation = evaluations.findLast((row) => row.shape === STATED.name)!;
  const { memoryMs, issueMs } = rooflineOf(evaluation, device);
  const over = evaluation.kernelMs / Math.max(memoryMs, issueMs);
  return [
    {
      target: `kernels of a plan of ${STATED.name}, ${WALKERS} walkers a layer, ≤ ${STATED_LIMIT_MS} ms`,
      measured: `${plan.kernelMs.toFixed(2)} ms`,
      pass: plan.kernelMs <= STATED_LIMIT_MS,
      kind: 'time',
    },
    {
      target: `kernels of ${evaluation.candidates} candidates within ${ROOFLINE_LIMIT}× of their roofline`,
      measured: `${over.toFixed(2)}×`,
      pass: over <= ROOFLINE_LIMIT,
      kind: 'time',
    },
  ];
}

if (require.main === module) {
  measure(JSON.parse(process.argv[2]!) as Job)
    .then((measured) => console.log(JSON.stringify(measured)))
    .catch((error: unknown) => {
      console.error(error);
      process.exitCode = 1;
    });
}
