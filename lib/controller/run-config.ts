/**
 * The configuration of `gimbal run`: the gateway's, and `controller` beside it. What the model is like is said once, in the gateway's
 * `routing`; what the cluster is like, what may be done and how, here.
 */
import { z } from 'zod';
import { GimbalError, mismatch } from '../errors.js';
import { type PlacementFormat, placementFormats } from '../export/placement.js';
import { checkGatewayOptions, fromZod, type GatewayConfig, readGroups } from '../gateway/config.js';
import { statisticsOptions } from '../gateway/routing/config.js';
import { readPlacement, selectLayers } from '../import/placement.js';
import { present } from '../present.js';
import { findModel, type ModelShape } from '../presets.js';
import { parseTopology, type Topology } from '../topology.js';
import { EFFORTS } from '../validate.js';
import type { AffinityOptions } from './affinity.js';
import { bytesOfKey } from './fingerprints.js';
import type { MigrationCosts, PlacedModel } from './types.js';

const MOST_MS = 7 * 24 * 3.6e6;
const ms = z.number().positive().max(MOST_MS);
const whole = z.number().int().positive();
const share = z.number().min(0).max(1);
const weight = z.number().nonnegative().optional();
const file = z.string().min(1);
const format = z.enum(Object.keys(placementFormats) as [PlacementFormat]);
const command = z.array(z.string()).min(1);
const httpUrl = z.url({ protocol: /^https?$/, error: 'expected an http or https URL' });

const hookSchema = z.union(
  [
    /** A program that gets the change and puts it in force; and one that says which plan is. */
    z.strictObject({ command, verify: command.optional() }),
    /** Is sent the change, and asked for the plan that is in force. */
    z.strictObject({
      url: httpUrl,
      verifyUrl: httpUrl.optional(),
      headers: z.record(z.string(), z.string()).default({}),
    }),
    /** Finds the change in a folder, and acknowledges it there. */
    z.strictObject({ folder: file, pollMs: ms.optional() }),
    /** Engines fetch it, by the policy inside them. */
    z.strictObject({ service: z.literal(true) }),
  ],
  { error: 'expected one of { command }, { url }, { folder } and { service: true }' },
);

/** One of several controllers acts: the one that a folder or a Redis which all see names. */
const leaseSchema = z.union(
  [
    z.strictObject({ folder: file, ttlMs: ms.optional() }),
    z.strictObject({ redis: z.string().min(1), key: z.string().min(1).optional(), ttlMs: ms.optional() }),
  ],
  { error: 'expected { folder } or { redis }' },
);

export const controllerSchema = z.strictObject({
  /** As `parseTopology` takes it: GPUs, model, hardware, links, or costs of your own. */
  topology: z.record(z.string(), z.unknown()),
  /** Physical experts that a GPU holds. */
  slotsPerGpu: whole,
  replicaChoice: z.enum(['even', 'nearest']).optional(),
  weights: z.strictObject({ load: weight, commMax: weight, commTotal: weight, migration: weight }).optional(),
  allowDuplicates: z.boolean().optional(),
  /** What engines start with; default: expert = slot modulo experts, as vLLM and SGLang do. */
  initial: z.strictObject({ file, format: format.optional() }).optional(),
  hook: hookSchema.optional(),
  /** What is written before a change, in an engine's format. */
  export: z.strictObject({ file, format: format.default('json') }).optional(),
  /** What moving experts costs; `expertBytes` is the model's, where the topology names one. */
  migration: z
    .strictObject({
      expertBytes: z.number().positive().optional(),
      linkGBps: z.number().positive().optional(),
      transfer: z.enum(['stall', 'overlap']).optional(),
      linkShare: share.optional(),
      stallMs: z.number().nonnegative().optional(),
      layerStallMs: z.number().nonnegative().optional(),
      stagingSlots: z.number().int().nonnegative().optional(),
    })
    .prefault({}),
  /** Only report what would have been done. */
  shadow: z.boolean().default(false),
  stateFile: file,
  /** Where the statistics outlive a restart. */
  statisticsFile: file.optional(),
  lease: leaseSchema.optional(),
  intervalMs: ms.default(10_000),
  /** Between two exchanges with the dispatcher; what it is told is forgotten after 30 s. */
  feedbackMs: ms.max(25_000).default(5000),
  /** Sends tenants and sessions near their experts; `auto`: where that is known to help. */
  affinity: z.enum(['auto', 'on', 'off']).default('auto'),
  /** For what is known of them. */
  affinityMemoryBytes: whole.max(2 ** 34).default(64 * 2 ** 20),
  /** The request's header that names its tenant; else its API key does, where there are several, else its session. */
  tenantHeader: z.string().min(1).toLowerCase().optional(),
  applyTimeoutMs: ms.default(120_000),
  verifyTimeoutMs: ms.default(10_000),
  overdispersion: z.number().min(1).optional(),
  resamples: z.number().int().min(2).max(1000).optional(),
  rules: z
    .strictObject({
      horizonMs: ms.optional(),
      minIntervalMs: ms.optional(),
      leastGainShare: share.optional(),
      certainty: z.number().nonnegative().optional(),
      hysteresis: share.optional(),
      leastTokens: z.number().nonnegative().optional(),
      staleStatisticsMs: ms.optional(),
      backoffMs: ms.optional(),
      mostBackoffMs: ms.optional(),
    })
    .prefault({}),
  plan: z
    .strictObject({
      backend: z.enum(['auto', 'cpu', 'cuda']).optional(),
      device: z.number().int().nonnegative().optional(),
      effort: z.enum(EFFORTS).optional(),
      seed: z.number().int().nonnegative().optional(),
      threads: whole.optional(),
      timeLimitMs: ms.optional(),
    })
    .prefault({}),
});

