/**
 * The closed loop over real sockets: engines that stand in say where they route, `gimbal run` counts it, plans, has an operator put the
 * plan in force through a folder, and tells dispatch; over a restart, in the shadow, and down.
 */
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { stringify } from 'yaml';
import { checkRunOptions } from '../../lib/controller/run-config.js';
import { System } from '../../lib/controller/system.js';
import type { ControllerStatus } from '../../lib/controller/types.js';
import type { StandInRouting } from '../stand-in/routing.js';
import { ask, chat, contentOf, errorIn, metric, Stage, until } from '../support/gateway.js';
import { GatewayProcess } from '../support/gateway-process.js';

/** Half of the tokens of either rank go to two experts each, which stand on the first two GPUs. */
const MODEL: StandInRouting = { layers: 3, experts: 8, topK: 2, taste: 7 };

const stage = new Stage();
const processes: GatewayProcess[] = [];
let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gimbal-run-'));
});
afterEach(async () => {
  await Promise.all(processes.splice(0).map((one) => one.stop()));
  await stage.end();
  await rm(folder, { recursive: true });
});

interface Loop {
  running: GatewayProcess;
  status(): Promise<ControllerStatus>;
}

async function config(controller: object = {}): Promise<string> {
  const { url } = await stage.standIn({ ranks: 2, routing: MODEL });
  const file = join(folder, 'gimbal.yaml');
  const options = {
    servers: [{ url, ranks: 2 }],
    listen: { port: 0 },
    policy: 'round-robin',
    weights: { moe: 1 },
    routing: { layers: 3, experts: 8, topK: 2, share: 1, halfLifeTokens: 4096, priorTokens: 0 },
    controller: {
      topology: { nodes: 1, gpusPerNode: 4, model: 'Mixtral-8x7B', hardware: 'H100' },
      slotsPerGpu: 3,
      hook: { folder: join(folder, 'hook'), pollMs: 20 },
      stateFile: join(folder, 'state.json'),
      statisticsFile: join(folder, 'statistics.bin'),
      intervalMs: 100,
      feedbackMs: 100,
      migration: { expertBytes: 1, layerStallMs: 0 },
      rules: { leastTokens: 32, minIntervalMs: 600_000, certainty: 0, backoffMs: 100 },
      ...controller,
    },
  };
  await writeFile(file, stringify(options));
  return file;
}

async function start(file: string, ...more: string[]): Promise<Loop> {
  const running = await GatewayProcess.start(file, 'run', ...more);
  processes.push(running);
  const status = async () => {
    const { body } = await ask(running.url, '', { method: 'GET', path: '/controller/status' });
    return JSON.parse(body.toString());
  };
  return { running, status };
}

async function traffic(url: string, requests = 40): Promise<void> {
  for (let n = 0; n < requests; n++) {
    const { body, answer } = chat(`question ${n}`, 8);
    expect(contentOf(await ask(url, body))).toBe(answer);
  }
}

/** The change that the folder holds, as an operator reads it: whole, or not yet. */
async function changeIn(hook: string): Promise<{ planId: string; physicalToLogical: number[][] }> {
  const manifest = JSON.parse(await readFile(join(hook, 'manifest.json'), 'utf8'));
  const text = await readFile(join(hook, 'change.json'), 'utf8');
  expect(createHash('sha256').update(text).digest('hex')).toBe(manifest.sha256);
  return JSON.parse(text);
}

async function acknowledge(hook: string, planId: string): Promise<void> {
  await writeFile(join(hook, 'acknowledged.json'), JSON.stringify({ planId }));
}

const moeOf = async ({ running }: Loop) => (await running.state()).engines.map(({ moeMs }) => moeMs);

