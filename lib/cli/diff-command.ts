/** `gimbal diff`: two placements as moves. */
import type { PlacementFormat } from '../export/placement.js';
import { plural } from '../report/format.js';
import { readCluster } from './cluster.js';
import type { Context } from './context.js';
import { InputError, UsageError } from './exit.js';
import { toJson } from './json.js';
import { type LayerMoves, movesBetween } from './moves.js';
import { write } from './output.js';
import { loadPlacement, type NamedPlacement } from './placement-file.js';
import { table } from './table.js';

export interface DiffOptions {
  topology?: string;
  gpus?: number;
  format?: PlacementFormat;
  json?: boolean;
}

export async function diffCommand(
  beforeFile: string,
  afterFile: string,
  options: DiffOptions,
  context: Context,
): Promise<void> {
  const topology =
    options.topology === undefined ? undefined : (await readCluster({ topology: options.topology })).topology;
  if (topology !== undefined && options.gpus !== undefined && topology.gpus !== options.gpus) {
    throw new UsageError(
      `--gpus: expected the topology's ${topology.gpus} but received ${options.gpus}`,
      'leave --gpus away',
    );
  }
  const needs = { format: options.format, gpus: options.gpus ?? topology?.gpus };
  const after = await loadPlacement(afterFile, needs);
  const before = await loadPlacement(beforeFile, {
    ...needs,
    layers: after.layers,
    layerIds: after.layerIds,
  });
  checkFits(topology?.gpus, before, after);
  const moves = movesBetween(before, after, topology === undefined ? undefined : distance(topology));
  const text = options.json ? toJson(diffJson(before, after, moves)) : diffText(before, after, moves);
  await write(context.output.stdout, text);
}

/** Cost between GPUs, from the source whose GPU the sender is. */
function distance({ gpus, sources, commCost }: { gpus: number; sources: number; commCost: Float64Array }) {
  return (from: number, to: number) => commCost[Math.floor((from * sources) / gpus) * gpus + to]!;
}

function checkFits(gpus: number | undefined, ...placements: NamedPlacement[]): void {
  for (const { name, gpus: held } of placements) {
    if (gpus === undefined || held <= gpus) continue;
    throw new InputError(`${name}: expected at most the topology's ${gpus} GPUs but received ${held}`, {
      field: name,
      expected: `at most ${gpus} GPUs`,
      received: String(held),
    });
  }
}

interface Totals {
  moves: number;
  dropped: number;
  withoutSender: number;
}

function totalsOf(layers: readonly LayerMoves[]): Totals {
  const all = layers.flatMap((layer) => layer.moves);
  return {
    moves: all.length,
    dropped: layers.reduce((sum, layer) => sum + layer.dropped, 0),
    withoutSender: all.filter((move) => move.fromGpus.length === 0).length,
  };
}

function diffJson(before: NamedPlacement, after: NamedPlacement, layers: LayerMoves[]): unknown {
  const shape = ({ name, layers: rows, gpus, slotsPerGpu }: NamedPlacement) => ({
    name,
    layers: rows,
    gpus,
    slotsPerGpu,
  });
  return {
    before: shape(before),
    after: shape(after),
    totals: totalsOf(layers),
    layers: layers.map((layer, row) => ({ layer: after.layerIds?.[row] ?? row, ...layer })),
  };
}

function diffText(before: NamedPlacement, after: NamedPlacement, layers: LayerMoves[]): string {
  const rows = layers.flatMap(({ moves }, row) =>
    moves.map((move) => [
      String(after.layerIds?.[row] ?? row),
      String(move.expert),
      String(move.toGpu),
      move.fromGpus.length === 0 ? 'nobody: load it from storage' : move.fromGpus.join(', '),
    ]),
  );
  const { moves, dropped, withoutSender } = totalsOf(layers);
  const slots = after.layers * after.gpus * after.slotsPerGpu;
  const listed =
    rows.length === 0
      ? ''
      : `${table([['layer', 'expert', 'to GPU', 'from GPU (any of)'], ...rows], { left: [3] })}\n`;
  const lost =
    withoutSender === 0
      ? ''
      : ` ${plural(withoutSender, 'expert copy', 'expert copies')} held by no GPU before.`;
  return `${listed}${before.name} → ${after.name}: ${plural(moves, 'move')} for ${plural(slots, 'slot')}; ${plural(dropped, 'copy', 'copies')} dropped.${lost}\n`;
}
