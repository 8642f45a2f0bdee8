/**
 * The policy inside vLLM against the placement service: an engine's ranks are processes of their own, with a group to talk in, and
 * something goes wrong on one of them or at the service. Whatever it is, no rank ends up with a map of its own.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync } from 'node:fs';
import type { RequestListener } from 'node:http';
import path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { PlacementService, type PlacementServiceOptions } from '../../lib/controller/placement-service.js';
import { keepSlots } from '../../lib/controller/slot-order.js';
import { rig, SMALL } from '../support/controller.js';
import {
  EXPERTS,
  fromBase64,
  LAYERS,
  OLD,
  PYTHON,
  playRanks,
  pythonHas,
  RANKS,
  type RankResult,
  Servers,
  SLOTS,
  toBase64,
  WEIGHT,
} from '../support/placements.js';

const servers = new Servers();
afterEach(() => servers.end());

const hasNumpy = pythonHas('numpy');
const hasTorch = hasNumpy && pythonHas('torch');
const KEPT = toBase64(OLD.flat());
const DIED = 9;

async function serve(
  options: PlacementServiceOptions = {},
): Promise<{ service: PlacementService; url: string }> {
  const service = new PlacementService(options);
  return { service, url: await servers.start(service.listener) };
}

/** The service's answer, changed on its way. */
async function serveChanged(change: (answer: Record<string, unknown>) => unknown): Promise<string> {
  const { url } = await serve();
  return servers.start(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const answer = await fetch(url + request.url, { method: 'POST', body: Buffer.concat(chunks) });
    const changed = answer.status === 200 ? change(JSON.parse(await answer.text())) : '';
    response.writeHead(answer.status).end(typeof changed === 'string' ? changed : JSON.stringify(changed));
  });
}

/** By call, the one map that all ranks got. */
function agreedMaps(results: RankResult[]): string[] {
  expect(results.map(({ error, died }) => error ?? died)).toEqual(results.map(() => undefined));
  const calls = results.map((result) => result.calls!.map(([first]) => first!.map));
  for (const maps of calls) expect(maps).toEqual(calls[0]);
  return calls[0]!;
}

const logOf = (results: RankResult[]) => results.flatMap(({ log = [] }) => log).join('\n');

/** What vLLM demands of a map: an expert for every slot, a slot for every expert. */
function expectServable(map: string): void {
  const slots = fromBase64(map);
  expect(slots.length).toBe(LAYERS * SLOTS);
  for (let layer = 0; layer < LAYERS; layer++) {
    const row = slots.slice(layer * SLOTS, (layer + 1) * SLOTS);
    expect([...new Set(row)].sort((a, b) => a - b)).toEqual(
      Array.from({ length: EXPERTS }, (_, expert) => expert),
    );
  }
}

