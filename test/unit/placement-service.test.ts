/** The placement service: one answer for each key, what it plans by itself, what a controller offers, and what it refuses. */
import { afterEach, describe, expect, it } from 'vitest';
import { eplbGlobal } from '../../bench/baselines/index.js';
import type { OfferedPlacement } from '../../lib/controller/placement-proposal.js';
import { PlacementService, type PlacementServiceOptions } from '../../lib/controller/placement-service.js';
import { keepSlots, movedSlots } from '../../lib/controller/slot-order.js';
import type { PlacementChange } from '../../lib/controller/types.js';
import { createLog } from '../../lib/gateway/log.js';
import { Random } from '../../lib/random.js';
import {
  ask,
  EXPERTS,
  fromBase64,
  LAYERS,
  OLD,
  post,
  question,
  RANKS,
  Servers,
  SLOTS,
  toBase64,
  WEIGHT,
} from '../support/placements.js';

const servers = new Servers();
afterEach(() => servers.end());

const PER_RANK = SLOTS / RANKS;

async function serve(options: PlacementServiceOptions = {}) {
  const service = new PlacementService(options);
  const url = await servers.start(service.listener);
  return { service, url, seriesOf: async (start: string) => seriesOf(service, start) };
}

/** The values of the series that begin so. */
async function seriesOf(service: PlacementService, start: string): Promise<number[]> {
  const lines = (await service.registry.metrics()).split('\n').filter((line) => line.startsWith(start));
  return lines.map((line) => Number(line.split(' ').at(-1)));
}

/** Largest over mean load of a rank, mean over the layers, from the definition: even shares. */
function imbalance(map: number[]): number {
  const layers = WEIGHT.map((weights, layer) => {
    const row = map.slice(layer * SLOTS, (layer + 1) * SLOTS);
    const replicas = row.reduce(
      (counts, expert) => counts.set(expert, (counts.get(expert) ?? 0) + 1),
      new Map<number, number>(),
    );
    const loads = Array.from({ length: RANKS }, (_, rank) =>
      row
        .slice(rank * PER_RANK, (rank + 1) * PER_RANK)
        .reduce((sum, e) => sum + weights[e]! / replicas.get(e)!, 0),
    );
    return Math.max(...loads) / (loads.reduce((a, b) => a + b) / RANKS);
  });
  return layers.reduce((a, b) => a + b) / layers.length;
}

/** Rotated by a rank, and inside each rank turned round: the same loads in other slots. */
function turned(): OfferedPlacement {
  const rows = OLD.map((row) => {
    const ranks = Array.from({ length: RANKS }, (_, rank) =>
      row.slice(rank * PER_RANK, (rank + 1) * PER_RANK),
    );
    return [...ranks.slice(1), ranks[0]!].flatMap((slots) => slots.reverse());
  });
  const placement = Int32Array.from(rows.flat());
  return { planId: 'plan-7', placement, layers: LAYERS, gpus: RANKS, slotsPerGpu: PER_RANK };
}

function changeTo(offered: OfferedPlacement): PlacementChange {
  const previous = { previous: Int32Array.from(OLD.flat()), previousPlanId: 'plan-6' };
  return {
    ...offered,
    ...previous,
    previousGpus: RANKS,
    previousSlotsPerGpu: PER_RANK,
    isRollback: false,
    fencingToken: 3,
  };
}