const sectionSchema = z.strictObject({ controller: controllerSchema });

export type ControllerConfig = z.output<typeof controllerSchema>;
export type RunConfig = GatewayConfig & { controller: ControllerConfig };

/**
 * @param shadow as if the file said so
 * @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT, GIMBAL_INVALID_INPUT
 */
export async function readRunConfig(file: string, shadow = false): Promise<RunConfig> {
  const groups = await readGroups(file);
  const { controller } = groups;
  const isGroup = typeof controller === 'object' && controller !== null;
  return checkRunOptions(
    shadow && isGroup ? { ...groups, controller: { ...controller, shadow } } : groups,
    file,
  );
}

/** @throws GimbalError GIMBAL_INVALID_INPUT: the first key at fault, what it takes and what came */
export function checkRunOptions(options: Record<string, unknown>, source = 'options'): RunConfig {
  const { controller: given, ...rest } = options;
  const gateway = checkGatewayOptions(rest, source);
  const wrong = (key: string, expected: string, received: string) =>
    mismatch('GIMBAL_INVALID_INPUT', `${source}: ${key}`, expected, received);
  if (given === undefined) throw wrong('controller', 'what places experts', 'nothing');
  if (gateway.routing === undefined) throw wrong('routing', 'the model whose experts are placed', 'nothing');
  const groups = new Set(gateway.servers.map(({ url, group = url }) => group));
  if (groups.size > 1) {
    throw wrong(
      'servers[].group',
      'one group, since one placement is for all engines',
      [...groups].join(', '),
    );
  }
  // Together with its key, so that messages name it.
  const {
    success,
    data: parsed,
    error,
  } = sectionSchema.safeParse({ controller: given }, { reportInput: true });
  if (!success) throw fromZod(error, source);
  const data = parsed.controller;
  const config = { ...gateway, controller: data };
  if (data.hook === undefined && !data.shadow)
    throw wrong('controller.hook', 'one, unless shadow is true', 'nothing');
  modelOf(config, source);
  migrationOf(data, source);
  affinityOf(config, source);
  return config;
}

/**
 * The problem that placements are planned for.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT, GIMBAL_FORMAT: no cluster, or not one of these sources and experts
 */
