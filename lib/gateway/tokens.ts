/**
 * How many tokens a prompt has, without its model's tokenizer. A first guess weighs the text's ASCII bytes, its other characters
 * and its messages; what engines say in `usage` corrects the guess by a factor for each model, the mean of about the last
 * thirty-two. Dispatch needs the size of prefill to within some ten percent: it is compared with that of other requests.
 */
import { MOST_TOKENS } from '../dispatch/validate.js';

/** What a prompt is made of. */
export interface PromptSize {
  asciiBytes: number;
  otherCharacters: number;
  messages: number;
  /** Images, sounds, files: whatever is no text. */
  attachments: number;
  /** What came as token ids, or is known otherwise. */
  tokens: number;
}

/** English and code in the vocabularies of today's models. */
const TOKENS_PER_ASCII_BYTE = 0.25;
/** Chinese, Japanese, Korean and Cyrillic lie between 0.5 and 1. */
const TOKENS_PER_OTHER_CHARACTER = 0.75;
/** Of a chat template. */
const TOKENS_PER_MESSAGE = 4;
/** An image of about 800 × 600 in today's vision encoders. */
const TOKENS_PER_ATTACHMENT = 600;

const MEMORY = 32;
/** A usage that says otherwise is of another prompt, or of a model that repeats it. */
const MOST_FACTOR = 8;
const MOST_MODELS = 64;

export class TokenEstimator {
  /** By model: the logarithm of the factor, and how many answers it is the mean of. */
  readonly #factors = new Map<string, { log: number; answers: number }>();

  /** At least 1, and no more than the scheduler takes. */
  estimate(model: string, size: PromptSize): number {
    const guess = guessOf(size);
    const factor = Math.exp(this.#factors.get(model)?.log ?? 0);
    return Math.min(MOST_TOKENS, Math.max(1, Math.round(size.tokens + guess * factor)));
  }

  /** An engine has counted the prompt. */
  learn(model: string, size: PromptSize, promptTokens: number): void {
    const guess = guessOf(size);
    const counted = promptTokens - size.tokens;
    if (!(guess > 0 && counted > 0)) return;
    const ratio = counted / guess;
    if (!(ratio <= MOST_FACTOR && ratio >= 1 / MOST_FACTOR)) return;
    const { log, answers } = this.#factors.get(model) ?? { log: 0, answers: 0 };
    const known = Math.min(answers + 1, MEMORY);
    // The models that were heard of last are kept.
    this.#factors.delete(model);
    this.#factors.set(model, { log: log + (Math.log(ratio) - log) / known, answers: known });
    if (this.#factors.size > MOST_MODELS) this.#factors.delete(this.#factors.keys().next().value!);
  }
}

function guessOf({ asciiBytes, otherCharacters, messages, attachments }: PromptSize): number {
  return (
    asciiBytes * TOKENS_PER_ASCII_BYTE +
    otherCharacters * TOKENS_PER_OTHER_CHARACTER +
    messages * TOKENS_PER_MESSAGE +
    attachments * TOKENS_PER_ATTACHMENT
  );
}

export const NOTHING: Readonly<PromptSize> = {
  asciiBytes: 0,
  otherCharacters: 0,
  messages: 0,
  attachments: 0,
  tokens: 0,
};

/** Adds a text to a size. `bytes` is its length in UTF-8, from which the rest follows without a look at every character. */
export function addText(size: PromptSize, text: string): void {
  const bytes = Buffer.byteLength(text);
  // A character beyond ASCII takes 2 to 4 bytes, mostly 3, and one unit of UTF-16, or 2 for 4 bytes.
  const others = Math.round((bytes - text.length) / 2);
  size.otherCharacters += others;
  size.asciiBytes += Math.max(0, text.length - others);
}
