/**
 * What gateways tell each other, as JSON arrays. Whoever may publish is trusted with the backlogs and with nothing else: what does
 * not look like this, or comes from another version, is left out.
 *
 *   message   [version, gateway, number, operations | 'state' | 'hello' | 'bye']
 *   state     [version, gateway, number, requests]
 *
 * Messages with operations are numbered from 1 by each gateway; the others, and states, name the last one that went before.
 */
import { z } from 'zod';
import { MOST_TOKENS } from '../../dispatch/validate.js';

const VERSION = 1;
/** Characters; a state of the most requests fits. */
const MOST_TEXT = 2 ** 24;
/** Operations in a message. */
export const MOST_OPERATIONS = 10_000;
/** Requests whose prefill is outstanding, of one gateway in its state and of all gateways in a mirror. */
export const MOST_REQUESTS = 100_000;
/** An hour: nobody's prefill takes longer. */
const MOST_AGE_MS = 3.6e6;
/** Characters of an engine's name, which is mostly a URL. */
const MOST_NAME = 2048;

const number = z.number().int().nonnegative();
const request = z.number().int().positive();
const age = z.number().nonnegative().max(MOST_AGE_MS);
const tokens = z.number().int().nonnegative().max(MOST_TOKENS);
/** [number of the request within its gateway, engine, prompt tokens, 1 where it streams, ms since it was dispatched] */
const sent = z.tuple([request, z.string().min(1).max(MOST_NAME), tokens, z.literal([0, 1]), age]);
const operation = z.union([
  z.tuple([z.literal('dispatched'), ...sent.def.items]),
  z.tuple([z.literal(['first', 'finished', 'failed']), request]),
]);
const gateway = z.string().regex(/^[0-9a-f]{16}$/);
const head = [z.literal(VERSION), gateway, number] as const;
const message = z.tuple([
  ...head,
  z.union([z.array(operation).max(MOST_OPERATIONS), z.literal(['state', 'hello', 'bye'])]),
]);
const state = z.tuple([...head, z.array(sent).max(MOST_REQUESTS)]);

export type Sent = z.output<typeof sent>;
export type Operation = z.output<typeof operation>;

export interface Message {
  gateway: string;
  number: number;
  body: Operation[] | 'state' | 'hello' | 'bye';
}

export interface State {
  number: number;
  requests: Sent[];
}

export function encodeMessage({ gateway, number, body }: Message): string {
  return JSON.stringify([VERSION, gateway, number, body]);
}

export function encodeState(gateway: string, { number, requests }: State): string {
  return JSON.stringify([VERSION, gateway, number, requests]);
}

/** Nothing where it is no message of this version. */
export function decodeMessage(text: string): Message | undefined {
  const data = parse(message, text);
  return data && { gateway: data[1], number: data[2], body: data[3] };
}

/** Nothing where it is no state of this gateway and version. */
export function decodeState(gateway: string, text: string): State | undefined {
  const data = parse(state, text);
  return data?.[1] === gateway ? { number: data[2], requests: data[3] } : undefined;
}

/** As states and messages say it: tenths of a millisecond, and at most what they may say. */
export function toAge(ms: number): number {
  return Math.min(Math.round(Math.max(0, ms) * 10) / 10, MOST_AGE_MS);
}

function parse<T>(schema: z.ZodType<T>, text: string): T | undefined {
  if (text.length > MOST_TEXT) return undefined;
  try {
    return schema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}
