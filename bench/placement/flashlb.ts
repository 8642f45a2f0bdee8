/** Does the planner reach the proved optimum of FlashLB's published vector, where EPLB and FlashLB do not? */
import { planPlacement } from '../../lib/index.js';
import type { Effort, Plan } from '../../lib/types.js';
import { solveExact } from '../../test/reference/milp.js';
import { evaluateNaive } from '../../test/reference/naive.js';
import { annealLayer, eplbGlobal } from '../baselines/index.js';
import { type Check, type Findings, type RunOptions, SAME } from '../harness.js';
import { flashLbProblem } from '../workloads.js';

export const name = 'flashlb';
export const question = "is the maximum load on FlashLB's vector the proved optimum?";

/** As FlashLB's authors report it. */
const FLASHLB_PUBLISHED_MAX = 205;
/** So few experts carry so much that leaving a bad choice of counts costs a tenth of J: hotter than at large shapes. */
const ANNEALER_HOT = 0.1;
const ANNEALER_STEPS = 100_000;
const EFFORTS: Effort[] = ['fast', 'balanced', 'thorough'];

export async function run({ seed }: RunOptions): Promise<Findings> {
  const problem = flashLbProblem();
  const maxOf = (placement: Int32Array): number => evaluateNaive(problem, placement)[0]!.loadMax;
  const plans = new Map<Effort, Plan>();
  for (const effort of EFFORTS) plans.set(effort, await planPlacement(problem, { effort, seed }));
  const maxima = EFFORTS.map((effort) => maxOf(plans.get(effort)!.physicalToLogical));
  const annealed = annealLayer(problem, 0, { steps: ANNEALER_STEPS, hot: ANNEALER_HOT, seed }).objective;
  const exact = await solveExact(problem, { knownObjective: Math.min(annealed, ...maxima) });
  const rows: (string | number)[][] = [
    ['mean load', problem.tokens.reduce((sum, value) => sum + value, 0) / problem.gpus],
    ['optimum (mixed-integer program)', exact.objective],
    ['EPLB', maxOf(eplbGlobal(problem))],
    ['FlashLB (published)', FLASHLB_PUBLISHED_MAX],
    [`plain annealer, ${ANNEALER_STEPS.toLocaleString('en-US')} steps`, annealed],
  ];
  const checks: Check[] = [];
  for (const [i, effort] of EFFORTS.entries()) {
    rows.push([`planner, ${effort} (lower bound ${plans.get(effort)!.lowerBound.toFixed(2)})`, maxima[i]!]);
    if (effort === 'fast') continue;
    checks.push({
      target: `${effort} reaches the optimum ${exact.objective.toFixed(2)}`,
      measured: maxima[i]!.toFixed(2),
      pass: maxima[i]! <= exact.objective * (1 + SAME),
      kind: 'quality',
    });
  }
  const table = {
    title: 'maximum load, 8 experts on 8 devices × 2 slots',
    columns: ['planner', 'maximum'],
    rows,
  };
  return { tables: [table], checks, notes: [] };
}
