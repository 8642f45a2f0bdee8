/**
 * Placements as the files that engines load. Each encoder writes one format and refuses, by name, what the engine behind it
 * could not express: a wrong file would not fail, it would serve from the wrong weights.
 */
import { zipSync } from 'fflate';
import { invalid } from '../checks.js';
import { type GimbalError, mismatch } from '../errors.js';
import { writeFileAtomic } from '../files.js';
import { MAX_LAYERS } from '../import/limits.js';
import { everyExpert } from '../validate.js';
import { encodeNpy } from './npy.js';

export type PlacementFormat = 'sglang' | 'vllm' | 'tensorrt-llm' | 'vllm-ascend' | 'eplb' | 'npy' | 'json';

export interface PlacementFormatInfo {
  title: string;
  /** With its dot. */
  extension: string;
  /** Whether -1, an empty slot (as on a dead GPU), can be written. */
  expressesEmptySlots: boolean;
  /** Who loads it, and how. */
  loadedBy: string;
}

export const placementFormats: Record<PlacementFormat, PlacementFormatInfo> = {
  sglang: {
    title: 'SGLang initial expert location, JSON',
    extension: '.json',
    expressesEmptySlots: false,
    loadedBy: 'SGLang: --init-expert-location FILE, with --ep-num-redundant-experts set to slots − experts',
  },
  vllm: {
    title: 'vLLM physical-to-logical map, JSON list',
    extension: '.json',
    expressesEmptySlots: false,
    loadedBy: 'no released vLLM; the form that its proposed initial expert map takes',
  },
  'tensorrt-llm': {
    title: 'TensorRT-LLM MoE load balancer configuration, YAML',
    extension: '.yaml',
    expressesEmptySlots: false,
    loadedBy: 'TensorRT-LLM: moe_config.load_balancer: FILE',
  },
  'vllm-ascend': {
    title: 'vLLM-Ascend expert map, JSON',
    extension: '.json',
    expressesEmptySlots: false,
    loadedBy: 'vLLM-Ascend from 0.9.0rc1, model runner V1: expert_map_path',
  },
  eplb: {
    title: "DeepSeek EPLB's arrays phy2log, log2phy, logcnt, .npz",
    extension: '.npz',
    expressesEmptySlots: false,
    loadedBy: "numpy.load, in place of rebalance_experts' result",
  },
  npy: {
    title: 'NumPy array int32 [layers, slots]',
    extension: '.npy',
    expressesEmptySlots: true,
    loadedBy: 'numpy.load',
  },
  json: {
    title: "gimbal's own JSON, lossless",
    extension: '.json',
    expressesEmptySlots: true,
    loadedBy: 'gimbal',
  },
};

export interface PlacementToExport {
  layers: number;
  gpus: number;
  slotsPerGpu: number;
  experts: number;
  /** `[layers][gpus * slotsPerGpu]`, -1 for an empty slot. */
  physicalToLogical: Int32Array;
  /** `[layers]`, ascending: the model layer of each row. */
  layerIds?: Int32Array;
  /** Layers of the whole model; default: up to the last of `layerIds`. Only SGLang's format needs it. */
  modelLayers?: number;
  /** Kept by format `json` only. Must be JSON; a bigint is written as text. */
  metadata?: Record<string, unknown>;
}

/** The bytes of a placement file. Throws GimbalError GIMBAL_INVALID_INPUT where the format cannot express the placement. */
export function encodePlacement(placement: PlacementToExport, format: PlacementFormat): Uint8Array {
  const info = Object.hasOwn(placementFormats, format) ? placementFormats[format] : undefined;
  if (info === undefined)
    throw invalid('format', `one of ${Object.keys(placementFormats).join(', ')}`, String(format));
  validate(placement, format, info);
  switch (format) {
    case 'sglang':
      return text(encodeSglang(placement));
    case 'vllm':
      return text(`[\n${rowsText(placement, '  ')}\n]\n`);
    case 'tensorrt-llm':
      return text(encodeTensorrtLlm(placement));
    case 'vllm-ascend':
      return text(encodeAscend(placement));
    case 'eplb':
      return encodeEplb(placement);
    case 'npy':
      return encodeNpy(placement.physicalToLogical, [placement.layers, slotsOf(placement)]);
    case 'json':
      return text(encodeOwnJson(placement));
  }
}

/** Encodes, then replaces `path` in one step: a reader never sees half a file, and a failure leaves the old one. */
export async function writePlacement(
  path: string,
  placement: PlacementToExport,
  format: PlacementFormat,
): Promise<void> {
  await writeFileAtomic(path, encodePlacement(placement, format));
}

