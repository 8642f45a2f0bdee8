/**
 * What answers look like on the wire, as vLLM and SGLang write them. An `Answer` is told what happens and gives the events of a
 * stream, or in the end the whole document; when it is sent and what befalls it on the way is not its matter.
 *
 * vLLM leaves out fields that are not set, and its last token carries the reason for the end; SGLang writes them as null, and
 * sends an event of its own for the end. Both send the role first, the usage only where `stream_options.include_usage` is set.
 * vLLM's usage has `prompt_tokens_details` as with its option for it on; SGLang's has it where something was cached.
 */
import { embedding, type Fields, type Prompt } from './text.js';

export type Kind = 'vllm' | 'sglang';
export type FinishReason = 'stop' | 'length';

export interface Usage {
  promptTokens: number;
  outputTokens: number;
  cachedTokens: number;
}

export interface Question {
  kind: Kind;
  id: string;
  model: string;
  createdSeconds: number;
  body: Fields;
  prompts: readonly Prompt[];
  /** Over all prompts. */
  choices: number;
  finishReason: FinishReason;
  /** `routed_experts` of a choice; undefined where the engine does not say. */
  routed?(choice: number): string;
  /** Whether streams say it too. */
  routedInStreams?: boolean;
}

/** Events are whole blocks of text, with the empty line at their end. */
export interface Answer {
  /** Together with the headers. */
  accepted(): string[];
  /** Before the first token. */
  opened(): string[];
  token(choice: number, text: string, last: boolean): string[];
  closed(texts: readonly string[], usage: Usage): string[];
  /** Of a request that does not stream. */
  whole(texts: readonly string[], usage: Usage): object;
}

export function answerTo(path: string, question: Question): Answer {
  if (path === '/v1/chat/completions') return chatAnswer(question);
  return path === '/v1/responses' ? responsesAnswer(question) : completionAnswer(question);
}

const data = (value: unknown) => `data: ${typeof value === 'string' ? value : JSON.stringify(value)}\n\n`;
const DONE = data('[DONE]');

function usageOf(kind: Kind, { promptTokens, outputTokens, cachedTokens }: Usage) {
  const details = kind === 'vllm' || cachedTokens > 0 ? { cached_tokens: cachedTokens } : null;
  return {
    prompt_tokens: promptTokens,
    total_tokens: promptTokens + outputTokens,
    completion_tokens: outputTokens,
    prompt_tokens_details: details,
  };
}

function wantsUsage({ stream_options: options }: Fields): boolean {
  return typeof options === 'object' && options !== null && (options as Fields).include_usage === true;
}

function chatAnswer(question: Question): Answer {
  const { kind, choices, finishReason } = question;
  const head = headOf(question, 'chat.completion.chunk');
  const vllm = kind === 'vllm';
  const nulls = vllm ? {} : { reasoning_content: null, tool_calls: null };
  const ended = vllm ? { stop_reason: null } : { matched_stop: null };
  const tokenIds = vllm ? { token_ids: null } : {};
  const chunk = (index: number, delta: Fields, reason: FinishReason | null, more: Fields) =>
    data({
      ...head,
      choices: [{ index, delta: { ...delta, ...nulls }, logprobs: null, finish_reason: reason, ...more }],
    });
  const said = (content: string | null) => (vllm ? { content } : { role: null, content });
  const all = Array.from({ length: choices }, (_, n) => n);
  return {
    accepted: () => [],
    opened: () => all.map((n) => chunk(n, { role: 'assistant', content: '' }, null, vllm ? {} : ended)),
    token: (n, content, last) => {
      const routed = question.routedInStreams ? routedOf(question, n) : {};
      if (vllm && last) return [chunk(n, said(content), finishReason, { ...ended, ...tokenIds, ...routed })];
      return [chunk(n, said(content), null, vllm ? tokenIds : ended)];
    },
    closed: (_, usage) => [
      ...(vllm ? [] : all.map((n) => chunk(n, said(null), finishReason, ended))),
      ...sglextEvents(question, head),
      ...usageEvents(question, head, usage),
      DONE,
    ],
    whole: (texts, usage) => ({
      ...headOf(question, 'chat.completion'),
      choices: texts.map((content, index) => ({
        index,
        message: {
          role: 'assistant',
          content,
          refusal: null,
          reasoning_content: null,
          tool_calls: vllm ? [] : null,
        },
        logprobs: null,
        finish_reason: finishReason,
        ...ended,
        ...routedOf(question, index),
      })),
      usage: usageOf(kind, usage),
      ...sglextOf(question),
    }),
  };
}

function completionAnswer(question: Question): Answer {
  const { kind, choices, finishReason } = question;
  const head = headOf(question, 'text_completion');
  const choice = (index: number, text: string, reason: FinishReason | null) => ({
    index,
    text,
    logprobs: null,
    finish_reason: reason,
    ...(kind === 'vllm' ? { stop_reason: null } : { matched_stop: null }),
  });
  const all = Array.from({ length: choices }, (_, n) => n);
  const chunk = (n: number, text: string, reason: FinishReason | null) =>
    data({ ...head, choices: [choice(n, text, reason)] });
  return {
    accepted: () => [],
    opened: () => [],
    token: (n, text, last) => [chunk(n, text, kind === 'vllm' && last ? finishReason : null)],
    closed: (_, usage) => [
      ...(kind === 'vllm' ? [] : all.map((n) => chunk(n, '', finishReason))),
      ...sglextEvents(question, head),
      ...usageEvents(question, head, usage),
      DONE,
    ],
    whole: (texts, usage) => ({
      ...head,
      choices: texts.map((text, n) => ({ ...choice(n, text, finishReason), ...routedOf(question, n) })),
      usage: usageOf(kind, usage),
      ...sglextOf(question),
    }),
  };
}

