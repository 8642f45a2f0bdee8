/**
 * vLLM-Ascend's expert map: a list of layers, each a list of devices, each the list of experts it holds. The engine goes by
 * positions and ignores the ids beside them, so a file whose ids disagree with its positions is refused.
 */
import { describe, formatError, MAX_LAYERS, MAX_SLOTS, requireInteger } from './limits.js';
import { type RawPlacement, requireExpert, requirePlacementShape } from './rows.js';
import { property, requireObject } from './text.js';

/** [layers][devices][experts] */
export function readAscendMap(object: Record<string, unknown>, path: string): RawPlacement {
  const layers = requireInteger(path, 'moe_layer_count', property(object, 'moe_layer_count'), 1, MAX_LAYERS);
  const list = requireList(property(object, 'layer_list'), layers, path, 'layer_list', 'moe_layer_count');
  const rows = list.map((layer, index) => readLayer(layer, index, path));
  const devices = rows[0]!.length;
  const perDevice = rows[0]![0]!.length;
  const slots = devices * perDevice;
  requirePlacementShape(path, 'layer_list', layers, slots);
  const physicalToLogical = new Int32Array(layers * slots);
  rows.forEach((row, layer) => {
    if (row.length !== devices)
      throw formatError(
        path,
        `layer_list[${layer}]`,
        `${devices} devices, as in the first layer`,
        `${row.length}`,
      );
    row.forEach((experts, device) => {
      const where = `layer_list[${layer}].device_list[${device}].device_expert`;
      if (experts.length !== perDevice)
        throw formatError(path, where, `${perDevice} experts, as on the first device`, `${experts.length}`);
      experts.forEach((expert, at) => {
        const slot = layer * slots + device * perDevice + at;
        physicalToLogical[slot] = requireExpert(path, `${where}[${at}]`, expert, false);
      });
    });
  });
  return { layers, slots, gpus: devices, physicalToLogical, format: 'vllm-ascend', notes: [] };
}

function requireList(value: unknown, length: number, path: string, where: string, says: string): unknown[] {
  if (!Array.isArray(value) || value.length !== length) {
    throw formatError(path, where, `a list of ${length}, as ${says} says`, describe(value));
  }
  return value;
}

/** The experts of each device of one layer. */
function readLayer(value: unknown, index: number, path: string): unknown[][] {
  const where = `layer_list[${index}]`;
  const layer = requireObject(value, path, where);
  requireInteger(path, `${where}.layer_id`, property(layer, 'layer_id'), index, index);
  const count = requireInteger(path, `${where}.device_count`, property(layer, 'device_count'), 1, MAX_SLOTS);
  const devices = requireList(
    property(layer, 'device_list'),
    count,
    path,
    `${where}.device_list`,
    'device_count',
  );
  return devices.map((device, at) => {
    const place = `${where}.device_list[${at}]`;
    const record = requireObject(device, path, place);
    requireInteger(path, `${place}.device_id`, property(record, 'device_id'), at, at);
    const experts = property(record, 'device_expert');
    if (!Array.isArray(experts) || experts.length === 0) {
      throw formatError(path, `${place}.device_expert`, 'a list of experts', describe(experts));
    }
    return experts;
  });
}
