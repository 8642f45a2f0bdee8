/** Routing counts from .npy, JSON and CSV files, right ones and wrong ones. */
import { describe, expect, it } from 'vitest';
import { readCounts } from '../../lib/import/counts.js';
import { concat, elements, expectFailure, npy, temporaryFolder } from './import-fixtures.js';

const folder = temporaryFolder();
const range = (length: number) => Array.from({ length }, (_, i) => i);

describe('.npy counts', () => {
  it('reads [layers, experts] as one source', async () => {
    const path = folder.write('two.npy', npy(elements(range(6), 'u4'), [2, 3]));
    const counts = await readCounts(path);
    expect(counts).toMatchObject({ layers: 2, sources: 1, experts: 3, format: 'npy', notes: [] });
    expect([...counts.tokens]).toEqual([0, 1, 2, 3, 4, 5]);
    expect(counts.layerIds).toBeUndefined();
  });

  it('reads [layers, sources, experts]', async () => {
    const path = folder.write('three.npy', npy(elements(range(24), 'u4'), [2, 3, 4]));
    const counts = await readCounts([path]);
    expect(counts).toMatchObject({ layers: 2, sources: 3, experts: 4 });
    expect([...counts.tokens]).toEqual(range(24));
  });

  it.each([
    ['<i8', elements(range(6), 'i8')],
    ['>i8', elements(range(6), 'i8', true)],
    ['<u8', elements(range(6), 'u8')],
    ['>u4', elements(range(6), 'u4', true)],
    ['<i4', elements(range(6), 'i4')],
    ['>i2', elements(range(6), 'i2', true)],
    ['|u1', elements(range(6), 'u1')],
    ['|i1', elements(range(6), 'i1')],
    ['<f4', elements(range(6), 'f4')],
    ['>f8', elements(range(6), 'f8', true)],
  ])('reads dtype %s', async (descr, data) => {
    const counts = await readCounts(folder.write('dtype.npy', npy(data, [2, 3], { descr })));
    expect([...counts.tokens]).toEqual(range(6));
    expect(counts.notes).toEqual([]);
  });

  it.each([2, 3])('reads header version %i', async (version) => {
    const counts = await readCounts(
      folder.write('version.npy', npy(elements(range(6), 'u4'), [2, 3], { version })),
    );
    expect([...counts.tokens]).toEqual(range(6));
  });

  it('reads Fortran order', async () => {
    // Element [l][s][e] holds its C-order index; the file lists them with the first index fastest.
    const data: number[] = [];
    for (let e = 0; e < 4; e++)
      for (let s = 0; s < 3; s++) for (let l = 0; l < 2; l++) data.push(l * 12 + s * 4 + e);
    const counts = await readCounts(
      folder.write('fortran.npy', npy(elements(data, 'u4'), [2, 3, 4], { fortran: true })),
    );
    expect([...counts.tokens]).toEqual(range(24));
  });

  it('rounds fractions and says so', async () => {
    const path = folder.write('float.npy', npy(elements([0.5, 1.4, 2, 3.6], 'f8'), [2, 2], { descr: '<f8' }));
    const counts = await readCounts(path);
    expect([...counts.tokens]).toEqual([1, 1, 2, 4]);
    expect(counts.notes).toEqual(['3 of 4 counts were not whole numbers and were rounded']);
  });

  it('takes the largest uint32 and refuses one more', async () => {
    const most = folder.write('most.npy', npy(elements([0, 2 ** 32 - 1], 'i8'), [1, 2], { descr: '<i8' }));
    expect([...(await readCounts(most)).tokens]).toEqual([0, 4294967295]);
    const over = folder.write('over.npy', npy(elements([0, 2 ** 33], 'i8'), [1, 2], { descr: '<i8' }));
    await expectFailure(
      () => readCounts(over),
      ['over.npy', 'layer 0, source 0, expert 1', '4294967295', 'divide all counts by 3'],
    );
  });

  it.each<[string, Uint8Array, string[]]>([
    [
      'a negative count',
      npy(elements([1, 2, -3, 4], 'i8'), [2, 2], { descr: '<i8' }),
      ['array[1][0]', '0 or more', '-3'],
    ],
    ['NaN', npy(elements([1, Number.NaN, 3, 4], 'f8'), [2, 2], { descr: '<f8' }), ['array[0][1]', 'NaN']],
    [
      'infinity',
      npy(elements([1, 2, 3, Number.POSITIVE_INFINITY], 'f8'), [2, 2], { descr: '<f8' }),
      ['array[1][1]', 'Infinity'],
    ],
    [
      'a truncated file',
      npy(elements(range(6), 'u4'), [2, 3]).subarray(0, -5),
      ['24 bytes of data for shape [2, 3]', '19 bytes'],
    ],
    [
      'a truncated header',
      npy(elements(range(6), 'u4'), [2, 3]).subarray(0, 40),
      ['npy header', '118 bytes'],
    ],
    ['nothing but magic', concat([0x93], 'NUMPY'), ['npy header', '6 bytes']],
    ['bytes too many', concat(npy(elements(range(6), 'u4'), [2, 3]), [0]), ['24 bytes', '25 bytes']],
    [
      'an absurd shape',
      npy(elements([1], 'u4'), [2 ** 20, 2 ** 20]),
      ['shape [1048576, 1048576]', '4 bytes'],
    ],
    [
      'a shape that overflows',
      npy(elements([1], 'u4'), [1e15 - 1, 1e15 - 1, 1e15 - 1]),
      ['e+45 bytes of data'],
    ],
    ['one dimension', npy(elements(range(6), 'u4'), [6]), ['[layers, experts]', 'shape [6]']],
    ['four dimensions', npy(elements(range(16), 'u4'), [2, 2, 2, 2]), ['shape [2, 2, 2, 2]']],
    ['no layers', npy(new Uint8Array(), [0, 4]), ['layers', '0']],
    ['an object array', npy(elements(range(4), 'u8'), [2, 2], { descr: '|O' }), ['dtype', 'holds a pickle']],
    ['booleans', npy(elements(range(4), 'u1'), [2, 2], { descr: '|b1' }), ['dtype', '|b1']],
    ['half floats', npy(elements(range(4), 'u2'), [2, 2], { descr: '<f2' }), ['dtype', '<f2']],
    [
      'a structured dtype',
      npy(elements(range(4), 'u4'), [2, 2], {
        header: "{'descr': [('a', '<u4')], 'fortran_order': False, 'shape': (2, 2), }",
      }),
      ['npy header'],
    ],
    [
      'code in the header',
      npy(elements(range(4), 'u4'), [2, 2], {
        header: "{'descr': '<u4', 'fortran_order': False, 'shape': (__import__('os').system('true'), 2), }",
      }),
      ['npy header'],
    ],
    ['an unknown version', npy(elements(range(4), 'u4'), [2, 2], { version: 9 }), ['version 9']],
  ])('refuses %s', async (_, bytes, fragments) => {
    const path = folder.write('wrong.npy', bytes);
    await expectFailure(() => readCounts(path), ['wrong.npy', ...fragments]);
  });

  it('does not allocate what a header claims', async () => {
    const path = folder.write('huge.npy', npy(elements([1], 'u4'), [4096, 2 ** 28]));
    const before = process.memoryUsage().arrayBuffers;
    await expectFailure(() => readCounts(path), ['huge.npy', '[4096, 268435456]']);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * 1024 * 1024);
  });
});

