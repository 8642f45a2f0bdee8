/**
 * What a plan is compared with: the incumbent, or, where none is given or it cannot be costed on this cluster, the contiguous
 * placement that engines start with.
 */
import { contiguous } from '../contiguous.js';
import { GimbalError } from '../errors.js';
import { evaluatePlacements } from '../evaluate.js';
import { type PlacementFigures, placementFigures } from '../report/figures.js';
import type { PlacementProblem } from '../types.js';
import type { EvaluateOptions } from '../validate.js';
import type { PlacementView } from './moves.js';
import { emptyGpus, type NamedPlacement } from './placement-file.js';

export interface Before {
  figures: PlacementFigures;
  kind: string;
  note?: string;
}

const DEFAULT_KIND = "the engine's default (contiguous)";

export async function figuresBefore(
  problem: PlacementProblem,
  incumbent: NamedPlacement | undefined,
  gpusPerNode: number | undefined,
  options: EvaluateOptions,
): Promise<Before> {
  const usual = () => figuresOf('contiguous', problem, contiguousPlacement(problem), gpusPerNode, options);
  if (incumbent === undefined) return { figures: await usual(), kind: DEFAULT_KIND };
  try {
    const figures = await figuresOf(incumbent.name, problem, incumbent, gpusPerNode, options);
    return { figures, kind: 'the incumbent' };
  } catch (error) {
    if (
      !(error instanceof GimbalError) ||
      !['GIMBAL_INVALID_INPUT', 'GIMBAL_INFEASIBLE'].includes(error.code)
    )
      throw error;
    return {
      figures: await usual(),
      kind: DEFAULT_KIND,
      note: `The incumbent cannot be costed on this cluster (${error.message}), so the plan is compared with the contiguous placement; moves are counted from the incumbent.`,
    };
  }
}

/** As engines start without a map. */
export function contiguousPlacement({ layers, experts, gpus, slotsPerGpu }: PlacementProblem): PlacementView {
  const physicalToLogical = contiguous(layers, experts, gpus * slotsPerGpu);
  return { layers, gpus, slotsPerGpu, physicalToLogical };
}

/**
 * The figures of a placement of any shape that fits the cluster. It is costed as it stood: GPUs that it leaves empty count as
 * dead, those that have died since do not; fewer GPUs than the cluster's are filled up with empty ones.
 */
export async function figuresOf(
  name: string,
  problem: PlacementProblem,
  placement: PlacementView,
  gpusPerNode: number | undefined,
  options: EvaluateOptions,
): Promise<PlacementFigures> {
  const fitted = onGpus(placement, problem.gpus);
  const own: PlacementProblem = {
    ...problem,
    slotsPerGpu: fitted.slotsPerGpu,
    deadGpus: emptyGpus(fitted),
    allowDuplicates: true,
  };
  // It is the moves from the incumbent that are counted, and no limit on them can make a placement wrong.
  delete own.migrationBudget;
  if (own.incumbent !== undefined) own.incumbentSlotsPerGpu ??= problem.slotsPerGpu;
  const evaluation = await evaluatePlacements(own, fitted.physicalToLogical, options);
  return placementFigures(
    name,
    own,
    fitted.physicalToLogical,
    evaluation,
    gpusPerNode === undefined ? {} : { gpusPerNode },
  );
}

function onGpus(placement: PlacementView, gpus: number): PlacementView {
  if (placement.gpus === gpus) return placement;
  if (placement.gpus > gpus) {
    throw new GimbalError(
      'GIMBAL_INVALID_INPUT',
      `placement: expected at most the cluster's ${gpus} GPUs but received ${placement.gpus}`,
      { field: 'placement', expected: `at most ${gpus} GPUs`, received: String(placement.gpus) },
    );
  }
  const { layers, slotsPerGpu } = placement;
  const physicalToLogical = new Int32Array(layers * gpus * slotsPerGpu).fill(-1);
  const width = placement.gpus * slotsPerGpu;
  for (let layer = 0; layer < layers; layer++) {
    const row = placement.physicalToLogical.subarray(layer * width, (layer + 1) * width);
    physicalToLogical.set(row, layer * gpus * slotsPerGpu);
  }
  return { layers, gpus, slotsPerGpu, physicalToLogical };
}
