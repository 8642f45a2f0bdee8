/** The border of redundancy advice: options are checked by name and filled in before anything is planned. */
import {
  aboveZero,
  atLeastZero,
  checkKeys,
  count,
  describe,
  invalid,
  oneOf,
  ordinal,
  shareAboveZero,
} from '../checks.js';
import { GimbalError } from '../errors.js';
import { checkEngine, checkPopularity, groupShape, type ParallelShape } from '../simulator/check.js';
import {
  findServedModel,
  findServingHardware,
  keyValueTokens,
  MEMORY_DEFAULTS,
  type MemoryRules,
  type ServedModel,
  type ServingHardware,
} from '../simulator/hardware.js';
import type { GroupShape } from '../simulator/step-time.js';
import type { EngineSettings } from '../simulator/types.js';
import type { ReplicaChoice } from '../types.js';
import { REPLICA_CHOICES, typedArray } from '../validate.js';
import type { AdvisedRouting, RedundancyOptions, ServedTraffic } from './types.js';

const DEFAULTS = { splits: 4, leastGainShare: 0.005, certainty: 2, windowTokens: 65_536 };
/** Slots more on each GPU that are weighed unless told otherwise, up to a replica of each expert. */
const EXTRA_SLOTS = [0, 1, 2, 3, 4, 6, 8, 12, 16];

/** One number of slots; `kvTokens` is what it leaves to an engine's cache. */
export interface Slots {
  redundantExperts: number;
  slotsPerGpu: number;
  kvTokens: number;
}

export interface CheckedTraffic extends Omit<ServedTraffic, 'redundantExperts'> {
  kvTokensPerRequest: number;
  /** What stood beside the measured use. */
  inForce: Slots;
}

export interface CheckedAdvice {
  model: ServedModel;
  hardware: ServingHardware;
  shape: GroupShape;
  gpus: number;
  gpusPerNode: number;
  engine: Required<EngineSettings>;
  memory: MemoryRules;
  routing: AdvisedRouting & { windowTokens: number };
  traffic: CheckedTraffic;
  /** Rising; the first is the leanest. Each holds at least one request. */
  candidates: Slots[];
  /** In words, of those that were left out. */
  left: string[];
  replicaChoice: ReplicaChoice;
  splits: number;
  leastGainShare: number;
  certainty: number;
  simulate: number;
  plan: NonNullable<RedundancyOptions['plan']>;
  seed: number;
}

export function checkAdvice(options: RedundancyOptions): CheckedAdvice {
  checkKeys('options', options, [
    'model',
    'hardware',
    'nodes',
    'gpusPerNode',
    'sources',
    'routing',
    'traffic',
    'candidates',
    'replicaChoice',
    'engine',
    'memoryShare',
    'activationBytes',
    'tables',
    'splits',
    'leastGainShare',
    'certainty',
    'simulate',
    'plan',
    'seed',
    'signal',
    'onProgress',
  ]);
  const model = typeof options.model === 'string' ? findServedModel(options.model) : options.model;
  const hardware =
    typeof options.hardware === 'string' ? findServingHardware(options.hardware) : options.hardware;
  const routing = checkRouting(options.routing, model);
  const shape = checkShape(options, routing);
  const gpus = shape.ranks * shape.tensorParallel;
  const engine = checkEngine({ ...options.engine, kvBlocks: 1 }, model, hardware, shape, 1);
  const memory = checkMemory(options);
  const slotsOf = (slotsPerGpu: number): Slots => ({
    redundantExperts: slotsPerGpu * gpus - model.experts,
    slotsPerGpu,
    kvTokens: keyValueTokens(model, hardware, shape.tensorParallel, slotsPerGpu, memory),
  });
  const leanest = Math.ceil(model.experts / gpus);
  const traffic = checkTraffic(options.traffic, (redundant) =>
    slotsOf(
      redundant === undefined
        ? leanest
        : slotsFor('options.traffic.redundantExperts', redundant, model, gpus),
    ),
  );
  const wanted =
    options.candidates === undefined
      ? EXTRA_SLOTS.map((extra) => leanest + extra).filter(
          (slots) => slots <= Math.min(model.experts, 2 * leanest),
        )
      : checkCandidates(options.candidates, model, gpus);
  const { candidates, left } = thatFit([...new Set([leanest, ...wanted])].map(slotsOf), traffic, hardware);
  const { plan = {}, seed = 0, simulate = 0, replicaChoice = 'even' } = options;
  checkKeys('options.plan', plan, ['backend', 'device', 'effort', 'threads']);
  const splits = count('options.splits', options.splits ?? DEFAULTS.splits);
  if (splits < 2) throw invalid('options.splits', 'at least 2, to see how much they differ', `${splits}`);
  return {
    model,
    hardware,
    // Slots are in the place of experts (placed-load.ts), and each is there once.
    shape: { ...groupShape(shape, engine), replicaChoice: 'even' },
    gpus,
    gpusPerNode: gpus / shape.nodes,
    engine,
    memory,
    routing,
    traffic,
    candidates,
    left,
    replicaChoice: oneOf('options.replicaChoice', replicaChoice, REPLICA_CHOICES),
    splits,
    leastGainShare: atLeastZero('options.leastGainShare', options.leastGainShare ?? DEFAULTS.leastGainShare),
    certainty: atLeastZero('options.certainty', options.certainty ?? DEFAULTS.certainty),
    simulate: ordinal('options.simulate', simulate),
    plan,
    seed: ordinal('options.seed', seed),
  };
}

