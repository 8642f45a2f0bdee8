/** What a POST asks for, and the answering of it: the request is checked, its sequences run on a rank, their tokens go out. */
import { createHash } from 'node:crypto';
import type http from 'node:http';
import type { Engine } from './engine.js';
import type { Outlet } from './faults.js';
import { blockNames, Sequence } from './rank.js';
import { routedText } from './routing.js';
import { answerPieces, type Fields, type Prompt, promptsOf } from './text.js';
import { answerTo, embeddingsDocument, type Question, type Usage } from './wire.js';

export interface Asked {
  id: string;
  path: string;
  headers: http.IncomingHttpHeaders;
  body: Fields;
}

/** What an exchange notes of itself, for the log. */
export interface Notes {
  rank?: number;
  firstTokenMs?: number;
  outputTokens: number;
  cachedTokens: number;
}

/** A request that the engine refuses. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export const EXCHANGES: readonly string[] = [
  '/v1/chat/completions',
  '/v1/completions',
  '/v1/responses',
  '/v1/embeddings',
];
const DEFAULT_OUTPUT_TOKENS = 16;
const JSON_TYPE = { 'content-type': 'application/json' };

/**
 * Returns what takes the request back, for a client that has left.
 *
 * @throws Refusal
 */
export function exchange(engine: Engine, asked: Asked, outlet: Outlet, notes: Notes): () => void {
  const { path, body } = asked;
  checkModel(engine, body);
  const prompts = promptsOf(path, body);
  if (prompts.length === 0) throw new Refusal(400, 'A prompt is required.');
  const outputTokens = path === '/v1/embeddings' ? 0 : outputTokensOf(body);
  const n = path === '/v1/embeddings' || path === '/v1/responses' ? 1 : numberOf(body, 'n', 1);
  if (n < 1) throw new Refusal(400, `n must be at least 1, got ${n}.`);
  checkLength(engine, prompts, outputTokens);
  const rank = pinOf(engine, asked) ?? engine.pick();
  notes.rank = rank;
  const question: Question = {
    kind: engine.kind,
    id: asked.id,
    model: typeof body.model === 'string' ? body.model : engine.model,
    createdSeconds: Math.floor(Date.now() / 1000),
    body,
    prompts,
    choices: prompts.length * n,
    finishReason: askedTokens(body) === undefined ? 'stop' : 'length',
    ...routingOf(engine, body, rank, (choice) => prompts[Math.floor(choice / n)]!.tokens + outputTokens - 1),
  };
  const run = { engine, rank, question, path, outputTokens, n, outlet, notes };
  const sequences = outputTokens === 0 ? embed(run) : generate(run);
  engine.submit(rank, sequences);
  return () => {
    for (const sequence of sequences) engine.ranks[rank]!.abort(sequence);
  };
}

/** What the engine will say of it; a token that was only just made has not been routed. */
function routingOf(
  { kind, routing }: Engine,
  body: Fields,
  rank: number,
  tokensOf: (choice: number) => number,
): Partial<Question> {
  if (routing === undefined || (kind === 'sglang' && body.return_routed_experts !== true)) return {};
  const taste = routing.byTopic === true ? numberOf(body, 'topic', 0) : rank;
  return {
    routed: (choice) => routedText(routing, kind, taste, tokensOf(choice)),
    routedInStreams: routing.inStreams === true,
  };
}

interface Run {
  engine: Engine;
  rank: number;
  question: Question;
  path: string;
  outputTokens: number;
  /** Choices of each prompt. */
  n: number;
  outlet: Outlet;
  notes: Notes;
}

function generate({ engine, rank, question, path, outputTokens, n, outlet, notes }: Run): Sequence[] {
  const { prompts, choices, body, finishReason } = question;
  const answer = answerTo(path, question);
  const streams = body.stream === true;
  const texts = new Array<string>(choices).fill('');
  const send = (events: readonly string[]) => {
    for (const event of events) outlet.event(event);
  };
  const begin = () => {
    outlet.stream();
    send(answer.accepted());
  };
  let open = choices;
  const onToken = (choice: number, text: string, { outputTokens: made, cachedTokens }: Sequence) => {
    const last = made === outputTokens;
    if (notes.firstTokenMs === undefined) {
      notes.firstTokenMs = performance.timeOrigin + performance.now();
      notes.cachedTokens = cachedTokens;
      if (streams && engine.kind === 'sglang') begin();
      if (streams) send(answer.opened());
    }
    notes.outputTokens += 1;
    texts[choice] += text;
    if (streams) send(answer.token(choice, text, last));
    if (!last) return;
    engine.ranks[rank]!.finished[finishReason] += 1;
    open -= 1;
    if (open > 0) return;
    const usage = usageOf(prompts, notes);
    if (!streams) outlet.document(200, JSON.stringify(answer.whole(texts, usage)), JSON_TYPE);
    else {
      send(answer.closed(texts, usage));
      outlet.endStream();
    }
  };
  if (streams && engine.kind === 'vllm') begin();
  return texts.map((_, choice) => {
    const prompt = prompts[Math.floor(choice / n)]!;
    const piece = answerPieces(prompt.text, engine.seed, choice);
    return sequenceOf(engine, prompt, outputTokens, body, (sequence) =>
      onToken(choice, piece(sequence.outputTokens - 1), sequence),
    );
  });
}

