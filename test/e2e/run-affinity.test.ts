/**
 * Expert affinity over real sockets: engines that stand in choose experts by the topic of a request, `gimbal run` learns what each
 * tenant's requests choose, and sends the next ones to the rank that is on the node of their experts.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { checkRunOptions, type RunConfig } from '../../lib/controller/run-config.js';
import { System } from '../../lib/controller/system.js';
import type { StandIn } from '../stand-in/server.js';
import { ask, chat, contentOf, metric, Stage, until } from '../support/gateway.js';

/** Topic t chooses experts 2t and 2t + 1; the first four are on the first node, where rank 0 is. */
const MODEL = { layers: 3, experts: 8, topK: 2, taste: 10, byTopic: true };
const TOPICS = [0, 3];
const RANK_OF_TOPIC = [0, 0, 1, 1];
const REQUESTS = 8;

const stage = new Stage();
let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gimbal-affinity-'));
});
afterEach(async () => {
  await stage.end();
  await rm(folder, { recursive: true });
});

interface Loop {
  system: System;
  config: RunConfig;
  standIn: StandIn;
  url: string;
  adminUrl: string;
}

async function start(affinity: string, feedbackMs = 50): Promise<Loop> {
  const standIn = await stage.standIn({ ranks: 2, routing: MODEL });
  const options = {
    servers: [{ url: standIn.url, ranks: 2 }],
    listen: { port: 0 },
    log: { level: 'silent' },
    // What is measured of idle engines shall not tell them apart.
    weights: { kv: 0, queue: 0 },
    staleAfterMs: 60_000,
    // A request's own prefill, and the way between nodes, are long beside what a slow machine may add.
    prefillTokensPerSecond: 100,
    routing: { layers: 3, experts: 8, topK: 2, share: 1 },
    controller: {
      topology: { nodes: 2, gpusPerNode: 1, model: 'DeepSeek-V3', links: { interNodeGBps: 0.1 } },
      slotsPerGpu: 4,
      shadow: true,
      stateFile: join(folder, 'state.json'),
      feedbackMs,
      affinity,
      tenantHeader: 'x-tenant',
    },
  };
  const config = checkRunOptions(options);
  const system = await System.create(config, { version: 'test' });
  stage.onEnd(() => system.close());
  const urls = await system.listen();
  const isKnown = () => system.gateway.fleet.engineSnapshots().every(({ stale }) => !stale);
  await until(() => expect(isKnown()).toBe(true));
  return { system, config, standIn, ...urls };
}

/** One after the other; the ranks that served them. */
async function send(
  { url, standIn }: Loop,
  topic: number,
  requests: number,
): Promise<(number | undefined)[]> {
  const before = standIn.requests.length;
  for (let n = 0; n < requests; n++) {
    // No two begin alike, so that no cache counts.
    const { body, answer } = chat(`${before + n} of tenant ${topic}`, 8, { topic });
    const answered = await ask(url, body, { headers: { 'x-tenant': `tenant-${topic}` } });
    expect(contentOf(answered)).toBe(answer);
  }
  return standIn.requests.slice(before).map(({ rank }) => rank);
}

/** Until each tenant's fingerprint is there, and counts. */
async function learn(loop: Loop): Promise<void> {
  await until(async () => {
    for (const topic of TOPICS) await send(loop, topic, 1);
    const known = await metric(loop.adminUrl, 'gimbal_affinity_requests_total', 'fingerprint="nearest"');
    expect(known).toBeGreaterThan(TOPICS.length);
  });
  expect(await metric(loop.adminUrl, 'gimbal_affinity_keys')).toBe(TOPICS.length);
}

describe('expert affinity', { timeout: 60_000 }, () => {
  it('sends each tenant’s requests to the rank beside its experts, and elsewhere when that one is busy', async () => {
    const loop = await start('auto');
    await learn(loop);
    for (const topic of TOPICS) {
      expect(await send(loop, topic, REQUESTS)).toEqual(new Array(REQUESTS).fill(RANK_OF_TOPIC[topic]));
    }
    const { fleet } = loop.system.gateway;
    const [near] = fleet.targets;
    // Fifteen seconds of it: not so much that admission would bar the engine.
    const work = { id: 'work', promptTokens: 1500, streams: true, arrivalMs: Date.now() };
    const busy = await fleet.acquire(work, { only: (target) => target === near });
    expect(await send(loop, 0, REQUESTS)).toEqual(new Array(REQUESTS).fill(1));
    expect(await metric(loop.adminUrl, 'gimbal_affinity_requests_total', 'fingerprint="elsewhere"')).toBe(
      REQUESTS,
    );
    busy.finished();
    await until(async () => expect(await send(loop, 0, 2)).toEqual([0, 0]));
  });

  it('knows who is which source as soon as the configuration is read again', async () => {
    const loop = await start('on', 25_000);
    for (const topic of TOPICS) await send(loop, topic, 2);
    await until(async () => expect(await metric(loop.adminUrl, 'gimbal_affinity_keys')).toBe(TOPICS.length));
    await loop.system.reload(loop.config);
    for (const topic of TOPICS) {
      expect(await send(loop, topic, REQUESTS)).toEqual(new Array(REQUESTS).fill(RANK_OF_TOPIC[topic]));
    }
  });

  it('steers nobody where it is off', async () => {
    const loop = await start('off');
    for (const topic of TOPICS) {
      await send(loop, topic, REQUESTS);
      expect(new Set(await send(loop, topic, 2 * REQUESTS))).toEqual(new Set([0, 1]));
    }
    const { body } = await ask(loop.adminUrl, '', { method: 'GET', path: '/metrics' });
    expect(body.toString()).not.toContain('gimbal_affinity_keys');
  });
});
