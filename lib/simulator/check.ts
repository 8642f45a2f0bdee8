/** The border of the simulator: options are checked by name and filled in before anything runs. */
import {
  aboveZero,
  atLeastZero,
  boolean,
  checkKeys,
  count,
  describe,
  invalid,
  oneOf,
  ordinal,
  shareAboveZero,
} from '../checks.js';
import { POLICIES, QUEUE_POLICIES } from '../dispatch/validate.js';
import { EFFORTS, REPLICA_CHOICES } from '../validate.js';
import {
  findServedModel,
  findServingHardware,
  keyValueTokens,
  type ServedModel,
  type ServingHardware,
  weightBytes,
} from './hardware.js';
import { BLOCK_TOKENS, blocksFor } from './kv-cache.js';
import type { GroupShape } from './step-time.js';
import type {
  EngineSettings,
  GpuFailure,
  PacingSettings,
  Rearrangement,
  SimulatedController,
  SimulatedPolicy,
  SimulatedRouting,
  SimulationOptions,
} from './types.js';

export const ALL_TO_ALLS = ['allgather-reducescatter', 'a2a-pairs', 'a2a-dedup'] as const;
export const PLACEMENTS = ['static', 'eplb', 'swift', 'periodic', 'gimbal', 'oracle'] as const;
/** What vLLM chooses on GPUs of the H100's class, and on lesser ones. */
const H100_CLASS_TFLOPS = 900;
const USUAL_BATCH = 8192;
const USUAL_SEQS = 1024;
const A100_BATCH = 2048;
const A100_SEQS = 256;

/** What the numbers of engines and GPUs give. */
export type ParallelShape = Pick<GroupShape, 'ranks' | 'tensorParallel' | 'nodes'>;

export interface CheckedSimulation {
  model: ServedModel;
  hardware: ServingHardware;
  groups: number;
  shape: GroupShape;
  engine: Required<EngineSettings>;
  routing: SimulatedRouting;
  policy: Required<Omit<SimulatedPolicy, 'agingTokensPerSecond' | 'pacing' | 'weights'>> & {
    weights: SimulatedPolicy['weights'];
    pacing: Required<PacingSettings> | undefined;
    agingTokensPerSecond: number | undefined;
  };
  rearrangement: Rearrangement;
  failures: readonly GpuFailure[];
  simulatedLayers: number;
  slo: { ttftMs: number; tpotMs: number };
  seriesEveryMs: number;
  seed: number;
}

export function checkSimulation(options: SimulationOptions): CheckedSimulation {
  checkKeys('options', options, [
    'trace',
    'model',
    'hardware',
    'dp',
    'tp',
    'ep',
    'nodes',
    'engine',
    'routing',
    'policy',
    'rearrangement',
    'failures',
    'simulatedLayers',
    'tables',
    'slo',
    'seriesEveryMs',
    'seed',
    'signal',
    'onProgress',
  ]);
  const model = typeof options.model === 'string' ? findServedModel(options.model) : options.model;
  const hardware =
    typeof options.hardware === 'string' ? findServingHardware(options.hardware) : options.hardware;
  const { shape, groups } = checkShape(options);
  const redundant = options.rearrangement?.redundantExperts ?? 0;
  const gpus = shape.ranks * shape.tensorParallel;
  const slotsPerGpu = Math.ceil((model.experts + redundant) / gpus);
  const engine = checkEngine(options.engine, model, hardware, shape, slotsPerGpu);
  checkTrace(options.trace, engine.kvBlocks);
  const last = options.trace.at(-1)!.arrivalMs;
  const { seed = 0, slo = {} } = options;
  if (!(Number.isSafeInteger(seed) && seed >= 0)) {
    throw invalid('options.seed', 'a safe integer of at least 0', describe(seed));
  }
  checkKeys('options.slo', slo, ['ttftMs', 'tpotMs']);
  return {
    model,
    hardware,
    groups,
    shape: groupShape(shape, engine),
    engine,
    routing: checkRouting(options.routing),
    policy: checkPolicy(options.policy, shape.nodes > 1 && engine.allToAll !== 'allgather-reducescatter'),
    rearrangement: checkRearrangement(options.rearrangement),
    failures: checkFailures(options.failures, shape, groups, model.experts, slotsPerGpu),
    simulatedLayers: checkLayers(options.simulatedLayers, model.moeLayers),
    slo: {
      ttftMs: aboveZero('options.slo.ttftMs', slo.ttftMs ?? 1000),
      tpotMs: aboveZero('options.slo.tpotMs', slo.tpotMs ?? 50),
    },
    seriesEveryMs: aboveZero('options.seriesEveryMs', options.seriesEveryMs ?? Math.max(1000, last / 100)),
    seed,
  };
}