describe('an answer', () => {
  it('has every expert, spreads the load better than the map in force, and moves no slot without need', async () => {
    const { url } = await serve();
    const answer = await ask(url);
    expect(answer).toMatchObject({ decision: 'rearrange', reason: 'gain', shape: [LAYERS, SLOTS] });
    const map = fromBase64(answer.physicalToLogical);
    for (let layer = 0; layer < LAYERS; layer++) {
      expect(new Set(map.slice(layer * SLOTS, (layer + 1) * SLOTS)).size).toBe(EXPERTS);
    }
    const { predicted } = answer;
    expect(predicted!.oldImbalance).toBeCloseTo(imbalance(OLD.flat()), 6);
    expect(predicted!.newImbalance).toBeCloseTo(imbalance(map), 6);
    expect(predicted!.newImbalance).toBeLessThan(predicted!.oldImbalance! - 0.1);
    // What stays on its rank stays in its slot: so many slots change as experts arrive.
    expect(predicted!.movedSlots).toBe(movedSlots(Int32Array.from(map), Int32Array.from(OLD.flat())));
    expect(predicted!.movedSlots).toBe(predicted!.migrations);
  });

  it('balances as well as the EPLB family and moves fewer slots', async () => {
    const { url } = await serve();
    const { physicalToLogical, predicted } = await ask(url);
    const tokens = Uint32Array.from(WEIGHT.flat());
    const shape = { layers: LAYERS, sources: 1, experts: EXPERTS, gpus: RANKS, slotsPerGpu: PER_RANK };
    const rival = eplbGlobal({ ...shape, tokens, computeCost: 1, commCost: new Float64Array(RANKS) });
    expect(imbalance(fromBase64(physicalToLogical))).toBeLessThan(imbalance([...rival]) + 0.005);
    expect(predicted!.movedSlots!).toBeLessThan(movedSlots(rival, Int32Array.from(OLD.flat())) * 0.7);
  });

  it('is kept where there is too little to go by, or nothing to gain', async () => {
    const { url } = await serve();
    const old = toBase64(OLD.flat());
    const few = WEIGHT.map((row) => row.map(() => 1));
    expect(await ask(url, { key: 'few', weight: few })).toMatchObject({
      decision: 'keep',
      reason: 'too-little-data',
      physicalToLogical: old,
    });
    const { physicalToLogical } = await ask(url);
    expect(await ask(url, { key: 'again', old: physicalToLogical })).toMatchObject({
      decision: 'keep',
      reason: 'same-placement',
      physicalToLogical,
    });
    // Moves that cost more than they save.
    const dear = await serve({ moveShare: 10 });
    expect(await ask(dear.url)).toMatchObject({ decision: 'keep', physicalToLogical: old });
    const proud = await serve({ rules: { leastGainShare: 0.9 } });
    expect(await ask(proud.url)).toMatchObject({
      decision: 'keep',
      reason: 'gain-too-small',
      physicalToLogical: old,
    });
  });

  it('takes weights as text and in both binary forms alike', async () => {
    const { url } = await serve();
    const flat = WEIGHT.flat();
    const int64 = Buffer.from(BigInt64Array.from(flat, BigInt).buffer).toString('base64');
    const float32 = Buffer.from(Float32Array.from(flat).buffer).toString('base64');
    const maps = [
      await ask(url),
      await ask(url, { key: 'int64', weight: { dtype: 'int64', data: int64 } }),
      await ask(url, { key: 'float32', weight: { dtype: 'float32', data: float32 } }),
    ];
    expect(new Set(maps.map(({ sha256 }) => sha256)).size).toBe(1);
    // Beyond 32 bits they are scaled; only ratios count.
    const large = Buffer.from(BigInt64Array.from(flat, (w) => BigInt(w) << 20n).buffer).toString('base64');
    expect((await ask(url, { key: 'large', weight: { dtype: 'int64', data: large } })).sha256).toBe(
      maps[0]!.sha256,
    );
  });

  it('without a map in force is a plan, and in shadow mode an error', async () => {
    const { url } = await serve();
    expect(await ask(url, { old: null })).toMatchObject({ decision: 'rearrange', reason: 'no-old-map' });
    const shadow = await serve({ shadow: true });
    expect(await post(shadow.url, '/v1/placement', question({ old: null }))).toMatchObject({ status: 503 });
  });
});