describe('several files of one kind', () => {
  it('are the sources, in the order given', async () => {
    const a = folder.write('rank-a.npy', npy(elements([1, 2, 3, 4], 'u4'), [2, 2]));
    const b = folder.write('rank-b.npy', npy(elements([5, 6, 7, 8], 'u4'), [2, 2]));
    const counts = await readCounts([a, b]);
    expect(counts).toMatchObject({ layers: 2, sources: 2, experts: 2 });
    expect([...counts.tokens]).toEqual([1, 2, 5, 6, 3, 4, 7, 8]);
    expect(counts.notes).toEqual(['2 files were read as the sources, in the order given']);
  });

  it('must have the same shape', async () => {
    const a = folder.write('rank-a.npy', npy(elements([1, 2, 3, 4], 'u4'), [2, 2]));
    const c = folder.write('rank-c.npy', npy(elements([1, 2], 'u4'), [1, 2]));
    await expectFailure(() => readCounts([a, c]), ['rank-c.npy', '2 layers of 2 experts', '1 layers of 2']);
  });
});

describe('JSON counts', () => {
  it.each([
    ['tokens', '{"tokens": [[1, 2], [3, 4]]}'],
    ['counts', '{"counts": [[1, 2], [3, 4]]}'],
    ['a bare list', ' [[1, 2], [3, 4]]'],
    ['a byte-order mark', '\uFEFF{"tokens": [[1, 2], [3, 4]]}'],
  ])('reads [layers][experts] from %s', async (_, text) => {
    const counts = await readCounts(folder.write('counts.json', text));
    expect(counts).toMatchObject({ layers: 2, sources: 1, experts: 2, format: 'json' });
    expect([...counts.tokens]).toEqual([1, 2, 3, 4]);
  });

  it('reads sources and layer ids', async () => {
    const text = JSON.stringify({
      tokens: [
        [
          [1, 2, 3],
          [4, 5, 6],
        ],
      ],
      layerIds: [7],
    });
    const counts = await readCounts(folder.write('sources.json', text));
    expect(counts).toMatchObject({ layers: 1, sources: 2, experts: 3 });
    expect([...counts.layerIds!]).toEqual([7]);
  });

  it("follows SGLang's shape under logical_count: steps, then all model layers", async () => {
    const steps = [
      [
        [0, 0],
        [1, 2],
        [3, 4],
      ],
      [
        [0, 0],
        [10, 20],
        [30, 40],
      ],
    ];
    const counts = await readCounts(folder.write('sglang.json', JSON.stringify({ logical_count: steps })));
    expect(counts).toMatchObject({ layers: 2, sources: 1, experts: 2, modelLayers: 3 });
    expect([...counts.layerIds!]).toEqual([1, 2]);
    expect([...counts.tokens]).toEqual([11, 22, 33, 44]);
    expect(counts.notes.join()).toContain('summed over 2 steps');
    expect(counts.notes.join()).toContain('1 of 3 model layers have no traffic and were left out (0)');
  });

  it.each<[string, string, string[]]>([
    ['a truncated file', '{"tokens": [[1, 2], [3', ['valid JSON']],
    ['NaN', '{"tokens": [[1, NaN]]}', ['valid JSON', 'NaN']],
    ['a negative count', '{"tokens": [[1, 2], [3, -4]]}', ['tokens[1][1]', '-4']],
    ['text in place of a count', '{"tokens": [[1, "2"]]}', ['tokens[0][1]', 'a number', '"2"']],
    ['an infinite count', '{"tokens": [[1, 1e999]]}', ['tokens[0][1]', 'Infinity']],
    ['ragged rows', '{"tokens": [[1, 2], [3]]}', ['tokens[1]', 'a list of 2', 'a list of 1']],
    ['a missing layer', '{"tokens": [[1, 2], null, [3, 4]]}', ['tokens[1]', 'a list of 2', 'nothing']],
    ['a wrong number of layer ids', '{"tokens": [[1, 2]], "layerIds": [3, 4]}', ['layerIds', 'a list of 1']],
    ['descending layer ids', '{"tokens": [[1], [2]], "layerIds": [4, 4]}', ['layerIds[1]', 'from 5']],
    ['one dimension', '{"tokens": [1, 2]}', ['[layers, experts]', '[2]']],
    ['four dimensions', '{"tokens": [[[[1]]]]}', ['[layers, experts]', '[1, 1, 1, 1]']],
    ['nothing', '{"tokens": []}', ['[layers, experts]', '[0]']],
    ['no known key', '{"weights": [[1]]}', ['tokens, counts, logical_count', '"weights"']],
    ['two known keys', '{"tokens": [[1]], "counts": [[1]]}', ['tokens and counts: leave one']],
    ['a key of the prototype only', '{"__proto__": {"tokens": [[1]]}}', ['"__proto__"']],
    ['bytes that are no text', '{"tokens": [[1]]}\xff', ['UTF-8']],
  ])('refuses %s', async (_, text, fragments) => {
    const path = folder.write('wrong.json', Buffer.from(text, 'latin1'));
    await expectFailure(() => readCounts(path), ['wrong.json', ...fragments]);
  });
});