function checkShape(options: SimulationOptions): { shape: ParallelShape; groups: number } {
  const dp = count('options.dp', options.dp);
  const tp = count('options.tp', options.tp ?? 1);
  const ep = count('options.ep', options.ep ?? dp * tp);
  const nodes = count('options.nodes', options.nodes ?? 1);
  if ((dp * tp) % ep !== 0 || ep % tp !== 0) {
    throw invalid('options.ep', `a divisor of dp · tp = ${dp * tp} and a multiple of tp = ${tp}`, `${ep}`);
  }
  const groups = (dp * tp) / ep;
  const groupNodes = Math.max(1, nodes / groups);
  if (!Number.isInteger(groupNodes) || ep % groupNodes !== 0 || (ep / groupNodes) % tp !== 0) {
    throw invalid('options.nodes', `nodes that share ${dp * tp} GPUs, whole engines each`, `${nodes}`);
  }
  return { shape: { ranks: ep / tp, tensorParallel: tp, nodes: groupNodes }, groups };
}

/** What of an engine's settings is the group's. */
export function groupShape(shape: ParallelShape, engine: Required<EngineSettings>): GroupShape {
  const { allToAll, asyncScheduling, padUpToTokens, replicaChoice } = engine;
  return { ...shape, allToAll, hidesStep: asyncScheduling, padUpToTokens, replicaChoice };
}

export function checkEngine(
  given: EngineSettings = {},
  model: ServedModel,
  hardware: ServingHardware,
  shape: ParallelShape,
  slotsPerGpu: number,
): Required<EngineSettings> {
  checkKeys('options.engine', given, [
    'maxNumSeqs',
    'maxNumBatchedTokens',
    'kvBlocks',
    'allToAll',
    'replicaChoice',
    'prefixCaching',
    'asyncScheduling',
    'padUpToTokens',
    'requestMs',
    'sampleEveryMs',
    'tellsPrefill',
  ]);
  const isSmall = hardware.nominalTflops < H100_CLASS_TFLOPS;
  const maxNumSeqs = count(
    'options.engine.maxNumSeqs',
    given.maxNumSeqs ?? (isSmall ? A100_SEQS : USUAL_SEQS),
  );
  const budget = count(
    'options.engine.maxNumBatchedTokens',
    given.maxNumBatchedTokens ?? (isSmall ? A100_BATCH : USUAL_BATCH),
  );
  if (budget < maxNumSeqs) {
    throw invalid('options.engine.maxNumBatchedTokens', `at least maxNumSeqs, ${maxNumSeqs}`, `${budget}`);
  }
  return {
    maxNumSeqs,
    maxNumBatchedTokens: budget,
    kvBlocks: count(
      'options.engine.kvBlocks',
      given.kvBlocks ?? defaultBlocks(model, hardware, shape.tensorParallel, slotsPerGpu),
    ),
    allToAll: oneOf('options.engine.allToAll', given.allToAll ?? 'allgather-reducescatter', ALL_TO_ALLS),
    replicaChoice: oneOf('options.engine.replicaChoice', given.replicaChoice ?? 'even', REPLICA_CHOICES),
    prefixCaching: boolean('options.engine.prefixCaching', given.prefixCaching ?? true),
    asyncScheduling: boolean('options.engine.asyncScheduling', given.asyncScheduling ?? true),
    padUpToTokens: ordinal('options.engine.padUpToTokens', given.padUpToTokens ?? 512),
    requestMs: atLeastZero('options.engine.requestMs', given.requestMs ?? 3),
    sampleEveryMs: aboveZero('options.engine.sampleEveryMs', given.sampleEveryMs ?? 100),
    tellsPrefill: boolean('options.engine.tellsPrefill', given.tellsPrefill ?? false),
  };
}

/** What memory leaves. */
function defaultBlocks(
  model: ServedModel,
  hardware: ServingHardware,
  split: number,
  slotsPerGpu: number,
): number {
  const blocks = Math.floor(keyValueTokens(model, hardware, split, slotsPerGpu) / BLOCK_TOKENS);
  if (blocks < 1) {
    const weights = weightBytes(model, slotsPerGpu, split);
    throw invalid(
      'options.hardware',
      `GPUs that hold ${(weights / 1e9).toFixed(0)} GB of weights with room for a KV cache`,
      `${hardware.name} of ${hardware.memoryGB} GB`,
    );
  }
  return blocks;
}

