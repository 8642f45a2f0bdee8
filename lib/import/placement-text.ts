/**
 * Placements in text files. JSON formats are told apart by the one key that each has; TensorRT-LLM's configuration is YAML,
 * of which JSON is a part.
 */
import type { PlacementFormat } from '../export/placement.js';
import { shapeText } from './array.js';
import { readEplbJson } from './eplb.js';
import {
  describe,
  formatError,
  MAX_EXPERTS,
  MAX_LAYERS,
  MAX_SLOTS,
  quote,
  requireInteger,
} from './limits.js';
import { readLayerIds } from './plain.js';
import { type RawPlacement, requireExpert, requirePlacementShape } from './rows.js';
import { decodeText, nestedShape, parseJson, property, requireObject, walkNested } from './text.js';
import { readAscendMap } from './vllm-ascend.js';
import { YamlFile } from './yaml.js';

/** The key that gives each JSON format away. */
const JSON_MARKS: [key: string, format: PlacementFormat][] = [
  ['physicalToLogical', 'json'],
  ['physical_to_logical_map', 'sglang'],
  ['layer_list', 'vllm-ascend'],
  ['phy2log', 'eplb'],
  ['initial_global_assignments', 'tensorrt-llm'],
];

export function readJsonPlacement(
  bytes: Uint8Array,
  path: string,
  yaml: boolean,
): Promise<RawPlacement> | RawPlacement {
  const text = decodeText(bytes, path);
  let value: unknown;
  try {
    value = parseJson(text, path);
  } catch (error) {
    // A YAML flow mapping starts like JSON.
    if (yaml) return readTensorrtLlmPlacement(new YamlFile(bytes, path), path);
    throw error;
  }
  if (Array.isArray(value)) return readVllmList(value, path);
  const object = requireObject(value, path, 'JSON');
  const marks = JSON_MARKS.filter(([key]) => property(object, key) !== undefined);
  if (marks.length !== 1) {
    const known = JSON_MARKS.map(([key]) => key).join(', ');
    const found =
      marks.length === 0
        ? Object.keys(object)
            .slice(0, 8)
            .map((key) => quote(key))
            .join(', ') || 'no key'
        : marks.map(([key]) => key).join(' and ');
    throw formatError(path, 'JSON', `exactly one of the keys ${known}, or a list`, found);
  }
  switch (marks[0]![1]) {
    case 'sglang':
      return readSglangJson(object, path);
    case 'vllm-ascend':
      return readAscendMap(object, path);
    case 'eplb':
      return readEplbJson(object, path);
    case 'tensorrt-llm':
      return readTensorrtLlmPlacement(new YamlFile(bytes, path), path);
    default:
      return readOwnJson(object, path);
  }
}

/** [layers][slots] of a JSON list. */
function readRows(
  value: unknown,
  path: string,
  where: string,
  allowEmpty: boolean,
): { layers: number; ids: Int32Array } {
  const shape = nestedShape(value, 2);
  if (shape.length !== 2)
    throw formatError(path, where, 'a list [layers][slots]', `shape ${shapeText(shape)}`);
  const [layers = 0, slots = 0] = shape;
  requirePlacementShape(path, where, layers, slots);
  const ids = new Int32Array(layers * slots);
  walkNested(value, shape, path, where, (id, index) => {
    ids[index] = requireExpert(
      path,
      `${where}[${Math.floor(index / slots)}][${index % slots}]`,
      id,
      allowEmpty,
    );
  });
  return { layers, ids };
}

function readSglangJson(object: Record<string, unknown>, path: string): RawPlacement {
  const { layers, ids } = readRows(object.physical_to_logical_map, path, 'physical_to_logical_map', false);
  const raw = sglangPlacement(ids, layers);
  const others = Object.keys(object).filter((key) => key !== 'physical_to_logical_map');
  if (others.length > 0)
    raw.notes.push(`SGLang refuses keys beside the map: ${others.map((key) => quote(key)).join(', ')}`);
  return raw;
}

/** The bare list of vLLM's proposals: a row per MoE layer, or one row for all of them. */
function readVllmList(value: unknown[], path: string): RawPlacement {
  const shared = typeof value[0] === 'number';
  const { layers, ids } = readRows(shared ? [value] : value, path, 'list', false);
  const notes = shared ? ['one row, meant for all layers'] : [];
  return { layers, slots: ids.length / layers, physicalToLogical: ids, format: 'vllm', notes };
}

