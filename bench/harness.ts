/**
 * What every bench shares: the form of a result, the statement of the machine it ran on, a table a reader can take in
 * and the same figures as JSON.
 */
import { renameSync, writeFileSync } from 'node:fs';
import * as os from 'node:os';
import type { PlacementProblem } from '../lib/types.js';
import { evaluateNaive } from '../test/reference/naive.js';

export interface RunOptions {
  /** A run of seconds that proves the bench works; its figures are not to be quoted. */
  small: boolean;
  seed: number;
}

export interface Table {
  title: string;
  columns: string[];
  rows: (string | number)[][];
}

export interface Check {
  target: string;
  measured: string;
  pass: boolean;
  /** Figures of quality repeat on any machine; figures of time hold for the machine stated. */
  kind: 'quality' | 'time';
}

/** What a bench finds. */
export interface Findings {
  tables: Table[];
  checks: Check[];
  /** What a reader must know to read the figures; also why a bench could not run. */
  notes: string[];
}

export interface Bench {
  name: string;
  question: string;
  run(options: RunOptions): Promise<Findings>;
}

/** Findings, and what they are of. */
export interface BenchResult extends RunOptions, Findings {
  name: string;
  question: string;
}

export interface Machine {
  cpu: string;
  cores: number;
  memoryGiB: number;
  platform: string;
  node: string;
  /** One-minute load before the run: above 0, other work shared the cores. */
  loadAverage: number;
  command: string;
}

export const DEFAULT_SEED = 20_260_601;

export async function runBench(bench: Bench, options: Partial<RunOptions> = {}): Promise<BenchResult> {
  const { name, question } = bench;
  const { small = false, seed = DEFAULT_SEED } = options;
  return { name, question, seed, small, ...(await bench.run({ small, seed })) };
}

export function machine(argv: readonly string[]): Machine {
  const cpus = os.cpus();
  return {
    cpu: cpus[0]?.model.trim() ?? 'unknown',
    cores: os.availableParallelism(),
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    platform: `${os.platform()} ${os.arch()} ${os.release()}`,
    node: process.version,
    loadAverage: Math.round(os.loadavg()[0]! * 100) / 100,
    command: ['npm run bench --', ...argv].join(' '),
  };
}

export function formatMachine(stated: Machine): string {
  return [
    `machine  ${stated.cpu}, ${stated.cores} cores, ${stated.memoryGiB} GiB, ${stated.platform}`,
    `node     ${stated.node}, load average ${stated.loadAverage}`,
    `command  ${stated.command}`,
  ].join('\n');
}

export function formatResult(result: BenchResult): string {
  const parts = [
    `== ${result.name}: ${result.question}`,
    `seed     ${result.seed}${result.small ? ' (small run)' : ''}`,
  ];
  for (const table of result.tables) parts.push('', formatTable(table));
  if (result.checks.length > 0) {
    const rows = result.checks.map((check) => [check.pass ? 'pass' : 'FAIL', check.target, check.measured]);
    parts.push('', formatTable({ title: 'targets', columns: ['', 'target', 'measured'], rows }));
  }
  for (const note of result.notes) parts.push('', `note: ${note}`);
  return parts.join('\n');
}

/** Numbers to the right, with as many decimals in a column as its largest needs; words to the left. */
export function formatTable({ title, columns, rows }: Table): string {
  const numbers = columns.map((_, c) => rows.map((row) => row[c]).filter((cell) => typeof cell === 'number'));
  const digits = numbers.map(decimalsFor);
  const text = rows.map((row) => row.map((cell, c) => formatCell(cell, digits[c]!)));
  const widths = columns.map((name, c) => Math.max(name.length, ...text.map((row) => row[c]?.length ?? 0)));
  const line = (cells: string[]): string =>
    cells
      .map((cell, c) => (numbers[c]!.length > 0 ? cell.padStart(widths[c]!) : cell.padEnd(widths[c]!)))
      .join('  ')
      .trimEnd();
  return [title, line(columns), widths.map((width) => '-'.repeat(width)).join('  '), ...text.map(line)].join(
    '\n',
  );
}

function decimalsFor(column: number[]): number {
  if (column.every(Number.isInteger)) return 0;
  const largest = Math.max(...column.filter(Number.isFinite).map(Math.abs));
  if (largest >= 1000) return 1;
  return largest >= 10 ? 2 : 4;
}

function formatCell(value: string | number, decimals: number): string {
  if (typeof value === 'string' || !Number.isFinite(value)) return String(value);
  return value.toLocaleString('en-US', { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

/** Writes beside the target and renames, so that a reader never sees half a file. */
export function writeJson(path: string, value: unknown): void {
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, `${JSON.stringify(value, null, 2)}\n`);
  renameSync(temporary, path);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** 97.5 % quantiles of Student's t with n − 1 degrees of freedom, by n. */
const STUDENT_T: Record<number, number> = { 4: 3.182, 8: 2.365, 16: 2.131, 24: 2.069, 32: 2.04 };

export interface Estimate {
  mean: number;
  /** The true mean is within so much of it in 95 of 100 cases, if the values are independent. */
  halfWidth: number;
}

export function estimate(values: readonly number[]): Estimate {
  const t = STUDENT_T[values.length];
  if (t === undefined)
    throw new Error(`expected ${Object.keys(STUDENT_T)} values but received ${values.length}`);
  const middle = mean(values);
  const variance = values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1);
  return { mean: middle, halfWidth: t * Math.sqrt(variance / values.length) };
}

export function percent(ratio: number, digits = 2): string {
  return `${(ratio * 100).toFixed(digits)} %`;
}

/** To four digits: what tables print of a figure. */
export function rounded(value: number): number {
  return Number(value.toPrecision(4));
}

/** J of each layer, by the reference evaluation; benches trust no figure that the planner reports about itself. */
export function layerObjectives(problem: PlacementProblem, placement: Int32Array): number[] {
  return evaluateNaive(problem, placement).map((layer) => layer.objective);
}

export function totalObjective(problem: PlacementProblem, placement: Int32Array): number {
  return layerObjectives(problem, placement).reduce((sum, value) => sum + value, 0);
}

/** Two figures that differ by less than this, relatively, are the same: the planner computes in fixed point. */
export const SAME = 1e-7;
