/**
 * The recipes of docs/ENGINES.md from end to end: what an engine's recorder leaves, through `gimbal plan`, to a file that is held to
 * what the engine's loader does with it.
 */
import { mkdirSync, readFileSync } from 'node:fs';
import { Writable } from 'node:stream';
import { beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { run } from '../../lib/cli/run.js';
import { Random } from '../../lib/random.js';
import { safetensors, statistic, temporaryFolder, tensor, torchFile } from './import-fixtures.js';

const RANKS = 4;
const EXPERTS = 8;
const SLOTS = 12;
/** The first layer is dense. */
const MODEL_LAYERS = 3;
const folder = temporaryFolder();

/** Tokens by layer and expert: each rank has favourites of its own. */
function countsOf(rank: number, slots: number): number[][] {
  const random = new Random(7, rank);
  return Array.from({ length: MODEL_LAYERS }, (_, layer) =>
    Array.from({ length: slots }, (_, slot) =>
      layer === 0 ? 0 : 10 + Math.round(random.uniform() * (slot % RANKS === rank ? 5000 : 200)),
    ),
  );
}

async function gimbal(...words: string[]): Promise<string> {
  const chunks: Buffer[] = [];
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      chunks.push(chunk);
      done();
    },
  }) as NodeJS.WriteStream;
  const output = { stdout: sink, stderr: sink };
  const { signal } = new AbortController();
  const code = await run(words, { output, signal, onHangUp: () => undefined });
  const text = Buffer.concat(chunks).toString();
  expect(code, text).toBe(0);
  return text;
}

const plan = (counts: string, format: string, out: string, ...more: string[]) =>
  gimbal(
    'plan',
    '--counts',
    counts,
    '--topology',
    '2x2',
    '--slots',
    `${SLOTS}`,
    '--format',
    format,
    '--out',
    out,
    ...more,
  );

describe('SGLang: record, plan, restart', () => {
  const recording = () => folder.path('recording');

  beforeAll(() => {
    mkdirSync(recording());
    const trivial = Array.from({ length: MODEL_LAYERS }, () =>
      Array.from({ length: SLOTS }, (_, slot) => slot % EXPERTS),
    );
    for (let rank = 0; rank < RANKS; rank++) {
      const pass = {
        forward_pass_id: 1,
        rank,
        gatherer_key: 'primary',
        global_physical_count: tensor(countsOf(rank, SLOTS)),
      };
      const dump = { records: [pass], last_physical_to_logical_map: tensor(trivial, 'i8') };
      folder.write(`recording/expert_distribution_recorder_1_${rank}.pt`, torchFile(dump));
    }
  });

  it('makes a file that --init-expert-location can take', async () => {
    const out = folder.path('placement.json');
    await plan(recording(), 'sglang', out);
    const location = JSON.parse(readFileSync(out, 'utf8'));
    // Whatever else lay beside it would be passed on as an argument.
    expect(Object.keys(location)).toEqual(['physical_to_logical_map']);
    const map: number[][] = location.physical_to_logical_map;
    expect(map.map((row) => row.length)).toEqual(Array(MODEL_LAYERS).fill(SLOTS));
    for (const row of map) {
      expect([...new Set(row)].sort((a, b) => a - b)).toEqual(
        Array.from({ length: EXPERTS }, (_, expert) => expert),
      );
    }
    // The dense layer as the engine would have it; the others as the traffic wants.
    expect(map[0]).toEqual(Array.from({ length: SLOTS }, (_, slot) => slot % EXPERTS));
    expect(map[1]).not.toEqual(map[0]);
  });

  it('starts the next plan from it, and moves nothing where nothing may move', async () => {
    const [before, after] = [folder.path('before.json'), folder.path('after.json')];
    await plan(recording(), 'sglang', before);
    await plan(recording(), 'sglang', after, '--incumbent', before, '--budget', '0');
    expect(readFileSync(after, 'utf8')).toBe(readFileSync(before, 'utf8'));
  });
});

describe('TensorRT-LLM: statistics, plan, restart', () => {
  it('makes a load balancer that stays as it is, by model layer', async () => {
    mkdirSync(folder.path('statistics'));
    folder.write(
      'statistics/meta_info.json',
      JSON.stringify({ num_experts: EXPERTS, num_experts_per_token: 2 }),
    );
    for (let rank = 0; rank < RANKS; rank++) {
      const counts = countsOf(rank, EXPERTS);
      const layers = { '100_1': statistic(counts[1]!), '100_2': statistic(counts[2]!) };
      folder.write(`statistics/rank${rank}.safetensors`, safetensors(layers));
    }
    const out = folder.path('load-balancer.yaml');
    await plan(folder.path('statistics'), 'tensorrt-llm', out);
    const balancer = parse(readFileSync(out, 'utf8'));
    expect(balancer).toMatchObject({ num_slots: SLOTS, layer_updates_per_iter: 0 });
    expect(Object.keys(balancer.initial_global_assignments)).toEqual(['1', '2']);
    for (const row of Object.values<number[]>(balancer.initial_global_assignments)) {
      expect([row.length, new Set(row).size]).toEqual([SLOTS, EXPERTS]);
    }
  });
});