function checkRouting(routing: AdvisedRouting, model: ServedModel): CheckedAdvice['routing'] {
  checkKeys('options.routing', routing, [
    'kind',
    ...{
      generative: ['sigmaExperts', 'sigmaTopics', 'topics', 'personas', 'windowTokens'],
      counts: ['tokens', 'layers', 'sources', 'experts'],
    }[oneOf('options.routing.kind', routing?.kind, ['generative', 'counts'])],
  ]);
  if (routing.kind === 'generative') {
    const { windowTokens = DEFAULTS.windowTokens } = routing;
    checkPopularity(routing);
    return { ...routing, windowTokens: count('options.routing.windowTokens', windowTokens) };
  }
  const layers = count('options.routing.layers', routing.layers);
  const sources = count('options.routing.sources', routing.sources);
  const experts = count('options.routing.experts', routing.experts);
  if (experts !== model.experts) {
    throw invalid('options.routing.experts', `the ${model.experts} of ${model.name}`, `${experts}`);
  }
  typedArray(
    'options.routing.tokens',
    routing.tokens,
    'Uint32Array',
    '[layers][sources][experts]',
    layers * sources * experts,
  );
  return { ...routing, windowTokens: 0 };
}

function checkShape(options: RedundancyOptions, routing: AdvisedRouting): ParallelShape {
  const nodes = count('options.nodes', options.nodes ?? 1);
  const gpus = nodes * count('options.gpusPerNode', options.gpusPerNode);
  const known = routing.kind === 'counts' ? routing.sources : undefined;
  const ranks = count('options.sources', options.sources ?? known ?? gpus);
  if (known !== undefined && ranks !== known)
    throw invalid('options.sources', `the ${known} of the counts`, `${ranks}`);
  const tensorParallel = gpus / ranks;
  if (!Number.isInteger(tensorParallel) || (gpus / nodes) % tensorParallel !== 0) {
    throw invalid(
      'options.sources',
      `ranks that share ${nodes} x ${gpus / nodes} GPUs, whole nodes' worth`,
      `${ranks}`,
    );
  }
  return { ranks, tensorParallel, nodes };
}

function checkMemory({ memoryShare, activationBytes }: RedundancyOptions): MemoryRules {
  return {
    memoryShare: shareAboveZero('options.memoryShare', memoryShare ?? MEMORY_DEFAULTS.memoryShare),
    activationBytes: atLeastZero(
      'options.activationBytes',
      activationBytes ?? MEMORY_DEFAULTS.activationBytes,
    ),
  };
}

/** Which of the ways to say how many requests there are was taken. */
const LOADS = ['concurrency', 'requestsPerSecond', 'kvUse'] as const;