describe('a key', () => {
  it('has one answer for all who ask, at once and late, to the byte', async () => {
    const { url, seriesOf } = await serve();
    const racing = await Promise.all(Array.from({ length: 8 }, () => post(url, '/v1/placement', question())));
    const late = await post(url, '/v1/placement', question());
    expect(new Set([...racing, late].map(({ text }) => text)).size).toBe(1);
    expect(late.status).toBe(200);
    expect(await seriesOf('gimbal_placement_answers_total')).toEqual([1]);
  });

  it('keeps its answer when the controller offers another plan meanwhile', async () => {
    const { service, url } = await serve();
    const first = await ask(url);
    service.offer(turned());
    expect(await ask(url)).toEqual(first);
    expect((await ask(url, { key: 'next' })).planId).toBe('plan-7');
  });

  it.each([
    ['weights', { weight: WEIGHT.map((row) => [...row].reverse()) }],
    ['map', { old: toBase64(OLD.flatMap((row) => [...row].reverse())) }],
    ['model', { model: 'another' }],
    ['ranks', { ranks: 2 }],
  ])('with another %s is a conflict', async (_, changes) => {
    const { url } = await serve();
    await ask(url);
    const { status, code } = await post(url, '/v1/placement', question(changes));
    expect([status, code]).toEqual([409, 'key_conflict']);
  });

  it('that was refused for time stays refused', async () => {
    const lines: string[] = [];
    const log = createLog('error', { write: (line: string) => lines.push(line) });
    const { url } = await serve({ log, answerWithinMs: 1, plan: { walkers: 256, rounds: 10_000 } });
    for (const _ of [1, 2]) {
      const { status, code } = await post(url, '/v1/placement', question());
      expect([status, code]).toEqual([503, 'too_late']);
    }
    // Not tried a second time: that might have been in time.
    expect(lines.length).toBe(1);
  });

  it('is forgotten after so many others, and planned again to the same end', async () => {
    const { url, seriesOf } = await serve({ keptAnswers: 2 });
    const first = await ask(url);
    for (const key of ['second', 'third']) await ask(url, { key });
    expect(await ask(url)).toEqual(first);
    expect(await seriesOf('gimbal_placement_answers_total')).toEqual([4]);
  });
});

describe('what a controller offers', () => {
  it('is answered in the slots of the engine, counts as applied once the ranks agree, and no sooner', async () => {
    const { service, url } = await serve();
    let state = 'waiting';
    const applied = service.apply(changeTo(turned()), new AbortController().signal).then(() => {
      state = 'applied';
    });
    const answer = await ask(url);
    expect(answer).toMatchObject({ decision: 'rearrange', reason: 'controller', planId: 'plan-7' });
    const map = Int32Array.from(fromBase64(answer.physicalToLogical));
    const ranksOf = (of: Int32Array) =>
      Array.from({ length: LAYERS * RANKS }, (_, at) =>
        [...of.subarray(at * PER_RANK, (at + 1) * PER_RANK)].sort(),
      );
    expect(ranksOf(map)).toEqual(ranksOf(turned().placement));
    expect(movedSlots(map, Int32Array.from(OLD.flat()))).toBe(answer.predicted!.movedSlots);
    // What stays on its rank stays in its slot.
    expect(answer.predicted!.movedSlots).toBe(answer.predicted!.migrations);
    expect([state, await service.verify()]).toEqual(['waiting', undefined]);
    const agreement = { version: 1, key: 'first', planId: 'plan-7', agreed: true };
    expect((await post(url, '/v1/placement/agreed', agreement)).status).toBe(204);
    await applied;
    expect(await service.verify()).toBe('plan-7');
    // Asked again after a crash, it is there already.
    await service.apply(changeTo(turned()), new AbortController().signal);
    expect(await ask(url, { key: 'next', old: answer.physicalToLogical })).toMatchObject({
      decision: 'keep',
      reason: 'same-placement',
      planId: 'plan-7',
    });
  });

  it('counts as applied where the engine has it already, in whatever slots', async () => {
    const { service, url } = await serve();
    const applied = service.apply(changeTo(turned()), new AbortController().signal);
    await ask(url, { old: toBase64(turned().placement) });
    await applied;
    expect(await service.verify()).toBe('plan-7');
  });

  it('has failed where the ranks did not agree', async () => {
    const { service, url } = await serve();
    const applied = service.apply(changeTo(turned()), new AbortController().signal);
    const failed = expect(applied).rejects.toThrow('rank 3 holds another map');
    await ask(url);
    const detail = 'rank 3 holds another map';
    await post(url, '/v1/placement/agreed', {
      version: 1,
      key: 'first',
      planId: 'plan-7',
      agreed: false,
      detail,
    });
    await failed;
    expect(await service.verify()).toBeUndefined();
    // Nobody comes upon it later.
    expect((await ask(url, { key: 'next' })).planId).not.toBe('plan-7');
  });

  it('is withdrawn where the controller gives up; what the ranks took all the same is told', async () => {
    const { service, url } = await serve({ ownPlans: false });
    const giveUp = new AbortController();
    const applied = service.apply(changeTo(turned()), giveUp.signal);
    const answered = await ask(url);
    giveUp.abort(new Error('late'));
    await expect(applied).rejects.toThrow('late');
    expect(await ask(url, { key: 'next' })).toMatchObject({ decision: 'keep', reason: 'controller' });
    await post(url, '/v1/placement/agreed', {
      version: 1,
      key: 'first',
      planId: answered.planId,
      agreed: true,
    });
    expect(await service.verify()).toBe('plan-7');
    await expect(service.apply(changeTo({ ...turned(), planId: 'plan-8' }), giveUp.signal)).rejects.toThrow(
      'late',
    );
  });

  it('has failed where another change comes first', async () => {
    const { service, url } = await serve();
    const { signal } = new AbortController();
    const failed = expect(service.apply(changeTo(turned()), signal)).rejects.toThrow('another change');
    const applied = service.apply(changeTo({ ...turned(), planId: 'plan-8' }), signal);
    await failed;
    expect((await ask(url)).planId).toBe('plan-8');
    await post(url, '/v1/placement/agreed', { version: 1, key: 'first', planId: 'plan-8', agreed: true });
    await applied;
  });

  it('is refused from a controller that has lost its lease', async () => {
    const { service, url } = await serve();
    const { signal } = new AbortController();
    const applied = service.apply({ ...changeTo(turned()), fencingToken: 5 }, signal);
    const late = { ...changeTo(turned()), planId: 'plan-8', fencingToken: 4 };
    await expect(service.apply(late, signal)).rejects.toThrow('fencingToken');
    expect((await ask(url)).planId).toBe('plan-7');
    await post(url, '/v1/placement/agreed', { version: 1, key: 'first', planId: 'plan-7', agreed: true });
    await applied;
  });

  it('of another shape, or for more experts, is not for this engine', async () => {
    const { service, url } = await serve();
    service.offer({ ...turned(), gpus: 2, slotsPerGpu: 10 });
    expect(await ask(url)).toMatchObject({ reason: 'gain' });
    service.offer({ ...turned(), placement: turned().placement.map((expert) => expert + 1) });
    expect(await ask(url, { key: 'next' })).toMatchObject({ reason: 'gain' });
  });

  it('with the empty slots of a dead GPU is kept back', async () => {
    const { service, url } = await serve();
    const placement = turned().placement;
    placement[0] = -1;
    service.offer({ ...turned(), placement });
    expect(await ask(url)).toMatchObject({ decision: 'keep', reason: 'empty-slots' });
  });
});