export function modelOf(config: RunConfig, source = 'options'): PlacedModel {
  const { routing, servers, controller } = config;
  const { layers, sources, experts } = statisticsOptions(routing!, servers);
  const { slotsPerGpu, replicaChoice, weights, allowDuplicates } = controller;
  const cluster = clusterOf(controller, sources, `${source}: controller.topology`);
  if (cluster.gpus * slotsPerGpu < experts) {
    const expected = `at least ${Math.ceil(experts / cluster.gpus)}, so that ${experts} experts find room`;
    throw mismatch('GIMBAL_INVALID_INPUT', `${source}: controller.slotsPerGpu`, expected, `${slotsPerGpu}`);
  }
  return {
    layers,
    sources,
    experts,
    gpus: cluster.gpus,
    slotsPerGpu,
    computeCost: cluster.computeCost,
    commCost: cluster.commCost,
    layerIds: Int32Array.from({ length: layers }, (_, row) => routing!.firstLayer + row),
    ...(replicaChoice === undefined ? {} : { replicaChoice }),
    ...(weights === undefined ? {} : { weights: present(weights) }),
    ...(allowDuplicates === undefined ? {} : { allowDuplicates }),
  };
}

/**
 * What requests are steered by; undefined where they are not. Under `auto` they are where it was measured to gain: over an all-to-all
 * between nodes, under the policy that knows of it, with answers that are sampled.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT: no room for one key
 */
export function affinityOf(config: RunConfig, source = 'options'): AffinityOptions | undefined {
  const { routing, servers, controller, policy, weights } = config;
  const { layers, experts, sources } = statisticsOptions(routing!, servers);
  const { affinity, affinityMemoryBytes: memoryBytes, tenantHeader } = controller;
  const isHeeded = policy === 'gimbal' && weights.affinity !== 0 && routing!.share > 0;
  if (affinity === 'off' || (affinity === 'auto' && !isHeeded)) return undefined;
  const { nodes, commCost } = clusterOf(controller, sources, `${source}: controller.topology`);
  if (affinity === 'auto' && !(nodes > 1 && commCost.some((ns) => ns > 0))) return undefined;
  const leastBytes = bytesOfKey(layers, experts);
  if (memoryBytes >= leastBytes)
    return { layers, experts, sources, memoryBytes, ...present({ tenantHeader }) };
  const field = `${source}: controller.affinityMemoryBytes`;
  throw mismatch('GIMBAL_INVALID_INPUT', field, `at least the ${leastBytes} of one key`, `${memoryBytes}`);
}

function clusterOf({ topology }: ControllerConfig, sources: number, field: string): Topology {
  let cluster: Topology;
  try {
    cluster = parseTopology('rank_cost_matrix' in topology ? topology : { sources, ...topology });
  } catch (error) {
    if (!(error instanceof GimbalError)) throw error;
    throw new GimbalError(error.code, `${field}: ${error.message}`, { field, cause: error });
  }
  if (cluster.sources === sources) return cluster;
  throw mismatch(
    'GIMBAL_INVALID_INPUT',
    field,
    `${sources} sources, as the servers have`,
    `${cluster.sources}`,
  );
}

/**
 * Throws where nobody says how large an expert is.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT
 */
export function migrationOf({ migration, topology }: ControllerConfig, source = 'options'): MigrationCosts {
  const { model } = topology;
  const shape = typeof model === 'string' ? findModel(model) : (model as Partial<ModelShape> | undefined);
  const { expertBytes = shape?.expertBytes } = migration;
  if (expertBytes !== undefined) return { ...present(migration), expertBytes };
  const field = `${source}: controller.migration.expertBytes`;
  throw mismatch('GIMBAL_INVALID_INPUT', field, 'bytes of an expert, or topology.model', 'neither');
}

/**
 * [layers][gpus * slotsPerGpu] What engines hold at the start.
 *
 * @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT
 */
export async function initialPlacement({ controller }: RunConfig, model: PlacedModel): Promise<Int32Array> {
  const { layers, gpus, slotsPerGpu, experts, layerIds } = model;
  const width = gpus * slotsPerGpu;
  const { initial } = controller;
  if (initial === undefined)
    return Int32Array.from({ length: layers * width }, (_, at) => (at % width) % experts);
  const { file: from, format: as } = initial;
  const read = await readPlacement(from, { gpus, experts, ...(as === undefined ? {} : { format: as }) });
  const rows = selectLayers(read, layerIds === undefined ? { layers } : { layers, layerIds }, from);
  if (rows.slots === width) return rows.physicalToLogical;
  throw mismatch('GIMBAL_FORMAT', from, `${width} slots a layer`, `${rows.slots}`);
}
