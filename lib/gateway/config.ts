/**
 * The gateway's configuration: what it may say, its defaults, and which of it takes effect while the gateway runs. A file is YAML
 * or JSON.
 */
import { readFile } from 'node:fs/promises';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { POLICIES, QUEUE_POLICIES } from '../dispatch/validate.js';
import { GimbalError, mismatch } from '../errors.js';
import { ioError, readFileBounded } from '../files.js';
import { MAX_YAML_BYTES } from '../import/limits.js';
import { ENDPOINT_EXPECTED, isEndpoint } from '../telemetry/kv-feed.js';
import { checkRouting, routingSchema } from './routing/config.js';

/** Timers take 32 bits, and nothing that waits an hour is waited for. */
const MOST_MS = 3.6e6;
const ms = (fallback: number) => z.number().positive().max(MOST_MS).default(fallback);
/** The scheduler counts them in 32 bits. */
const MOST_KV_TOKENS = 2 ** 31 - 1;
const MOST_GLOBAL_RANK = 2 ** 30;
const whole = z.number().int().positive();
const port = z.number().int().min(0).max(65_535);
const secret = z.string().min(1);

const tls = z.strictObject({ cert: z.string().min(1), key: z.string().min(1) });

const url = z.string().transform((text, context) => {
  const given = URL.canParse(text) ? new URL(text) : undefined;
  const isBare =
    given !== undefined && [given.username, given.password, given.search, given.hash].join('') === '';
  if (isBare && ['http:', 'https:'].includes(given.protocol)) {
    return given.href.replace(/\/+$/, '');
  }
  context.addIssue('expected an http or https URL without credentials, query and fragment');
  return z.NEVER;
});

const zmqEndpoint = z.string().refine(isEndpoint, `expected ${ENDPOINT_EXPECTED}`);

const server = z.strictObject({
  url,
  kind: z.enum(['vllm', 'sglang']).default('vllm'),
  /** DP ranks behind the URL. */
  ranks: whole.max(1024).default(1),
  /** Engines that step together. Default: those of the server. */
  group: z.string().min(1).optional(),
  /** `X-data-parallel-rank` on every request; default where there are several ranks. */
  pin: z.boolean().optional(),
  /** Over all servers of a deployment: for names in metrics. */
  firstGlobalRank: z.number().int().nonnegative().max(MOST_GLOBAL_RANK).optional(),
  prefillTokensPerSecond: z.number().min(100).max(1e9).optional(),
  /** What the KV cache of one rank holds. */
  kvTokens: whole.max(MOST_KV_TOKENS).optional(),
  /** What the server wants as `Authorization: Bearer`; or the name of an environment variable that holds it. */
  apiKey: secret.optional(),
  apiKeyEnv: z.string().min(1).optional(),
  telemetry: z.enum(['/metrics', '/v1/loads', '/get_load']).optional(),
  /** What each rank publishes of its KV cache at, over ZMQ; vLLM's `--kv-events-config`. */
  kvEvents: z
    .array(z.strictObject({ endpoint: zmqEndpoint, replayEndpoint: zmqEndpoint.optional() }))
    .optional(),
});

const weight = z.number().nonnegative().optional();

