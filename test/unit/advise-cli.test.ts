/** `gimbal advise` in process: what it prints, what it refuses. */
import { afterAll, describe, expect, it } from 'vitest';
import { expectFailure, gimbal, npy, WorkFolder } from './cli-fixture.js';

const folder = new WorkFolder();
afterAll(() => folder.remove());

/** Three layers of 128 experts for four sources; expert 5 has a quarter of all. */
const HOT = Uint32Array.from({ length: 3 * 4 * 128 }, (_, n) => (n % 128 === 5 ? 42_000 : 1000));
folder.write('hot.npy', npy([3, 4, 128], HOT));
folder.write('sums.npy', npy([3, 128], HOT.slice(0, 3 * 128)));

const CLUSTER = 'advise --topology 1x4 --model qwen3-30b-a3b --hardware h100 --threads 1 --effort fast'.split(
  ' ',
);
const TRAFFIC = '--input-tokens 256 --output-tokens 64'.split(' ');
const LOADED = [...CLUSTER, ...TRAFFIC, '--concurrency', '256', '--splits', '2'];
const COUNTED = [...LOADED, '--counts', folder.at('hot.npy')];

describe('gimbal advise', () => {
  it('prints a table with a mark, the advice, the demand that would change it, and what was assumed', async () => {
    const { code, stdout, stderr } = await gimbal([...COUNTED, '--candidates', '0,4,64']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/redundant +slots\/GPU +HBM\/GPU +KV tokens\/engine +batch/);
    // A slot more is 48 layers x 9.44 MB.
    expect(stdout).toMatch(/^ *(→ )?4 +33 +\+0\.453 GB/m);
    expect(stdout.match(/→/g)!.length).toBe(1);
    const advised = /→ (\d+) +(\d+)/.exec(stdout)!;
    expect(stdout).toContain(
      `Advised: ${advised[1]} redundant experts a layer (--slots ${4 * Number(advised[2])}`,
    );
    expect(stdout).toMatch(/from [\d,]+ KV tokens an engine \(the least looked at\): \d+/);
    expect(stdout).toContain('note: Qwen3-30B-A3B on H100, 1 x 4 GPUs: 4 engines of 1');
    expect(stdout).toContain('note: The counts have 3 layers, which stand for the 48 of Qwen3-30B-A3B.');
  });

  it('gives one JSON document, the same at each run, with simulated figures beside the predicted', async () => {
    const words = [...COUNTED, '--candidates', '0,8', '--concurrency', '32', '--simulate', '1', '--json'];
    const [first, second] = [await gimbal(words), await gimbal(words)];
    expect(first.code, first.stderr).toBe(0);
    expect(first.stdout).toBe(second.stdout);
    const document = JSON.parse(first.stdout);
    expect(document).toMatchObject({ concurrency: 32, kvTokensWanted: (32 / 4) * (256 + 32) });
    expect(document.candidates.map((one: { redundantExperts: number }) => one.redundantExperts)).toEqual([
      0, 8,
    ]);
    for (const { simulated, outputTokensPerSecond, plan } of document.candidates) {
      expect(Math.abs(simulated.outputTokensPerSecond / outputTokensPerSecond - 1)).toBeLessThan(0.15);
      expect(Object.keys(plan)).toEqual(['objective', 'lowerBound', 'gap', 'backend']);
    }
    const table = (await gimbal(words.slice(0, -1))).stdout;
    expect(table).toMatch(/tokens\/s +change +simulated +change/);
  });

  it('takes counts without sources, fewer engines than GPUs, a rate and a measured use', async () => {
    const base = [...CLUSTER, ...TRAFFIC, '--splits', '2', '--candidates', '0', '--json'];
    const summed = ['--counts', folder.at('sums.npy'), '--sources', '2'];
    const rate = JSON.parse((await gimbal([...base, ...summed, '--rate', '20'])).stdout);
    expect(rate.notes.join('\n')).toContain('2 engines of 2');
    expect(rate.notes.join('\n')).toContain('do not say which source');
    expect(rate.candidates[0].outputTokensPerSecond).toBeCloseTo(20 * 64, 0);
    const used = JSON.parse((await gimbal([...base, '--kv-use', '50%', '--redundant-experts', '4'])).stdout);
    // A slot more than the leanest takes 48 x 9.44 MB of 98,304 B a token.
    const inForce = used.candidates[0].kvTokens - (48 * 9.44e6) / 98_304;
    expect(used.kvTokensWanted).toBeCloseTo(0.5 * inForce, -1);
    expect(used.notes.join()).toContain('synthetic');
  });

  it('less memory and more to gain before it counts change the answer', async () => {
    const of = async (...more: string[]) =>
      JSON.parse((await gimbal([...COUNTED, '--candidates', '0,4', '--json', ...more])).stdout);
    const [plain, tight, wary] = [
      await of(),
      await of('--memory-share', '50%', '--activation-gb', '2'),
      await of('--least-gain', '90%'),
    ];
    expect(tight.candidates[0].kvTokens - plain.candidates[0].kvTokens).toBeCloseTo(
      (-0.4 * 80e9 + 2e9) / 98_304,
      -1,
    );
    expect(plain.redundantExperts).toBe(4);
    expect(wary.redundantExperts).toBe(0);
  });

  it('tells progress where it is asked to', async () => {
    expect((await gimbal([...COUNTED, '--candidates', '0', '--progress'])).stderr).toMatch(
      /gimbal: weighing █+ 100 %/,
    );
  });

  it.each<[string, string[], number, RegExp]>([
    ['no load', [...CLUSTER, ...TRAFFIC], 2, /--concurrency, --rate, --kv-use/],
    ['two loads', [...LOADED, '--rate', '3'], 2, /--concurrency, --rate, --kv-use/],
    [
      'slots beside a concurrency',
      [...LOADED, '--redundant-experts', '4'],
      2,
      /--redundant-experts needs --kv-use/,
    ],
    ['an odd topology', ['advise', '--topology', '4', ...LOADED.slice(3)], 2, /--topology takes NODESxGPUS/],
    ['an odd share', [...CLUSTER, ...TRAFFIC, '--kv-use', '65'], 2, /--kv-use takes a share/],
    ['odd candidates', [...LOADED, '--candidates', '0;8'], 2, /--candidates takes whole numbers/],
    [
      'candidates that do not divide',
      [...LOADED, '--candidates', '0,6'],
      2,
      /candidates\[1\].*multiple of 4/,
    ],
    ['two routings', [...COUNTED, '--sigma', '1'], 2, /--sigma/],
    [
      'counts of another model',
      [...LOADED, '--counts', folder.at('counts.npy')],
      3,
      /the 128 experts of Qwen3/,
    ],
    ['sources that do not map', [...COUNTED, '--topology', '1x6'], 3, /sources/],
    ['a file that is not there', [...LOADED, '--counts', folder.at('none.npy')], 6, /none\.npy/],
    ['a model that does not fit', [...LOADED, '--model', 'deepseek-v3'], 4, /room for the weights/],
  ])('refuses %s', async (_, words, code, message) => {
    expectFailure(await gimbal(words), code, message);
  });
});
