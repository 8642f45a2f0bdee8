/** `gimbal evaluate`: what given placements cost under the same counts and cluster. */

import { GimbalError } from '../errors.js';
import type { PlacementFormat } from '../export/placement.js';
import type { PlacementFigures } from '../report/figures.js';
import { plural } from '../report/format.js';
import type { PlacementProblem } from '../types.js';
import { figuresOf } from './before.js';
import type { Context } from './context.js';
import { InputError } from './exit.js';
import { figuresJson, problemJson, toJson } from './json.js';
import { write } from './output.js';
import { checkHoldsAll, loadPlacement } from './placement-file.js';
import { type LoadedProblem, loadProblem, type ProblemOptions } from './problem.js';
import { evaluateText } from './text.js';

export interface EvaluateOptions extends ProblemOptions {
  placement: string[];
  placementFormat?: PlacementFormat;
  json?: boolean;
}

export async function evaluateCommand(options: EvaluateOptions, context: Context): Promise<void> {
  const loaded = await loadProblem(options, context.signal);
  const placements: PlacementFigures[] = [];
  for (const file of options.placement) {
    placements.push(await evaluateFile(file, loaded, options, context));
    context.signal.throwIfAborted();
  }
  const { layers, experts, gpus, sources } = loaded.base;
  const subject = `${loaded.subject}: ${plural(layers, 'layer')} × ${plural(experts, 'expert')}, ${plural(gpus, 'GPU')}, ${plural(sources, 'source DP rank')}`;
  const text = options.json
    ? toJson(evaluateJson(loaded, placements, context.version))
    : evaluateText(subject, loaded.notes, placements, loaded.incumbent !== undefined);
  await write(context.output.stdout, text);
}

async function evaluateFile(
  file: string,
  { base, cluster }: LoadedProblem,
  options: EvaluateOptions,
  { signal }: Context,
): Promise<PlacementFigures> {
  const { layers, experts, gpus, layerIds } = base;
  const placement = await loadPlacement(file, {
    format: options.placementFormat,
    gpus,
    experts,
    layers,
    layerIds,
  });
  checkHoldsAll(file, placement, experts);
  const problem: PlacementProblem = { ...base, slotsPerGpu: placement.slotsPerGpu };
  try {
    return await figuresOf(file, problem, placement, cluster.topology.gpusPerNode, {
      signal,
      backend: options.backend,
      ...(options.threads === undefined ? {} : { threads: options.threads }),
    });
  } catch (error) {
    if (!(error instanceof GimbalError) || !/^(candidates|placement)/.test(error.field ?? '')) throw error;
    throw new InputError(`${file}: ${error.message}`, { field: file, cause: error });
  }
}

function evaluateJson(loaded: LoadedProblem, placements: PlacementFigures[], version: string): unknown {
  const { nodes, gpusPerNode } = loaded.cluster.topology;
  const { slotsPerGpu: _, ...problem } = problemJson({
    problem: { ...loaded.base, slotsPerGpu: 0 },
    subject: loaded.subject,
    hardware: loaded.cluster.hardware,
    nodes,
    gpusPerNode,
  }) as Record<string, unknown>;
  return { version, problem, notes: loaded.notes, placements: placements.map(figuresJson) };
}
