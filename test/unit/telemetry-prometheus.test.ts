/** Prometheus' text format: what is in it comes out, and what is not it is refused with its line. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MAX_METRICS_CHARS, parsePrometheus } from '../../lib/telemetry/prometheus.js';
import { PROPERTY_SEED } from '../property/arbitraries.js';
import { labels } from './telemetry-fixtures.js';

const parse = (text: string, only?: ReadonlySet<string>) => parsePrometheus(text, 'a server', only);
const one = (line: string) => {
  const { samples } = parse(`${line}\n`);
  expect(samples).toHaveLength(1);
  return { ...samples[0]!, labels: Object.fromEntries(samples[0]!.labels) };
};

describe('parsePrometheus', () => {
  it('reads names, labels, values and times, and skips what is said about them', () => {
    const text = `# HELP http_requests_total The "total" {number} of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000

  # a comment
metric_without_labels 12.47
\twith_blanks { a = "1" , b="2", }\t3\t-7\t
`;
    const { samples, names } = parse(text);
    const plain = samples.map((sample) => ({ ...sample, labels: Object.fromEntries(sample.labels) }));
    expect(plain).toEqual([
      {
        name: 'http_requests_total',
        labels: { method: 'post', code: '200' },
        value: 1027,
        timestampMs: 1395066363000,
        line: 3,
      },
      { name: 'metric_without_labels', labels: {}, value: 12.47, line: 6 },
      { name: 'with_blanks', labels: { a: '1', b: '2' }, value: 3, timestampMs: -7, line: 7 },
    ]);
    expect([...names]).toEqual(['http_requests_total', 'metric_without_labels', 'with_blanks']);
  });

  it.each([
    ['5', 5],
    ['5.0', 5],
    ['-.5', -0.5],
    ['+5.', 5],
    ['1.234567e+06', 1_234_567],
    ['1E-3', 0.001],
    ['+Inf', Number.POSITIVE_INFINITY],
    ['-Inf', Number.NEGATIVE_INFINITY],
    ['inf', Number.POSITIVE_INFINITY],
    ['NaN', Number.NaN],
    ['nan', Number.NaN],
  ])('takes %s for a number', (word, value) => {
    expect(one(`a ${word}`).value).toBe(value);
  });

  it('undoes the three escapes of label values, and leaves braces, commas and signs in them alone', () => {
    expect(one(String.raw`a{path="C:\\n",said="\"hi\"\nthere",odd="} # , = {"} 1`).labels).toEqual({
      path: String.raw`C:\n`,
      said: '"hi"\nthere',
      odd: '} # , = {',
    });
  });

  it('keeps labels that are named like parts of an object', () => {
    const [sample] = parse('a{__proto__="x",constructor="y"} 1\n').samples;
    expect(sample!.labels).toEqual(
      new Map([
        ['__proto__', 'x'],
        ['constructor', 'y'],
      ]),
    );
  });

  it.each([
    ['an error page', '<html><body>502 Bad Gateway</body></html>\n', 'line 1', 'the name of a series'],
    ['JSON', '{"detail":"Not Found"}\n', 'line 1', 'the name of a series'],
    ['a text that ends within a name', '# x\nvllm:num_requests_run', 'line 2', 'a line feed at its end'],
    ['a text that ends within a value', 'a 1\nb 2', 'line 2', 'a line feed at its end'],
    ['a name alone', 'vllm:num_requests_running\n', 'line 1', 'the name of a series'],
    ['a name and a blank', 'a \n', 'line 1, a', 'a number and the end of the line'],
    ['labels that do not end', 'a{x="1"\n', 'line 1, a', 'a comma or }'],
    ['a label value that does not end', 'a{x="1\n', 'line 1, a', 'label="value" or }'],
    ['a label without quotes', 'a{x=1} 1\n', 'line 1, a', 'label="value" or }'],
    ['labels without a comma', 'a{x="1"y="2"} 1\n', 'line 1, a', 'a comma or }'],
    ['a comma alone', 'a{,} 1\n', 'line 1, a', 'label="value" or }'],
    ['an unknown escape', 'a{x="\\t"} 1\n', 'line 1, a', 'label="value" or }'],
    ['a label twice', 'a{x="1",x="1"} 1\n', 'line 1, a', 'each label once'],
    ['a word', 'a{x="1"} hello\n', 'line 1, a', 'a number and the end of the line'],
    ['a hexadecimal number', 'a 0x10\n', 'line 1, a', 'a number and the end of the line'],
    ['a number with a comma', 'a 1,5\n', 'line 1, a', 'a number and the end of the line'],
    ['a third number', 'a 1 2 3\n', 'line 1, a', 'a number and the end of the line'],
    ['a time that is no integer', 'a 1 2.5\n', 'line 1, a', 'a number and the end of the line'],
    ['carriage returns', 'a 1\r\n', 'line 1, a', 'a number and the end of the line'],
  ])('refuses %s', (_, text, where, expected) => {
    expect(() => parse(text)).toThrow(
      expect.objectContaining({ code: 'GIMBAL_FORMAT', field: `a server: ${where}`, expected }),
    );
  });

  it('refuses a text and a line that are too long, and shows little of what it refuses', () => {
    expect(() => parse('#'.repeat(MAX_METRICS_CHARS + 1))).toThrow(
      expect.objectContaining({ expected: `at most ${MAX_METRICS_CHARS} characters` }),
    );
    expect(() => parse(`a{x="${'y'.repeat(70_000)}"} 1\n`)).toThrow(
      expect.objectContaining({ expected: 'at most 65536 characters' }),
    );
    const caught = (() => {
      try {
        parse(`${'<'.repeat(10_000)}\n`);
      } catch (error) {
        return String(error);
      }
      return '';
    })();
    expect(caught).toContain('the name of a series');
    expect(caught.length).toBeLessThan(300);
  });

  it('reads only what it is asked for, and knows the names of the rest', () => {
    const { samples, names } = parse('a{x="1"} 1\nb{oops\na{x="2"} 2\nc 1\n', new Set(['a']));
    expect(samples.map(({ line }) => line)).toEqual([1, 3]);
    expect([...names]).toEqual(['a', 'b', 'c']);
  });

  it('takes time linear in the text, whatever the text', () => {
    const long = 8_000_000;
    const hostile = [
      `a{${'x'.repeat(60_000)}\n`.repeat(long / 60_000),
      `a{x="${'\\n'.repeat(30_000)}\n`.repeat(long / 60_000),
      `a ${'1'.repeat(60_000)}x\n`.repeat(long / 60_000),
      `a 1${' '.repeat(60_000)}x\n`.repeat(long / 60_000),
      ' '.repeat(long),
    ];
    for (const text of hostile) {
      const startedMs = performance.now();
      expect(() => parse(text)).toThrow(expect.objectContaining({ code: 'GIMBAL_FORMAT' }));
      expect(performance.now() - startedMs).toBeLessThan(3000);
    }
    const lines = `a{${Array.from({ length: 5000 }, (_, n) => `x${n}="1"`).join(',')}} 1\n`;
    const startedMs = performance.now();
    expect(parse(lines.repeat(50)).samples).toHaveLength(50);
    expect(performance.now() - startedMs).toBeLessThan(3000);
  });

  it('gives back every sample that is written', () => {
    const name = fc.stringMatching(/^[a-zA-Z_:][a-zA-Z0-9_:]{0,12}$/);
    const values = fc.oneof(fc.double(), fc.integer(), fc.constant(Number.NaN));
    const sample = fc.record({
      name,
      labels: fc.dictionary(fc.stringMatching(/^[a-zA-Z_][a-zA-Z0-9_]{0,8}$/), fc.string({ unit: 'binary' })),
      value: values,
      timestampMs: fc.option(fc.integer(), { nil: undefined }),
    });
    const asText = (value: number) =>
      Number.isFinite(value) ? String(value) : Number.isNaN(value) ? 'NaN' : value > 0 ? '+Inf' : '-Inf';
    const property = fc.property(fc.array(sample), (given) => {
      const lines = given.map((each) => {
        const time = each.timestampMs === undefined ? '' : ` ${each.timestampMs}`;
        return `# TYPE ${each.name} gauge\n${each.name}${labels(each.labels)} ${asText(each.value)}${time}\n`;
      });
      const read = parse(lines.join(''));
      expect(read.samples).toEqual(
        given.map((each, n) => ({
          name: each.name,
          labels: new Map(Object.entries(each.labels)),
          // There is no sign of zero in the text of a JavaScript number.
          value: each.value === 0 ? 0 : each.value,
          line: 2 * n + 2,
          ...(each.timestampMs === undefined ? {} : { timestampMs: each.timestampMs }),
        })),
      );
    });
    fc.assert(property, { seed: PROPERTY_SEED, numRuns: 300 });
  });
});