describe('CSV counts', () => {
  it('reads rows in any order, and layer ids', async () => {
    const text =
      'layer,source,expert,tokens\n5,1,1,8\n5,0,0,5\n5,0,1,6\n5,1,0,7\n3,0,0,1\n3,0,1,2\n3,1,0,3\n3,1,1,4\n';
    const counts = await readCounts(folder.write('counts.csv', text));
    expect(counts).toMatchObject({ layers: 2, sources: 2, experts: 2, format: 'csv' });
    expect([...counts.layerIds!]).toEqual([3, 5]);
    expect([...counts.tokens]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('does without a source column, with columns in any order and quotes', async () => {
    const text = 'Expert,"Layer",tokens\r\n0,0,"10"\r\n1,0,2.0e1\r\n';
    const counts = await readCounts(folder.write('short.csv', text));
    expect(counts).toMatchObject({ layers: 1, sources: 1, experts: 2 });
    expect([...counts.tokens]).toEqual([10, 20]);
  });

  const header = 'layer,source,expert,tokens\n';
  it.each<[string, string, string[]]>([
    [
      'a truncated file',
      `${header}0,0,0,1\n0,0,1,2\n1,0,0,3\n`,
      ['4 rows: 2 layers × 1 sources × 2 experts', '3, none for layer 1, source 0, expert 1'],
    ],
    [
      'a missing layer of one source',
      `${header}0,0,0,1\n0,1,0,2\n1,0,0,3\n`,
      ['none for layer 1, source 1, expert 0'],
    ],
    [
      'a cell given twice',
      `${header}0,0,0,1\n0,0,1,1\n0,0,0,2\n`,
      ['line 4', 'once', 'layer 0, source 0, expert 0 again'],
    ],
    ['a negative count', `${header}0,0,0,-1\n`, ['line 2, tokens', '-1']],
    ['NaN', `${header}0,0,0,NaN\n`, ['line 2, tokens', 'a number', '"NaN"']],
    ['an empty field', `${header}0,0,0,\n`, ['line 2, tokens', '""']],
    ['a fractional expert', `${header}0,0,0.5,1\n`, ['line 2, expert', '0.5']],
    ['an expert out of range', `${header}0,0,65536,1\n`, ['line 2, expert', '65535', '65536']],
    [
      'a stray id that would make the table huge',
      `${header}0,0,0,1\n0,60000,60000,1\n`,
      ['rows', '3600120001 rows'],
    ],
    ['a row too short', `${header}0,0,1\n`, ['CSV']],
    ['an unknown column', 'layer,expert,tokens,colour\n0,0,1,2\n', ['header', 'colour']],
    ['a column twice', 'layer,expert,tokens,layer\n0,0,1,2\n', ['header']],
    ['no tokens column', 'layer,expert\n0,0\n', ['header']],
    ['a header only', header, ['at least one row']],
    ['an open quote', `${header}0,0,0,"1\n`, ['CSV']],
  ])('refuses %s', async (_, text, fragments) => {
    const path = folder.write('wrong.csv', text);
    await expectFailure(() => readCounts(path), ['wrong.csv', ...fragments]);
  });
});

describe('choosing the format', () => {
  it('goes by the content, not the name', async () => {
    const path = folder.write('named.json', npy(elements(range(6), 'u4'), [2, 3]));
    expect((await readCounts(path)).format).toBe('npy');
  });

  it('refuses content of another format than the one named', async () => {
    const path = folder.write('named.npy', '{"tokens": [[1]]}');
    expect((await readCounts(path)).format).toBe('json');
    await expectFailure(() => readCounts(path, { format: 'npy' }), ['named.npy', 'magic bytes']);
  });

  it('says what it knows where the content tells nothing', async () => {
    await expectFailure(
      () => readCounts(folder.write('a.bin', 'what is this')),
      ['a.bin', 'npy, sglang, tensorrt-llm, json, csv', '0x7768617420'],
    );
    await expectFailure(() => readCounts(folder.write('b.bin', '')), ['b.bin', 'an empty file']);
  });

  it('takes at least one path', async () => {
    await expectFailure(() => readCounts([]), ['paths'], 'GIMBAL_INVALID_INPUT');
  });
});

describe('limits and aborts', () => {
  it('refuses a file beyond maxBytes', async () => {
    const path = folder.write('big.npy', npy(elements(range(6), 'u4'), [2, 3]));
    await expectFailure(
      () => readCounts(path, { maxBytes: 100 }),
      ['big.npy', 'at most 100 bytes', '152 bytes'],
    );
  });

  it('names a file that is not there', async () => {
    await expectFailure(() => readCounts(folder.path('absent.npy')), ['absent.npy', 'ENOENT'], 'GIMBAL_IO');
  });

  it('rejects with the reason of an aborted signal', async () => {
    const path = folder.write('abort.npy', npy(elements(range(6), 'u4'), [2, 3]));
    const reason = new Error('enough');
    await expect(readCounts(path, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    const long = folder.write('long.npy', npy(new Uint8Array(4 * 4096 * 1024), [4096, 1024]));
    const controller = new AbortController();
    const reading = readCounts(long, { signal: controller.signal });
    setTimeout(() => controller.abort(reason), 1);
    await expect(reading).rejects.toBe(reason);
  });
});