function readOwnJson(object: Record<string, unknown>, path: string): RawPlacement {
  const version = property(object, 'version');
  if (property(object, 'format') !== 'gimbal-placement' || version !== 1) {
    const received = `format ${describe(property(object, 'format'))}, version ${describe(version)}`;
    throw formatError(path, 'JSON', 'format "gimbal-placement", version 1', received);
  }
  const { layers, ids } = readRows(object.physicalToLogical, path, 'physicalToLogical', true);
  const slots = ids.length / layers;
  const gpus = requireInteger(path, 'gpus', property(object, 'gpus'), 1, MAX_SLOTS);
  requireInteger(path, 'layers', property(object, 'layers'), layers, layers);
  const slotsPerGpu = requireInteger(path, 'slotsPerGpu', property(object, 'slotsPerGpu'), 1, MAX_SLOTS);
  if (gpus * slotsPerGpu !== slots) {
    throw formatError(path, 'physicalToLogical', `${gpus} × ${slotsPerGpu} slots a layer`, `${slots}`);
  }
  const experts = requireInteger(path, 'experts', property(object, 'experts'), 1, MAX_EXPERTS);
  const raw: RawPlacement = {
    layers,
    slots,
    gpus,
    experts,
    physicalToLogical: ids,
    format: 'json',
    notes: [],
  };
  const layerIds = property(object, 'layerIds');
  if (layerIds !== undefined && layerIds !== null) raw.layerIds = readLayerIds(layerIds, layers, path);
  const modelLayers = property(object, 'modelLayers');
  if (modelLayers !== undefined)
    raw.modelLayers = requireInteger(path, 'modelLayers', modelLayers, layers, MAX_LAYERS);
  const metadata = property(object, 'metadata');
  if (metadata !== undefined) raw.metadata = requireObject(metadata, path, 'metadata');
  return raw;
}

/** The load balancer's configuration: rows under the model's layer numbers, each as long as num_slots. */
export function readTensorrtLlmPlacement(yaml: YamlFile, path: string): RawPlacement {
  const root = yaml.root();
  const slots = requireInteger(path, 'num_slots', yaml.scalar(root.get('num_slots')), 1, MAX_SLOTS);
  const field = 'initial_global_assignments';
  if (!root.has(field)) {
    throw formatError(
      path,
      field,
      'an assignment for each layer',
      'none: the configuration leaves the placement to the engine',
    );
  }
  const rows = [...yaml.entries(root.get(field), field)].map(([key, node]) => {
    const number = /^\d+$/.test(key) ? Number(key) : key;
    return { id: requireInteger(path, `${field}, key ${quote(key)}`, number, 0, MAX_LAYERS - 1), node };
  });
  rows.sort((a, b) => a.id - b.id);
  requirePlacementShape(path, field, rows.length, slots);
  const physicalToLogical = new Int32Array(rows.length * slots);
  rows.forEach(({ id, node }, row) => {
    const ids = physicalToLogical.subarray(row * slots, (row + 1) * slots);
    readAssignment(yaml, node, path, `${field}, layer ${id}`, ids);
  });
  const layerIds = rows.map((row) => row.id);
  return { layers: rows.length, slots, physicalToLogical, layerIds, format: 'tensorrt-llm', notes: [] };
}

/** One layer's list into its row. An alias may stand for the same long list many times, so no list is kept. */
function readAssignment(yaml: YamlFile, node: unknown, path: string, where: string, ids: Int32Array): void {
  const items = yaml.items(node, where);
  if (items.length !== ids.length) {
    throw formatError(path, where, `${ids.length} slots, as num_slots says`, `${items.length}`);
  }
  items.forEach((item, slot) => {
    ids[slot] = requireExpert(path, `${where}, slot ${slot}`, item, false);
  });
}

/** SGLang's rows are all the model's layers. */
export function sglangPlacement(physicalToLogical: Int32Array, layers: number): RawPlacement {
  return {
    layers,
    slots: physicalToLogical.length / layers,
    physicalToLogical,
    layerIds: Array.from({ length: layers }, (_, row) => row),
    modelLayers: layers,
    format: 'sglang',
    notes: [],
  };
}
