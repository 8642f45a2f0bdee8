/** The report's figures against the reference evaluation, its page against hostile text, and its sentences. */
import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { smallProblem } from '../../bench/workloads.js';
import { escapeHtml, escapeJson } from '../../lib/report/escape.js';
import { placementFigures } from '../../lib/report/figures.js';
import { homeGpus, layerFlow } from '../../lib/report/flow.js';
import {
  formatChange,
  formatNumber,
  formatPoints,
  formatRatio,
  formatShare,
  formatTick,
  formatTime,
} from '../../lib/report/format.js';
import { renderReport, shellLine } from '../../lib/report/html.js';
import { summarySentences } from '../../lib/report/summary.js';
import type { PlacementProblem } from '../../lib/types.js';
import { balanceOf, evaluateNaive } from '../reference/naive.js';
import { naiveEvaluation, reportFixture } from './report-fixture.js';

describe('layerFlow', () => {
  const problem = {
    layers: 1,
    sources: 2,
    experts: 2,
    gpus: 4,
    slotsPerGpu: 1,
    tokens: Uint32Array.of(10, 4, 6, 8),
    // Sources of two GPUs each; two nodes of two GPUs.
    commCost: Float64Array.of(0, 0, 9, 9, 9, 9, 0, 0),
    gpusPerNode: 2,
  };

  it('shares evenly and counts what leaves GPU and node', () => {
    const flow = layerFlow({ ...problem, replicaChoice: 'even' }, 0, Int32Array.of(0, 1, 0, 1));
    expect([...flow.slotTokens]).toEqual([8, 6, 8, 6]);
    expect([...flow.gpuTokens]).toEqual([8, 6, 8, 6]);
    expect(flow.totalTokens).toBe(28);
    expect(flow.crossNodeTokens).toBe(14);
    expect(flow.remoteTokens).toBe(14);
  });

  it('sends to the nearest, with ties shared', () => {
    const flow = layerFlow({ ...problem, replicaChoice: 'nearest' }, 0, Int32Array.of(0, 1, 0, 1));
    expect([...flow.slotTokens]).toEqual([10, 4, 6, 8]);
    expect(flow.crossNodeTokens).toBe(0);
    const tied = layerFlow({ ...problem, replicaChoice: 'nearest' }, 0, Int32Array.of(0, 0, 1, 1));
    expect([...tied.slotTokens]).toEqual([8, 8, 6, 6]);
  });

  it('does not invent nodes, and skips empty slots', () => {
    const { gpusPerNode: _, ...noNodes } = problem;
    const flow = layerFlow({ ...noNodes, replicaChoice: 'even' }, 0, Int32Array.of(0, -1, 1, -1));
    expect(flow.crossNodeTokens).toBeUndefined();
    expect([...flow.gpuTokens]).toEqual([16, 0, 12, 0]);
  });

  it('gives sources equal blocks of GPUs, or GPUs to several sources', () => {
    expect(homeGpus(1, 2, 8)).toEqual([4, 8]);
    expect(homeGpus(5, 8, 4)).toEqual([2, 3]);
  });
});

