/**
 * Plans and evaluates instances of the benches' suite on both backends, in a process whose environment names a CUDA plug-in:
 * every way in which a problem can differ (a first plan, an incumbent with a price or a budget, a dead GPU, `nearest`), and a
 * shape too large for shared memory. `node --import tsx test/parity/suite.ts [--whole]`; ends with "N passed, N failed".
 */
import { random as randomBaseline } from '../../bench/baselines/simple.js';
import { Random } from '../../bench/random.js';
import { drift, firstLayers, type SuiteInstance, suite, workload } from '../../bench/workloads.js';
import { evaluatePlacements, Planner, planPlacement } from '../../lib/index.js';
import type { PlacementProblem, Plan } from '../../lib/types.js';

const SEED = 20_260_601;
const WHOLE_LAYERS = 12;
/** Every so manieth instance of the suite in the reduced run: all shapes, popularities and variants come up. */
const REDUCED_STEP = 7;

type Variant = (problem: PlacementProblem, seed: number) => Promise<PlacementProblem>;

/** The placement in force before the loads drifted. */
async function before(problem: PlacementProblem, seed: number): Promise<Int32Array> {
  const plan = await planPlacement(drift(problem, 0.1, seed), { backend: 'cpu', effort: 'fast', seed });
  return plan.physicalToLogical;
}

const VARIANTS: Record<string, Variant> = {
  'first plan': async (problem) => problem,
  'incumbent, priced': async (problem, seed) => {
    return { ...problem, incumbent: await before(problem, seed), migrationCost: 2000 };
  },
  'incumbent, budget': async (problem, seed) => {
    const budget = Math.ceil(problem.layers * problem.gpus * problem.slotsPerGpu * 0.05);
    return { ...problem, incumbent: await before(problem, seed), migrationBudget: budget };
  },
  'dead GPU': async (problem, seed) => {
    // One slot more on each GPU, so that the others can take the dead one's experts in.
    const roomy = {
      ...problem,
      slotsPerGpu: problem.slotsPerGpu + Math.ceil(problem.slotsPerGpu / (problem.gpus - 1)),
    };
    return { ...roomy, incumbent: await before(roomy, seed), deadGpus: [seed % problem.gpus] };
  },
  nearest: async (problem) => ({ ...problem, replicaChoice: 'nearest' }),
};

/** 512 GPUs with 1,024 slots: a walk's work is about 300 KB. */
function largeProblem(): PlacementProblem {
  const [layers, sources, experts, gpus, slotsPerGpu] = [1, 32, 512, 512, 2];
  const random = new Random(SEED, 0x512);
  const tokens = Uint32Array.from({ length: layers * sources * experts }, () => random.below(2000));
  const commCost = Float64Array.from({ length: sources * gpus }, (_, i) => {
    const [source, gpu] = [Math.floor(i / gpus), i % gpus];
    return gpu === source * 16 ? 0 : Math.floor(gpu / 8) === source * 2 ? 40 : 160;
  });
  return { layers, sources, experts, gpus, slotsPerGpu, tokens, computeCost: 25, commCost };
}

const sameArray = (a: Int32Array | Float64Array, b: Int32Array | Float64Array) =>
  a.length === b.length && a.every((value, i) => value === b[i]);

/** What differs between the backends' answers; nothing where all is the same. */
async function differences(problem: PlacementProblem, planner: Planner, seed: number): Promise<string[]> {
  const plan = (backend: 'cpu' | 'cuda') => planner.plan(problem, { backend, effort: 'fast', seed });
  const [cpu, cuda]: [Plan, Plan] = [await plan('cpu'), await plan('cuda')];
  const found: string[] = [];
  if (cuda.backend !== 'cuda') found.push(`the plan is by ${cuda.backend}`);
  if (!sameArray(cpu.physicalToLogical, cuda.physicalToLogical)) found.push('placements');
  for (const [n, layer] of cpu.layers.entries()) {
    for (const [key, value] of Object.entries(layer)) {
      const other = cuda.layers[n]![key as keyof typeof layer];
      if (value !== other) found.push(`layer ${n}: ${key} ${value} and ${other}`);
    }
  }
  const placements = [
    cpu.physicalToLogical,
    randomBaseline(problem, seed),
    randomBaseline(problem, seed + 1),
  ];
  const candidates = Int32Array.from(placements.flatMap((placement) => [...placement]));
  const evaluate = (backend: 'cpu' | 'cuda') => evaluatePlacements(problem, candidates, { backend });
  const [a, b] = [await evaluate('cpu'), await evaluate('cuda')];
  for (const column of ['objective', 'loadMax', 'commMax', 'commTotal', 'migrations'] as const) {
    if (!sameArray(a[column], b[column])) found.push(`evaluation: ${column}`);
  }
  return found;
}

async function main(whole: boolean): Promise<void> {
  const planner = new Planner();
  let [passed, failed] = [0, 0];
  const check = async (name: string, problem: PlacementProblem, seed: number) => {
    const began = performance.now();
    const found = await differences(problem, planner, seed);
    if (found.length === 0) passed += 1;
    else failed += 1;
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    console.log(
      `${found.length === 0 ? 'same' : 'DIFFERENT'}  ${name} (${seconds} s)${found.map((f) => `\n  ${f}`).join('')}`,
    );
  };
  const names = Object.keys(VARIANTS);
  const all = suite(SEED);
  for (const [n, instance] of all.entries()) {
    if (!whole && n % REDUCED_STEP !== 0) continue;
    const variants = whole ? names : [names[(n / REDUCED_STEP) % names.length]!];
    for (const name of variants)
      await check(`${instance.name}, ${name}`, await make(instance, name, whole, n), SEED + n);
  }
  await check('512 GPUs, 1,024 slots', largeProblem(), SEED);
  planner.close();
  console.log(`${passed} passed, ${failed} failed`);
  if (failed > 0 || passed === 0) process.exitCode = 1;
}

function make(
  instance: SuiteInstance,
  variant: string,
  whole: boolean,
  n: number,
): Promise<PlacementProblem> {
  const problem = firstLayers(workload(instance.options), whole ? WHOLE_LAYERS : 1);
  return VARIANTS[variant]!(problem, SEED + n);
}

main(process.argv.includes('--whole')).catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