describe('shadow mode', () => {
  it('leaves the map as it is, and says what would have been gained: in the answer, the metrics and the log', async () => {
    const lines: Record<string, unknown>[] = [];
    const log = createLog('info', { write: (line: string) => lines.push(JSON.parse(line)) });
    const { url, seriesOf } = await serve({ shadow: true, log });
    const would = await ask((await serve()).url);
    const answer = await ask(url);
    expect(answer).toMatchObject({
      decision: 'keep',
      physicalToLogical: toBase64(OLD.flat()),
      predicted: would.predicted,
      shadow: { decision: 'rearrange', reason: 'gain', planId: would.planId },
    });
    expect(would.predicted!.gainShare).toBeGreaterThan(0.05);
    expect(await seriesOf('gimbal_placement_gain_share')).toEqual([would.predicted!.gainShare]);
    expect(await seriesOf('gimbal_placement_answers_total{decision="rearrange"')).toEqual([1]);
    expect(lines).toMatchObject([{ predicted: would.predicted, shadow: { decision: 'rearrange' } }]);
  });
});

describe('the service', () => {
  it('tells the latest answer and what the ranks said of it', async () => {
    const { url } = await serve();
    const current = async () => {
      const response = await fetch(`${url}/v1/placement/current`);
      return { status: response.status, body: await response.json() };
    };
    expect((await current()).status).toBe(404);
    const answer = await ask(url);
    expect((await current()).body).toMatchObject({ ...answer, model: 'model' });
    expect((await current()).body).not.toHaveProperty('agreed');
    await post(url, '/v1/placement/agreed', {
      version: 1,
      key: 'first',
      planId: answer.planId,
      agreed: false,
    });
    expect((await current()).body).toMatchObject({ planId: answer.planId, agreed: false });
  });

  it.each([
    ['no JSON', '{', 'invalid_json'],
    ['another version', question({ version: 2 }), 'version'],
    ['an unknown field', question({ wait: 1 }), 'wait'],
    ['rows that are too short', question({ weight: WEIGHT.map((row) => row.slice(1)) }), 'weight'],
    ['weights below 0', question({ weight: WEIGHT.map((row) => row.map(() => -1)) }), 'weight'],
    ['weights of another length', question({ weight: { dtype: 'int64', data: 'AAAA' } }), 'weight.data'],
    ['a map of another length', question({ old: 'AAAA' }), 'old'],
    ['a map with experts that are not', question({ old: toBase64(OLD.flat().map(() => EXPERTS)) }), 'old'],
    ['a map that lacks experts', question({ old: toBase64(OLD.flat().map(() => 0)) }), 'old'],
    ['slots that do not divide', question({ ranks: 3 }), 'slots'],
    ['fewer slots than experts', question({ slots: 12 }), 'slots'],
    ['more slots than any engine has', question({ slots: 2 ** 20, old: null }), 'slots'],
  ])('refuses %s', async (_, body, named) => {
    const { url } = await serve();
    const { status, text } = await post(url, '/v1/placement', body);
    expect([status, text]).toEqual([400, expect.stringContaining(named)]);
  });

  it('refuses NaN and infinity in binary weights', async () => {
    const { url } = await serve();
    for (const wrong of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const data = Buffer.from(
        Float32Array.from(WEIGHT.flat(), (w, at) => (at === 5 ? wrong : w)).buffer,
      ).toString('base64');
      const { status, text } = await post(
        url,
        '/v1/placement',
        question({ weight: { dtype: 'float32', data } }),
      );
      expect([status, text]).toEqual([400, expect.stringContaining('weight[5]')]);
    }
  });

  it('knows its paths and methods, and its keys where it has some', async () => {
    const { url } = await serve({ apiKeys: ['secret'] });
    const bearer = { authorization: 'Bearer secret' };
    const statusOf = async (path: string, method: string, headers: Record<string, string> = bearer) =>
      (await fetch(url + path, { method, headers })).status;
    expect(await statusOf('/v1/elsewhere', 'GET')).toBe(404);
    expect(await statusOf('/v1/placement', 'GET')).toBe(405);
    expect(await statusOf('/v1/placement/current', 'POST')).toBe(405);
    expect(await statusOf('/v1/placement/current', 'GET', {})).toBe(401);
    expect((await post(url, '/v1/placement', question())).status).toBe(401);
    expect((await post(url, '/v1/placement', question(), bearer)).status).toBe(200);
  });

  it('refuses agreements on what it has not answered', async () => {
    const { url } = await serve();
    await ask(url);
    for (const wrong of [{ key: 'other' }, { planId: 'other' }]) {
      const { planId } = await ask(url);
      const agreement = { version: 1, key: 'first', planId, agreed: true, ...wrong };
      expect((await post(url, '/v1/placement/agreed', agreement)).status).toBe(404);
    }
  });

  it('refuses options that it does not know', () => {
    expect(() => new PlacementService({ shdow: true } as never)).toThrow(/shadow/);
    expect(() => new PlacementService({ answerWithinMs: 0 })).toThrow(/answerWithinMs/);
  });
});

