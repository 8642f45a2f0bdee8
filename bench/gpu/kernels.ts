/**
 * What do the CUDA kernels cost, as far as can be told without a GPU? Registers, spills, code and blocks per multiprocessor
 * for every architecture, from the compiler; instructions, traffic and waiting of whole plans, counted by running the
 * compiler's PTX on the host execution layer; and times modelled from both. Nothing here may get worse than budgets.json.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Check, Findings, RunOptions, Table } from '../harness.js';
import { SHAPES, type ShapeName } from '../workloads.js';
import { hostlayerMissing, runOnHostlayer } from './hostlayer.js';
import { ARCHITECTURES, type Architecture, DEVICES, type Device } from './machines.js';
import {
  evaluationRoofline,
  type KernelCounts,
  type ModelledKernel,
  modelKernel,
  modelPlan,
} from './model.js';
import type { SampleJob } from './sample.js';
import {
  blocksPerMultiprocessor,
  findNvcc,
  type KernelResources,
  kernelName,
  knownArchitectures,
  ptxFile,
  resources,
} from './toolchain.js';

export const name = 'kernels';
export const question = 'what do the CUDA kernels cost, as far as can be told without a GPU?';

const BUDGETS = join(__dirname, 'budgets.json');

/** Launch shapes at which occupancy is stated: a first plan of DeepSeek-V3's shape, and its evaluation. */
const STATED: ShapeName = 'deepseek-v3-288';
const PLANS: { shape: ShapeName; nodes: number }[] = [
  { shape: 'qwen3-30b-144', nodes: 1 },
  { shape: 'deepseek-v3-288', nodes: 4 },
  { shape: 'kimi-k2-448', nodes: 8 },
];
const WALKERS = 64;
const CANDIDATES = 4096;
/** Of the stated shape in one of the engine's staging buffers (kCandidateBytes in engine.cu). */
const CANDIDATES_PER_LAUNCH = Math.floor(
  2 ** 24 / (SHAPES[STATED].layers * SHAPES[STATED].gpus * SHAPES[STATED].slotsPerGpu * 4),
);
/** The kernels that the bounds' stream runs beside the walks. */
const BESIDE = ['bound'];
const PLAN_LIMIT_MS = 2;
const ROOFLINE_LIMIT = 2;
const DEFAULT_SHARED_BYTES = 48 * 1024;
/** Budgets of times are kept up to rounding. */
const SLACK = 1.005;

/** By kernel; of each architecture registers and blocks per multiprocessor, and what the hottest stretch of code holds. */
export interface Budgets {
  nvcc: string;
  resources: Record<string, Record<string, { registers: number; blocks: number }>>;
  /** PTX instructions of the basic block that is executed most, for sm_90. */
  hottest: Record<string, number>;
  /** Modelled, by device and what is done. */
  ms: Record<string, Record<string, number>>;
}

export interface Costs {
  nvcc: string;
  resources: {
    architecture: Architecture;
    kernels: (KernelResources & { threads: number; sharedBytes: number; blocks: number })[];
  }[];
  plans: {
    shape: ShapeName;
    counts: KernelCounts[];
    devices: { device: Device; kernels: ModelledKernel[]; ms: number }[];
  }[];
  evaluation: { device: Device; kernel: ModelledKernel; rooflineMs: number }[];
}

export async function run({ small, seed }: RunOptions): Promise<Findings> {
  const found = findNvcc();
  const notes = 'reason' in found ? [`skipped: ${found.reason}`] : [];
  const missing = hostlayerMissing();
  if (missing !== undefined) notes.push(`skipped: the kernels are not executed, since ${missing}`);
  if ('reason' in found) return { tables: [], checks: [], notes };
  const costs = await measure(seed, small);
  notes.push(
    `Times are modelled, not measured; machines.ts and model.ts hold what they assume. nvcc ${costs.nvcc}.`,
    'Instructions are estimated from PTX and scaled to the size of the machine code; ptxas may mix them otherwise than assumed.',
    `A plan: effort fast with ${WALKERS} walkers a layer, no incumbent. Copies and launches count, what the host does meanwhile does not.`,
  );
  const tables = [resourceTable(costs), ...costs.plans.map(planTable)];
  if (costs.evaluation.length > 0) tables.push(evaluationTable(costs));
  return {
    tables,
    checks: [...budgetChecks(costs, readBudgets()), ...targetChecks(costs)],
    notes,
  };
}