/** The only list of keys. */
export const gatewaySchema = z.strictObject({
  listen: z
    .strictObject({ host: z.string().default('127.0.0.1'), port: port.default(8080), tls: tls.optional() })
    .prefault({}),
  /** Where /metrics, /healthz, /readyz and /dashboard are; default: beside the API. */
  admin: z.strictObject({ host: z.string().default('127.0.0.1'), port }).optional(),
  servers: z.array(server).min(1),
  policy: z.enum(POLICIES).default('gimbal'),
  weights: z
    .strictObject({
      backlog: weight,
      kv: weight,
      queue: weight,
      moe: weight,
      comm: weight,
      affinity: weight,
      kvMs: weight,
      kvLimit: z.number().gt(0).lt(1).optional(),
      waitingMs: weight,
      runningMs: weight,
    })
    .prefault({}),
  prefillTokensPerSecond: z.number().min(100).max(1e9).default(20_000),
  staleAfterMs: ms(3000),
  seed: z.number().int().nonnegative().optional(),
  /** How many gateways send to these engines. */
  gateways: whole.max(1024).default(1),
  queue: z
    .strictObject({
      policy: z.enum(QUEUE_POLICIES).default('gimbal'),
      agingTokensPerSecond: z.number().min(100).max(1e9).default(4000),
      /** Requests; beyond it 429. */
      capacity: whole.default(1000),
      /** Beyond it 503. */
      maxWaitMs: ms(60_000),
    })
    .prefault({}),
  /** An engine past one of these gets nothing more; requests wait in the queue when all are. */
  admission: z
    .strictObject({
      /** Requests of this gateway on one engine. */
      maxInFlight: whole.default(512),
      /** Prefill that waits on one engine. */
      maxBacklogMs: ms(20_000),
    })
    .prefault({}),
  telemetry: z
    .strictObject({ intervalMs: ms(100), timeoutMs: ms(1000), maxBackoffMs: ms(5000) })
    .prefault({}),
  limits: z
    .strictObject({
      /** Of a request's body; a longer one is 413. */
      bodyBytes: whole.max(1024 ** 3).default(16 * 1024 * 1024),
      /** For a client to send its headers, and all of its request. */
      headersMs: ms(10_000),
      requestMs: ms(60_000),
      /** From sending a request to an engine until the first byte of its answer. */
      firstByteMs: ms(600_000),
      /** Between two pieces of an answer. */
      idleMs: ms(120_000),
      /** For a client that does not read what it is sent. */
      stalledClientMs: ms(60_000),
      connectMs: ms(2000),
    })
    .prefault({}),
  /** Engines that a request is sent to beyond its first one, while nothing of an answer has come. */
  retries: z.number().int().min(0).max(10).default(2),
  /** What clients must send as `Authorization: Bearer`; without any key the gateway is open. */
  apiKeys: z.array(secret).default([]),
  /** A file with a key in each line, read again on every reload. */
  apiKeysFile: z.string().min(1).optional(),
  /** The request's header that names its session; else the body's `prompt_cache_key` and `user` do. */
  sessionHeader: z.string().toLowerCase().default('x-session-id'),
  /** Of streams that the gateway asks for their usage, which clients do not see unless they asked too. */
  usageShare: z.number().min(0).max(1).default(0.05),
  /** Counts where tokens are routed, from what engines say of a share of the requests. */
  routing: routingSchema.optional(),
  /** The queue's order as the body's `priority`, for engines that are told to heed it. */
  enginePriority: z.boolean().default(false),
  redis: z.strictObject({ url: z.string().min(1), prefix: z.string().min(1).default('gimbal') }).optional(),
  extProc: z.strictObject({ host: z.string().default('127.0.0.1'), port, tls: tls.optional() }).optional(),
  log: z
    .strictObject({ level: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'silent']).default('info') })
    .prefault({}),
  drain: z
    .strictObject({
      /** From a SIGTERM on, how long new requests are still taken, until balancers have seen /readyz. */
      noticeMs: z.number().nonnegative().max(MOST_MS).default(0),
      /** For what is in flight. */
      timeoutMs: ms(30_000),
    })
    .prefault({}),
});

export type GatewayConfig = z.output<typeof gatewaySchema>;
/** What a file or a caller writes: everything but the servers has a default. */
export type GatewayOptions = z.input<typeof gatewaySchema>;
export type ServerConfig = GatewayConfig['servers'][number];

/** What a running gateway takes from a new configuration. */
const RELOADABLE: readonly (keyof GatewayConfig)[] = [
  'servers',
  'queue',
  'admission',
  'limits',
  'retries',
  'apiKeys',
  'apiKeysFile',
  'sessionHeader',
  'usageShare',
  'enginePriority',
  'log',
  'drain',
];

/**
 * @param source what messages call it, e.g. the file
 * @throws GimbalError GIMBAL_INVALID_INPUT: the first key at fault, what it takes and what came
 */
export function checkGatewayOptions(options: unknown, source = 'options'): GatewayConfig {
  const { success, data, error } = gatewaySchema.safeParse(options, { reportInput: true });
  if (!success) throw fromZod(error, source);
  const urls = new Set<string>();
  for (const [n, { url: at, ranks, kvEvents, apiKey, apiKeyEnv }] of data.servers.entries()) {
    const field = `${source}: servers[${n}]`;
    const wrong = (key: string, expected: string, received: string) =>
      mismatch('GIMBAL_INVALID_INPUT', `${field}.${key}`, expected, received);
    if (urls.has(at)) throw wrong('url', 'each server once', at);
    urls.add(at);
    if (kvEvents !== undefined && kvEvents.length !== ranks) {
      throw wrong('kvEvents', `one for each of the ${ranks} ranks`, `${kvEvents.length}`);
    }
    if (apiKey !== undefined && apiKeyEnv !== undefined)
      throw wrong('apiKeyEnv', 'no apiKey beside it', 'both');
    if (apiKeyEnv !== undefined && process.env[apiKeyEnv] === undefined) {
      throw wrong('apiKeyEnv', 'a variable of the environment', `${apiKeyEnv}, which is not set`);
    }
  }
  if (data.routing !== undefined) checkRouting(data.routing, data.servers, source);
  return data;
}