function checkTrace(trace: SimulationOptions['trace'], kvBlocks: number): void {
  if (!Array.isArray(trace) || trace.length === 0)
    throw invalid('options.trace', 'an array of at least one request', describe(trace));
  let before = 0;
  for (const [n, request] of trace.entries()) {
    const field = `options.trace[${n}]`;
    checkKeys(field, request, [
      'arrivalMs',
      'inputTokens',
      'outputTokens',
      'session',
      'tenant',
      'prefixHashes',
      'topic',
    ]);
    const { arrivalMs, inputTokens, outputTokens } = request;
    if (!(arrivalMs >= before && Number.isFinite(arrivalMs)))
      throw invalid(`${field}.arrivalMs`, `a time of at least ${before}, in order`, describe(arrivalMs));
    before = arrivalMs;
    count(`${field}.inputTokens`, inputTokens);
    count(`${field}.outputTokens`, outputTokens);
    if (request.topic !== undefined) ordinal(`${field}.topic`, request.topic);
    if (blocksFor(inputTokens + outputTokens) > kvBlocks) {
      throw invalid(
        field,
        `input and output that fit the KV cache of ${kvBlocks * BLOCK_TOKENS} tokens`,
        `${inputTokens} + ${outputTokens}`,
      );
    }
  }
}

function checkRouting(routing: SimulatedRouting = { kind: 'generative' }): SimulatedRouting {
  checkKeys('options.routing', routing, [
    'kind',
    ...{
      generative: ['sigmaExperts', 'sigmaTopics', 'topics', 'personas', 'stickiness', 'halfLifeMs'],
      counts: ['tokens', 'layers', 'sources', 'experts'],
      recorded: ['recordings'],
      uniform: [],
    }[oneOf('options.routing.kind', routing?.kind, ['generative', 'counts', 'recorded', 'uniform'])],
  ]);
  if (routing.kind !== 'generative') return routing;
  const { stickiness, halfLifeMs } = routing;
  checkPopularity(routing);
  if (halfLifeMs !== undefined) aboveZero('options.routing.halfLifeMs', halfLifeMs);
  if (stickiness !== undefined) share('options.routing.stickiness', stickiness);
  return routing;
}

/** Of the generative model: how experts' popularity is drawn. */
export function checkPopularity({
  sigmaExperts,
  sigmaTopics,
  topics,
  personas,
}: Pick<
  Extract<SimulatedRouting, { kind: 'generative' }>,
  'sigmaExperts' | 'sigmaTopics' | 'topics' | 'personas'
>): void {
  if (sigmaExperts !== undefined) atLeastZero('options.routing.sigmaExperts', sigmaExperts);
  if (sigmaTopics !== undefined) atLeastZero('options.routing.sigmaTopics', sigmaTopics);
  if (topics !== undefined) count('options.routing.topics', topics);
  if (personas !== undefined) count('options.routing.personas', personas);
}

function share(field: string, value: number): number {
  if (!(value >= 0 && value <= 1)) throw invalid(field, 'a share', describe(value));
  return value;
}

/** `affinityWins`: by what travels where; docs/MODEL.md, Feedback, has the figures. */
function checkPolicy(policy: SimulatedPolicy = {}, affinityWins: boolean): CheckedSimulation['policy'] {
  checkKeys('options.policy', policy, [
    'dispatch',
    'queue',
    'placement',
    'feedback',
    'affinity',
    'rankStickiness',
    'pacing',
    'weights',
    'agingTokensPerSecond',
  ]);
  const { dispatch = 'gimbal', queue = 'gimbal', placement = 'gimbal', pacing } = policy;
  const isOurs = typeof dispatch !== 'string' || dispatch === 'gimbal';
  const { feedback = false, affinity = isOurs && affinityWins } = policy;
  return {
    dispatch: typeof dispatch === 'string' ? oneOf('options.policy.dispatch', dispatch, POLICIES) : dispatch,
    queue: oneOf('options.policy.queue', queue, QUEUE_POLICIES),
    placement:
      typeof placement === 'string' ? oneOf('options.policy.placement', placement, PLACEMENTS) : placement,
    feedback: boolean('options.policy.feedback', feedback),
    affinity: boolean('options.policy.affinity', affinity),
    rankStickiness: share('options.policy.rankStickiness', policy.rankStickiness ?? 0),
    weights: policy.weights,
    pacing: pacing === undefined || pacing === false ? undefined : checkPacing(pacing),
    agingTokensPerSecond:
      policy.agingTokensPerSecond === undefined
        ? undefined
        : aboveZero('options.policy.agingTokensPerSecond', policy.agingTokensPerSecond),
  };
}

function checkPacing(pacing: PacingSettings): Required<PacingSettings> {
  checkKeys('options.policy.pacing', pacing, ['leastTokens', 'backlogShare', 'mostTokens']);
  const { leastTokens = 2048, backlogShare = 0.25, mostTokens = Number.MAX_SAFE_INTEGER } = pacing;
  return {
    leastTokens: aboveZero('options.policy.pacing.leastTokens', leastTokens),
    backlogShare: atLeastZero('options.policy.pacing.backlogShare', backlogShare),
    mostTokens: aboveZero('options.policy.pacing.mostTokens', mostTokens),
  };
}