describe('keepSlots', () => {
  it('keeps all that stays in its slot, and never loses or moves an expert between GPUs', () => {
    const seed = Number(process.env.GIMBAL_TEST_SEED ?? 20260601);
    const draws = new Random(seed);
    const random = () => draws.uniform();
    for (let round = 0; round < 200; round++) {
      const [gpus, slots] = [1 + Math.floor(random() * 3), 1 + Math.floor(random() * 6)];
      // Few experts, so that some lie on a GPU twice.
      const draw = () => Int32Array.from({ length: gpus * slots }, () => Math.floor(random() * (slots + 1)));
      const [placement, before] = [draw(), draw()];
      const given = placement.slice();
      const kept = keepSlots(placement, before, slots);
      expect(placement, `seed ${seed}`).toEqual(given);
      let common = 0;
      for (let gpu = 0; gpu < gpus; gpu++) {
        const [now, was] = [kept, before].map((map) => [...map.subarray(gpu * slots, (gpu + 1) * slots)]);
        expect([...now!].sort(), `seed ${seed}`).toEqual(
          [...placement.subarray(gpu * slots, (gpu + 1) * slots)].sort(),
        );
        for (const expert of new Set(now)) {
          const times = (row: number[]) => row.filter((one) => one === expert).length;
          common += Math.min(times(now!), times(was!));
        }
      }
      expect(movedSlots(kept, before), `seed ${seed}, round ${round}`).toBe(gpus * slots - common);
    }
  });
});
