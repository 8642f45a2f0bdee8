/**
 * What dispatch needs to know of an OpenAI request, from its body: the model, whether it streams, how large its prompt is, which
 * session it belongs to, and which prompts it shares a beginning with. The body itself goes to the engine as it came; engines say
 * what is wrong with it, so here only what cannot be dispatched is refused.
 */
import { binding } from '../binding.js';
import { mismatch } from '../errors.js';
import { addText, NOTHING, type PromptSize } from './tokens.js';

export const INFERENCE_PATHS = [
  '/v1/chat/completions',
  '/v1/completions',
  '/v1/responses',
  '/v1/embeddings',
] as const;
export type InferencePath = (typeof INFERENCE_PATHS)[number];

export interface Inspected {
  /** Empty where none is named. */
  model: string;
  streams: boolean;
  size: PromptSize;
  promptTokenIds?: readonly number[];
  sessionKey?: string;
  prefixHashes: BigUint64Array;
  /** Whether the body has `stream_options`, and whether they ask for usage. */
  streamOptions: 'none' | 'without-usage' | 'with-usage';
  /** Whether the body sets `priority` itself. */
  hasPriority: boolean;
  /** Whether the client wants to see `routed_experts`, and of which tokens. */
  routedExperts: 'none' | 'all' | 'some';
}

/** Of the prompt's text; engines cache by blocks of 16 tokens or more. */
const BLOCK_CHARACTERS = 1024;
/** Blocks of one prompt. What a longer one has beyond them no two prompts are likely to share by halves. */
const MOST_BLOCKS = 128;
const MOST_START = BLOCK_CHARACTERS * MOST_BLOCKS;
/** [MOST_BLOCKS] What one prompt's are put into. */
const HASHES = new BigUint64Array(MOST_BLOCKS);
const MOST_SESSION_CHARACTERS = 512;
/** It is logged, and kept for the estimate. */
const MOST_MODEL_CHARACTERS = 256;
/** Of nested content; deeper is no prompt. */
const MOST_DEPTH = 8;

export type Headers = Readonly<Record<string, string | string[] | undefined>>;

/** @throws GimbalError GIMBAL_FORMAT where the body is no JSON object */
export function inspect(path: string, body: Buffer, headers: Headers, sessionHeader: string): Inspected {
  const fields = parse(body);
  const prompt = new Prompt();
  const given = promptOf(path, fields);
  // Tools are part of what the template makes of a chat, and come before it.
  prompt.addJson(fields.tools);
  prompt.add(given, 0);
  const model = typeof fields.model === 'string' ? fields.model.slice(0, MOST_MODEL_CHARACTERS) : '';
  const sessionKey = sessionOf(fields, headers[sessionHeader]);
  const ids = isTokenIds(given) ? given : undefined;
  return {
    model,
    streams: fields.stream === true && path !== '/v1/embeddings',
    size: prompt.size,
    ...(ids === undefined ? {} : { promptTokenIds: ids }),
    ...(sessionKey === undefined ? {} : { sessionKey }),
    prefixHashes: prompt.hashes(model),
    streamOptions: streamOptionsOf(fields),
    hasPriority: fields.priority !== undefined,
    routedExperts: routedExpertsOf(fields),
  };
}

function parse(body: Buffer): Record<string, unknown> {
  let fields: unknown;
  try {
    fields = JSON.parse(body.toString('utf8'));
  } catch (error) {
    throw mismatch('GIMBAL_FORMAT', 'body', 'JSON', error instanceof Error ? error.message : String(error));
  }
  if (typeof fields === 'object' && fields !== null && !Array.isArray(fields)) {
    return fields as Record<string, unknown>;
  }
  throw mismatch(
    'GIMBAL_FORMAT',
    'body',
    'a JSON object',
    Array.isArray(fields) ? 'an array' : String(fields),
  );
}

