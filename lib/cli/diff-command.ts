/** `gimbal diff`: two placements as moves, and in which order they can be made. */
import { GimbalError } from '../errors.js';
import type { PlacementFormat } from '../export/placement.js';
import { type MigrationSchedule, scheduleMigration } from '../migration.js';
import { plural } from '../report/format.js';
import { readCluster } from './cluster.js';
import type { Context } from './context.js';
import { InputError, RemediedError, UsageError } from './exit.js';
import { toJson } from './json.js';
import { type Distances, type LayerMoves, migrationBetween, movesBetween } from './moves.js';
import { write } from './output.js';
import { loadPlacement, type NamedPlacement } from './placement-file.js';
import { table } from './table.js';

export interface DiffOptions {
  topology?: string;
  gpus?: number;
  format?: PlacementFormat;
  rounds?: boolean;
  staging?: number;
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
  if (options.staging !== undefined && !options.rounds) {
    throw new UsageError('--staging: there is nothing to order without --rounds', 'give --rounds too');
  }
  const needs = { format: options.format, gpus: options.gpus ?? topology?.gpus };
  const after = await loadPlacement(afterFile, needs);
  const before = await loadPlacement(beforeFile, {
    ...needs,
    layers: after.layers,
    layerIds: after.layerIds,
  });
  checkFits(topology?.gpus, before, after);
  const moves = await movesBetween(before, after, topology);
  const schedule = options.rounds ? await ordered(before, after, topology, options, context) : undefined;
  const text = options.json
    ? toJson(diffJson(before, after, moves, schedule))
    : diffText(before, after, moves, schedule);
  await write(context.output.stdout, text);
}

async function ordered(
  before: NamedPlacement,
  after: NamedPlacement,
  topology: Distances | undefined,
  { staging }: DiffOptions,
  { signal }: Context,
): Promise<MigrationSchedule> {
  const problem = migrationBetween(before, after, topology);
  try {
    return await scheduleMigration(staging === undefined ? problem : { ...problem, stagingSlots: staging }, {
      signal,
    });
  } catch (error) {
    if (error instanceof GimbalError) throw inOurWords(error, after.name);
    throw error;
  }
}

/** The library names fields of a call; here they are an option and a file. */
function inOurWords(error: GimbalError, afterName: string): GimbalError {
  const { code, field, expected, received } = error;
  const told = { ...(expected && { expected }), ...(received && { received }) };
  if (field === 'stagingSlots') {
    const message = `--staging: expected ${expected} but received ${received}`;
    const remedy = 'give --staging 1, or leave it away';
    return new RemediedError(code, message, { field: '--staging', ...told, remedy });
  }
  if (field !== 'to') return error;
  return new InputError(`${afterName}: expected ${expected} but received ${received}`, {
    field: afterName,
    ...told,
  });
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

function diffJson(
  before: NamedPlacement,
  after: NamedPlacement,
  layers: LayerMoves[],
  schedule: MigrationSchedule | undefined,
): unknown {
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
    layers: layers.map((layer, row) => ({ layer: layerId(after, row), ...layer })),
    ...(schedule === undefined ? {} : { schedule: scheduleJson(after, schedule) }),
  };
}

function layerId(after: NamedPlacement, row: number): number {
  return after.layerIds?.[row] ?? row;
}

function scheduleJson(after: NamedPlacement, schedule: MigrationSchedule): unknown {
  const steps = (columns: object) =>
    rowsOf(columns as Columns).map((step) => ({ ...step, layer: layerId(after, step.layer!) }));
  return {
    rounds: schedule.rounds,
    lowerBound: schedule.lowerBound,
    slotsPerGpu: schedule.slotsPerGpu,
    stagingPeak: [...schedule.stagingPeak],
    transfers: steps(schedule.transfers),
    localCopies: steps(schedule.localCopies),
    storageLoads: steps(schedule.storageLoads),
  };
}

type Columns = Record<string, Int32Array>;

/** Columns of equal length as objects. */
function rowsOf(columns: Columns): Record<string, number>[] {
  const names = Object.keys(columns);
  const length = columns[names[0]!]!.length;
  return Array.from({ length }, (_, at) =>
    Object.fromEntries(names.map((name) => [name, columns[name]![at]!])),
  );
}

function diffText(
  before: NamedPlacement,
  after: NamedPlacement,
  layers: LayerMoves[],
  schedule: MigrationSchedule | undefined,
): string {
  const { moves, dropped, withoutSender } = totalsOf(layers);
  const slots = after.layers * after.gpus * after.slotsPerGpu;
  const lost =
    withoutSender === 0
      ? ''
      : ` ${plural(withoutSender, 'expert copy', 'expert copies')} held by no GPU before.`;
  const listed = schedule === undefined ? movesTable(after, layers) : roundsTable(after, schedule);
  const total = `${before.name} → ${after.name}: ${plural(moves, 'move')} for ${plural(slots, 'slot')}; ${plural(dropped, 'copy', 'copies')} dropped.${lost}\n`;
  return `${listed}${total}${schedule === undefined ? '' : scheduleLine(schedule)}`;
}

function movesTable(after: NamedPlacement, layers: LayerMoves[]): string {
  const rows = layers.flatMap(({ moves }, row) =>
    moves.map((move) => [
      String(layerId(after, row)),
      String(move.expert),
      String(move.toGpu),
      move.fromGpus.length === 0 ? 'nobody: load it from storage' : move.fromGpus.join(', '),
    ]),
  );
  if (rows.length === 0) return '';
  return `${table([['layer', 'expert', 'to GPU', 'from GPU (any of)'], ...rows], { left: [3] })}\n`;
}

/** Rounds are counted from 1 for people. What comes from storage may come once the rounds before are over. */
function roundsTable(
  after: NamedPlacement,
  { transfers, storageLoads, slotsPerGpu }: MigrationSchedule,
): string {
  const row = (step: Record<string, number>, from: string) => [
    String(step.round! + 1),
    String(layerId(after, step.layer!)),
    String(step.expert),
    from,
    `${step.toGpu}${step.toSlot! >= slotsPerGpu ? ' (staging)' : ''}`,
  ];
  const sent = rowsOf({ ...transfers }).map((step) => row(step, String(step.fromGpu)));
  const loaded = rowsOf({ ...storageLoads }).map((step) => row(step, 'storage'));
  const rows = [...sent, ...loaded].sort((a, b) => Number(a[0]) - Number(b[0]));
  if (rows.length === 0) return '';
  return `${table([['round', 'layer', 'expert', 'from GPU', 'to GPU'], ...rows], { left: [3, 4] })}\n`;
}

function scheduleLine({ rounds, lowerBound, stagingPeak, localCopies }: MigrationSchedule): string {
  const staging = plural(Math.max(0, ...stagingPeak), 'staging slot');
  return `${plural(rounds, 'round')} (at least ${lowerBound}), ${staging} on the fullest GPU, ${plural(localCopies.round.length, 'local copy', 'local copies')}.\n`;
}
