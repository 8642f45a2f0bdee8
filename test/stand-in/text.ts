/**
 * The toy model's words: prompts, tokens and answers, all of them functions of the request, so that a test can tell that an
 * answer is the one to its request, whole, and given once.
 *
 * A token is 4 bytes of UTF-8 (the last one of a text may be shorter): `countTokens`. Each token of an answer is exactly 4 bytes
 * and whole characters: mostly letters, some of them characters of two to four bytes, some what JSON must escape.
 */
import { createHash } from 'node:crypto';
import { mix32 } from '../../bench/random.js';

const TOKEN_BYTES = 4;
const WORDS = 8;

export interface Prompt {
  text: string;
  tokens: number;
}

export type Fields = Readonly<Record<string, unknown>>;

export function countTokens(text: string): number {
  return Math.ceil(Buffer.byteLength(text) / TOKEN_BYTES);
}

/** A token's id is its bytes as a number, the first one lowest. */
export function tokenIds(text: string): number[] {
  const bytes = Buffer.from(text);
  const padded = Buffer.concat([bytes], countTokens(text) * TOKEN_BYTES);
  return Array.from({ length: padded.length / TOKEN_BYTES }, (_, n) => padded.readUInt32LE(n * TOKEN_BYTES));
}

/** The text of an answer's first `tokens` tokens, for the n-th choice of a request (over all of its prompts). */
export function answerText(prompt: string, tokens: number, seed = 0, choice = 0): string {
  const piece = answerPieces(prompt, seed, choice);
  return Array.from({ length: tokens }, (_, n) => piece(n)).join('');
}

/** Gives the n-th token of an answer. */
export function answerPieces(prompt: string, seed: number, choice: number): (n: number) => string {
  const digest = digestOf(prompt, seed, choice);
  return (n) => pieceOf(mix32(digest.readUInt32LE((n % WORDS) * 4) ^ n));
}

/** [dimensions] Numbers in [-1, 1) that 32-bit floats hold exactly. */
export function embedding(prompt: string, dimensions: number, seed = 0): number[] {
  const digest = digestOf(prompt, seed, 0);
  return Array.from(
    { length: dimensions },
    (_, n) => (mix32(digest.readUInt32LE((n % WORDS) * 4) ^ n) >>> 8) / 2 ** 23 - 1,
  );
}

function digestOf(prompt: string, seed: number, choice: number): Buffer {
  return createHash('sha256').update(`${seed},${choice},${prompt}`).digest();
}

function pieceOf(value: number): string {
  const rest = value >>> 4;
  switch (value % 16) {
    case 0:
      return String.fromCodePoint(0x1f600 + (rest % 64));
    case 1:
      return `${String.fromCodePoint(0x4e00 + (rest % 20000))} `;
    case 2:
      return String.fromCodePoint(0xe0 + (rest % 31), 0x400 + ((rest >>> 5) % 256));
    case 3:
      return `"\\${String.fromCharCode(97 + (rest % 26))}\n`;
    default:
      return `${[1, 26, 676].map((step) => String.fromCharCode(97 + (Math.floor(rest / step) % 26))).join('')} `;
  }
}

/** What the engine is asked to go on from: one prompt, or several for completions and embeddings. */
export function promptsOf(path: string, body: Fields): Prompt[] {
  if (path === '/v1/chat/completions') {
    return Array.isArray(body.messages) ? [ofText(chatText(body.messages))] : [];
  }
  if (path === '/v1/responses') return [ofText(responsesText(body))];
  const given = path === '/v1/embeddings' ? body.input : body.prompt;
  if (typeof given === 'string') return [ofText(given)];
  if (!Array.isArray(given) || given.length === 0) return [];
  if (given.every((item) => typeof item === 'number')) return [ofIds(given)];
  return given.map((item) => (Array.isArray(item) ? ofIds(item) : ofText(String(item))));
}

/** The chat template. */
export function chatText(messages: readonly unknown[]): string {
  const turns = messages.map((message) => {
    const { role, content } = Object(message);
    return `${role}: ${said(content)}\n`;
  });
  return `${turns.join('')}assistant: `;
}

function responsesText({ input, instructions }: Fields): string {
  const system = typeof instructions === 'string' ? [{ role: 'system', content: instructions }] : [];
  return chatText([...system, ...(Array.isArray(input) ? input : [{ role: 'user', content: input }])]);
}

function said(content: unknown): string {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) return '';
  return content.map((part) => (typeof part?.text === 'string' ? part.text : JSON.stringify(part))).join('');
}

function ofText(text: string): Prompt {
  return { text, tokens: countTokens(text) };
}

function ofIds(ids: readonly unknown[]): Prompt {
  return { text: ids.join(' '), tokens: ids.length };
}
