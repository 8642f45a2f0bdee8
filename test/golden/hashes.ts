/**
 * Hashes of the pinned plans. Run by itself it prints them with the backend's detail as JSON, and with --write it pins them:
 *
 *   npx tsx test/golden/hashes.ts --write
 */
import { createHash } from 'node:crypto';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Planner } from '../../lib/index.js';
import type { Plan } from '../../lib/types.js';
import { goldenCases } from './problems.js';

export const UPDATE_COMMAND = 'npx tsx test/golden/hashes.ts --write';
const PLANS = join(__dirname, 'plans.json');

export interface GoldenHashes {
  /** What the backend chose by itself, e.g. the vector width. Not pinned. */
  backendDetail: string;
  /** By the case's name. */
  plans: Record<string, string>;
}

export async function hashPlans(threads?: number): Promise<GoldenHashes> {
  const planner = new Planner();
  const hashes: GoldenHashes = { backendDetail: '', plans: {} };
  for (const { name, problem, options } of goldenCases()) {
    const plan = await planner.plan(problem, threads === undefined ? options : { ...options, threads });
    hashes.backendDetail = plan.backendDetail;
    hashes.plans[name] = hashOf(plan);
  }
  planner.close();
  return hashes;
}

/** sha256 over the placement and every number of the report, as little-endian bytes. */
function hashOf(plan: Plan): string {
  const numbers = plan.layers.flatMap((row) => [
    row.objective,
    row.loadMax,
    row.commMax,
    row.commTotal,
    row.sourceMax,
    row.migrations,
    row.forcedMigrations,
    row.lowerBound,
    row.gap,
  ]);
  const bytes = Buffer.alloc(4 * plan.physicalToLogical.length + 8 * (numbers.length + 3));
  plan.physicalToLogical.forEach((expert, slot) => {
    bytes.writeInt32LE(expert, 4 * slot);
  });
  [...numbers, plan.objective, plan.lowerBound, plan.gap].forEach((value, i) => {
    bytes.writeDoubleLE(value, 4 * plan.physicalToLogical.length + 8 * i);
  });
  return createHash('sha256').update(bytes).digest('hex');
}

export function pinnedPlans(): Record<string, string> {
  return (JSON.parse(readFileSync(PLANS, 'utf8')) as { plans: Record<string, string> }).plans;
}

function pin(hashes: GoldenHashes): void {
  const temporary = `${PLANS}.${process.pid}`;
  const content = { regenerate: UPDATE_COMMAND, plans: hashes.plans };
  writeFileSync(temporary, `${JSON.stringify(content, null, 2)}\n`);
  renameSync(temporary, PLANS);
}

async function main(): Promise<void> {
  const hashes = await hashPlans();
  if (process.argv.includes('--write')) pin(hashes);
  console.log(JSON.stringify(hashes));
}

if (require.main === module) {
  main().catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
}
