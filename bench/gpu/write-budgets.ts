/** Makes what the kernels cost now their budget: `npx tsx bench/gpu/write-budgets.ts`, after a change that is worth it. */
import { join } from 'node:path';
import { DEFAULT_SEED, writeJson } from '../harness.js';
import { budgetsOf, measure } from './kernels.js';

measure(DEFAULT_SEED, false)
  .then((costs) => {
    if (costs.evaluation.length === 0)
      throw new Error('the host execution layer is not built: run npm test first');
    writeJson(join(__dirname, 'budgets.json'), budgetsOf(costs));
  })
  .catch((error: unknown) => {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  });
