/** Policies by name: what each system does, in terms of dispatch, queue and placement. */
import { invalid, oneOf } from '../checks.js';
import { POLICIES, QUEUE_POLICIES } from '../dispatch/validate.js';
import { PLACEMENTS } from './check.js';
import type { SimulatedPolicy } from './types.js';

const rival = (dispatch: NonNullable<SimulatedPolicy['dispatch']>): SimulatedPolicy => ({
  dispatch,
  queue: 'fcfs',
  placement: 'eplb',
});

export const simulatedPolicies = {
  gimbal: {},
  vllm: rival('vllm'),
  sglang: rival('total-tokens'),
  dynamo: rival('dynamo'),
  smg: rival('least-load'),
  'llm-d': rival('llm-d'),
} as const satisfies Record<string, SimulatedPolicy>;

export type PolicyName = keyof typeof simulatedPolicies;

/**
 * A name above, or `dispatch/queue/placement` such as `vllm/fcfs/static`.
 *
 * @throws GimbalError GIMBAL_INVALID_INPUT
 */
export function findPolicy(name: string): SimulatedPolicy {
  if (Object.hasOwn(simulatedPolicies, name)) return simulatedPolicies[name as PolicyName];
  const parts = name.split('/');
  if (parts.length !== 3) {
    const names = Object.keys(simulatedPolicies).join(', ');
    throw invalid('policy', `one of ${names}, or dispatch/queue/placement`, JSON.stringify(name));
  }
  return {
    dispatch: oneOf('policy dispatch', parts[0], POLICIES),
    queue: oneOf('policy queue', parts[1], QUEUE_POLICIES),
    placement: oneOf('policy placement', parts[2], PLACEMENTS),
  };
}
