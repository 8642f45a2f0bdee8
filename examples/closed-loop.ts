/**
 * The closed loop at work, without engines at hand (`npm run demo:loop`): two servers that stand in for vLLM engines say where their tokens
 * are routed, `gimbal run`'s parts count it, plan, and have a hook put the plan in force; dispatch hears what the placement does. The
 * engines like a few experts much, so that the first GPUs have too much to do at first.
 *
 * Usage: npm run demo:loop [-- [--shadow] [--stay]]   (--stay goes on: open /dashboard, and see the heat map; Ctrl-C ends it)
 */
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { heatOf } from '../lib/controller/heat.js';
import { checkRunOptions, modelOf } from '../lib/controller/run-config.js';
import { System } from '../lib/controller/system.js';
import { formatMs } from '../lib/gateway/dashboard/words.js';
import { formatRatio, formatShare } from '../lib/report/format.js';
import { StandIn } from '../test/stand-in/server.js';

const MODEL = { layers: 4, experts: 16, topK: 2 };
const DEADLINE_MS = 60_000;
const AT_ONCE = 8;

/** A program that puts a placement in force: here one that says so, and does nothing. The change is on its standard input. */
const HOOK = `
const chunks = [];
process.stdin.on('data', (chunk) => chunks.push(chunk)).on('end', () => {
  const { planId, physicalToLogical } = JSON.parse(Buffer.concat(chunks));
  process.stdout.write(planId + ': ' + physicalToLogical.length + ' layers');
});`;

function options(servers: readonly StandIn[], folder: string, shadow: boolean) {
  return {
    servers: servers.map(({ url }) => ({ url, ranks: 2, group: 'pod' })),
    listen: { port: 0 },
    log: { level: 'warn' },
    seed: 1,
    weights: { moe: 1 },
    routing: { ...MODEL, share: 1, halfLifeTokens: 20_000 },
    controller: {
      topology: { nodes: 1, gpusPerNode: 4, model: 'Mixtral-8x7B', hardware: 'H100' },
      slotsPerGpu: 5,
      hook: { command: [process.execPath, join(folder, 'hook.cjs')] },
      stateFile: join(folder, 'state.json'),
      // Of an engine that is loaded these are minutes; here it is seconds.
      intervalMs: 500,
      feedbackMs: 500,
      shadow,
      rules: { leastTokens: 500, minIntervalMs: 2000 },
      // A toy expert.
      migration: { expertBytes: 1e6, layerStallMs: 0 },
    },
  };
}

async function ask(url: string, prompt: string): Promise<void> {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: 'stand-in',
      messages: [{ role: 'user', content: prompt }],
      max_tokens: 16,
    }),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`expected an answer but received ${response.status}: ${text}`);
  if (text.includes('routed_experts')) throw new Error('expected an answer without its routing');
}

/** Sends until the test is met. */
async function sendUntil(url: string, isMet: () => boolean): Promise<void> {
  const untilMs = performance.now() + DEADLINE_MS;
  for (let n = 0; !isMet(); n += AT_ONCE) {
    if (performance.now() > untilMs) throw new Error('expected a plan by now');
    await Promise.all(
      Array.from({ length: AT_ONCE }, (_, i) => ask(url, `request ${n + i} ${'word '.repeat(20)}`)),
    );
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { shadow: { type: 'boolean', default: false }, stay: { type: 'boolean', default: false } },
  });
  const folder = await mkdtemp(join(tmpdir(), 'gimbal-loop-'));
  await writeFile(join(folder, 'hook.cjs'), HOOK);
  const routing = { ...MODEL, taste: 6 };
  const start = () =>
    StandIn.start({ kind: 'vllm', ranks: 2, lockstep: true, timing: { timeScale: 20 }, routing });
  const servers = [await start(), await start()];
  const config = checkRunOptions(options(servers, folder, values.shadow));
  const system = await System.create(config, { version: 'demo' });
  const { url, adminUrl } = await system.listen();
  const { controller, gateway } = system;
  const initial = controller.placement;
  const model = modelOf(config);
  /** By what is known of the routing now. */
  const worstOf = async (placement: Int32Array) => {
    const tokens = gateway.statistics!.counts();
    const { imbalance } = await heatOf({ ...model, tokens }, placement);
    return formatRatio(Math.max(...imbalance));
  };
  try {
    const wanted = values.shadow ? 'would-commit' : 'committed';
    const decided = () => controller.status().decisions.find(({ decision }) => decision === wanted);
    await sendUntil(url, () => decided() !== undefined);
    const { planId, gainMs, gainShare, migrations } = decided()!;
    const { tokensSeen } = gateway.statistics!;
    console.log(
      `${tokensSeen} tokens counted; busiest GPU over the mean, worst layer: ${await worstOf(initial)}`,
    );
    console.log(
      `${wanted} ${planId ?? ''}: ${migrations} moves, ${formatMs(gainMs!)} of MoE time gained over the horizon (${formatShare(gainShare!)})`,
    );
    if (!values.shadow) {
      await sendUntil(url, () => controller.status().decisions[0]!.decision !== 'committed');
      console.log(`with it in force, worst layer: ${await worstOf(controller.placement)}`);
    }
    if (values.stay) {
      console.log(`\nlook at ${adminUrl}/dashboard; Ctrl-C ends it`);
      let over = false;
      once(process, 'SIGINT').then(() => {
        over = true;
      });
      while (!over) await Promise.all(Array.from({ length: AT_ONCE }, (_, n) => ask(url, `and ${n}`)));
    }
  } finally {
    await system.close();
    await Promise.all(servers.map((server) => server.stop()));
    await rm(folder, { recursive: true });
  }
}

void main();
