/**
 * What the controller remembers over a restart, in one file that every step replaces as a whole, flushed to disk before the rename.
 *
 * A file and not SQLite: the state is one small value (two placements and some records), written a few times an hour and read once; a
 * rename is the only transaction that it needs, and an operator can read, copy and put back the file. A checksum tells a damaged one.
 */
import { createHash, randomBytes } from 'node:crypto';
import type { z } from 'zod';
import { GimbalError, mismatch } from '../errors.js';
import { readFileBounded, writeFileAtomic } from '../files.js';
import { decodeText } from '../import/text.js';
import type { stateSchema } from './state-schema.js';

const FORMAT = 'gimbal-controller-state';
const VERSION = 1;
/** Two placements of 512 layers of 4,096 slots in base64, and the records. */
const MOST_BYTES = 64 * 1024 * 1024;

type Stored = z.infer<typeof stateSchema>;
type Placed<T extends { placement: string }> = Omit<T, 'placement'> & { placement: Int32Array };
export type Committed = Placed<Stored['committed']>;
export type Change = Placed<NonNullable<Stored['change']>>;
export type KeptState = Omit<Stored, 'committed' | 'change'> & {
  committed: Committed;
  change?: Change | undefined;
};

export function freshState(model: {
  layers: number;
  experts: number;
  gpus: number;
  slotsPerGpu: number;
  initial: Int32Array;
  nowMs: number;
}): KeptState {
  const { layers, experts, gpus, slotsPerGpu, initial, nowMs } = model;
  const series = randomBytes(4).toString('hex');
  return {
    layers,
    experts,
    series,
    lastPlan: 0,
    fencingToken: 0,
    deadGpus: [],
    failures: 0,
    committed: {
      planId: `${series}-0`,
      placement: initial.slice(),
      gpus,
      slotsPerGpu,
      deadGpus: [],
      atMs: nowMs,
    },
    decisions: [],
    history: [],
  };
}

/** The state that `path` holds; undefined where there is no such file. Nothing is ever written over what cannot be read. */
export async function readState(
  path: string,
  model: { layers: number; experts: number },
): Promise<KeptState | undefined> {
  // With its library, which programs that only plan need not load; at the first read, which is at the start.
  const { stateSchema } = await import('./state-schema.js');
  const bytes = await readFileBounded(path, { maxBytes: MOST_BYTES }).catch((error) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  if (bytes === undefined) return undefined;
  const state = decode(path, bytes, stateSchema);
  for (const key of ['layers', 'experts'] as const) {
    if (state[key] === model[key]) continue;
    const remedy = 'of another model: name another stateFile, or move this one away to start from `initial`';
    throw mismatch('GIMBAL_FORMAT', `${path}: ${key}`, `${model[key]}`, `${state[key]}, ${remedy}`);
  }
  return state;
}

export async function writeState(path: string, state: KeptState): Promise<void> {
  const body = JSON.stringify({
    ...state,
    committed: { ...state.committed, placement: toText(state.committed.placement) },
    change: state.change && { ...state.change, placement: toText(state.change.placement) },
  });
  const head = { format: FORMAT, version: VERSION, sha256: digest(body) };
  await writeFileAtomic(path, `${JSON.stringify(head)}\n${body}\n`);
}

function decode(path: string, bytes: Uint8Array, schema: typeof stateSchema): KeptState {
  const broken = (received: string, cause?: unknown) => {
    const remedy = 'put a copy of it back, or move it away to start from `initial`; it is left as it is';
    return mismatch('GIMBAL_FORMAT', path, "a controller's state", `${received} (${remedy})`, cause);
  };
  const [head = '', body = '', ...rest] = decodeText(bytes, path).split('\n');
  let parsed: unknown;
  try {
    const { format, version, sha256 } = JSON.parse(head);
    if (format !== FORMAT) throw broken('another file');
    if (version !== VERSION) throw broken(`version ${version}`);
    if (sha256 !== digest(body) || rest.join('') !== '') throw broken('one that is damaged');
    parsed = JSON.parse(body);
  } catch (error) {
    throw error instanceof GimbalError ? error : broken('another file', error);
  }
  const checked = schema.safeParse(parsed);
  if (!checked.success) {
    const [issue] = checked.error.issues;
    throw broken(`${issue?.path.join('.')}: ${issue?.message}`, checked.error);
  }
  const { committed, change, ...others } = checked.data;
  const placed = <T extends Stored['committed'] | NonNullable<Stored['change']>>(of: T): Placed<T> => {
    const cells = others.layers * of.gpus * of.slotsPerGpu;
    const decoded = fromText(of.placement, cells, others.experts);
    if (decoded === undefined) throw broken(`a placement that is not of ${cells} slots`);
    return { ...of, placement: decoded };
  };
  return { ...others, committed: placed(committed), ...(change && { change: placed(change) }) };
}

function digest(body: string): string {
  return createHash('sha256').update(body).digest('hex');
}

/** Little-endian int32 in base64, on every machine. */
function toText(values: Int32Array): string {
  const bytes = Buffer.alloc(values.length * 4);
  values.forEach((value, at) => {
    bytes.writeInt32LE(value, at * 4);
  });
  return bytes.toString('base64');
}

function fromText(text: string, length: number, experts: number): Int32Array | undefined {
  const bytes = Buffer.from(text, 'base64');
  if (bytes.length !== length * 4) return undefined;
  const values = Int32Array.from({ length }, (_, at) => bytes.readInt32LE(at * 4));
  return values.every((value) => value >= -1 && value < experts) ? values : undefined;
}

function isMissing(error: unknown): boolean {
  const cause = error instanceof GimbalError ? error.cause : error;
  return (cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT';
}