function slotsOf(placement: PlacementToExport): number {
  return placement.gpus * placement.slotsPerGpu;
}

/** One layer's slots. */
function rowOf(placement: PlacementToExport, layer: number): Int32Array {
  const slots = slotsOf(placement);
  return placement.physicalToLogical.subarray(layer * slots, (layer + 1) * slots);
}

function validate(placement: PlacementToExport, format: PlacementFormat, info: PlacementFormatInfo): void {
  for (const field of ['layers', 'gpus', 'slotsPerGpu', 'experts'] as const) {
    const value = placement[field];
    if (!Number.isInteger(value) || value < 1)
      throw invalid(field, 'an integer of at least 1', String(value));
  }
  const cells = placement.layers * slotsOf(placement);
  if (placement.physicalToLogical.length !== cells) {
    const expected = `${cells} slots: layers × gpus × slotsPerGpu`;
    throw invalid('physicalToLogical', expected, `${placement.physicalToLogical.length}`);
  }
  validateLayerIds(placement);
  for (let layer = 0; layer < placement.layers; layer++) validateRow(placement, layer, format, info);
}

function validateLayerIds({ layers, layerIds, modelLayers }: PlacementToExport): void {
  if (layerIds !== undefined) {
    if (layerIds.length !== layers)
      throw invalid('layerIds', `${layers} ids, one a layer`, `${layerIds.length}`);
    layerIds.forEach((id, row) => {
      const low = row === 0 ? 0 : layerIds[row - 1]! + 1;
      if (id < low || id >= MAX_LAYERS) {
        throw invalid(`layerIds[${row}]`, `ascending ids, from ${low} to ${MAX_LAYERS - 1}`, `${id}`);
      }
    });
  }
  const least = layerIds === undefined ? layers : layerIds[layers - 1]! + 1;
  const most = Math.max(least, MAX_LAYERS);
  if (
    modelLayers !== undefined &&
    (!Number.isInteger(modelLayers) || modelLayers < least || modelLayers > most)
  ) {
    throw invalid('modelLayers', `an integer from ${least} to ${most}`, `${modelLayers}`);
  }
}

/** Ids in range, every expert held, and -1 only where the format has it. */
function validateRow(
  placement: PlacementToExport,
  layer: number,
  format: PlacementFormat,
  info: PlacementFormatInfo,
): void {
  const { experts } = placement;
  const row = rowOf(placement, layer);
  row.forEach((id, slot) => {
    const field = `physicalToLogical, layer ${layer}, slot ${slot}`;
    if (id === -1) {
      if (!info.expressesEmptySlots) throw cannotBeEmpty(field, format);
      return;
    }
    if (id < 0 || id >= experts) throw invalid(field, `an expert from 0 to ${experts - 1}, or -1`, `${id}`);
  });
  everyExpert(`physicalToLogical, layer ${layer}`, row, experts);
}

function cannotBeEmpty(field: string, format: PlacementFormat): GimbalError {
  const able = Object.keys(placementFormats).filter(
    (name) => placementFormats[name as PlacementFormat].expressesEmptySlots,
  );
  const expected = `an expert in every slot, since format ${format} cannot express an empty one (${able.join(' and ')} can)`;
  return invalid(field, expected, '-1, as on a dead GPU');
}

function text(content: string): Uint8Array {
  return Buffer.from(content, 'utf8');
}

/** A JSON list per row, one row a line, joined by commas. */
function rowsText(placement: PlacementToExport, indent: string): string {
  const rows = Array.from(
    { length: placement.layers },
    (_, layer) => `${indent}[${rowOf(placement, layer).join(', ')}]`,
  );
  return rows.join(',\n');
}

/**
 * SGLang indexes the map by the model's layer number, so it has a row for every layer, those without experts included; these
 * get the engine's own default. No other key may stand beside the map.
 */
function encodeSglang(placement: PlacementToExport): string {
  const { layers, experts, layerIds } = placement;
  const modelLayers = placement.modelLayers ?? (layerIds === undefined ? layers : layerIds[layers - 1]! + 1);
  const unused = Array.from({ length: slotsOf(placement) }, (_, slot) => slot % experts).join(', ');
  const lines = new Array<string>(modelLayers).fill(`    [${unused}]`);
  for (let layer = 0; layer < layers; layer++) {
    lines[layerIds?.[layer] ?? layer] = `    [${rowOf(placement, layer).join(', ')}]`;
  }
  return `{\n  "physical_to_logical_map": [\n${lines.join(',\n')}\n  ]\n}\n`;
}

