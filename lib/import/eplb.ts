/**
 * The result of DeepSeek's EPLB as files: `phy2log` [layers, slots], and where they are there `log2phy` [layers, experts, X]
 * padded with -1 and `logcnt` [layers, experts], which must say the same. Read from .npz, JSON, or tensors in a .pt file.
 */
import { isInteger, type NumericArray, requireRank, shapeText, visit } from './array.js';
import { describe, formatError, MAX_CELLS, MAX_EXPERTS, quote, requireInteger } from './limits.js';
import { parseNpy } from './npy.js';
import { type RawPlacement, readIds } from './rows.js';
import { nestedShape, property, walkNested } from './text.js';
import { entry, Tensor, type TorchFile } from './torch.js';
import type { Zip } from './zip.js';

const NAMES = ['phy2log', 'log2phy', 'logcnt'] as const;
type Name = (typeof NAMES)[number];
type Arrays = Partial<Record<Name, NumericArray>> & { phy2log: NumericArray };

export function readEplbArchive(zip: Zip, path: string, signal?: AbortSignal): Promise<RawPlacement> {
  const arrays: Partial<Record<Name, NumericArray>> = {};
  for (const name of NAMES) {
    const member = `${name}.npy`;
    if (zip.has(member)) arrays[name] = parseNpy(zip.read(member, Number.MAX_SAFE_INTEGER), path, name);
  }
  const found =
    zip
      .names()
      .slice(0, 8)
      .map((name) => quote(name))
      .join(', ') || 'an empty archive';
  return combine(arrays, path, `an array phy2log in the archive`, found, signal);
}

export function readEplbTensors(torch: TorchFile, path: string, signal?: AbortSignal): Promise<RawPlacement> {
  const { value } = torch;
  const arrays: Partial<Record<Name, NumericArray>> = {};
  // The function returns the tuple (phy2log, log2phy, logcnt); some keep only the first.
  const parts = value instanceof Tensor ? [value] : Array.isArray(value) && value.length <= 3 ? value : [];
  NAMES.forEach((name, at) => {
    const part = parts[at] ?? entry(value, name);
    if (part instanceof Tensor) arrays[name] = torch.open(part, name);
  });
  const expected =
    'a dict with physical_to_logical_map or phy2log, a tensor [layers, slots], or the tuple of EPLB';
  const found =
    value instanceof Map
      ? [...value.keys()].slice(0, 8).map(describe).join(', ') || 'an empty dict'
      : describe(value);
  return combine(arrays, path, expected, found, signal);
}

export function readEplbJson(
  object: Record<string, unknown>,
  path: string,
): Promise<RawPlacement> | RawPlacement {
  const arrays: Partial<Record<Name, NumericArray>> = {};
  for (const name of NAMES) {
    const value = property(object, name);
    if (value !== undefined && value !== null) arrays[name] = listArray(value, path, name);
  }
  return combine(arrays, path, 'a list phy2log', 'none');
}

/** A nested JSON list as an array, so that one set of checks serves all containers. */
function listArray(value: unknown, file: string, where: string): NumericArray {
  const shape = nestedShape(value, 3);
  const numbers: number[] = [];
  walkNested(value, shape, file, where, (item) => {
    numbers.push(Number.isInteger(item) ? item : requireInteger(file, where, item, -1, MAX_EXPERTS));
  });
  const strides = shape.map((_, d) => shape.slice(d + 1).reduce((product, length) => product * length, 1));
  return { file, where, kind: 'i8', shape, strides, offset: 0, read: (at) => numbers[at]! };
}

async function combine(
  arrays: Partial<Record<Name, NumericArray>>,
  path: string,
  expected: string,
  found: string,
  signal?: AbortSignal,
): Promise<RawPlacement> {
  const { phy2log } = arrays;
  if (phy2log === undefined) throw formatError(path, '', expected, found);
  requireRank(phy2log, [2], 'shape [layers, slots]');
  const physicalToLogical = await readIds(phy2log, false, signal);
  const [layers = 0, slots = 0] = phy2log.shape;
  const raw: RawPlacement = { layers, slots, physicalToLogical, format: 'eplb', notes: [] };
  const experts = await checkOthers({ ...arrays, phy2log }, raw, signal);
  if (experts !== undefined) raw.experts = experts;
  return raw;
}

