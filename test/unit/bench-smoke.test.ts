/** Every bench runs, small, gives figures that are figures, and misses no target of quality that a small run can judge. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BENCHES as benches } from '../../bench/benches.js';
import { partsOf } from '../../bench/dispatch/traces.js';
import {
  type BenchResult,
  estimate,
  formatResult,
  formatTable,
  machine,
  median,
  runBench,
  writeJson,
} from '../../bench/harness.js';

describe('benches, small', () => {
  it.each(benches.map((bench) => [bench.name, bench] as const))(
    '%s',
    { timeout: 300_000 },
    async (_, bench) => {
      const result = await runBench(bench, { small: true });
      const text = formatResult(result);
      expect(result.name).toBe(bench.name);
      if (result.tables.length === 0) expect(result.notes.join(), text).toContain('skipped');
      for (const table of result.tables) {
        expect(table.rows.length, text).toBeGreaterThan(0);
        for (const row of table.rows) {
          expect(row.length, text).toBe(table.columns.length);
          for (const cell of row) if (typeof cell === 'number') expect(cell, text).toSatisfy(Number.isFinite);
        }
      }
      const missed = result.checks.filter((check) => check.kind === 'quality' && !check.pass);
      expect(missed, text).toEqual([]);
      expect(JSON.parse(JSON.stringify(result))).toEqual(result);
    },
  );

  it('have a question each and a name of their own', () => {
    expect(new Set(benches.map((bench) => bench.name)).size).toBe(benches.length);
    for (const bench of benches) expect(bench.question).toMatch(/\?$/);
  });
});

describe('bench harness', () => {
  it('aligns numbers right and words left', () => {
    const rows = [
      ['a', 1],
      ['long', 1234.5],
      ['b', 0.25],
    ];
    expect(formatTable({ title: 't', columns: ['name', 'ms'], rows })).toBe(
      ['t', 'name       ms', '----  -------', 'a         1.0', 'long  1,234.5', 'b         0.3'].join('\n'),
    );
  });

  it('shows a missed target', () => {
    const check = { target: 'x ≤ 1', measured: '2', pass: false, kind: 'quality' } as const;
    const result: BenchResult = {
      name: 'n',
      question: 'q?',
      seed: 5,
      small: true,
      tables: [],
      checks: [check],
      notes: [],
    };
    expect(formatResult(result)).toMatch(/FAIL\s+x ≤ 1\s+2/);
    expect(formatResult(result)).toContain('seed     5 (small run)');
  });

  it('states the machine and the command', () => {
    const stated = machine(['suite', '--small']);
    expect(stated.command).toBe('npm run bench -- suite --small');
    expect(stated.cores).toBeGreaterThan(0);
    expect(stated.node).toBe(process.version);
  });

  it('writes whole JSON files and leaves nothing beside them', () => {
    const folder = mkdtempSync(join(tmpdir(), 'bench-'));
    try {
      writeJson(join(folder, 'out.json'), { a: 1 });
      expect(JSON.parse(readFileSync(join(folder, 'out.json'), 'utf8'))).toEqual({ a: 1 });
      expect(readdirSync(folder)).toEqual(['out.json']);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('states a mean with the interval it is known to', () => {
    // Deviations of 3, 1, 1 and 3: a variance of 20 / 3, of the mean 20 / 12; 3.182 times its root.
    expect(estimate([2, 4, 6, 8])).toEqual({ mean: 5, halfWidth: expect.closeTo(4.1079, 3) });
    expect(estimate([3, 3, 3, 3])).toEqual({ mean: 3, halfWidth: 0 });
    expect(() => estimate([1, 2])).toThrow(/4,8,.* values but received 2/);
  });

  it('cuts a trace into parts that share no request and begin at 0', () => {
    const requests = [5, 7, 11, 12, 20, 21, 99].map((arrivalMs) => ({
      arrivalMs,
      promptTokens: arrivalMs,
      outputTokens: 1,
    }));
    const parts = partsOf({ name: 't', requests }, 3);
    expect(parts.map(({ requests }) => requests.map(({ arrivalMs }) => arrivalMs))).toEqual([
      [0, 2],
      [0, 1],
      [0, 1],
    ]);
    expect(parts.flatMap(({ requests }) => requests.map(({ promptTokens }) => promptTokens))).toEqual([
      5, 7, 11, 12, 20, 21,
    ]);
  });

  it('takes the middle of a list', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
  });
});