function promptOf(path: string, fields: Record<string, unknown>): unknown {
  switch (path) {
    case '/v1/chat/completions':
      return fields.messages;
    case '/v1/completions':
      return fields.prompt;
    case '/v1/responses':
      return [fields.instructions, fields.input];
    case '/v1/embeddings':
      return fields.input ?? fields.messages;
    default:
      // What a data plane lets through that the proxy would not.
      return fields.messages ?? fields.prompt ?? fields.input;
  }
}

function sessionOf(
  fields: Record<string, unknown>,
  header: string | string[] | undefined,
): string | undefined {
  const named = [header, fields.prompt_cache_key, fields.user].find(
    (key): key is string => typeof key === 'string' && key !== '',
  );
  return named?.slice(0, MOST_SESSION_CHARACTERS);
}

function streamOptionsOf(fields: Record<string, unknown>): Inspected['streamOptions'] {
  const options = fields.stream_options;
  if (typeof options !== 'object' || options === null)
    return options === undefined ? 'none' : 'without-usage';
  return (options as { include_usage?: unknown }).include_usage === true ? 'with-usage' : 'without-usage';
}

/** SGLang's switch, which serves for vLLM too: it has none. And what vLLM calls the first token that is wanted. */
function routedExpertsOf(fields: Record<string, unknown>): Inspected['routedExperts'] {
  if (fields.routed_experts_prompt_start !== undefined || fields.routed_experts_start_len !== undefined) {
    return 'some';
  }
  return fields.return_routed_experts === true ? 'all' : 'none';
}

function isTokenIds(prompt: unknown): prompt is number[] {
  return Array.isArray(prompt) && prompt.length > 0 && prompt.every((id) => Number.isInteger(id) && id >= 0);
}

/** JSON again; nothing where it is nested more deeply than can be written, which the engine shall judge. */
function textOf(value: unknown): string {
  try {
    return JSON.stringify(value);
  } catch (error) {
    if (error instanceof RangeError) return '';
    throw error;
  }
}

/** The text of a prompt as it comes along, its size, and its beginning. */
class Prompt {
  readonly size: PromptSize = { ...NOTHING };
  #start = '';

  add(part: unknown, depth: number): void {
    if (typeof part === 'string') this.#text(part);
    else if (isTokenIds(part)) this.#tokenIds(part);
    else if (Array.isArray(part) && depth < MOST_DEPTH) for (const one of part) this.add(one, depth + 1);
    else if (typeof part === 'object' && part !== null && depth < MOST_DEPTH) {
      this.#object(part as Record<string, unknown>, depth + 1);
    }
  }

  /** A message, or a part of one: its text, or what it carries in place of text. */
  #object(part: Record<string, unknown>, depth: number): void {
    if (typeof part.role === 'string') {
      this.size.messages += 1;
      this.#begin(`\n${part.role}\n`);
    }
    const { text, content, tool_calls: calls, output, arguments: given, type } = part;
    const isText = text !== undefined || content !== undefined || output !== undefined || given !== undefined;
    if (typeof type === 'string' && !isText && calls === undefined) this.size.attachments += 1;
    for (const one of [text, content, output, given]) this.add(one, depth);
    this.addJson(calls);
  }

  /** What templates write as it stands. */
  addJson(value: unknown): void {
    if (value === undefined || value === null) return;
    this.#text(textOf(value));
  }

  #text(text: string): void {
    addText(this.size, text);
    this.#begin(text);
  }

  #tokenIds(ids: readonly number[]): void {
    this.size.tokens += ids.length;
    if (this.#start.length < MOST_START) this.#begin(ids.slice(0, MOST_START).join(' '));
  }

  #begin(text: string): void {
    const room = MOST_START - this.#start.length;
    if (room > 0) this.#start += text.slice(0, room);
  }

  /** [blocks] The last block may be short. Prompts of two models have nothing in common. */
  hashes(model: string): BigUint64Array {
    return HASHES.slice(0, binding().hashBlocks(this.#start, model, BLOCK_CHARACTERS, HASHES));
  }
}
