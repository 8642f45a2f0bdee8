/**
 * A controller in small: it plans again and again with buffers that stay, starts from the placement in force, and moves few
 * experts each time.
 *
 *   node examples/plan.mjs
 */
import { Planner, topology } from 'gimbal-moe';

const layers = 4;
const experts = 64;
const cluster = topology({ nodes: 1, gpusPerNode: 8, model: 'Qwen3-30B-A3B', hardware: 'H100' });
const problem = { ...cluster, layers, experts, slotsPerGpu: 9 };

/** `[layers][sources][experts]`; what is popular drifts with time. */
function countTokens(hour) {
  return Uint32Array.from({ length: layers * cluster.sources * experts }, (_, i) => {
    const popularity = ((i % experts) * 29 + hour * 3) % experts;
    return Math.round(10_000 / (1 + popularity));
  });
}

const planner = new Planner();
let incumbent;
for (let hour = 0; hour < 3; hour++) {
  const inForce = incumbent === undefined ? {} : { incumbent, migrationBudget: 40 };
  const plan = await planner.plan(
    { ...problem, tokens: countTokens(hour), ...inForce },
    { effort: 'fast', signal: AbortSignal.timeout(10_000) },
  );
  const { loadMax, gap } = plan.layers[0];
  console.log(`hour ${hour}: ${plan.migrations} experts to move`);
  console.log(
    `layer 0: busiest GPU ${(loadMax / 1e6).toFixed(1)} ms, at most ${(gap * 100).toFixed(2)} % above the best possible`,
  );
  incumbent = plan.physicalToLogical;
}
planner.close();
