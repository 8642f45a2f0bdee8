/**
 * Writes measured figures into docs/BENCHMARKS.md: each result of a bench's JSON goes between the marks of its name.
 *
 *   npm run bench -- --json bench.json && npx tsx bench/fill-figures.ts bench.json
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { writeFileAtomic } from '../lib/files.js';
import type { BenchResult, Machine } from './harness.js';

const PAGE = path.join(__dirname, '..', 'docs', 'BENCHMARKS.md');

interface Run {
  machine: Machine;
  results: BenchResult[];
}

function cell(value: string | number): string {
  if (typeof value === 'string') return value.replaceAll('|', '\\|');
  if (Number.isInteger(value)) return value.toLocaleString('en-US');
  return value.toLocaleString('en-US', { maximumSignificantDigits: Math.abs(value) >= 1 ? 5 : 4 });
}

function markdownTable(columns: string[], rows: (string | number)[][]): string {
  const line = (cells: string[]): string => `| ${cells.join(' | ')} |`;
  return [line(columns), line(columns.map(() => '---')), ...rows.map((row) => line(row.map(cell)))].join(
    '\n',
  );
}

function markdown({ machine }: Run, result: BenchResult): string {
  const parts = [
    `${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB, Node ${machine.node}; load average ${machine.loadAverage} ` +
      `at the start; seed ${result.seed}; \`npm run bench -- ${result.name}\``,
  ];
  for (const table of result.tables) {
    parts.push(`**${table.title}**`, markdownTable(table.columns, table.rows));
  }
  const checks = result.checks.map((check) => [
    check.pass ? 'pass' : '**missed**',
    check.target,
    check.measured,
  ]);
  parts.push(markdownTable(['', 'target', 'measured'], checks));
  return parts.join('\n\n');
}

async function main(): Promise<void> {
  let page = readFileSync(PAGE, 'utf8');
  for (const file of process.argv.slice(2)) {
    const run = JSON.parse(readFileSync(file, 'utf8')) as Run;
    for (const result of run.results) {
      if (result.small)
        throw new Error(`${file}: ${result.name} ran small, and such figures are not to be quoted`);
      const [open, close] = [`<!-- figures:${result.name} -->`, `<!-- /figures:${result.name} -->`];
      const [from, to] = [page.indexOf(open), page.indexOf(close)];
      if (from < 0 || to < from) throw new Error(`docs/BENCHMARKS.md has no block for ${result.name}`);
      page = `${page.slice(0, from)}${open}\n${markdown(run, result)}\n${page.slice(to)}`;
    }
  }
  await writeFileAtomic(PAGE, page);
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