describe.skipIf(!hasNumpy)('the policy (needs python3 with numpy)', { timeout: 60_000 }, () => {
  it('gives all ranks one map, moves what pays, and then stays', async () => {
    const { url, service } = await serve();
    const results = await playRanks({ url, calls: 2 });
    const [first, second] = agreedMaps(results);
    expectServable(first!);
    expect(first).not.toBe(KEPT);
    expect(second).toBe(first);
    expect(results[0]!.calls![0]![0]).toMatchObject({
      kind: 'numpy',
      dtype: 'int64',
      shape: [LAYERS, SLOTS],
      writeable: true,
    });
    // One rank asks for all.
    const metrics = await service.registry.metrics();
    expect(metrics).toMatch(/^gimbal_placement_answers_total\{decision="rearrange",reason="gain"\} 1$/m);
    expect(metrics).toMatch(/^gimbal_placement_agreements_total\{agreed="true"\} 2$/m);
  });

  it('derives the maps that older versions want from the one that is agreed', async () => {
    const { url } = await serve();
    const results = await playRanks({ url, threeMaps: true });
    agreedMaps(results);
    const [map, slotsOf, replicas] = results[0]!.calls![0]!.map((array) => ({
      ...array,
      values: fromBase64(array.map),
    }));
    const most = SLOTS - EXPERTS + 1;
    expect([slotsOf!.shape, replicas!.shape]).toEqual([
      [LAYERS, EXPERTS, most],
      [LAYERS, EXPERTS],
    ]);
    for (let at = 0; at < LAYERS * EXPERTS; at++) {
      const [layer, expert] = [Math.floor(at / EXPERTS), at % EXPERTS];
      const row = map!.values.slice(layer * SLOTS, (layer + 1) * SLOTS);
      const slots = row.flatMap((held, slot) => (held === expert ? [slot] : []));
      const padded = Array.from({ length: most }, (_, replica) => slots[replica] ?? -1);
      expect(slotsOf!.values.slice(at * most, (at + 1) * most)).toEqual(padded);
      expect(replicas!.values[at]).toBe(slots.length);
    }
  });

  it('takes weights of float32 too', async () => {
    const { url } = await serve();
    const [float32] = agreedMaps(await playRanks({ url, dtype: 'float32' }));
    const [int64] = agreedMaps(await playRanks({ url }));
    expect(float32).toBe(int64);
  });

  it('does not ask before there is traffic', async () => {
    const results = await playRanks({
      url: 'http://127.0.0.1:1',
      weight: WEIGHT.map((row) => row.map(() => 0)),
    });
    expect(agreedMaps(results)).toEqual([KEPT]);
    expect(logOf(results)).toBe('');
  });

  it('leaves it to the engine where no map of the new size is in force', async () => {
    const results = await playRanks({ url: 'http://127.0.0.1:1', slots: 24, enginePlans: true });
    const engines = OLD.flatMap(() => Array.from({ length: 24 }, (_, slot) => slot % EXPERTS));
    expect(agreedMaps(results)).toEqual([toBase64(engines)]);
  });

  it('keeps the map on all ranks in shadow mode, and logs what would have been gained', async () => {
    const { url } = await serve({ shadow: true });
    const results = await playRanks({ url });
    expect(agreedMaps(results)).toEqual([KEPT]);
    expect(logOf(results)).toMatch(/shadow mode: the service would rearrange: .*gainShare/);
  });

  it.each([
    ['is down', async () => 'http://127.0.0.1:1', /refused/i],
    [
      'refuses for time',
      async () => (await serve({ answerWithinMs: 1, plan: { walkers: 256, rounds: 10_000 } })).url,
      /503.*too_late/,
    ],
    ['wants a key', async () => (await serve({ apiKeys: ['secret'] })).url, /401/],
    ['answers with garbage', () => serveChanged(() => 'no JSON {'), /cannot be read/],
    ['answers with a list', () => serveChanged(() => [1]), /cannot be read/],
    [
      'answers to another key',
      () => serveChanged((answer) => ({ ...answer, key: 'other' })),
      /another question/,
    ],
    [
      'answers with another shape',
      () => serveChanged((answer) => ({ ...answer, shape: [LAYERS, SLOTS + 1] })),
      /another question/,
    ],
    ['names no plan', () => serveChanged((answer) => ({ ...answer, planId: '' })), /names no plan/],
    [
      'knows another decision',
      () => serveChanged((answer) => ({ ...answer, decision: 'wait' })),
      /no decision/,
    ],
    [
      'sends a map that is not the one it names',
      () => serveChanged((answer) => ({ ...answer, physicalToLogical: KEPT })),
      /not the one/,
    ],
    ['sends half a map', () => serveChanged((answer) => withMap(answer, OLD[0]!)), /240 bytes|80 bytes/],
    [
      'leaves an expert out',
      () =>
        serveChanged((answer) =>
          withMap(
            answer,
            OLD.flat().map((e) => Math.min(e, 14)),
          ),
        ),
      /no slot/,
    ],
    [
      'names an expert that is not',
      () =>
        serveChanged((answer) =>
          withMap(
            answer,
            OLD.flat().map((e) => e + 1),
          ),
        ),
      /outside/,
    ],
    [
      'keeps, with another map',
      () => serveChanged((answer) => ({ ...answer, decision: 'keep' })),
      /has another/,
    ],
  ])('keeps the map on all ranks where the service %s', async (_, start, told) => {
    const results = await playRanks({ url: await start() });
    expect(agreedMaps(results)).toEqual([KEPT]);
    expect(logOf(results)).toMatch(told);
    expect(results.every(({ log }) => log!.some((line) => line.includes('stays as it is')))).toBe(true);
  });

  function withMap(answer: Record<string, unknown>, map: number[]): object {
    const bytes = Buffer.from(toBase64(map), 'base64');
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    return { ...answer, physicalToLogical: bytes.toString('base64'), sha256 };
  }

  it.each([
    ['never answers', () => undefined],
    [
      'answers a byte at a time',
      (_request, response) => {
        response.writeHead(200);
        const drip = setInterval(() => response.write(' '), 50);
        response.on('close', () => clearInterval(drip));
      },
    ],
  ] as [string, RequestListener][])(
    'waits no longer than it was told where the service %s',
    async (_, listener) => {
      const begun = performance.now();
      const results = await playRanks({ url: await servers.start(listener), timeoutSeconds: 0.7 });
      expect(performance.now() - begun).toBeLessThan(15_000);
      expect(agreedMaps(results)).toEqual([KEPT]);
      expect(logOf(results)).toMatch(/no answer within 0.7 s/);
    },
  );

  it.each(['other-weight', 'other-old'])('keeps the map on all ranks where one rank has %s', async (what) => {
    const { url, service } = await serve();
    const results = await playRanks({ url, fault: { do: what, rank: 2 } });
    const own = results.map(({ calls }) => calls![0]![0]!.map);
    // Each has what it had; nobody has asked.
    expect(own.filter((map) => map === KEPT).length).toBe(what === 'other-old' ? RANKS - 1 : RANKS);
    expect(await service.registry.metrics()).not.toMatch(/^gimbal_placement_answers_total\{/m);
    expect(logOf(results)).toMatch(/2 different arguments/);
  });

  it.each([
    ['in the plan', 12, 1],
    ['in the words around it', 0, 1],
    ['in the map', 200, 3],
    ['at the rank that asked', 200, 0],
  ])('keeps the map on all ranks where one byte of what one rank got is wrong %s', async (_, byte, rank) => {
    const { url, service } = await serve();
    const results = await playRanks({ url, fault: { do: 'flip', rank, operation: 1, byte } });
    expect(agreedMaps(results)).toEqual([KEPT]);
    const metrics = await service.registry.metrics();
    expect(metrics).toMatch(/^gimbal_placement_agreements_total\{agreed="false"\} 1$/m);
  });

  it.each([
    ['the rank that asks dies while it asks', { do: 'die-asking', rank: 0 }],
    ['a rank dies before it says what it was called with', { do: 'die', rank: 1, operation: 0 }],
    ['a rank dies before it gets the plan', { do: 'die', rank: 3, operation: 1 }],
    ['a rank dies before it says what it holds', { do: 'die', rank: 2, operation: 2 }],
  ])('returns nothing on any rank where %s', async (_, fault) => {
    const { url } = await serve();
    const results = await playRanks({ url, fault });
    for (const { rank, died, error, calls } of results) {
      expect(calls).toBeUndefined();
      if (rank === fault.rank) expect(died).toBe(DIED);
      else expect(error).toMatch(/ConnectionError|BrokenPipe|ConnectionReset/);
    }
  });

  it('tells the controller whether its plan was taken', async () => {
    const { url, service } = await serve({ ownPlans: false });
    const offered = {
      layers: LAYERS,
      gpus: RANKS,
      slotsPerGpu: SLOTS / RANKS,
      placement: Int32Array.from(OLD.flatMap((row) => [...row.slice(5), ...row.slice(0, 5)])),
    };
    const change = {
      ...offered,
      planId: 'plan-7',
      previous: Int32Array.from(OLD.flat()),
      previousPlanId: 'plan-6',
      previousGpus: RANKS,
      previousSlotsPerGpu: SLOTS / RANKS,
      fencingToken: 0,
      isRollback: false,
    };
    const spoilt = { do: 'flip', rank: 1, operation: 1, byte: 200 };
    const failed = expect(service.apply(change, new AbortController().signal)).rejects.toThrow('plan-7');
    expect(agreedMaps(await playRanks({ url, fault: spoilt }))).toEqual([KEPT]);
    await failed;
    const applied = service.apply(change, new AbortController().signal);
    const [map] = agreedMaps(await playRanks({ url }));
    await applied;
    expect(fromBase64(map!)).toEqual([...keepSlots(offered.placement, change.previous, offered.slotsPerGpu)]);
    expect(await service.verify()).toBe('plan-7');
  });

  it("puts a controller's plan in force, whenever the engine happens to ask", async () => {
    const { url, service } = await serve({ ownPlans: false });
    const { controller, options } = rig({ apply: service, applyTimeoutMs: 50_000, verifyTimeoutMs: 5000 });
    const { layers, experts, gpus, slotsPerGpu } = SMALL;
    const rows = (map: Int32Array) =>
      Array.from({ length: layers }, (_, layer) => [
        ...map.subarray(layer * gpus * slotsPerGpu, (layer + 1) * gpus * slotsPerGpu),
      ]);
    const engine = {
      url,
      ranks: gpus,
      weight: rows(options.initial).map((row) => row.slice(0, experts).map(() => 1)),
      old: rows(options.initial),
    };
    await controller.start();
    const looked = controller.look();
    const kept = toBase64(options.initial);
    let map = kept;
    // The plan may not be there when the engine first asks.
    for (let asked = 0; asked < 10 && map === kept; asked++)
      [map] = agreedMaps(await playRanks(engine)) as [string];
    expect(await looked).toMatchObject({ decision: 'committed', reason: 'gain' });
    expect(fromBase64(map)).toEqual([...keepSlots(controller.placement, options.initial, slotsPerGpu)]);
    expect(await service.verify()).toBe(controller.planId);
    await controller.stop();
  });

  it.each(readdirSync(path.join(__dirname, '..', 'contract')).filter((name) => name.startsWith('test_')))(
    'passes its own tests, %s',
    (name) => {
      const { status, stderr } = spawnSync(PYTHON, ['-B', path.join(__dirname, '..', 'contract', name)], {
        encoding: 'utf8',
      });
      expect(stderr).toMatch(/^Ran [1-9]\d* tests? in/m);
      expect(status, stderr).toBe(0);
    },
  );
});

describe.skipIf(!hasTorch)(
  "the policy over torch's own groups (needs python3 with torch)",
  { timeout: 120_000 },
  () => {
    it('gives all ranks one tensor, the same as over any other group', async () => {
      const { url } = await serve();
      const results = await playRanks({ url, torch: true });
      expect(results[3]!.calls![0]![0]).toMatchObject({
        kind: 'torch',
        dtype: 'int64',
        shape: [LAYERS, SLOTS],
      });
      expect(agreedMaps(results)).toEqual(agreedMaps(await playRanks({ url })));
    });
  },
);