function embed({ engine, rank, question, outlet, notes }: Run): Sequence[] {
  const { prompts, body } = question;
  let open = prompts.length;
  const onDone = (sequence: Sequence) => {
    engine.ranks[rank]!.finished.stop += 1;
    notes.cachedTokens += sequence.cachedTokens;
    open -= 1;
    if (open > 0) return;
    const document = embeddingsDocument(question, engine.seed, usageOf(prompts, notes));
    outlet.document(200, JSON.stringify(document), JSON_TYPE);
  };
  return prompts.map((prompt) => sequenceOf(engine, prompt, 0, body, onDone));
}

function sequenceOf(
  { prefixCache }: Engine,
  { text, tokens }: Prompt,
  outputTokens: number,
  body: Fields,
  onToken: (sequence: Sequence) => void,
): Sequence {
  const hash = (part: string) => createHash('sha1').update(part).digest('base64');
  const blocks = prefixCache ? blockNames(text, hash) : [];
  return new Sequence(Math.max(1, tokens), outputTokens, numberOf(body, 'priority', 0), blocks, onToken);
}

/** As the engines count: prompts once each, whatever their choices; cached tokens of the first. */
function usageOf(prompts: readonly Prompt[], { outputTokens, cachedTokens }: Notes): Usage {
  return { promptTokens: prompts.reduce((sum, { tokens }) => sum + tokens, 0), outputTokens, cachedTokens };
}

/** SGLang serves any name. */
function checkModel({ kind, model }: Engine, body: Fields): void {
  if (kind === 'sglang' || body.model === undefined || body.model === model) return;
  throw new Refusal(404, `The model \`${body.model}\` does not exist.`);
}

function checkLength({ timing }: Engine, prompts: readonly Prompt[], outputTokens: number): void {
  const most = Math.max(...prompts.map(({ tokens }) => tokens)) + outputTokens;
  if (most <= timing.kvTokens) return;
  throw new Refusal(
    400,
    `This model's maximum context length is ${timing.kvTokens} tokens. However, you requested ${most} tokens.`,
  );
}

/** vLLM takes what is no number for no pin, SGLang refuses it. */
function pinOf({ kind, ranks }: Engine, { headers, body }: Asked): number | undefined {
  const header = headers['x-data-parallel-rank'];
  const inBody = kind === 'sglang' ? (body.routed_dp_rank ?? body.data_parallel_rank) : undefined;
  const given = header ?? inBody ?? undefined;
  if (given === undefined) return undefined;
  const pin = Number(given);
  if (!Number.isInteger(pin) || given === '') {
    if (kind === 'vllm') return undefined;
    throw new Refusal(400, `Invalid X-Data-Parallel-Rank header: must be an integer, got '${given}'`);
  }
  if (pin >= 0 && pin < ranks.length) return pin;
  throw new Refusal(
    400,
    kind === 'vllm'
      ? `data_parallel_rank ${pin} is out of range [0, ${ranks.length}).`
      : `data_parallel_rank must be less than dp_size: ${ranks.length}`,
  );
}

function outputTokensOf(body: Fields): number {
  const tokens = askedTokens(body) ?? DEFAULT_OUTPUT_TOKENS;
  if (Number.isInteger(tokens) && tokens >= 1) return tokens;
  throw new Refusal(400, `max_tokens must be at least 1, got ${tokens}.`);
}

function askedTokens(body: Fields): number | undefined {
  const tokens = body.max_completion_tokens ?? body.max_tokens ?? body.max_output_tokens;
  return typeof tokens === 'number' ? tokens : undefined;
}

function numberOf(body: Fields, field: string, otherwise: number): number {
  const value = body[field];
  return typeof value === 'number' && Number.isInteger(value) ? value : otherwise;
}
