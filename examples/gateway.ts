/**
 * The gateway at work, without engines at hand (`npm run demo:gateway`): two servers that stand in for vLLM, of two DP ranks each, which
 * step together; the gateway before them; and the same seeded traffic, chats with a few long documents among them, once by pressure
 * and once round robin. Prints what went where, and when the first tokens came.
 *
 * Usage: npm run demo:gateway [-- [--requests N] [--stay]]   (--stay leaves the last gateway up: open its /dashboard; Ctrl-C ends it)
 */
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Random } from '../bench/random.js';
import { table } from '../lib/cli/table.js';
import { checkGatewayOptions } from '../lib/gateway/config.js';
import { Gateway } from '../lib/gateway/gateway.js';
import type { GatewaySnapshot } from '../lib/gateway/types.js';
import { StandIn } from '../test/stand-in/server.js';

const SEED = 1;
const REQUESTS = '200';
const PER_SECOND = 25;
const LONG_SHARE = 0.1;
const CHAT_WORDS = 120;
const DOCUMENT_WORDS = 4000;
const OUTPUT_TOKENS = 16;
const TIMING = { prefillTokensPerSecond: 40_000, decodeStepMs: 8 };
const POLICIES = ['gimbal', 'round-robin'] as const;

interface Chat {
  afterMs: number;
  prompt: string;
}

function traffic(requests: number): Chat[] {
  const random = new Random(SEED, 0);
  let afterMs = 0;
  return Array.from({ length: requests }, (_, n) => {
    afterMs += (-Math.log(1 - random.uniform()) * 1000) / PER_SECOND;
    const words = random.uniform() < LONG_SHARE ? DOCUMENT_WORDS : CHAT_WORDS;
    return { afterMs, prompt: `${n} ${'word '.repeat(Math.ceil(words * (0.5 + random.uniform())))}` };
  });
}

/** ms from sending a chat to the first event of its answer; the answer is read to its end. */
async function ask(url: string, prompt: string): Promise<number> {
  const began = performance.now();
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: 'stand-in',
      messages: [{ role: 'user', content: prompt }],
      max_tokens: OUTPUT_TOKENS,
      stream: true,
    }),
  });
  if (!response.ok) throw new Error(`expected an answer but received ${response.status}`);
  let firstMs: number | undefined;
  for await (const _ of response.body!) firstMs ??= performance.now() - began;
  return firstMs!;
}

async function send(url: string, chats: readonly Chat[]): Promise<number[]> {
  return Promise.all(
    chats.map(async ({ afterMs, prompt }) => {
      await sleep(afterMs);
      return ask(url, prompt);
    }),
  );
}

function at(values: readonly number[], share: number): number {
  return values.toSorted((a, b) => a - b)[Math.floor(share * values.length)]!;
}

function report(policy: string, tookMs: number[], { engines, totals }: GatewaySnapshot): void {
  console.log(`\n${policy}: ${totals.finished} answers`);
  const rows = engines.map(({ name, dispatched }) => [name, `${dispatched} requests`]);
  console.log(table(rows, { left: [0] }));
  const figures = [0.5, 0.9, 0.99].map((share) => `p${100 * share} ${at(tookMs, share).toFixed(0)} ms`);
  console.log(`time to first token: ${figures.join(', ')}`);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      requests: { type: 'string', default: REQUESTS },
      stay: { type: 'boolean', default: false },
    },
  });
  const chats = traffic(Number(values.requests));
  for (const policy of POLICIES.toReversed()) {
    const start = () => StandIn.start({ kind: 'vllm', ranks: 2, lockstep: true, timing: TIMING, seed: SEED });
    const servers = [await start(), await start()];
    const config = checkGatewayOptions({
      servers: servers.map(({ url }) => ({ url, ranks: 2 })),
      listen: { port: 0 },
      policy,
      prefillTokensPerSecond: TIMING.prefillTokensPerSecond,
      log: { level: 'warn' },
      seed: SEED,
    });
    const gateway = await Gateway.create(config, { version: 'demo' });
    const { url } = await gateway.listen();
    report(policy, await send(url, chats), await gateway.snapshot());
    if (values.stay && policy === POLICIES[0]) {
      console.log(`\nlook at ${url}/dashboard; Ctrl-C ends it`);
      await Promise.race([once(process, 'SIGINT'), keepSending(url, chats)]);
    }
    await gateway.close();
    await Promise.all(servers.map((server) => server.stop()));
  }
}

async function keepSending(url: string, chats: readonly Chat[]): Promise<void> {
  for (;;) await send(url, chats);
}

void main();
