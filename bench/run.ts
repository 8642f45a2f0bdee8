/** Runs benches by name, or all: `npm run bench -- [name …] [--json FILE] [--small] [--seed N]`. */
import { parseArgs } from 'node:util';
import { BENCHES } from './benches.js';
import {
  type BenchResult,
  DEFAULT_SEED,
  formatMachine,
  formatResult,
  machine,
  runBench,
  writeJson,
} from './harness.js';

const USAGE = `usage: npm run bench -- [name …] [--json FILE] [--small] [--seed N]
benches: ${BENCHES.map((bench) => bench.name).join(', ')} (default: all)`;

interface Arguments {
  names: string[];
  json: string | undefined;
  small: boolean;
  seed: number;
}

function readArguments(argv: string[]): Arguments {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      json: { type: 'string' },
      small: { type: 'boolean', default: false },
      seed: { type: 'string' },
    },
  });
  const known = BENCHES.map((bench) => bench.name);
  const unknown = positionals.find((name) => !known.includes(name));
  if (unknown !== undefined)
    throw new Error(`bench: expected one of ${known.join(', ')} but received ${unknown}`);
  const seed = values.seed === undefined ? DEFAULT_SEED : Number(values.seed);
  if (!(Number.isSafeInteger(seed) && seed >= 0)) {
    throw new Error(`--seed: expected a non-negative integer but received ${values.seed}`);
  }
  return {
    names: positionals.length > 0 ? positionals : known,
    json: values.json,
    small: values.small,
    seed,
  };
}

async function main(argv: string[]): Promise<void> {
  const { names, json, small, seed } = readArguments(argv);
  const stated = machine(argv);
  console.log(formatMachine(stated));
  const results: BenchResult[] = [];
  for (const bench of BENCHES.filter(({ name }) => names.includes(name))) {
    const began = performance.now();
    const result = await runBench(bench, { small, seed });
    results.push(result);
    console.log(`\n${formatResult(result)}\n(${((performance.now() - began) / 1000).toFixed(1)} s)`);
    // After each bench, so that an interrupted run keeps what it has.
    if (json !== undefined) writeJson(json, { machine: stated, results });
  }
  const failed = results.flatMap((result) => result.checks.filter((check) => !check.pass));
  console.log(
    `\n${results.flatMap((result) => result.checks).length - failed.length} targets met, ${failed.length} missed`,
  );
  if (failed.length > 0) process.exitCode = 1;
}

main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  console.error(USAGE);
  process.exitCode = 2;
});