/** The engine looks every MoE layer up by its number in the model; 0 updates per iteration keep the placement fixed. */
function encodeTensorrtLlm(placement: PlacementToExport): string {
  const { layerIds } = placement;
  if (layerIds === undefined) {
    throw invalid('layerIds', 'the model layer of each row, by which TensorRT-LLM finds it', 'none');
  }
  const rows = Array.from(layerIds, (id, layer) => `  ${id}: [${rowOf(placement, layer).join(', ')}]\n`).join(
    '',
  );
  return `num_slots: ${slotsOf(placement)}\ninitial_global_assignments:\n${rows}layer_updates_per_iter: 0\n`;
}

/** Rows by position among the MoE layers. The engine finds a replica by (device, expert), so a device holds each once. */
function encodeAscend(placement: PlacementToExport): string {
  const { layers, gpus, slotsPerGpu } = placement;
  const layerText = (layer: number) => {
    const devices = Array.from({ length: gpus }, (_, gpu) => {
      const experts = rowOf(placement, layer).subarray(gpu * slotsPerGpu, (gpu + 1) * slotsPerGpu);
      requireDistinct(experts, layer, gpu);
      return `        {"device_id": ${gpu}, "device_expert": [${experts.join(', ')}]}`;
    });
    const list = `      "device_list": [\n${devices.join(',\n')}\n      ]`;
    return `    {\n      "layer_id": ${layer},\n      "device_count": ${gpus},\n${list}\n    }`;
  };
  const list = Array.from({ length: layers }, (_, layer) => layerText(layer)).join(',\n');
  return `{\n  "moe_layer_count": ${layers},\n  "layer_list": [\n${list}\n  ]\n}\n`;
}

function requireDistinct(experts: Int32Array, layer: number, gpu: number): void {
  const seen = new Set<number>();
  for (const expert of experts) {
    if (seen.has(expert)) {
      const field = `physicalToLogical, layer ${layer}, GPU ${gpu}`;
      throw invalid(
        field,
        'each expert at most once, since vLLM-Ascend cannot tell two replicas on one device apart',
        `expert ${expert} twice`,
      );
    }
    seen.add(expert);
  }
}

/** int64 throughout, as the tensors that EPLB returns; log2phy lists each expert's slots in ascending order. */
function encodeEplb(placement: PlacementToExport): Uint8Array {
  const { layers, experts, physicalToLogical } = placement;
  const slots = slotsOf(placement);
  const counts = new Int32Array(layers * experts);
  physicalToLogical.forEach((id, index) => {
    counts[Math.floor(index / slots) * experts + id]!++;
  });
  const width = counts.reduce((most, count) => Math.max(most, count), 0);
  const log2phy = new BigInt64Array(layers * experts * width).fill(-1n);
  const filled = new Int32Array(layers * experts);
  physicalToLogical.forEach((id, index) => {
    const cell = Math.floor(index / slots) * experts + id;
    log2phy[cell * width + filled[cell]!++] = BigInt(index % slots);
  });
  const files = {
    'phy2log.npy': encodeNpy(wide(physicalToLogical), [layers, slots]),
    'log2phy.npy': encodeNpy(log2phy, [layers, experts, width]),
    'logcnt.npy': encodeNpy(wide(counts), [layers, experts]),
  };
  // Stored, with a fixed time: the same placement gives the same bytes.
  return zipSync(files, { level: 0, mtime: new Date(1980, 0, 1) });
}

function wide(values: Int32Array): BigInt64Array {
  return BigInt64Array.from(values, BigInt);
}

function encodeOwnJson(placement: PlacementToExport): string {
  const { layers, gpus, slotsPerGpu, experts, layerIds, modelLayers, metadata } = placement;
  const head: Record<string, unknown> = {
    format: 'gimbal-placement',
    version: 1,
    layers,
    gpus,
    slotsPerGpu,
    experts,
  };
  if (layerIds !== undefined) head.layerIds = Array.from(layerIds);
  if (modelLayers !== undefined) head.modelLayers = modelLayers;
  if (metadata !== undefined) head.metadata = metadata;
  const lines = Object.entries(head).map(
    ([key, value]) => `  ${JSON.stringify(key)}: ${jsonText(key, value)},\n`,
  );
  return `{\n${lines.join('')}  "physicalToLogical": [\n${rowsText(placement, '    ')}\n  ]\n}\n`;
}

function jsonText(field: string, value: unknown): string {
  try {
    return JSON.stringify(value, (_, item: unknown) => (typeof item === 'bigint' ? item.toString() : item));
  } catch (error) {
    const received = error instanceof Error ? error.message : String(error);
    throw mismatch('GIMBAL_INVALID_INPUT', field, 'values that JSON can express', received, error);
  }
}
