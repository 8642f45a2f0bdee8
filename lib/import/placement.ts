/**
 * Placements from every format that this package writes, and from the files in which the engines keep one. The format is
 * found out from the content, then the extension; every id is checked before it enters the array.
 */
import { extname } from 'node:path';
import { mismatch } from '../errors.js';
import type { PlacementFormat } from '../export/placement.js';
import { readFileBounded } from '../files.js';
import { requireRank } from './array.js';
import { readEplbArchive, readEplbTensors } from './eplb.js';
import { formatError } from './limits.js';
import { isNpy, parseNpy } from './npy.js';
import { readJsonPlacement, readTensorrtLlmPlacement, sglangPlacement } from './placement-text.js';
import { type RawPlacement, readIds } from './rows.js';
import { readSglangPlacement } from './sglang.js';
import { listIds } from './table.js';
import { startsLikeJson } from './text.js';
import { isBarePickle, isTorchZip, readTorch } from './torch.js';
import { YamlFile } from './yaml.js';
import { isZip, Zip } from './zip.js';

/** A placement file is small; this is 30 times the largest seen. */
const MAX_PLACEMENT_BYTES = 256 * 1024 * 1024;

export interface PlacementFile {
  layers: number;
  /** Slots of one layer, over all GPUs. */
  slots: number;
  /** Where the file or the caller says. */
  gpus?: number;
  slotsPerGpu?: number;
  /** Logical experts of one layer, where the file or the caller says. */
  experts?: number;
  /** `[layers][slots]`, -1 for an empty slot. */
  physicalToLogical: Int32Array;
  /** `[layers]`, the model layer of each row, where the format knows it. */
  layerIds?: Int32Array;
  /** Layers of the whole model, those without routed experts included, where the format knows it. */
  modelLayers?: number;
  /** What the writer of a `json` file put beside the placement. */
  metadata?: Record<string, unknown>;
  format: PlacementFormat;
  notes: string[];
}

export interface ReadPlacementOptions {
  /** Default: found out from the content. */
  format?: PlacementFormat;
  /** Splits the slots where the file does not; must agree where it does. */
  gpus?: number;
  /** Ids must be below; must agree where the file says it. */
  experts?: number;
  /** Larger files are refused. Default 256 MiB; text is never read beyond 64 MiB, YAML beyond 512 KiB. */
  maxBytes?: number;
  signal?: AbortSignal;
}

/** Throws GimbalError: GIMBAL_IO where the file cannot be read, GIMBAL_FORMAT where its content is at fault. */
export async function readPlacement(
  path: string,
  options: ReadPlacementOptions = {},
): Promise<PlacementFile> {
  const { signal } = options;
  const maxBytes = options.maxBytes ?? MAX_PLACEMENT_BYTES;
  const bytes = await readFileBounded(path, { maxBytes, signal });
  const raw = await readRaw(bytes, path, options.format, signal);
  return applyOptions(raw, path, options);
}

/**
 * The rows of `placement` that belong to the given model layers, in their order. Where either side does not name its
 * layers, the rows must be as many, and are taken as they stand.
 */
export function selectLayers(
  placement: PlacementFile,
  target: { layers: number; layerIds?: Int32Array },
  name = 'placement',
): PlacementFile {
  const { layerIds: wanted, layers } = target;
  const own = placement.layerIds;
  if (wanted === undefined || own === undefined) {
    if (placement.layers !== layers) {
      const hint = own === undefined ? '' : '; name the model layers of the counts to select rows';
      throw mismatch('GIMBAL_FORMAT', name, `${layers} layers`, `${placement.layers} layers${hint}`);
    }
    return placement;
  }
  const rowOf = new Map(Array.from(own, (id, row) => [id, row]));
  const missing = Array.from(wanted).filter((id) => !rowOf.has(id));
  if (missing.length > 0) {
    const expected = `model layers ${listIds(Array.from(wanted))}`;
    throw mismatch('GIMBAL_FORMAT', name, expected, `${listIds(Array.from(own))}: no ${listIds(missing)}`);
  }
  const physicalToLogical = new Int32Array(layers * placement.slots);
  wanted.forEach((id, row) => {
    const from = rowOf.get(id)! * placement.slots;
    physicalToLogical.set(
      placement.physicalToLogical.subarray(from, from + placement.slots),
      row * placement.slots,
    );
  });
  return { ...placement, layers, physicalToLogical, layerIds: Int32Array.from(wanted) };
}

async function readRaw(
  bytes: Uint8Array,
  path: string,
  forced: PlacementFormat | undefined,
  signal: AbortSignal | undefined,
): Promise<RawPlacement> {
  const found = await readContent(bytes, path, forced, signal);
  if (forced !== undefined && found.format !== forced) {
    throw formatError(path, '', `a placement of format ${forced}`, `one of format ${found.format}`);
  }
  return found;
}