describe('placementFigures', () => {
  it('agrees with the reference on load and balance of small problems', () => {
    for (let seed = 0; seed < 40; seed++) {
      const problem: PlacementProblem = {
        ...smallProblem(seed),
        replicaChoice: seed % 2 === 0 ? 'even' : 'nearest',
      };
      const placement = problem.incumbent;
      if (placement === undefined) continue;
      delete problem.deadGpus;
      const naive = evaluateNaive(problem, placement)[0]!;
      const figures = placementFigures('x', problem, placement, naiveEvaluation(problem, placement));
      const computeCost = problem.computeCost;
      const load = figures.flows[0]!.gpuTokens.map(
        (tokens, gpu) => tokens * (typeof computeCost === 'number' ? computeCost : computeCost[gpu]!),
      );
      expect(Math.max(...load), `seed ${seed}`).toBeCloseTo(naive.loadMax, 3);
      expect(1 / figures.totals.imbalanceMean, `seed ${seed}`).toBeCloseTo(balanceOf(problem, naive.load), 9);
      expect(figures.totals.commMean).toBeCloseTo(naive.commTotal / problem.gpus, 3);
    }
  });

  it('leaves idle layers out of the mean, and dead GPUs out of the balance', () => {
    const problem: PlacementProblem = {
      layers: 2,
      sources: 1,
      experts: 2,
      gpus: 3,
      slotsPerGpu: 1,
      tokens: Uint32Array.of(30, 10, 0, 0),
      computeCost: 1,
      commCost: new Float64Array(3),
      deadGpus: [2],
      layerIds: Int32Array.of(5, 9),
    };
    const placement = Int32Array.of(0, 1, -1, 0, 1, -1);
    const { totals, layers } = placementFigures('x', problem, placement, naiveEvaluation(problem, placement));
    expect(layers.map((layer) => layer.layer)).toEqual([5, 9]);
    expect(layers.map((layer) => layer.imbalance)).toEqual([1.5, 1]);
    expect(totals.imbalanceMean).toBe(1.5);
    expect(totals.worstLayer).toBe(5);
    expect(totals.crossNodeShare).toBeNull();
  });
});

describe('formats', () => {
  it('keeps three digits and a fitting unit', () => {
    expect([0, 0.1234, 1.2345, 12.345, 123.45, 99.96, 1234567, -1.5].map(formatNumber)).toEqual([
      '0',
      '0.123',
      '1.23',
      '12.3',
      '123',
      '100',
      '1,234,567',
      '−1.50',
    ]);
    expect(formatNumber(Number.POSITIVE_INFINITY)).toBe('∞');
    expect([0, 1, 999, 1500, 2.5e6, 3.2e10].map(formatTime)).toEqual([
      '0',
      '1.00 ns',
      '999 ns',
      '1.50 µs',
      '2.50 ms',
      '32.0 s',
    ]);
    expect(formatShare(0.41234)).toBe('41.2 %');
    expect(formatShare(0.0041)).toBe('0.41 %');
    expect(formatRatio(1.0349)).toBe('1.035');
    expect([0, 2, 0.25, 1500].map(formatTick)).toEqual(['0', '2', '0.25', '1,500']);
  });

  it('writes changes with their sign', () => {
    expect(formatChange(2, 1)).toBe('−50.0 %');
    expect(formatChange(1, 1.021)).toBe('+2.1 %');
    expect(formatChange(3, 3)).toBe('±0');
    expect(formatChange(1, 1.0000001)).toBe('±0.0 %');
    expect(formatChange(0, 1)).toBe('from 0');
    expect(formatPoints(0.75, 0.5)).toBe('−25.0 points');
    expect(formatPoints(0.5, 0.5001)).toBe('±0 points');
  });
});

const HOSTILE = `</script><script>alert(1)</script><img src=x onerror=alert(2)>'"&<!--\u2028`;

describe('escaping', () => {
  it('leaves no character that could end an element, a string or a comment', () => {
    expect(escapeHtml(`<a href='x'>&"`)).toBe('&lt;a href=&#39;x&#39;&gt;&amp;&quot;');
    const json = escapeJson({ name: HOSTILE });
    expect(json).not.toMatch(/[<>&\u2028\u2029]/);
    expect(JSON.parse(json)).toEqual({ name: HOSTILE });
  });

  it('keeps hostile text out of the page wherever it comes from', () => {
    const fixture = reportFixture(
      {
        subject: HOSTILE,
        command: ['gimbal', 'plan', '--counts', HOSTILE],
        beforeKind: HOSTILE,
        hardware: HOSTILE,
        notes: [HOSTILE],
        version: HOSTILE,
      },
      2,
    );
    fixture.before.name = HOSTILE;
    fixture.plan.backendDetail = HOSTILE;
    const page = renderReport(fixture);
    expect(page).not.toContain('<script>alert');
    expect(page).not.toContain('<img');
    // The data and the charts, and nothing else.
    expect(page.match(/<script/g)).toHaveLength(2);
    expect(page.match(/<\/script/g)).toHaveLength(2);
    expect(page).toContain('&lt;/script&gt;&lt;script&gt;alert(1)');
  });

  it('quotes the command so that it can be typed again', () => {
    expect(shellLine(['gimbal', '--counts', "a b's.npy", '4x8', 'x=1,y=2', ''])).toBe(
      "gimbal --counts 'a b'\\''s.npy' 4x8 x=1,y=2 ''",
    );
  });
});