function routedOf({ kind, routed }: Question, choice: number): Fields {
  return kind === 'vllm' && routed !== undefined ? { routed_experts: routed(choice) } : {};
}

function sglextOf({ kind, routed }: Question): Fields {
  return kind === 'sglang' && routed !== undefined ? { sglext: { routed_experts: routed(0) } } : {};
}

function sglextEvents(question: Question, head: Fields): string[] {
  const extension = sglextOf(question);
  return 'sglext' in extension ? [data({ ...head, choices: [], usage: null, ...extension })] : [];
}

function headOf({ id, createdSeconds, model }: Question, object: string): Fields {
  return { id, object, created: createdSeconds, model };
}

function usageEvents({ kind, body }: Question, head: Fields, usage: Usage): string[] {
  return wantsUsage(body) ? [data({ ...head, choices: [], usage: usageOf(kind, usage) })] : [];
}

/** Events that name themselves, numbered, with no `[DONE]` at the end. */
function responsesAnswer({ id, model, createdSeconds, finishReason }: Question): Answer {
  const itemId = id.replace('resp_', 'msg_');
  let sequence = 0;
  const event = (type: string, fields: Fields) =>
    `event: ${type}\n${data({ ...fields, sequence_number: sequence++, type })}`;
  const item = (content: readonly unknown[], status: string) => ({
    id: itemId,
    type: 'message',
    role: 'assistant',
    content,
    status,
  });
  const part = (text: string) => ({ annotations: [], text, type: 'output_text', logprobs: null });
  const status = finishReason === 'length' ? 'incomplete' : 'completed';
  const document = (state: string, output: readonly unknown[], usage: Fields | null) => ({
    id,
    created_at: createdSeconds,
    incomplete_details: state === 'incomplete' ? { reason: 'max_output_tokens' } : null,
    instructions: null,
    metadata: null,
    model,
    object: 'response',
    output,
    parallel_tool_calls: true,
    temperature: 1,
    tool_choice: 'auto',
    tools: [],
    top_p: 1,
    status: state,
    usage,
  });
  const whole = (texts: readonly string[], { promptTokens, outputTokens, cachedTokens }: Usage) =>
    document(
      status,
      texts.map((text) => item([part(text)], 'completed')),
      {
        input_tokens: promptTokens,
        input_tokens_details: { cached_tokens: cachedTokens },
        output_tokens: outputTokens,
        output_tokens_details: { reasoning_tokens: 0 },
        total_tokens: promptTokens + outputTokens,
      },
    );
  const at = { output_index: 0, item_id: itemId, content_index: 0 };
  return {
    accepted: () =>
      ['response.created', 'response.in_progress'].map((type) =>
        event(type, { response: document('in_progress', [], null) }),
      ),
    opened: () => [
      event('response.output_item.added', { output_index: 0, item: item([], 'in_progress') }),
      event('response.content_part.added', { ...at, part: part('') }),
    ],
    token: (_, delta) => [event('response.output_text.delta', { ...at, delta, logprobs: [] })],
    closed: ([text = ''], usage) => [
      event('response.output_text.done', { ...at, text, logprobs: [] }),
      event('response.content_part.done', { ...at, part: part(text) }),
      event('response.output_item.done', { output_index: 0, item: item([part(text)], 'completed') }),
      event('response.completed', { response: whole([text], usage) }),
    ],
    whole,
  };
}

export function embeddingsDocument(
  { kind, id, model, createdSeconds, body, prompts }: Question,
  seed: number,
  usage: Usage,
): object {
  const dimensions = typeof body.dimensions === 'number' ? body.dimensions : 8;
  const encode = (values: number[]) =>
    body.encoding_format === 'base64'
      ? Buffer.from(Float32Array.from(values).buffer).toString('base64')
      : values;
  return {
    ...(kind === 'vllm' ? { id, created: createdSeconds } : {}),
    object: 'list',
    model,
    data: prompts.map(({ text }, index) => ({
      index,
      object: 'embedding',
      embedding: encode(embedding(text, dimensions, seed)),
    })),
    usage: usageOf(kind, usage),
  };
}

export function modelsDocument(kind: Kind, model: string, maxTokens: number, createdSeconds: number): object {
  const card = {
    id: model,
    object: 'model',
    created: createdSeconds,
    owned_by: kind,
    root: model,
    parent: null,
    max_model_len: maxTokens,
  };
  return { object: 'list', data: [kind === 'vllm' ? { ...card, permission: [] } : card] };
}

/** vLLM nests its errors, SGLang does not. */
export function errorDocument(
  kind: Kind,
  status: number,
  message: string,
  param: string | null = null,
): object {
  const error = { message, type: ERROR_TYPES[status] ?? 'InternalServerError', param, code: status };
  return kind === 'vllm' ? { error } : { object: 'error', ...error };
}

const ERROR_TYPES: Readonly<Record<number, string>> = {
  400: 'BadRequestError',
  404: 'NotFoundError',
  429: 'RateLimitError',
  503: 'ServiceUnavailableError',
};

/** What stands in a stream whose engine has died under it. */
export function errorEvents(message: string): string {
  return `${data(errorDocument('vllm', 500, message))}${DONE}`;
}
