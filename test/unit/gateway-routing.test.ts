/** What the gateway does with `routed_experts`: takes it out of answers, draws requests, counts in steps, and judges pushes. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { checkGatewayOptions } from '../../lib/gateway/config.js';
import { createLog } from '../../lib/gateway/log.js';
import { countRouted } from '../../lib/gateway/routing/count.js';
import { RoutedExpertsFilter } from '../../lib/gateway/routing/filter.js';
import { Pushes } from '../../lib/gateway/routing/pushes.js';
import { RoutingSampler, type SampleResult } from '../../lib/gateway/routing/sampler.js';
import { sourceCount, sourcesOf } from '../../lib/gateway/routing/sources.js';
import type { FleetEngine } from '../../lib/gateway/types.js';
import { EventStripper, stripEmptied } from '../../lib/gateway/usage.js';
import { RoutingStatistics } from '../../lib/statistics/routing-statistics.js';
import { routedText, routedTo, type StandInRouting } from '../stand-in/routing.js';

const cuts = fc.array(fc.nat(), { maxLength: 20 });

/** The text through a filter, in pieces, and what was read of the member. */
function filtered(text: string, at: readonly number[], strips = true): { passed: string; read: string[] } {
  const read: string[] = [];
  let open = '';
  const filter = new RoutedExpertsFilter({
    strips,
    text: {
      write: (piece) => {
        open += piece.toString();
      },
      end: () => {
        read.push(open);
        open = '';
      },
    },
  });
  const bytes = Buffer.from(text);
  const places = [0, ...at.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  const out: Buffer[] = [];
  for (let n = 1; n < places.length; n++) out.push(filter.push(bytes.subarray(places[n - 1], places[n])));
  out.push(filter.end());
  return { passed: Buffer.concat(out).toString(), read };
}

const CHOICE = { index: 0, message: { role: 'assistant', content: 'say "routed_experts": \\"no\\" 😀' } };
const DATA = 'k05VTVBZAQ==';

describe('the filter of routed_experts', () => {
  it.each([
    ['last', { ...CHOICE, routed_experts: DATA }, CHOICE],
    ['first', { routed_experts: DATA, ...CHOICE }, CHOICE],
    ['alone', { routed_experts: DATA }, {}],
    ['in the middle', { a: 1, routed_experts: DATA, b: 2 }, { a: 1, b: 2 }],
    ['null', { a: 1, routed_experts: null, b: 2 }, { a: 1, b: 2 }],
    ['deep', { choices: [{ ...CHOICE, routed_experts: DATA }], u: 1 }, { choices: [CHOICE], u: 1 }],
    ['in SGLang’s wrapper', { a: 1, sglext: { routed_experts: DATA } }, { a: 1 }],
    ['in a wrapper that comes first', { sglext: { routed_experts: DATA }, a: 1 }, { a: 1 }],
    [
      'in a wrapper with others behind',
      { a: 1, sglext: { routed_experts: DATA, c: 2 } },
      { a: 1, sglext: { c: 2 } },
    ],
    ['in a wrapper with others before', { sglext: { c: 2, routed_experts: DATA } }, { sglext: { c: 2 } }],
  ])('takes the member out where it is %s, however the answer is cut', (_, whole, rest) => {
    const text = JSON.stringify(whole);
    fc.assert(
      fc.property(cuts, (at) => {
        const { passed, read } = filtered(text, at);
        expect(passed).toBe(JSON.stringify(rest));
        expect(read).toEqual(text.includes(DATA) ? [DATA] : []);
      }),
    );
  });

  it.each([
    '{"text":"\\"routed_experts\\": \\"x\\""}',
    '{"text":"and then \\"routed_experts","next":": \\"x\\""}',
    '{"a\\"routed_experts":"x"}',
    '{"list":["routed_experts","a"]}',
    '{"routed_experts":[1,2]}',
    '{"routed_experts":nothing}',
    '{"routed_experts":{"data":"x"}}',
    '{"other_routed_experts":"x"}',
    'routed_experts":"x"',
    '{"a":1,"sglext":{"cached_tokens_details":null}}',
    ', , ,',
  ])('leaves %j as it is, however it is cut', (text) => {
    fc.assert(
      fc.property(cuts, (at) => {
        expect(filtered(text, at)).toEqual({ passed: text, read: [] });
      }),
    );
  });

  it('reads the first choice’s, and takes out all of them', () => {
    const choices = ['AAAA', 'BBBB'].map((routed_experts, index) => ({ index, routed_experts }));
    const { passed, read } = filtered(JSON.stringify({ choices }), [30]);
    expect(passed).toBe('{"choices":[{"index":0},{"index":1}]}');
    expect(read).toEqual(['AAAA']);
  });

  it('lets spaces around colons and commas be', () => {
    const text = '{\n  "a": 1,\n  "routed_experts" : "AAAA",\n  "b": 2\n}';
    expect(filtered(text, [20]).passed).toBe('{\n  "a": 1,\n  "b": 2\n}');
  });

  it('passes all where the client asked, and reads it too', () => {
    const text = JSON.stringify({ choices: [{ ...CHOICE, routed_experts: DATA }] });
    fc.assert(
      fc.property(cuts, (at) => {
        expect(filtered(text, at, false)).toEqual({ passed: text, read: [DATA] });
      }),
    );
  });

  it('holds nothing of an event back', () => {
    const filter = new RoutedExpertsFilter({ strips: true });
    const event = `data: ${JSON.stringify({ choices: [{ delta: { content: 'a,' } }] })}\n\n`;
    expect(filter.push(Buffer.from(event)).toString()).toBe(event);
  });

  it('leaves an event of SGLang out that carried nothing else', () => {
    const head = { id: '1', choices: [] };
    const event = (fields: object) => `data: ${JSON.stringify(fields)}\n\n`;
    const kept = [
      event({ ...head, usage: { prompt_tokens: 1 } }),
      event({ ...head, sglext: { a: 1 } }),
      event({ id: '1', choices: [{}] }),
    ];
    const stripper = new EventStripper(stripEmptied);
    const { passed } = filtered(event({ ...head, usage: null, sglext: { routed_experts: DATA } }), []);
    expect(stripper.push(Buffer.from(passed + kept.join(''))).toString()).toBe(kept.join(''));
  });
});

const SHAPE: StandInRouting = { layers: 3, experts: 8, topK: 2, denseLayers: 2 };
const REPORTED = { layers: 3, firstLayer: 2, topK: 2 };

/** [layers][experts] Pairs, by hand from the ids. */
function pairs(routing: StandInRouting, rank: number, from: number, tokens: number): number[] {
  const { layers, experts, topK, denseLayers = 0 } = routing;
  const ids = routedTo(routing, rank, tokens);
  const counts = new Array<number>(layers * experts).fill(0);
  for (let token = from; token < tokens; token++) {
    for (let layer = 0; layer < layers; layer++) {
      for (let i = 0; i < topK; i++) {
        const id = ids[(token * (denseLayers + layers) + denseLayers + layer) * topK + i]!;
        counts[layer * experts + id]! += 1;
      }
    }
  }
  return counts;
}

function statisticsOf({ layers, experts }: StandInRouting, sources = 2): RoutingStatistics {
  return new RoutingStatistics({ layers, experts, sources, priorTokens: 0, windowTokens: 2 ** 20 });
}

/** [layers][experts] What the statistics have of a source. */
function countsOf(
  statistics: RoutingStatistics,
  { layers, experts }: StandInRouting,
  source: number,
): number[] {
  const counts = statistics.counts();
  const sources = counts.length / (layers * experts);
  return Array.from({ length: layers }, (_, layer) => {
    const row = (layer * sources + source) * experts;
    return [...counts.subarray(row, row + experts)];
  }).flat();
}

function inPieces(text: string, bytes: number): Buffer[] {
  const all = Buffer.from(text);
  return Array.from({ length: Math.ceil(all.length / bytes) }, (_, n) =>
    all.subarray(n * bytes, (n + 1) * bytes),
  );
}

function run(steps: Generator<void, number>): { steps: number; tokens: number } {
  for (let n = 1; ; n++) {
    const step = steps.next();
    if (step.done === true) return { steps: n, tokens: step.value };
  }
}

describe('the counting of an answer', () => {
  it.each([
    ['vllm', 8, 1],
    ['vllm', 300, 7],
    ['sglang', 8, 5],
    ['sglang', 300, 64],
  ] as const)(
    'is that of %s’s array of %i experts, dense rows left out, in pieces of %i bytes',
    (kind, experts, bytes) => {
      const routing = { ...SHAPE, experts };
      const statistics = statisticsOf(routing);
      const pieces = inPieces(routedText(routing, kind, 1, 11), bytes);
      const { tokens } = run(countRouted({ kind, source: 1, pieces, cachedTokens: 4 }, REPORTED, statistics));
      expect(tokens).toBe(7);
      expect(countsOf(statistics, routing, 1)).toEqual(pairs(routing, 1, 4, 11));
      expect(countsOf(statistics, routing, 0).every((count) => count === 0)).toBe(true);
    },
  );

  it('takes a long answer in many steps', () => {
    const routing = { layers: 16, experts: 64, topK: 8 };
    const statistics = statisticsOf(routing);
    const pieces = inPieces(routedText(routing, 'vllm', 0, 2048), 65_536);
    const answer = { kind: 'vllm' as const, source: 0, pieces, cachedTokens: 0 };
    const { steps, tokens } = run(countRouted(answer, { layers: 16, firstLayer: 0 }, statistics));
    expect(tokens).toBe(2048);
    // 8 steps of 2^15 choices, and those of the text.
    expect(steps).toBeGreaterThanOrEqual(8 + pieces.length);
    expect(statistics.tokensSeen).toBe(2048);
  });

  it.each([
    ['no base64', ['####'], REPORTED],
    ['base64 that is cut off', ['AAA'], REPORTED],
    ['a sign of its end in the middle', ['AA==', 'AAAA'], REPORTED],
    ['no array', ['AAAA'], REPORTED],
    ['too few layers', [routedText(SHAPE, 'vllm', 0, 3)], { ...REPORTED, layers: 4 }],
    ['another k', [routedText(SHAPE, 'vllm', 0, 3)], { ...REPORTED, topK: 3 }],
    ['experts that there are not', [routedText({ ...SHAPE, experts: 99 }, 'vllm', 0, 99)], REPORTED],
  ])('refuses %s', (_, texts, shape) => {
    const pieces = texts.map((text) => Buffer.from(text));
    const steps = countRouted(
      { kind: 'vllm', source: 0, pieces, cachedTokens: 0 },
      shape,
      statisticsOf(SHAPE),
    );
    expect(() => run(steps)).toThrow(
      expect.objectContaining({ code: expect.stringMatching(/FORMAT|INVALID/) }),
    );
  });

  it.each([
    ['half a token', Int32Array.of(1, 2, 3)],
    ['an expert below 0', new Int32Array(10).fill(-1)],
    ['an expert that 16 bits would make another of', new Int32Array(10).fill(65_536)],
  ])('refuses %s of SGLang', (_, ids) => {
    const pieces = [Buffer.from(Buffer.from(ids.buffer).toString('base64'))];
    const steps = countRouted(
      { kind: 'sglang', source: 0, pieces, cachedTokens: 0 },
      REPORTED,
      statisticsOf(SHAPE),
    );
    expect(() => run(steps)).toThrow(expect.objectContaining({ code: 'GIMBAL_FORMAT' }));
  });
});

const SERVERS = [
  { url: 'http://a', ranks: 2 },
  { url: 'http://b', ranks: 2, pin: false },
  { url: 'http://c', ranks: 1, firstGlobalRank: 7 },
];
const ROUTING = { layers: 3, experts: 8, firstLayer: 2, topK: 2, share: 0.25 };

function engine(url: string, rank: number, pins = true): FleetEngine {
  return { engine: 0, name: `${url}#${rank}`, rank, server: { url, kind: 'vllm', pins, headers: {} } };
}

function samplerOf(routing: object = {}) {
  const config = checkGatewayOptions({ servers: SERVERS, routing: { ...ROUTING, ...routing } });
  const statistics = statisticsOf(SHAPE, 8);
  const results: SampleResult[] = [];
  const lines: string[] = [];
  const sampler = new RoutingSampler(config.routing!, config.servers, {
    statistics,
    log: createLog('info', { write: (line) => lines.push(line) }),
    seed: 1,
    onResult: (result) => results.push(result),
  });
  return { sampler, statistics, results, lines };
}

describe('the sampler', () => {
  it('draws the share, by the id alone', () => {
    const { sampler } = samplerOf();
    const ids = Array.from({ length: 20_000 }, (_, n) => `abc-${n}`);
    const drawn = ids.filter((id) => sampler.draws(id));
    // Five standard deviations of 20,000 draws.
    expect(Math.abs(drawn.length / ids.length - 0.25)).toBeLessThan(0.016);
    const [again, none, all] = [{}, { share: 0 }, { share: 1 }].map((routing) => {
      const other = samplerOf(routing).sampler;
      return ids.filter((id) => other.draws(id));
    });
    expect(again).toEqual(drawn);
    expect(none).toEqual([]);
    expect(all).toEqual(ids);
  });

  it('counts for the rank over the deployment, and for none where the server chooses', async () => {
    const { sampler, statistics, results } = samplerOf();
    expect(sampler.capture(engine('http://b', 0, false))).toBeUndefined();
    expect(sampler.capture(engine('http://gone', 0))).toBeUndefined();
    const target = engine('http://c', 0, false);
    const capture = sampler.capture(target)!;
    capture.write(Buffer.from(routedText(SHAPE, 'vllm', 7, 5)));
    capture.end();
    sampler.count(capture, target, 0);
    expect(statistics.tokensSeen).toBe(0);
    await sampler.settled();
    expect(results).toEqual(['counted']);
    expect(countsOf(statistics, SHAPE, 7)).toEqual(pairs(SHAPE, 7, 0, 5));
    expect(sampler.heldBytes).toBe(0);
  });

  it('drops what is too long, or too much at once, and is free again', async () => {
    const { sampler, results } = samplerOf({ answerBytes: 300, heldBytes: 500 });
    const target = engine('http://a', 1);
    const captures = [200, 301, 250, 299].map((bytes) => {
      const capture = sampler.capture(target)!;
      capture.write(Buffer.alloc(bytes, 'A'));
      capture.end();
      return capture;
    });
    expect(captures.map(({ state }) => state)).toEqual(['whole', 'dropped', 'whole', 'dropped']);
    expect(sampler.heldBytes).toBe(450);
    for (const capture of captures) sampler.count(capture, target, 0);
    await sampler.settled();
    expect([...results].sort()).toEqual(['dropped', 'dropped', 'unusable', 'unusable']);
    expect(sampler.heldBytes).toBe(0);
  });

  it('says once why answers cannot be counted, and that one had nothing', async () => {
    const { sampler, results, lines } = samplerOf();
    const target = engine('http://a', 0);
    for (let n = 0; n < 3; n++) {
      const capture = sampler.capture(target)!;
      capture.write(Buffer.from('####'));
      capture.end();
      sampler.count(capture, target, 0);
    }
    sampler.count(sampler.capture(target)!, target, 0);
    await sampler.settled();
    expect(results).toEqual(['absent', 'unusable', 'unusable', 'unusable']);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain('base64');
  });

  it('counts nothing more once it is stopped', async () => {
    const { sampler, results } = samplerOf();
    const target = engine('http://a', 0);
    const capture = sampler.capture(target)!;
    capture.write(Buffer.from(routedText(SHAPE, 'vllm', 0, 5)));
    capture.end();
    sampler.count(capture, target, 0);
    await sampler.stop();
    expect(results).toEqual([]);
    expect(sampler.heldBytes).toBe(0);
    expect(sampler.capture(target)).toBeUndefined();
  });
});

describe('the sources of a fleet', () => {
  it('are numbered server by server', () => {
    const { servers } = checkGatewayOptions({ servers: SERVERS });
    const sources = sourcesOf(servers);
    expect([...sources.values()].map(({ first }) => first)).toEqual([0, 2, 7]);
    expect(sourceCount(sources)).toBe(8);
  });

  it.each([
    ['topK', { servers: [{ url: 'http://a', kind: 'sglang' }], routing: { layers: 1, experts: 8 } }],
    ['sources', { servers: SERVERS, routing: { ...ROUTING, sources: 7 } }],
    ['windowTokens', { servers: SERVERS, routing: { ...ROUTING, windowTokens: 100, halfLifeTokens: 100 } }],
    ['firstGlobalRank', { servers: [...SERVERS, { url: 'http://d', firstGlobalRank: 1 }], routing: ROUTING }],
    ['layers', { servers: SERVERS, routing: { ...ROUTING, layers: 4096, experts: 4096 } }],
  ])('are refused where %s is amiss', (key, options) => {
    expect(() => checkGatewayOptions(options)).toThrow(
      expect.objectContaining({ message: expect.stringContaining(key) }),
    );
  });
});

describe('numbered pushes', () => {
  it('count once, and in order', () => {
    const pushes = new Pushes();
    const push = (pusher: string, sequence: number) => {
      const result = pushes.judge(pusher, sequence);
      if (result === 'counted') pushes.accept(pusher, sequence);
      return result;
    };
    const said = [
      ['a', 5],
      ['a', 5],
      ['b', 5],
      ['a', 4],
      ['a', 9],
      ['a', 5],
    ] as const;
    expect(said.map(([pusher, sequence]) => push(pusher, sequence))).toEqual([
      'counted',
      'duplicate',
      'counted',
      'late',
      'counted',
      'late',
    ]);
  });

  it('forget the pusher heard of longest ago', () => {
    const pushes = new Pushes();
    for (let n = 0; n < 4096; n++) pushes.accept(`p${n}`, 1);
    pushes.accept('p0', 2);
    pushes.accept('new', 1);
    expect(pushes.judge('p0', 2)).toBe('duplicate');
    expect(pushes.judge('p1', 1)).toBe('counted');
  });
});
