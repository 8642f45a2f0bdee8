/** Every bench runs, small, gives figures that are figures, and misses no target of quality that a small run can judge. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { dispatchBenches } from '../../bench/dispatch/index.js';
import { gpuBenches } from '../../bench/gpu/index.js';
import {
  type BenchResult,
  formatResult,
  formatTable,
  machine,
  median,
  writeJson,
} from '../../bench/harness.js';
import { placementBenches } from '../../bench/placement/index.js';
import { statisticsBenches } from '../../bench/statistics/index.js';

const benches = [...placementBenches, ...gpuBenches, ...dispatchBenches, ...statisticsBenches];

describe('benches, small', () => {
  it.each(benches.map((bench) => [bench.name, bench] as const))(
    '%s',
    { timeout: 300_000 },
    async (_, bench) => {
      const result = await bench.run({ small: true });
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

  it('takes the middle of a list', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
  });
});