/** The number of experts, where an array tells; throws where the arrays contradict phy2log. */
async function checkOthers(
  arrays: Arrays,
  raw: RawPlacement,
  signal?: AbortSignal,
): Promise<number | undefined> {
  const { logcnt, log2phy } = arrays;
  const experts = (logcnt ?? log2phy)?.shape[1];
  if (experts === undefined) return undefined;
  const { file } = arrays.phy2log;
  requireInteger(file, 'experts', experts, 1, MAX_EXPERTS);
  if (raw.layers * experts > MAX_CELLS)
    throw formatError(file, 'experts', `at most ${MAX_CELLS} counts`, `${raw.layers} × ${experts}`);
  const counts = countReplicas(raw, experts, file);
  if (logcnt !== undefined) {
    requireShapeOf(logcnt, [raw.layers, experts]);
    const check = (value: number, index: number) => {
      if (value !== counts[index])
        throw contradiction(logcnt, index, experts, `${counts[index]}`, `${value}`);
    };
    await visit(logcnt, check, signal);
  }
  if (log2phy !== undefined) await checkSlots(log2phy, raw, experts, counts, signal);
  return experts;
}

/** [layers][experts] */
function countReplicas(raw: RawPlacement, experts: number, file: string): Int32Array {
  const counts = new Int32Array(raw.layers * experts);
  raw.physicalToLogical.forEach((id, index) => {
    const layer = Math.floor(index / raw.slots);
    const where = () => `phy2log, layer ${layer}, slot ${index % raw.slots}`;
    if (id >= experts)
      throw formatError(file, where(), `an expert below ${experts}, as the other arrays say`, `${id}`);
    counts[layer * experts + id]!++;
  });
  return counts;
}

/** log2phy must list each expert's slots, in any order, then only -1. */
async function checkSlots(
  log2phy: NumericArray,
  raw: RawPlacement,
  experts: number,
  counts: Int32Array,
  signal?: AbortSignal,
): Promise<void> {
  const width = log2phy.shape[2] ?? 0;
  requireShapeOf(log2phy, [raw.layers, experts, width]);
  const seen = new Uint8Array(raw.layers * raw.slots);
  const left = Int32Array.from(counts);
  const check = (slot: number, index: number) => {
    const cell = Math.floor(index / width);
    if (slot === -1) return;
    const layer = Math.floor(cell / experts);
    const at = layer * raw.slots + slot;
    const valid =
      Number.isInteger(slot) && slot >= 0 && slot < raw.slots && raw.physicalToLogical[at] === cell % experts;
    if (!valid || seen[at] === 1) {
      throw contradiction(log2phy, cell, experts, 'its slots of phy2log, each once', `slot ${slot}`);
    }
    seen[at] = 1;
    left[cell]!--;
  };
  await visit(log2phy, check, signal);
  const missing = left.findIndex((count) => count !== 0);
  if (missing >= 0) throw contradiction(log2phy, missing, experts, `${counts[missing]} slots`, 'fewer');
}

function requireShapeOf(array: NumericArray, shape: number[]): void {
  if (!isInteger(array) || shapeText(array.shape) !== shapeText(shape)) {
    const received = `shape ${shapeText(array.shape)}, dtype ${array.kind}`;
    throw formatError(
      array.file,
      array.where,
      `integers of shape ${shapeText(shape)}, to match phy2log`,
      received,
    );
  }
}

function contradiction(
  array: NumericArray,
  cell: number,
  experts: number,
  expected: string,
  received: string,
) {
  const where = `${array.where}, layer ${Math.floor(cell / experts)}, expert ${cell % experts}`;
  return formatError(array.file, where, `${expected} (phy2log says so)`, received);
}
