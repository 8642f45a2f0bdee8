/**
 * Run in a process of its own, whose environment names a CUDA plug-in on the host execution layer and the kernels' PTX: plans
 * or evaluates a few layers, so that what the kernels execute is counted. `node sample.js <job as JSON>`
 */
import { evaluatePlacements, planPlacement } from '../../lib/index.js';
import type { PlacementProblem } from '../../lib/types.js';
import { Random } from '../random.js';
import { firstLayers, randomPlacement, SHAPES, type ShapeName, skewedWorkload } from '../workloads.js';

export interface SampleJob {
  shape: ShapeName;
  nodes: number;
  seed: number;
  layers: number;
  /** Plan with so many walkers, or evaluate so many candidates. */
  walkers?: number;
  candidates?: number;
}

export function sampleProblem({ shape, nodes, seed, layers }: SampleJob): PlacementProblem {
  return firstLayers(skewedWorkload(SHAPES[shape], nodes, seed), layers);
}

async function main(job: SampleJob): Promise<void> {
  const problem = sampleProblem(job);
  if (job.walkers !== undefined) {
    await planPlacement(problem, { backend: 'cuda', effort: 'fast', walkers: job.walkers, seed: job.seed });
  }
  if (job.candidates !== undefined) {
    const random = new Random(job.seed);
    const one = randomPlacement(problem, random, []);
    const candidates = new Int32Array(job.candidates * one.length);
    for (let n = 0; n < job.candidates; ++n)
      candidates.set(randomPlacement(problem, random, []), n * one.length);
    await evaluatePlacements(problem, candidates, { backend: 'cuda' });
  }
}

if (require.main === module) {
  main(JSON.parse(process.argv[2]!)).catch((error: unknown) => {
    console.error(error);
    process.exitCode = 1;
  });
}
