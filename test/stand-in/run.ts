/**
 * The stand-in as a process of its own, for benches and for whoever wants to try a gateway without a GPU:
 *
 *     tsx test/stand-in/run.ts --kind vllm --ranks 4 --port 0 --timing '{"decodeStepMs":5}'
 *
 * Prints `{"url":…}` in one line, and serves until it is told to stop.
 */
import { parseArgs } from 'node:util';
import { StandIn } from './server.js';

const { values } = parseArgs({
  options: {
    kind: { type: 'string', default: 'vllm' },
    ranks: { type: 'string', default: '1' },
    port: { type: 'string', default: '0' },
    model: { type: 'string', default: 'stand-in' },
    seed: { type: 'string', default: '0' },
    /** JSON, with the fields of `Timing`. */
    timing: { type: 'string', default: '{}' },
    scheduling: { type: 'string', default: 'fcfs' },
    lockstep: { type: 'boolean', default: false },
    'prefix-cache': { type: 'boolean', default: false },
  },
});

function oneOf<T extends string>(option: string, value: string, known: readonly T[]): T {
  const found = known.find((name) => name === value);
  if (found === undefined)
    throw new Error(`--${option}: expected one of ${known.join(', ')} but received ${value}`);
  return found;
}

async function main(): Promise<void> {
  const standIn = await StandIn.start({
    kind: oneOf('kind', values.kind, ['vllm', 'sglang']),
    ranks: Number(values.ranks),
    port: Number(values.port),
    model: values.model,
    seed: Number(values.seed),
    timing: JSON.parse(values.timing),
    scheduling: oneOf('scheduling', values.scheduling, ['fcfs', 'priority']),
    lockstep: values.lockstep,
    prefixCache: values['prefix-cache'],
    keepLog: false,
  });
  console.log(JSON.stringify({ url: standIn.url }));
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => void standIn.stop());
}

void main();