function checkRearrangement(given: Rearrangement = {}): Rearrangement {
  checkKeys('options.rearrangement', given, [
    'everySteps',
    'windowSteps',
    'initial',
    'firstStep',
    'transfer',
    'layerStallMs',
    'stallMs',
    'linkShare',
    'redundantExperts',
    'migrationBudget',
    'controller',
    'oracleEveryMs',
  ]);
  const { everySteps, windowSteps, firstStep, transfer, layerStallMs, stallMs, linkShare } = given;
  if (everySteps !== undefined) count('options.rearrangement.everySteps', everySteps);
  if (windowSteps !== undefined) count('options.rearrangement.windowSteps', windowSteps);
  if (firstStep !== undefined) count('options.rearrangement.firstStep', firstStep);
  if (transfer !== undefined) oneOf('options.rearrangement.transfer', transfer, ['stall', 'overlap']);
  if (layerStallMs !== undefined) atLeastZero('options.rearrangement.layerStallMs', layerStallMs);
  if (stallMs !== undefined) atLeastZero('options.rearrangement.stallMs', stallMs);
  if (given.oracleEveryMs !== undefined)
    aboveZero('options.rearrangement.oracleEveryMs', given.oracleEveryMs);
  if (given.controller !== undefined) checkController(given.controller);
  if (linkShare !== undefined && !(linkShare > 0 && linkShare < 1))
    throw invalid('options.rearrangement.linkShare', 'a share between 0 and 1', describe(linkShare));
  if (given.redundantExperts !== undefined)
    ordinal('options.rearrangement.redundantExperts', given.redundantExperts);
  if (given.migrationBudget !== undefined)
    ordinal('options.rearrangement.migrationBudget', given.migrationBudget);
  return given;
}

function checkController(given: SimulatedController): void {
  const field = 'options.rearrangement.controller';
  checkKeys(field, given, ['lookEveryMs', 'sampleShare', 'halfLifeTokens', 'priorTokens', 'rules', 'effort']);
  const { lookEveryMs, sampleShare, effort } = given;
  if (lookEveryMs !== undefined) aboveZero(`${field}.lookEveryMs`, lookEveryMs);
  if (sampleShare !== undefined) shareAboveZero(`${field}.sampleShare`, sampleShare);
  if (effort !== undefined) oneOf(`${field}.effort`, effort, EFFORTS);
}

function checkLayers(given: number | undefined, moeLayers: number): number {
  const layers = count('options.simulatedLayers', given ?? moeLayers);
  if (layers > moeLayers) throw invalid('options.simulatedLayers', `at most ${moeLayers}`, `${layers}`);
  return layers;
}

/** GPUs of one group that are lost at the same time must leave an engine, and slots for all experts. */
function checkFailures(
  failures: readonly GpuFailure[] = [],
  { ranks, tensorParallel }: ParallelShape,
  groups: number,
  experts: number,
  slotsPerGpu: number,
): readonly GpuFailure[] {
  if (!Array.isArray(failures)) throw invalid('options.failures', 'an array', describe(failures));
  const gpus = ranks * tensorParallel;
  for (const [n, failure] of failures.entries()) {
    const field = `options.failures[${n}]`;
    checkKeys(field, failure, ['atMs', 'gpu', 'backMs']);
    atLeastZero(`${field}.atMs`, failure.atMs);
    if (ordinal(`${field}.gpu`, failure.gpu) >= gpus * groups)
      throw invalid(`${field}.gpu`, `a GPU of 0 to ${gpus * groups - 1}`, `${failure.gpu}`);
    const backMs = failure.backMs ?? Number.POSITIVE_INFINITY;
    if (!(backMs > failure.atMs)) throw invalid(`${field}.backMs`, 'a time after atMs', describe(backMs));
    const group = Math.floor(failure.gpu / gpus);
    // Most are lost at the moment when one of them is.
    const together = failures.filter(
      (other) =>
        Math.floor(other.gpu / gpus) === group &&
        other.atMs <= failure.atMs &&
        (other.backMs ?? Number.POSITIVE_INFINITY) > failure.atMs,
    );
    const lost = new Set(together.map(({ gpu }) => gpu));
    if (lost.size < together.length)
      throw invalid(field, 'a GPU that is there', `${failure.gpu}, lost already`);
    const engines = new Set([...lost].map((gpu) => Math.floor(gpu / tensorParallel)));
    if (engines.size === ranks) throw invalid(field, 'an engine of the group that is left', 'the last one');
    const slots = (gpus - lost.size) * slotsPerGpu;
    if (slots < experts) {
      const expected = `${experts} slots on the GPUs that are left (rearrangement.redundantExperts)`;
      throw invalid(field, expected, `${slots}`);
    }
  }
  return failures;
}
