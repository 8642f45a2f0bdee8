/**
 * The policies that the benches compare, and two systems of papers in our own words, with what was assumed:
 *
 * - MoE-Tuner-like: one placement, planned offline by exact-ish search from the mean of the traffic's counts, and kept; dispatch and
 *   queue are vLLM's. Its affinity between layers has nothing to win where bytes do not depend on the placement.
 * - Sem-MoE-like: an oracle knows every request's topic and sends it to the topic's rank; topics are shared out evenly, and the
 *   placement is planned offline from what each rank will then send.
 */
import { topology } from '../../lib/index.js';
import { planPlacement } from '../../lib/planner.js';
import type { ServedModel, ServingHardware } from '../../lib/simulator/hardware.js';
import { Routing } from '../../lib/simulator/routing.js';
import type { SimulatedPolicy, SimulatedRequest, SimulatedRouting } from '../../lib/simulator/types.js';

const VLLM = { dispatch: 'vllm', queue: 'fcfs', placement: 'eplb' } as const;

/** Ours plans every so many steps here, as the paper's system does. */
export const ABLATION: Record<string, SimulatedPolicy> = {
  vLLM: VLLM,
  'DP only': { ...VLLM, dispatch: 'gimbal', queue: 'gimbal' },
  'EP only': { ...VLLM, placement: 'periodic' },
  'both, no feedback': { placement: 'periodic' },
  full: { placement: 'periodic', feedback: true, weights: { moe: 1 } },
};

const TOPICS = 8;
const OFFLINE_TOKENS = 1e6;

export interface OfflineSetting {
  model: ServedModel;
  hardware: ServingHardware;
  ranks: number;
  gpus: number;
  routing: SimulatedRouting;
  seed: number;
}

/** Of `each` tokens of every source, where source s has the topics t with `isOwn(s, t)`: `[layers][sources][experts]`. */
export function topicTokens(
  routing: Routing,
  sources: number,
  each: number,
  isOwn: (source: number, topic: number) => boolean,
): Uint32Array {
  const { layers, experts, profiles, chance } = routing.tables;
  const tokens = new Uint32Array(layers * sources * experts);
  for (let source = 0; source < sources; source++) {
    const own = [...Array(profiles).keys()].filter((profile) => isOwn(source, routing.topicOf(profile)));
    for (let layer = 0; layer < layers; layer++) {
      for (let e = 0; e < experts; e++) {
        const sum = own.reduce((total, p) => total + chance[(p * layers + layer) * experts + e]!, 0);
        tokens[(layer * sources + source) * experts + e] = Math.round((each * sum) / own.length);
      }
    }
  }
  return tokens;
}

/** `[layers][gpus * slotsPerGpu]`, from what each rank sends where it has the topics that are its own. */
async function offlinePlacement(
  setting: OfflineSetting,
  isOwn: (rank: number, topic: number) => boolean,
): Promise<Int32Array> {
  const { model, hardware, ranks, gpus } = setting;
  const routing = new Routing(setting.routing, model, setting.seed);
  const { layers, experts } = routing.tables;
  const tokens = topicTokens(routing, ranks, OFFLINE_TOKENS, isOwn);
  const { computeCost, commCost } = topology({
    nodes: 1,
    gpusPerNode: gpus,
    model,
    hardware,
    sources: ranks,
    allToAll: 'allgather-reducescatter',
  });
  const slotsPerGpu = experts / gpus;
  const problem = { layers, sources: ranks, experts, gpus, slotsPerGpu, tokens, computeCost, commCost };
  return (await planPlacement(problem, { effort: 'balanced', threads: 1, backend: 'cpu' })).physicalToLogical;
}

export interface Variant {
  policy: SimulatedPolicy;
  initial?: Int32Array;
}

/** Plans hang on the seed alone. */
const planned = new Map<number, Promise<[tuner: Int32Array, semantic: Int32Array]>>();

function plansOf(setting: OfflineSetting): Promise<[Int32Array, Int32Array]> {
  let plans = planned.get(setting.seed);
  if (plans === undefined) {
    plans = Promise.all([
      offlinePlacement(setting, () => true),
      offlinePlacement(setting, (rank, topic) => topic % setting.ranks === rank),
    ]);
    planned.set(setting.seed, plans);
  }
  return plans;
}

/** `trace` must have topics. */
export async function paperRivals(
  setting: OfflineSetting,
  trace: readonly SimulatedRequest[],
): Promise<Record<string, Variant>> {
  const [tuner, semantic] = await plansOf(setting);
  return {
    'MoE-Tuner-like': {
      policy: { ...VLLM, placement: 'static' },
      initial: tuner,
    },
    'Sem-MoE-like': {
      policy: {
        ...VLLM,
        placement: 'static',
        dispatch: {
          // Where the topic's rank is short of memory, as the scheduler's filter sees it, another one has to do.
          pick: (scored, { id }) => {
            const wanted = trace[id as number]!.topic! % setting.ranks;
            const found = scored.find(({ candidate }) => candidate.engine === wanted) ?? scored[0]!;
            return found.candidate.engine;
          },
        },
      },
      initial: semantic,
    },
  };
}

/** Topics as a session's requests would have them, drawn evenly. */
export function withTopics(
  trace: readonly SimulatedRequest[],
  draw: (bound: number) => number,
): SimulatedRequest[] {
  return trace.map((request) => ({ ...request, topic: draw(TOPICS) }));
}