describe('gimbal run', { timeout: 120_000 }, () => {
  it('plans by traffic, has the plan put in force, tells dispatch, and knows it after a restart', async () => {
    const file = await config();
    const hook = join(folder, 'hook');
    const first = await start(file);
    const { planId: before } = await first.status();
    await traffic(first.running.url);
    const change = await until(() => changeIn(hook));
    expect(change.planId).not.toBe(before);
    // Until the engines have it, it is not in force, and dispatch goes by the one before.
    expect(await first.status()).toMatchObject({ state: 'applying', planId: before });
    await until(async () => expect((await moeOf(first)).some((ms) => ms > 0)).toBe(true));
    const unplaced = await moeOf(first);
    await acknowledge(hook, change.planId);
    await until(async () => {
      const { decisions } = await first.status();
      expect(decisions.find(({ decision }) => decision === 'committed')).toMatchObject({ reason: 'gain' });
    });
    const { planId, history, imbalance } = await first.status();
    expect(planId).toBe(change.planId);
    expect(history[0]).toMatchObject({ planId: change.planId, gainShare: expect.any(Number) });
    expect(imbalance).toHaveLength(3);
    // Each expert that many tokens go to has a copy of its own GPU now: what engines' tokens meet is less.
    await until(async () => expect(Math.max(...(await moeOf(first)))).toBeLessThan(Math.max(...unplaced)));
    expect(await metric(first.running.url, 'gimbal_controller_decisions_total')).toBeGreaterThan(0);
    const shown = await first.running.state();
    expect(shown.controller).toMatchObject({ planId: change.planId, layers: 3, gpus: 4, slotsPerGpu: 3 });

    first.running.signal('SIGTERM');
    expect(await first.running.exited()).toBe(0);
    const second = await start(file);
    expect(await second.status()).toMatchObject({
      planId: change.planId,
      history: [{ planId: change.planId }],
    });
    // The statistics are those of before, though nothing has come since.
    const { body } = await ask(second.running.url, '', { method: 'GET', path: '/v1/statistics' });
    expect(JSON.parse(body.toString()).tokensSeen).toBeGreaterThan(100);
    await until(async () =>
      expect((await second.status()).decisions[0]).toMatchObject({ decision: 'kept', reason: 'too-soon' }),
    );
  });

  it('puts nothing in force in the shadow, and says what it would have done', async () => {
    const file = await config();
    const loop = await start(file, '--shadow');
    const { planId } = await loop.status();
    await traffic(loop.running.url);
    await until(async () => {
      const { decisions } = await loop.status();
      expect(decisions.find(({ decision }) => decision === 'would-commit')).toMatchObject({ reason: 'gain' });
    });
    expect(await loop.status()).toMatchObject({ planId, shadow: true, history: [] });
    await expect(readFile(join(folder, 'hook', 'manifest.json'))).rejects.toThrow('ENOENT');
  });

  it('goes down in time while a hook hangs, and ends the change at the next start', async () => {
    const file = await config({ applyTimeoutMs: 1500, verifyTimeoutMs: 500 });
    const hook = join(folder, 'hook');
    const first = await start(file);
    await traffic(first.running.url);
    const change = await until(() => changeIn(hook));
    first.running.signal('SIGTERM');
    expect(await first.running.exited()).toBe(0);
    const second = await start(file);
    // An operator who is awake again, and does what the folder says, whatever that is by now.
    await until(async () => {
      await acknowledge(hook, (await changeIn(hook)).planId);
      expect((await second.status()).state).toBe('watching');
    });
    const { planId, history } = await second.status();
    // Nobody had said that the change was in force: so it was taken back.
    expect(planId).not.toBe(change.planId);
    expect(history).toEqual([]);
  });

  it('serves engines that ask for their placement, with a key, and goes on as it is when its part of the file changes', async () => {
    const { url } = await stage.standIn({ ranks: 2, routing: MODEL });
    const options = {
      servers: [{ url, ranks: 2 }],
      listen: { port: 0 },
      apiKeys: ['secret'],
      log: { level: 'silent' },
      routing: { layers: 3, experts: 8 },
      controller: {
        topology: { nodes: 1, gpusPerNode: 4, model: 'Mixtral-8x7B', hardware: 'H100' },
        slotsPerGpu: 3,
        hook: { service: true },
        stateFile: join(folder, 'state.json'),
      },
    };
    const system = await System.create(checkRunOptions(options), { version: 'test' });
    stage.onEnd(() => system.close());
    const { adminUrl } = await system.listen();
    expect(await system.reload(checkRunOptions({ ...options, retries: 1 }))).toEqual([]);
    const controller = { ...options.controller, slotsPerGpu: 4 };
    expect(await system.reload(checkRunOptions({ ...options, controller }))).toEqual(['controller']);
    expect(system.controller.status().slotsPerGpu).toBe(3);
    const get = (path: string, headers: Record<string, string> = {}) =>
      ask(adminUrl, '', { method: 'GET', path, headers });
    const key = { authorization: 'Bearer secret' };
    for (const path of ['/v1/placement/current', '/controller/status']) {
      expect(errorIn(await get(path))).toMatchObject({ status: 401 });
    }
    expect(errorIn(await get('/v1/placement/current', key))).toMatchObject({
      status: 404,
      code: 'no_answer',
    });
    expect(JSON.parse((await get('/controller/status', key)).body.toString())).toMatchObject({ gpus: 4 });
    const { body } = await get('/metrics', key);
    expect(body.toString()).toContain('gimbal_controller_plan_age_seconds');
    expect(body.toString()).toContain('gimbal_placement');
  });

  it('is told which GPUs are gone, and has their experts placed elsewhere', async () => {
    const file = await config();
    const { running, status } = await start(file);
    const put = (body: unknown) =>
      ask(running.url, typeof body === 'string' ? body : JSON.stringify(body), {
        method: 'PUT',
        path: '/controller/dead-gpus',
      });
    for (const [body, said] of [
      ['no JSON', /body: expected JSON/],
      [{ gpus: [3] }, /deadGpus/],
      [{}, /deadGpus: expected an array/],
      [{ deadGpus: [4] }, /deadGpus\[0\]: expected a GPU id of 0 to 3 but received 4/],
      [{ deadGpus: [3, 3] }, /each GPU at most once/],
    ] as const) {
      const answer = await put(body);
      expect(errorIn(answer)).toMatchObject({ status: 400, code: 'invalid_dead_gpus' });
      expect(answer.body.toString()).toMatch(said);
    }
    expect(errorIn(await put(' '.repeat(2 ** 17)))).toMatchObject({ status: 413 });
    expect((await status()).deadGpus).toEqual([]);
    const { status: code, body } = await put({ deadGpus: [3] });
    expect([code, JSON.parse(body.toString())]).toEqual([200, { deadGpus: [3] }]);
    const change = await until(() => changeIn(join(folder, 'hook')));
    for (const layer of change.physicalToLogical) {
      expect(layer.slice(9)).toEqual([-1, -1, -1]);
      expect(new Set(layer.slice(0, 9)).size).toBe(8);
    }
    await acknowledge(join(folder, 'hook'), change.planId);
    await until(async () => expect((await status()).planId).toBe(change.planId));
  });

  it('checks a file without running it, and hides secrets', async () => {
    const file = await config({
      hook: { url: 'http://127.0.0.1:1', headers: { authorization: 'Bearer secret' } },
    });
    const { code, stdout } = await GatewayProcess.ran('run', '--config', file, '--check');
    expect(code).toBe(0);
    expect(JSON.parse(stdout).controller.rules).toEqual(expect.objectContaining({ leastTokens: 32 }));
    expect(stdout).not.toContain('secret');
    await writeFile(file, (await readFile(file, 'utf8')).replace('slotsPerGpu: 3', 'slotsPerGpu: 1'));
    const refused = await GatewayProcess.ran('run', '--config', file, '--check');
    expect(refused.code).toBe(2);
  });
});