describe('renderReport', () => {
  const fixture = reportFixture({}, 3);
  const page = renderReport(fixture);

  it('asks nothing of the network and runs no script but its own', () => {
    const markup = page.replace(/<script>[\s\S]*?<\/script>/, '');
    expect(markup).not.toMatch(/(src|href)\s*=\s*"(?!data:)/i);
    expect(markup).not.toMatch(/url\(|@import/i);
    const script = /<script>([\s\S]*?)<\/script>/.exec(page)![1]!;
    const hash = createHash('sha256').update(script, 'utf8').digest('base64');
    expect(page).toContain(`default-src 'none'; script-src 'sha256-${hash}'`);
  });

  it('carries the licences of what it bundles', () => {
    expect(page).toContain('Apache License, Version 2.0');
    expect(page).toContain('BSD 3-Clause License');
  });

  it('holds the placement and the figures as data', () => {
    const data = JSON.parse(/id="report-data">(.*?)<\/script>/.exec(page)![1]!);
    expect(data.layers).toEqual([3, 4, 5]);
    expect(data.after.placement.experts.flat()).toEqual([...fixture.plan.physicalToLogical]);
    expect(data.before.imbalance).toHaveLength(3);
    const sent = data.after.placement.tokens[0].reduce((sum: number, value: number) => sum + value, 0);
    expect(Math.abs(sent - fixture.after.flows[0]!.totalTokens)).toBeLessThan(200);
    expect(data.gpusPerNode).toBe(8);
  });

  it('says the main things in words and in a table, without a script', () => {
    for (const sentence of summarySentences(fixture)) expect(page).toContain(escapeHtml(sentence));
    expect(page).toContain('<noscript>');
    expect(page.match(/<tr>/g)).toHaveLength(4);
    expect(page).toContain('gimbal plan --counts counts.npy');
    expect(page).toContain('gimbal-moe 0.0.0-test');
  });

  it('draws no chart of moves where there is no incumbent', () => {
    const { incumbent: _, ...problem } = fixture.problem;
    expect(page).toContain('data-chart="moves"');
    expect(renderReport({ ...fixture, problem })).not.toContain('data-chart="moves"');
  });

  it('draws no cross-node chart where there is one node', () => {
    const { gpusPerNode: _, nodes: __, ...oneNode } = fixture;
    expect(page).toContain('data-chart="cross-node"');
    expect(renderReport(oneNode)).not.toContain('data-chart="cross-node"');
  });
});

describe('summarySentences', () => {
  it('compares, and tells how far the optimum can be', () => {
    const text = summarySentences(reportFixture({}, 3)).join(' ');
    expect(text).toContain('Compared with the incumbent');
    expect(text).toContain('at most 5.00 % above the optimum');
    expect(text).toMatch(/of 864 slots take an expert/);
  });

  it('does not speak of moves without an incumbent, nor of an optimum without a bound', () => {
    const fixture = reportFixture({}, 2);
    delete fixture.problem.incumbent;
    fixture.plan.lowerBound = 0;
    fixture.plan.gap = Number.POSITIVE_INFINITY;
    const text = summarySentences(fixture).join(' ');
    expect(text).toContain('No incumbent was given');
    expect(text).toContain('No lower bound above 0');
    expect(text).not.toContain('∞');
  });
});