/** The first key at fault, what it takes and what came. */
export function fromZod(error: z.ZodError, source: string): GimbalError {
  const issue = error.issues[0]!;
  const keys = issue.code === 'unrecognized_keys' ? [...issue.path, issue.keys[0]!] : issue.path;
  const path = keys.map((key) => (typeof key === 'number' ? `[${key}]` : `.${String(key)}`)).join('');
  const field = path === '' ? source : `${source}: ${path.replace(/^\./, '')}`;
  const others = error.issues.length > 1 ? ` (and ${error.issues.length - 1} more)` : '';
  return new GimbalError('GIMBAL_INVALID_INPUT', `${field}: ${issue.message}${others}`, {
    field,
    expected: issue.message,
    // Never a value: it may be a key.
    received: typeof issue.input,
  });
}

/** @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT (not YAML), GIMBAL_INVALID_INPUT */
export async function readGatewayConfig(file: string, overrides: object = {}): Promise<GatewayConfig> {
  return checkGatewayOptions(overlaid(await readGroups(file), overrides), file);
}

/**
 * What a file of YAML or JSON says, unchecked.
 *
 * @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT (not YAML, or no mapping of keys)
 */
export async function readGroups(file: string): Promise<Record<string, unknown>> {
  const bytes = await readFileBounded(file, { maxBytes: MAX_YAML_BYTES });
  const content = contentOf(bytes, file);
  if (!isGroup(content)) {
    throw mismatch('GIMBAL_FORMAT', file, 'a mapping of keys', content === null ? 'nothing' : typeof content);
  }
  return content;
}

function contentOf(bytes: Uint8Array, file: string): unknown {
  try {
    const document = parseDocument(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
    const [first] = document.errors;
    if (first !== undefined) throw first;
    return document.toJS({ maxAliasCount: 100 });
  } catch (error) {
    // What follows the first line quotes the file, in which there may be keys.
    const [reason] = (error as Error).message.split('\n');
    throw mismatch('GIMBAL_FORMAT', file, 'YAML or JSON in UTF-8', reason!);
  }
}

/** Groups of keys are overlaid key by key. */
function overlaid(content: object, overrides: object): object {
  const both: Record<string, unknown> = { ...content };
  for (const [key, value] of Object.entries(overrides)) {
    const below = both[key];
    both[key] = isGroup(below) && isGroup(value) ? { ...below, ...value } : value;
  }
  return both;
}

function isGroup(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The configuration that takes effect where `next` comes while `current` runs, and the changed keys that need a restart. */
export function mergeReload(
  current: GatewayConfig,
  next: GatewayConfig,
): { config: GatewayConfig; later: string[] } {
  const config: Record<string, unknown> = { ...current };
  const later: string[] = [];
  for (const key of new Set([...Object.keys(current), ...Object.keys(next)]) as Set<keyof GatewayConfig>) {
    if (RELOADABLE.includes(key)) config[key] = next[key];
    else if (JSON.stringify(current[key]) !== JSON.stringify(next[key])) later.push(key);
  }
  // The one limit that connections are made with once and for all.
  const { connectMs } = current.limits;
  if (next.limits.connectMs !== connectMs) later.push('limits.connectMs');
  config.limits = { ...next.limits, connectMs };
  return { config: config as GatewayConfig, later };
}

/**
 * All keys that clients may use. A file without any is refused: it is more likely to be half written than to open the gateway to
 * everybody.
 *
 * @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT (a file without a key)
 */
export async function readApiKeys({ apiKeys, apiKeysFile }: GatewayConfig): Promise<string[]> {
  if (apiKeysFile === undefined) return apiKeys;
  const text = await readFile(apiKeysFile, 'utf8').catch((error) => {
    throw ioError(apiKeysFile, error);
  });
  const lines = text.split('\n').map((line) => line.trim());
  const keys = lines.filter((line) => line !== '' && !line.startsWith('#'));
  if (keys.length === 0) throw mismatch('GIMBAL_FORMAT', apiKeysFile, 'a key in each line', 'no key');
  return [...apiKeys, ...keys];
}