export async function measure(seed: number, small: boolean): Promise<Costs> {
  const found = findNvcc();
  if ('reason' in found) throw new Error(found.reason);
  const architectures = knownArchitectures().filter(({ name }) => !small || name === 'sm_90');
  // Two compilers at a time; each takes some hundred MB.
  const compiled = new Map<string, KernelResources[]>();
  const queue = [...architectures];
  const worker = async () => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift())
      compiled.set(next.name, await resources(next));
  };
  await Promise.all([worker(), worker()]);
  const plans: Costs['plans'] = [];
  let evaluated: KernelCounts[] = [];
  const executes = hostlayerMissing() === undefined;
  if (executes) {
    for (const { shape, nodes } of small ? PLANS.slice(1, 2) : PLANS) {
      plans.push({
        shape,
        counts: await count({ shape, nodes, seed, layers: 1, walkers: small ? 4 : WALKERS }, 132),
        devices: [],
      });
    }
    // One layer's part of a launch: a staging buffer of candidates, over the two multiprocessors that are a layer's share.
    const candidates = small ? 64 : CANDIDATES_PER_LAUNCH;
    evaluated = await count({ shape: STATED, nodes: 4, seed, layers: 1, candidates }, 2);
  }
  const all = [...plans.flatMap(({ counts }) => counts), ...evaluated];
  const costs: Costs = { nvcc: found.version, resources: [], plans, evaluation: [] };
  for (const architecture of architectures) {
    costs.resources.push({
      architecture,
      kernels: await withBlocks(architecture, compiled.get(architecture.name)!, plans, evaluated),
    });
  }
  if (!executes || small) return costs;
  for (const plan of plans) {
    for (const device of DEVICES)
      plan.devices.push(await modelOnePlan(device, plan.shape, plan.counts, compiled));
  }
  for (const device of DEVICES) costs.evaluation.push(await modelEvaluation(device, all, compiled));
  return costs;
}

