/**
 * The smallest whole use: counts in, a placement out. Here the counts are made up; in a server they come from the engine's
 * statistics, one number for each (MoE layer, DP rank, expert).
 *
 *   node examples/plan.cjs
 */
const { planPlacement, topology } = require('gimbal-moe');

const layers = 4;
const experts = 128;
const cluster = topology({ nodes: 2, gpusPerNode: 4, model: 'Qwen3-30B-A3B', hardware: 'H100' });
const slotsPerGpu = experts / cluster.gpus + 1; // one redundant expert on each GPU

// [layers][sources][experts]: every DP rank likes some experts better than others.
const tokens = new Uint32Array(layers * cluster.sources * experts);
for (let i = 0; i < tokens.length; i++) {
  const expert = i % experts;
  const source = Math.floor(i / experts) % cluster.sources;
  tokens[i] = Math.round(20_000 / (1 + ((expert * 37 + source * 11) % experts)));
}

async function main() {
  const plan = await planPlacement({ ...cluster, layers, experts, slotsPerGpu, tokens });
  console.log(cluster.explanation.join('\n'));
  plan.layers.forEach(({ loadMax, gap }, layer) => {
    const busiest = (loadMax / 1e6).toFixed(1);
    const percent = (gap * 100).toFixed(2);
    console.log(`layer ${layer}: busiest GPU ${busiest} ms, at most ${percent} % above the best possible`);
  });
  const slots = plan.physicalToLogical.subarray(0, slotsPerGpu);
  console.log(`experts on GPU 0 in layer 0: ${slots.join(' ')}`);
}

main();