function checkTraffic(
  traffic: ServedTraffic,
  slotsOf: (redundant: number | undefined) => Slots,
): CheckedTraffic {
  const field = 'options.traffic';
  checkKeys(field, traffic, [
    'inputTokens',
    'outputTokens',
    ...LOADS,
    'redundantExperts',
    'kvTokensPerRequest',
  ]);
  const inputTokens = aboveZero(`${field}.inputTokens`, traffic.inputTokens);
  const { outputTokens, redundantExperts } = traffic;
  if (!(Number.isFinite(outputTokens) && outputTokens >= 2))
    throw invalid(`${field}.outputTokens`, 'a number of at least 2', describe(outputTokens));
  const given = LOADS.filter((name) => traffic[name] !== undefined);
  const [load] = given;
  if (load === undefined || given.length > 1) {
    throw invalid(field, `one of ${LOADS.join(', ')}`, given.length === 0 ? 'none' : given.join(' and '));
  }
  const value = aboveZero(`${field}.${load}`, traffic[load]);
  const inForce = slotsOf(redundantExperts);
  if (load === 'kvUse' && inForce.kvTokens <= 0)
    throw invalid(
      `${field}.redundantExperts`,
      'what leaves room for a KV cache',
      `${inForce.redundantExperts}`,
    );
  if (load === 'kvUse' && value > 1) throw invalid(`${field}.kvUse`, 'a share of up to 1', describe(value));
  if (redundantExperts !== undefined && load !== 'kvUse')
    throw invalid(
      `${field}.redundantExperts`,
      'nothing beside a load that was not measured',
      describe(redundantExperts),
    );
  return {
    inputTokens,
    outputTokens,
    [load]: value,
    inForce,
    kvTokensPerRequest: aboveZero(
      `${field}.kvTokensPerRequest`,
      traffic.kvTokensPerRequest ?? inputTokens + outputTokens / 2,
    ),
  };
}

/** Slots a GPU that so many redundant experts take. */
function slotsFor(field: string, redundant: unknown, { experts }: ServedModel, gpus: number): number {
  const slots = (experts + ordinal(field, redundant)) / gpus;
  if (Number.isInteger(slots) && slots <= experts) return slots;
  const leanest = Math.ceil(experts / gpus) * gpus - experts;
  const most = experts * (gpus - 1);
  throw invalid(field, `${leanest} or a multiple of ${gpus} GPUs more, up to ${most}`, describe(redundant));
}

/** As slots a GPU, each once, rising. */
function checkCandidates(candidates: readonly number[], model: ServedModel, gpus: number): number[] {
  const field = 'options.candidates';
  if (!Array.isArray(candidates) || candidates.length === 0)
    throw invalid(field, 'an array of at least one number of redundant experts', describe(candidates));
  return candidates
    .map((redundant, n) => slotsFor(`${field}[${n}]`, redundant, model, gpus))
    .sort((a, b) => a - b);
}

function thatFit(
  slots: Slots[],
  { inputTokens, outputTokens, kvTokensPerRequest }: CheckedTraffic,
  hardware: ServingHardware,
): { candidates: Slots[]; left: string[] } {
  const least = Math.max(inputTokens + outputTokens, kvTokensPerRequest);
  const candidates = slots.filter(({ kvTokens }) => kvTokens >= least);
  if (candidates.length === 0) {
    const { kvTokens, redundantExperts } = slots[0]!;
    const expected = `room for the weights and one request of ${Math.ceil(least)} tokens`;
    const received = `${Math.floor(kvTokens)} tokens with ${redundantExperts} redundant experts on ${hardware.name}`;
    throw new GimbalError('GIMBAL_INFEASIBLE', `memory: expected ${expected} but received ${received}`, {
      field: 'memory',
      expected,
      received,
    });
  }
  const left = slots
    .filter((one) => !candidates.includes(one))
    .map(
      ({ redundantExperts }) =>
        `${redundantExperts} redundant experts leave no room for a request's KV cache`,
    );
  return { candidates, left };
}