/** Runs a job on the host execution layer, its kernels as the compiler's PTX. */
async function count(job: SampleJob, multiprocessors: number): Promise<KernelCounts[]> {
  const folder = mkdtempSync(join(tmpdir(), 'gimbal-kernels-'));
  try {
    const report = join(folder, 'report.json');
    await runOnHostlayer(join(__dirname, 'sample.ts'), job, {
      HOSTLAYER_PTX: await ptxFile(ARCHITECTURES.find(({ name }) => name === 'sm_90')!),
      HOSTLAYER_PTX_REPORT: report,
      HOSTLAYER_SMS: String(multiprocessors),
      HOSTLAYER_SHARED_KB: '227',
    });
    const counts: KernelCounts[] = JSON.parse(readFileSync(report, 'utf8'));
    return counts.map((kernel) => ({ ...kernel, kernel: kernelName(kernel.kernel) }));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Threads and shared memory of a kernel at the stated shape, where it was seen; else what it has at every shape. */
async function withBlocks(
  architecture: Architecture,
  kernels: KernelResources[],
  plans: Costs['plans'],
  evaluated: KernelCounts[],
) {
  const seen = [...(plans.find(({ shape }) => shape === STATED)?.counts ?? []), ...evaluated];
  const launches = kernels.map((kernel) => {
    const launch = seen.find((counts) => counts.kernel === kernel.kernel);
    // A walk in shared memory needs as much of it whatever its kind; one in global memory a team's partial results.
    const like =
      launch ??
      (/^walk<\d,1>$/.test(kernel.kernel) ? seen.find((counts) => counts.kernel === 'walk<0,1>') : undefined);
    const threads =
      like === undefined ? (kernel.kernel.startsWith('walk') ? 96 : 256) : like.threads / like.blocks;
    return { ...kernel, threads, sharedBytes: like?.sharedBytes ?? 512 };
  });
  const blocks = await blocksPerMultiprocessor(
    launches.map(({ registers, threads, sharedBytes }) => ({
      architecture,
      registers,
      threads,
      sharedBytes,
    })),
  );
  return launches.map((launch, n) => ({ ...launch, blocks: blocks[n]! }));
}

async function modelAll(
  device: Device,
  counts: KernelCounts[],
  compiled: Map<string, KernelResources[]>,
  scale: (counts: KernelCounts) => number,
  leastBytes: (kernel: string) => number,
) {
  const kernels = compiled.get(device.architecture.name)!;
  const own = counts.map((kernel) => kernels.find((k) => k.kernel === kernel.kernel)!);
  const blocks = await blocksPerMultiprocessor(
    counts.map((kernel, n) => ({
      architecture: device.architecture,
      registers: own[n]!.registers,
      threads: kernel.threads / kernel.blocks,
      sharedBytes: kernel.sharedBytes,
    })),
  );
  return counts.map((kernel, n) =>
    modelKernel(device, {
      counts: kernel,
      instructions: own[n]!.instructions,
      blocksPerMultiprocessor: blocks[n]!,
      scale: scale(kernel),
      leastBytes: leastBytes(kernel.kernel),
    }),
  );
}

async function modelOnePlan(
  device: Device,
  shape: ShapeName,
  counts: KernelCounts[],
  compiled: Map<string, KernelResources[]>,
) {
  const { layers, experts, gpus, slotsPerGpu } = SHAPES[shape];
  const kernels = await modelAll(
    device,
    counts,
    compiled,
    () => layers,
    () => 0,
  );
  // One source DP rank on each GPU.
  const tokensBytes = layers * gpus * experts * 4;
  const placementBytes = layers * gpus * slotsPerGpu * 4;
  return { device, kernels, ms: modelPlan(device, kernels, BESIDE, tokensBytes, placementBytes) };
}

async function modelEvaluation(
  device: Device,
  counts: KernelCounts[],
  compiled: Map<string, KernelResources[]>,
) {
  const { layers, experts, gpus, slotsPerGpu } = SHAPES[STATED];
  const roofline = evaluationRoofline(device, {
    experts,
    slots: gpus * slotsPerGpu,
    count: layers * CANDIDATES,
  });
  const evaluate = counts.filter(({ kernel }) => kernel.startsWith('evaluate'));
  const whole = () => (layers * CANDIDATES) / CANDIDATES_PER_LAUNCH;
  const [kernel] = await modelAll(device, evaluate, compiled, whole, () => roofline.bytes);
  return { device, kernel: kernel!, rooflineMs: Math.max(roofline.memoryMs, roofline.issueMs) };
}

// ---- tables

const LABELS: Record<string, string> = {
  'walk<0,1>': 'walk, first plan',
  'walk<1,1>': 'walk',
  'walk<2,1>': 'walk, nearest',
  'walk<1,0>': 'walk, global memory',
  'walk<2,0>': 'walk, nearest, global memory',
  'evaluate<1,1>': 'evaluate',
  'evaluate<0,1>': 'evaluate, table in global memory',
  'evaluate<0,0>': 'evaluate, all in global memory',
  'price<1>': 'price',
  'price<0>': 'price, global memory',
};
const label = (kernel: string) => LABELS[kernel] ?? kernel;

function resourceTable({ resources: all }: Costs): Table {
  const first = all[0]!.kernels;
  return {
    title: `registers of a thread / instructions of the kernel / blocks on a multiprocessor, at ${STATED}`,
    columns: ['kernel', 'threads', 'shared KiB', ...all.map(({ architecture }) => architecture.name)],
    rows: first.map(({ kernel, threads, sharedBytes }) => [
      label(kernel),
      threads,
      Number((sharedBytes / 1024).toFixed(1)),
      ...all.map(({ kernels }) => {
        const own = kernels.find((k) => k.kernel === kernel)!;
        return `${own.registers} / ${own.instructions} / ${own.blocks > 0 ? own.blocks : 'too large'}`;
      }),
    ]),
  };
}

function planTable({ shape, counts, devices }: Costs['plans'][number]): Table {
  const rows = devices.flatMap(({ device, kernels, ms }) => [
    ...kernels.map((k) => [
      device.name,
      label(k.kernel),
      k.blocks,
      k.blocksPerMultiprocessor,
      ...[k.issueMs, k.sharedMs, k.cacheMs, k.waitingMs, k.ms].map((time) => Number(time.toFixed(4))),
    ]),
    [device.name, 'whole plan', '', '', '', '', '', '', Number(ms.toFixed(3))],
  ]);
  if (rows.length > 0) {
    const columns = [
      'device',
      'kernel',
      'blocks',
      'per MP',
      'issue ms',
      'shared ms',
      'cache ms',
      'waiting ms',
      'modelled ms',
    ];
    return { title: `modelled: ${SHAPES[shape].name}, ${WALKERS} walkers a layer`, columns, rows };
  }
  return {
    title: `executed: ${SHAPES[shape].name}, one layer`,
    columns: ['kernel', 'blocks', 'instructions a block', 'hottest stretch'],
    rows: counts.map((k) => [
      label(k.kernel),
      k.blocks,
      Math.round(k.executed.issue / k.blocks),
      k.hottest.instructions,
    ]),
  };
}

function evaluationTable({ evaluation }: Costs): Table {
  const { layers, name: shape } = SHAPES[STATED];
  return {
    title: `modelled: evaluation of ${CANDIDATES} candidates × ${layers} layers, ${shape}`,
    columns: [
      'device',
      'issue ms',
      'shared ms',
      'cache ms',
      'memory ms',
      'waiting ms',
      'modelled ms',
      'roofline ms',
      'M layer evaluations/s',
    ],
    rows: evaluation.map(({ device, kernel: k, rooflineMs }) => [
      device.name,
      ...[k.issueMs, k.sharedMs, k.cacheMs, k.memoryMs, k.waitingMs, k.ms, rooflineMs].map((time) =>
        Number(time.toFixed(4)),
      ),
      Math.round((layers * CANDIDATES) / k.ms / 1e3),
    ]),
  };
}

// ---- budgets and targets

export function budgetsOf(costs: Costs): Budgets {
  const budgets: Budgets = { nvcc: costs.nvcc, resources: {}, hottest: {}, ms: {} };
  for (const { architecture, kernels } of costs.resources) {
    const own: Record<string, { registers: number; blocks: number }> = {};
    for (const { kernel, registers, blocks } of kernels) own[kernel] = { registers, blocks };
    budgets.resources[architecture.name] = own;
  }
  for (const { counts } of costs.plans.filter(({ shape }) => shape === STATED)) {
    for (const { kernel, hottest } of counts) budgets.hottest[kernel] = hottest.instructions;
  }
  const note = (device: Device, what: string, ms: number) => {
    budgets.ms[device.name] = { ...budgets.ms[device.name], [what]: Number(ms.toFixed(4)) };
  };
  for (const { shape, devices } of costs.plans) for (const { device, ms } of devices) note(device, shape, ms);
  for (const { device, kernel } of costs.evaluation) note(device, 'evaluation', kernel.ms);
  return budgets;
}

export function readBudgets(): Budgets {
  return JSON.parse(readFileSync(BUDGETS, 'utf8'));
}

/** One check for each kind of thing that may not get worse; another compiler than the budgets' is only held to no spills. */
export function budgetChecks(costs: Costs, budgets: Budgets): Check[] {
  const checks: Check[] = [];
  const add = (target: string, worse: string[]) => {
    checks.push({
      target,
      measured: worse.length === 0 ? 'so it is' : worse.join('; '),
      pass: worse.length === 0,
      kind: 'quality',
    });
  };
  const each = costs.resources.flatMap(({ architecture, kernels }) =>
    kernels.map((kernel) => ({ architecture, ...kernel })),
  );
  add(
    'no kernel spills registers or needs a stack',
    each
      .filter((k) => k.spilledBytes + k.stackBytes > 0)
      .map(
        (k) =>
          `${label(k.kernel)} on ${k.architecture.name}: ${k.spilledBytes} bytes spilled, ${k.stackBytes} bytes of stack`,
      ),
  );
  add(
    'every kernel runs where its shared memory fits',
    each
      .filter((k) => k.blocks < 1 && k.sharedBytes <= k.architecture.sharedBytesPerBlock)
      .map((k) => `${label(k.kernel)} on ${k.architecture.name}`),
  );
  if (costs.nvcc !== budgets.nvcc) return checks;
  const now = budgetsOf(costs);
  const worse: string[] = [];
  for (const { kernel, architecture, registers, blocks } of each) {
    const budget = budgets.resources[architecture.name]?.[kernel];
    if (budget === undefined) worse.push(`${label(kernel)} on ${architecture.name} has no budget`);
    else if (registers > budget.registers)
      worse.push(
        `${label(kernel)} on ${architecture.name}: ${registers} registers, ${budget.registers} before`,
      );
    else if (blocks < budget.blocks && costs.plans.length > 0)
      worse.push(`${label(kernel)} on ${architecture.name}: ${blocks} blocks, ${budget.blocks} before`);
  }
  add('registers and blocks within budget', worse);
  if (costs.plans.length === 0) return checks;
  add(
    'hottest stretches of code within budget',
    Object.entries(now.hottest)
      .filter(([kernel, instructions]) => !(instructions <= (budgets.hottest[kernel] ?? 0)))
      .map(
        ([kernel, instructions]) =>
          `${label(kernel)}: ${instructions} instructions, ${budgets.hottest[kernel]} before`,
      ),
  );
  if (costs.evaluation.length === 0) return checks;
  add(
    'modelled times within budget',
    Object.entries(now.ms).flatMap(([device, times]) =>
      Object.entries(times)
        .filter(([what, ms]) => !(ms <= (budgets.ms[device]?.[what] ?? 0) * SLACK))
        .map(([what, ms]) => `${what} on ${device}: ${ms} ms, ${budgets.ms[device]?.[what]} before`),
    ),
  );
  return checks;
}

function targetChecks(costs: Costs): Check[] {
  const checks: Check[] = [];
  const h100 = (device: Device) => device.name.startsWith('H100');
  const plan = costs.plans.find(({ shape }) => shape === STATED);
  const walk = plan?.counts.find(({ kernel }) => kernel === 'walk<0,1>');
  if (walk !== undefined) {
    const kib = (walk.sharedBytes / 1024).toFixed(1);
    checks.push({
      target: `a walk of ${STATED} fits 48 KiB of shared memory`,
      measured: `${kib} KiB`,
      pass: walk.sharedBytes <= DEFAULT_SHARED_BYTES,
      kind: 'quality',
    });
  }
  for (const { device, ms } of plan?.devices.filter(({ device }) => h100(device)) ?? []) {
    checks.push({
      target: `modelled: ${STATED}, ${WALKERS} walkers a layer, ≤ ${PLAN_LIMIT_MS} ms on ${device.name}`,
      measured: `${ms.toFixed(2)} ms`,
      pass: ms <= PLAN_LIMIT_MS,
      kind: 'quality',
    });
  }
  for (const { device, kernel, rooflineMs } of costs.evaluation.filter(({ device }) => h100(device))) {
    checks.push({
      target: `modelled: evaluation within ${ROOFLINE_LIMIT}× of its roofline on ${device.name}`,
      measured: `${(kernel.ms / rooflineMs).toFixed(2)}×`,
      pass: kernel.ms <= ROOFLINE_LIMIT * rooflineMs,
      kind: 'quality',
    });
  }
  return checks;
}
