/** Routing that is read for a simulation: which kind a file is, what comes of it, and what is refused. */
import { describe, expect, it } from 'vitest';
import { Routing } from '../../lib/simulator/routing.js';
import { readRouting } from '../../lib/simulator/routing-files.js';
import { elements, expectFailure, npy, temporaryFolder } from './import-fixtures.js';
import { MODEL } from './simulator-fixture.js';

const folder = temporaryFolder();
// Three tokens, two layers, two experts each.
const IDS = [0, 1, 2, 3, 0, 1, 2, 4, 0, 5, 2, 15];
const SHAPE = [3, 2, 2];
const base64 = (ids: number[], shape: number[]) =>
  Buffer.from(npy(elements(ids, 'u1'), shape, { descr: '|u1' })).toString('base64');
const response = (...fields: (string | null)[]) => ({
  id: 'x',
  choices: fields.map((routed_experts) => ({ text: 'a', routed_experts })),
});

/** As plain data. */
async function read(...files: string[]) {
  const routing = await readRouting(files, MODEL);
  if (routing.kind !== 'recorded') return routing;
  return routing.recordings.map(({ ids, ...rest }) => ({ ids: Array.from(ids), ...rest }));
}

describe('routing from files', () => {
  it.each([
    ['u1', '|u1'],
    ['u2', '<u2'],
    ['i4', '<i4'],
    ['i8', '<i8'],
  ] as const)('.npy of choices (%s), each file a topic', async (kind, descr) => {
    const one = folder.write(`one-${kind}.npy`, npy(elements(IDS, kind), SHAPE, { descr }));
    const two = folder.write(`two-${kind}.npy`, npy(elements(IDS.slice(4), kind), [2, 2, 2], { descr }));
    expect(await read(one, two)).toEqual([
      { ids: IDS, layers: 2, topK: 2 },
      { ids: IDS.slice(4), layers: 2, topK: 2 },
    ]);
    const { tables } = new Routing(await readRouting([one, two], MODEL), MODEL, 0);
    expect(tables.profiles).toBe(2);
    expect(tables.chance[1]).toBeCloseTo(2 / 3, 5);
    expect(tables.chance[16 + 15]).toBeCloseTo(1 / 3, 5);
  });

  it('vLLM’s field: bare, in a response, in a list and a line each; requests of a file follow each other', async () => {
    const [first, second] = [base64(IDS.slice(0, 4), [1, 2, 2]), base64(IDS.slice(4), [2, 2, 2])];
    const whole = base64(IDS, SHAPE);
    const empty = base64([], [0, 2, 2]);
    const forms: Record<string, string> = {
      'bare.txt': `${whole}\n`,
      'response.json': JSON.stringify(response(whole), null, 2),
      'choices.json': JSON.stringify(response(first, null, empty, second)),
      'list.json': JSON.stringify([response(first), response(second)]),
      'lines.jsonl': `${JSON.stringify(response(first))}\n${JSON.stringify(response(second))}\n`,
      'fields.jsonl': `{"routed_experts": "${first}"}\n\n{"routed_experts": "${second}"}\n`,
    };
    for (const [name, text] of Object.entries(forms)) {
      expect(await read(folder.write(name, text)), name).toEqual([{ ids: IDS, layers: 2, topK: 2 }]);
    }
  });

  it('leaves out the rows of layers without experts', async () => {
    const file = folder.write('dense.npy', npy(elements(IDS, 'u1'), SHAPE, { descr: '|u1' }));
    const model = { ...MODEL, moeLayers: 1 };
    const routing = await readRouting([file], model);
    if (routing.kind !== 'recorded') throw new Error(routing.kind);
    expect(Array.from(routing.recordings[0]!.ids)).toEqual([2, 3, 2, 4, 2, 15]);
    expect(routing.recordings[0]!.layers).toBe(1);
  });

  it('counts beside choices, told by the last dimension', async () => {
    const counts = Array.from({ length: 2 * 3 * 16 }, (_, n) => n % 50);
    const file = folder.write('counts.npy', npy(elements(counts, 'u4'), [2, 3, 16], { descr: '<u4' }));
    expect(await read(file)).toMatchObject({ kind: 'counts', layers: 2, sources: 3, experts: 16 });
    const json = folder.write(
      'counts.json',
      JSON.stringify({ tokens: [Array.from({ length: 16 }, () => 1)] }),
    );
    expect(await read(json)).toMatchObject({ kind: 'counts', layers: 1, sources: 1, experts: 16 });
  });

  it.each<[string, Uint8Array | string, string[]]>([
    [
      'another k',
      npy(elements(IDS, 'u1'), [2, 2, 3], { descr: '|u1' }),
      ['[tokens, layers, 2] of choices', '[2, 2, 3]'],
    ],
    [
      'an expert that is not there',
      npy(elements([0, 1, 2, 16], 'u1'), [1, 2, 2], { descr: '|u1' }),
      ['array[0][1][1]', '0 to 15', '16'],
    ],
    [
      'a part of an expert',
      npy(elements([0, 1, 2.5, 3], 'f4'), [1, 2, 2], { descr: '<f4' }),
      ['array[0][1][0]', '2.5'],
    ],
    [
      'more layers than the model has',
      npy(elements(IDS, 'u1'), [2, 3, 2], { descr: '|u1' }),
      ['at most 2 layers', '3'],
    ],
    ['no token', JSON.stringify(response(base64([], [0, 2, 2]))), ['at least one token']],
    ['a response without choices', '{"routed_experts": null}', ['routed_experts', 'none']],
    ['what is not base64', '{"routed_experts": "k0?"}', ['routed_experts', 'base64']],
    ['a number', '{"routed_experts": 7}', ['base64 text', 'number']],
    [
      'an expert of vLLM’s that is not there',
      base64([0, 1, 2, 99], [1, 2, 2]),
      ['choice 3', '0 to 15', '99'],
    ],
    [
      'requests of two shapes',
      `{"routed_experts": "${base64(IDS, SHAPE)}"}\n{"routed_experts": "${base64([1, 2], [1, 1, 2])}"}`,
      ['[tokens, 2, 2], as the first', '[1, 1, 2]'],
    ],
    ['a broken line', '{"routed_experts": "a"}\n{oh\n', ['line 2']],
  ])('refuses %s, and names the file', async (name, content, fragments) => {
    const file = folder.write(`refused ${name}`, content);
    await expectFailure(() => readRouting([file], MODEL), [file, ...fragments]);
  });

  it('refuses counts beside choices in one routing', async () => {
    const counts = folder.write(
      'a.npy',
      npy(elements(new Array(16).fill(1), 'u4'), [1, 16], { descr: '<u4' }),
    );
    const choices = folder.write('b.npy', npy(elements(IDS, 'u1'), SHAPE, { descr: '|u1' }));
    await expectFailure(() => readRouting([choices, counts], MODEL), [counts, 'recorded choices']);
    await expectFailure(() => readRouting([counts, choices], MODEL), [counts, 'recorded choices']);
  });
});