function readContent(
  bytes: Uint8Array,
  path: string,
  forced: PlacementFormat | undefined,
  signal: AbortSignal | undefined,
): Promise<RawPlacement> | RawPlacement {
  if (isNpy(bytes)) return readNpyPlacement(bytes, path, signal);
  if (isZip(bytes)) return readArchive(bytes, path, signal);
  if (isBarePickle(bytes)) {
    throw formatError(
      path,
      '',
      'a .pt file of PyTorch 1.6 or later',
      'a bare pickle, which is not read: it could hold code',
    );
  }
  const extension = extname(path).toLowerCase();
  const yaml = extension === '.yaml' || extension === '.yml';
  // Every JSON file is also YAML; only one of its keys can tell, so the extension does not decide.
  if (startsLikeJson(bytes)) return readJsonPlacement(bytes, path, yaml);
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 64 * 1024)).toString(
    'utf8',
  );
  if (
    forced === 'tensorrt-llm' ||
    yaml ||
    /^["']?(num_slots|initial_global_assignments|layer_updates_per_iter)["']?\s*:/m.test(text)
  ) {
    return readTensorrtLlmPlacement(new YamlFile(bytes, path), path);
  }
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 16)).toString('hex');
  const expected = 'a placement as .json, .yaml, .npy, .npz or .pt';
  throw formatError(
    path,
    '',
    expected,
    bytes.length === 0 ? 'an empty file' : `content that starts with 0x${head}`,
  );
}

function applyOptions(raw: RawPlacement, path: string, options: ReadPlacementOptions): PlacementFile {
  const { gpus, experts } = options;
  if (gpus !== undefined && raw.gpus !== undefined && gpus !== raw.gpus) {
    throw formatError(path, '', `${gpus} GPUs`, `a placement for ${raw.gpus}`);
  }
  if (experts !== undefined && raw.experts !== undefined && experts !== raw.experts) {
    throw formatError(path, '', `${experts} experts`, `a placement of ${raw.experts}`);
  }
  const { layerIds, ...rest } = raw;
  const placement: PlacementFile = { ...rest };
  if (layerIds !== undefined) placement.layerIds = Int32Array.from(layerIds);
  const knownGpus = raw.gpus ?? gpus;
  if (knownGpus !== undefined) {
    if (!Number.isInteger(knownGpus) || knownGpus < 1 || raw.slots % knownGpus !== 0) {
      throw formatError(path, '', `slots that divide evenly over ${knownGpus} GPUs`, `${raw.slots} slots`);
    }
    placement.gpus = knownGpus;
    placement.slotsPerGpu = raw.slots / knownGpus;
  }
  const knownExperts = raw.experts ?? experts;
  if (knownExperts !== undefined) placement.experts = knownExperts;
  checkExperts(placement, path);
  return placement;
}

/** Ids below the number of experts; an expert without a slot is worth a note, since an engine could not serve it. */
function checkExperts(placement: PlacementFile, path: string): void {
  const { experts, physicalToLogical, slots } = placement;
  if (experts === undefined) return;
  let uncovered = 0;
  for (let layer = 0; layer < placement.layers; layer++) {
    const row = physicalToLogical.subarray(layer * slots, (layer + 1) * slots);
    const high = row.findIndex((id) => id >= experts);
    if (high >= 0)
      throw formatError(
        path,
        `${rowName(placement, layer)}, slot ${high}`,
        `an expert below ${experts}`,
        `${row[high]}`,
      );
    const held = new Set(row);
    held.delete(-1);
    uncovered += experts - held.size;
  }
  if (uncovered > 0) placement.notes.push(`${uncovered} (layer, expert) pairs have no slot`);
}

function rowName(placement: { layerIds?: Int32Array | number[] }, row: number): string {
  return `layer ${placement.layerIds?.[row] ?? row}`;
}

async function readNpyPlacement(
  bytes: Uint8Array,
  path: string,
  signal?: AbortSignal,
): Promise<RawPlacement> {
  const array = parseNpy(bytes, path);
  requireRank(array, [2, 3], 'shape [layers, slots] or [layers, gpus, slotsPerGpu]');
  const physicalToLogical = await readIds(array, true, signal);
  const [layers = 0, middle = 0] = array.shape;
  const raw: RawPlacement = {
    layers,
    slots: physicalToLogical.length / layers,
    physicalToLogical,
    format: 'npy',
    notes: [],
  };
  if (array.shape.length === 3) raw.gpus = middle;
  return raw;
}

/** .npz: EPLB's three arrays. .pt: what SGLang loads or records, or EPLB's tensors. */
async function readArchive(bytes: Uint8Array, path: string, signal?: AbortSignal): Promise<RawPlacement> {
  const zip = new Zip(bytes, path, MAX_PLACEMENT_BYTES);
  if (!isTorchZip(zip)) return readEplbArchive(zip, path, signal);
  const torch = readTorch(zip, path);
  const sglang = await readSglangPlacement(torch, path);
  if (sglang === undefined) return readEplbTensors(torch, path, signal);
  requireRank(sglang.array, [2], 'shape [layers, slots]');
  const ids = await readIds(sglang.array, false, signal);
  const raw = sglangPlacement(ids, sglang.array.shape[0]!);
  if (sglang.key.startsWith('last')) raw.notes.push('the placement in force at the end of a recording');
  return raw;
}
