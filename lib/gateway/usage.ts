/**
 * What answers say of tokens, read as they pass by. Bytes are not touched, unless the gateway asked a stream for its usage and the
 * client did not: then the event of the usage is left out, and the member `"usage": null` of the others.
 */

export interface Usage {
  promptTokens: number;
  completionTokens?: number;
  cachedTokens?: number;
}

/** Engines put the usage near the end of an answer; SSE's last events and a JSON's last members fit in here. */
const TAIL_BYTES = 4096;
const DATA = Buffer.from('data:');
const USAGE = '"usage"';

/** Follows a stream without changing it: keeps its end, and counts its events. */
export class AnswerTail {
  /** A ring; `#end` is where the next byte goes. */
  #ring: Buffer | undefined;
  #end = 0;
  #isFull = false;
  /** About as many as output tokens. */
  events = 0;

  push(chunk: Buffer): void {
    for (let at = chunk.indexOf(DATA); at >= 0; at = chunk.indexOf(DATA, at + DATA.length)) this.events += 1;
    this.#ring ??= Buffer.allocUnsafe(TAIL_BYTES);
    const kept = chunk.length > TAIL_BYTES ? chunk.subarray(chunk.length - TAIL_BYTES) : chunk;
    const first = Math.min(kept.length, TAIL_BYTES - this.#end);
    kept.copy(this.#ring, this.#end, 0, first);
    kept.copy(this.#ring, 0, first);
    if (this.#end + kept.length >= TAIL_BYTES) this.#isFull = true;
    this.#end = (this.#end + kept.length) % TAIL_BYTES;
  }

  /** The last usage that the end of the stream holds. */
  usage(): Usage | undefined {
    if (this.#ring === undefined) return undefined;
    const head = this.#ring.toString('latin1', 0, this.#end);
    return lastUsage(this.#isFull ? this.#ring.toString('latin1', this.#end) + head : head);
  }
}

/** Of an answer in one piece. */
export function usageOf(answer: Buffer): Usage | undefined {
  return lastUsage(answer.toString('latin1', Math.max(0, answer.length - TAIL_BYTES)));
}

function lastUsage(text: string): Usage | undefined {
  for (let at = text.lastIndexOf(USAGE); at >= 0; at = at === 0 ? -1 : text.lastIndexOf(USAGE, at - 1)) {
    const from = text.indexOf('{', at);
    const to = from < 0 ? -1 : endOfObject(text, from);
    if (to < 0) continue;
    const usage = toUsage(parsed(text.slice(from, to)));
    if (usage !== undefined) return usage;
  }
  return undefined;
}

/** The end of the object that begins at `from`; -1 where it does not end. Usage holds no strings with braces. */
function endOfObject(text: string, from: number): number {
  let depth = 0;
  for (let at = from; at < text.length; at++) {
    if (text[at] === '{') depth += 1;
    else if (text[at] === '}' && --depth === 0) return at + 1;
  }
  return -1;
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

/** Chat and completions say prompt and completion tokens, responses input and output tokens. */
function toUsage(value: unknown): Usage | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const usage = value as Record<string, unknown>;
  const promptTokens = usage.prompt_tokens ?? usage.input_tokens;
  if (!isCount(promptTokens)) return undefined;
  const completionTokens = usage.completion_tokens ?? usage.output_tokens;
  const details = (usage.prompt_tokens_details ?? usage.input_tokens_details) as Record<
    string,
    unknown
  > | null;
  const cachedTokens = typeof details === 'object' ? details?.cached_tokens : undefined;
  return {
    promptTokens,
    ...(isCount(completionTokens) ? { completionTokens } : {}),
    ...(isCount(cachedTokens) ? { cachedTokens } : {}),
  };
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

/** An event that is longer passes through as it is: it is no usage. */
const MOST_EVENT_BYTES = 1 << 20;
const LF = 10;
const CR = 13;

/** Changes a stream event by event, or leaves some out; an event is held back until it is whole. */
export class EventStripper {
  readonly #strip: (event: Buffer) => Buffer;
  #held: Buffer = Buffer.alloc(0);
  /** Held bytes that were searched for an end of event before. */
  #searched = 0;
  #passes = false;

  /** @param strip what the client gets for an event with its blank line; may be empty */
  constructor(strip: (event: Buffer) => Buffer) {
    this.#strip = strip;
  }

  /** What the client gets for `chunk`; may be empty. */
  push(chunk: Buffer): Buffer {
    if (this.#passes) return chunk;
    const bytes = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    const out: Buffer[] = [];
    let from = 0;
    for (;;) {
      const end = endOfEvent(bytes, Math.max(from, this.#searched));
      if (end < 0) break;
      out.push(this.#strip(bytes.subarray(from, end)));
      from = end;
      this.#searched = end;
    }
    this.#held = bytes.subarray(from);
    // The end of an event takes up to four bytes, of which the last may be still to come.
    this.#searched = Math.max(0, this.#held.length - 3);
    if (this.#held.length > MOST_EVENT_BYTES) {
      this.#passes = true;
      out.push(this.end());
    }
    return out.length === 1 ? out[0]! : Buffer.concat(out);
  }

  /** What is left at the end of the stream. */
  end(): Buffer {
    const rest = this.#held;
    this.#held = Buffer.alloc(0);
    return rest;
  }
}

/** Just beyond the next blank line, by any of the three kinds of line ends; -1 where there is none yet. */
function endOfEvent(bytes: Buffer, from: number): number {
  for (let at = from; at < bytes.length; at++) {
    const byte = bytes[at];
    if (byte !== LF && byte !== CR) continue;
    const next = at + (byte === CR && bytes[at + 1] === LF ? 2 : 1);
    if (next >= bytes.length) return -1;
    if (bytes[next] === LF) return next + 1;
    if (bytes[next] === CR) {
      if (next + 1 >= bytes.length) return -1;
      return next + (bytes[next + 1] === LF ? 2 : 1);
    }
    at = next - 1;
  }
  return -1;
}

const NONE = Buffer.alloc(0);

/** What is no event of JSON with a `usage` at its top passes byte for byte; else the event without its usage, or nothing. */
export function stripUsage(event: Buffer): Buffer {
  if (event.indexOf(USAGE) < 0) return event;
  const json = jsonOf(event);
  if (json === undefined) return event;
  const fields = parsed(json) as EventFields | undefined;
  if (fields?.usage === undefined) return event;
  if (fields.usage !== null) return hasNoChoice(fields) ? NONE : event;
  return Buffer.from(event.toString('utf8').replace(json, () => withoutNullUsage(json)));
}

/** An event without choices, usage and what else SGLang puts in one of its own is nothing: what it carried was taken out. */
export function stripEmptied(event: Buffer): Buffer {
  if (event.indexOf('"choices":[]') < 0) return event;
  const json = jsonOf(event);
  const fields = json === undefined ? undefined : (parsed(json) as EventFields | undefined);
  if (fields === undefined || !hasNoChoice(fields)) return event;
  return (fields.usage ?? undefined) === undefined && fields.sglext === undefined ? NONE : event;
}

interface EventFields {
  choices?: unknown;
  usage?: unknown;
  sglext?: unknown;
}

function hasNoChoice({ choices }: EventFields): boolean {
  return Array.isArray(choices) && choices.length === 0;
}

/** Undefined where the event is not one line of JSON, or holds bytes that are no UTF-8: no engine's then. */
function jsonOf(event: Buffer): string | undefined {
  const text = event.toString('utf8');
  const data = /^data:[ ]?(\{.*\})[ \t]*(?:\r\n|\r|\n){2,}$/.exec(text);
  return data === null || Buffer.byteLength(text) !== event.length ? undefined : data[1]!;
}

/** The JSON of an object without its member `usage`, which is null; the rest as it stands. */
function withoutNullUsage(json: string): string {
  const member = /"(?:[^"\\]|\\.)*"|[{}[\]]|[^"{}[\]]+/g;
  let depth = 0;
  for (let token = member.exec(json); token !== null; token = member.exec(json)) {
    const [word] = token;
    if (word === '{' || word === '[') depth += 1;
    else if (word === '}' || word === ']') depth -= 1;
    else if (depth === 1 && word === USAGE) {
      const value = /^\s*:\s*null\s*/.exec(json.slice(member.lastIndex));
      if (value === null) continue;
      const before = json.slice(0, token.index);
      const after = json.slice(member.lastIndex + value[0].length);
      // One comma goes with it.
      return after.startsWith(',') ? before + after.slice(1) : before.replace(/,\s*$/, '') + after;
    }
  }
  return json;
}

/** The body of a request that asks a stream for its usage: the same with one member more. */
export function askForUsage(body: Buffer): Buffer {
  return withMember(body, '"stream_options":{"include_usage":true}');
}

/** SGLang says where a request was routed only if it asks. */
export function askForRouting(body: Buffer): Buffer {
  return withMember(body, '"return_routed_experts":true');
}

export function withPriority(body: Buffer, priority: number): Buffer {
  return withMember(body, `"priority":${priority}`);
}

/** `body` is a JSON object; where it has members, a comma follows the new one. */
function withMember(body: Buffer, member: string): Buffer {
  const brace = body.indexOf('{');
  const rest = body.subarray(brace + 1);
  const isEmpty = /^\s*\}/.test(rest.subarray(0, 256).toString('latin1'));
  return Buffer.concat([body.subarray(0, brace + 1), Buffer.from(isEmpty ? member : `${member},`), rest]);
}
