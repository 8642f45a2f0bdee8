/**
 * `--topology` and what belongs to it, as costs. What is said on the command line goes before what the file says; what neither
 * says is guessed from the shape of the counts, and the guess is told.
 */
import { readFile } from 'node:fs/promises';
import { GimbalError } from '../errors.js';
import { findHardware, findModel, type ModelShape, models } from '../presets.js';
import { type AllToAll, type ParseTopologyOptions, parseTopology, type Topology } from '../topology.js';
import { RemediedError } from './exit.js';

export interface ClusterOptions {
  topology: string;
  sources?: number;
  model?: string;
  hardware?: string;
  allToAll?: AllToAll;
}

export interface Cluster {
  topology: Topology;
  model: ModelShape | undefined;
  hardware: string;
  notes: string[];
}

/** The shape of the counts, where there are any, to guess a model from. */
export interface CountsShape {
  layers: number;
  experts: number;
}

const SHAPE = /^\s*\d+\s*[x×*]\s*\d+\s*$/i;
const LARGEST_TOPOLOGY_BYTES = 64 * 2 ** 20;

export async function readCluster(options: ClusterOptions, shape?: CountsShape): Promise<Cluster> {
  const named = options.model === undefined ? undefined : findModel(options.model);
  if (options.hardware !== undefined) findHardware(options.hardware);
  const fromFile = SHAPE.test(options.topology) ? undefined : await readTopologyFile(options.topology);
  const fileModel = fromFile?.model as string | ModelShape | undefined;
  const guess =
    named === undefined && fileModel === undefined && shape !== undefined ? guessModel(shape) : undefined;
  const costs: ParseTopologyOptions = {
    ...(options.sources === undefined ? {} : { sources: options.sources }),
    ...(options.hardware === undefined ? {} : { hardware: options.hardware }),
    ...(options.allToAll === undefined ? {} : { allToAll: options.allToAll }),
    ...(options.model === undefined
      ? guess === undefined
        ? {}
        : { model: guess.name }
      : { model: options.model }),
  };
  const topology =
    fromFile === undefined
      ? parseTopology(options.topology, costs)
      : parseFile(options.topology, fromFile, costs);
  const model = named ?? guess ?? (typeof fileModel === 'string' ? findModel(fileModel) : fileModel);
  return {
    topology,
    model,
    hardware: hardwareName(options, fromFile),
    notes: notesOf(topology, model, guess, shape),
  };
}

type TopologyFile = Record<string, unknown>;

async function readTopologyFile(file: string): Promise<TopologyFile> {
  const expected = 'NODESxGPUS such as 4x8, or a JSON file with nodes and gpusPerNode or a rank_cost_matrix';
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
    throw new RemediedError(
      'GIMBAL_IO',
      `${file}: ${missing ? 'no such topology file' : (cause as Error).message}`,
      {
        field: 'topology',
        cause,
        remedy: `--topology takes ${expected}`,
      },
    );
  }
  let parsed: unknown;
  try {
    if (text.length > LARGEST_TOPOLOGY_BYTES) throw new Error(`${text.length} characters`);
    parsed = JSON.parse(text);
  } catch (cause) {
    throw new RemediedError(
      'GIMBAL_FORMAT',
      `${file}: expected JSON but received ${(cause as Error).message}`,
      {
        field: file,
        cause,
        remedy: `--topology takes ${expected}`,
      },
    );
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new RemediedError(
      'GIMBAL_FORMAT',
      `${file}: expected a JSON object but received ${Array.isArray(parsed) ? 'an array' : String(parsed)}`,
      {
        field: file,
        remedy: `--topology takes ${expected}`,
      },
    );
  }
  return parsed as TopologyFile;
}

/** What is wrong inside the file is told as the file's fault. */
function parseFile(file: string, parsed: TopologyFile, costs: ParseTopologyOptions): Topology {
  try {
    return 'rank_cost_matrix' in parsed
      ? parseTopology(parsed, costs)
      : parseTopology({ ...parsed, ...costs });
  } catch (error) {
    if (!(error instanceof GimbalError) || error.code !== 'GIMBAL_INVALID_INPUT') throw error;
    throw new GimbalError('GIMBAL_FORMAT', `${file}: ${error.message}`, {
      ...(error.field === undefined ? {} : { field: error.field }),
      ...(error.expected === undefined ? {} : { expected: error.expected }),
      ...(error.received === undefined ? {} : { received: error.received }),
      cause: error,
    });
  }
}

/** The one model of that shape: an expert count alone names several. */
function guessModel({ layers, experts }: CountsShape): ModelShape | undefined {
  const alike = Object.values<ModelShape>(models).filter(
    (model) => model.experts === experts && (model.moeLayers === layers || model.layers === layers),
  );
  return alike.length === 1 ? alike[0] : undefined;
}

function hardwareName(options: ClusterOptions, file: TopologyFile | undefined): string {
  const given = options.hardware ?? file?.hardware;
  if (typeof given === 'string') return findHardware(given).name;
  return given === undefined
    ? 'H100 (assumed)'
    : String((given as { name?: unknown }).name ?? 'as the topology file gives it');
}

function notesOf(
  topology: Topology,
  model: ModelShape | undefined,
  guess: ModelShape | undefined,
  shape: CountsShape | undefined,
): string[] {
  const notes = [...topology.explanation];
  if (guess !== undefined)
    notes.push(`No --model: ${guess.name} is taken, whose layers and experts the counts have.`);
  if (shape !== undefined && model !== undefined && model.experts !== shape.experts) {
    notes.push(
      `The counts have ${shape.experts} experts a layer, ${model.name} has ${model.experts}: its costs are used for them all the same.`,
    );
  }
  return notes;
}
