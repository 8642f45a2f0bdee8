/**
 * Takes `routed_experts` out of an answer while it passes, and gives what stood in it to whoever counts. Answers in JSON and streams
 * of events alike: base64 and JSON's escapes see to it that the name in quotes and a colon behind it are nothing but a member. All
 * other bytes stay as they are. Held back is what may be the beginning of the member, some bytes, and never the end of an event.
 *
 * vLLM has the member in each choice; SGLang has it in `sglext`, which goes too where there is nothing else in it.
 */

const NAME = '"routed_experts"';
const KEY = Buffer.from(NAME);
const WRAPPER = '"sglext":{';
/** What the member, or what goes with it, begins with. */
const BEGINNINGS = [NAME, `${WRAPPER}${NAME}`].map((text) => Buffer.from(text));
const NULL = Buffer.from('null');
const NONE = Buffer.alloc(0);
/** Around colons and commas; engines write none, or one. */
const MOST_SPACE = 16;
const [QUOTE, BACKSLASH, COLON, COMMA, CLOSING] = [0x22, 0x5c, 0x3a, 0x2c, 0x7d];

/** Gets the text of the first member of an answer, in pieces; those stay as they are. */
export interface RoutedText {
  write(piece: Buffer): void;
  end(): void;
}

export interface RoutedExpertsFilterOptions {
  /** Else all passes, and is only looked at. */
  strips: boolean;
  text?: RoutedText;
}

/** A member that is being taken out. */
interface Member {
  /** What goes with it if its object has no other, and else comes back: SGLang's wrapper. Empty for vLLM. */
  wrapper: Buffer;
  /** It was the first of its object: so the comma behind it goes with it, and not the one before. */
  isFirst: boolean;
}

export class RoutedExpertsFilter {
  readonly #strips: boolean;
  #text: RoutedText | undefined;
  #held: Buffer = NONE;
  #member: Member | undefined;
  /** Within the member: its text goes on, or what is behind it is looked at. */
  #isInText = false;

  constructor({ strips, text }: RoutedExpertsFilterOptions) {
    this.#strips = strips;
    this.#text = text;
  }

  /** What the client gets for `chunk`; may be empty. */
  push(chunk: Buffer): Buffer {
    const stripped = this.#scan(this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]));
    return this.#strips ? stripped : chunk;
  }

  /** What is left at the end. */
  end(): Buffer {
    const rest = this.#held;
    this.#held = NONE;
    return this.#strips ? rest : NONE;
  }

  #scan(bytes: Buffer): Buffer {
    const out: Buffer[] = [];
    let at = 0;
    this.#held = NONE;
    while (at < bytes.length) {
      if (this.#isInText) at = this.#passText(bytes, at);
      else if (this.#member !== undefined) at = this.#closeMember(this.#member, bytes, at, out);
      else at = this.#passRest(bytes, at, out);
    }
    return out.length === 1 ? out[0]! : Buffer.concat(out);
  }

  /** Up to the quote that ends the member's text. */
  #passText(bytes: Buffer, from: number): number {
    let quote = bytes.indexOf(QUOTE, from);
    // Not base64, but a string all the same.
    while (quote > from && bytes[quote - 1] === BACKSLASH) quote = bytes.indexOf(QUOTE, quote + 1);
    const end = quote < 0 ? bytes.length : quote;
    if (end > from) this.#text?.write(bytes.subarray(from, end));
    if (quote < 0) return end;
    this.#isInText = false;
    this.#text?.end();
    // Choices of one prompt would count it again and again.
    this.#text = undefined;
    return quote + 1;
  }

  /** What is behind the member says what becomes of the comma and of the wrapper. */
  #closeMember({ wrapper, isFirst }: Member, bytes: Buffer, from: number, out: Buffer[]): number {
    const at = isFirst ? skipSpace(bytes, from) : from;
    if (at === bytes.length) return at;
    this.#member = undefined;
    if (wrapper.length === 0) return isFirst && bytes[at] === COMMA ? at + 1 : at;
    if (bytes[at] === CLOSING) {
      // The wrapper is gone; where no comma went with it, the one behind it does.
      if (wrapper[0] !== COMMA) this.#member = { wrapper: NONE, isFirst: true };
      return at + 1;
    }
    out.push(wrapper);
    return bytes[at] === COMMA ? at + 1 : at;
  }

  /** Up to the next member, or to where one may begin. */
  #passRest(bytes: Buffer, from: number, out: Buffer[]): number {
    const key = bytes.indexOf(KEY, from);
    if (key < 0) return this.#hold(bytes, from, beginningIn(bytes, from), out);
    // A quote that is escaped does not begin a name.
    const value = bytes[key - 1] === BACKSLASH ? undefined : valueAt(bytes, key + KEY.length);
    const start = startOf(bytes, key, from);
    if (value === 'unknown') return this.#hold(bytes, from, start, out);
    if (value === undefined) {
      out.push(bytes.subarray(from, key + KEY.length));
      return key + KEY.length;
    }
    out.push(bytes.subarray(from, start));
    // With the comma before, where there is one: it stays if the wrapper does.
    const before = bytes.subarray(start, key);
    const wrapper = before.includes(WRAPPER) ? before : NONE;
    this.#member = { wrapper, isFirst: wrapper.length > 0 || before[0] !== COMMA };
    this.#isInText = value.isText;
    return value.from;
  }

  #hold(bytes: Buffer, from: number, start: number, out: Buffer[]): number {
    if (start > from) out.push(bytes.subarray(from, start));
    this.#held = bytes.subarray(start);
    return bytes.length;
  }
}

/** Of the value behind a name: a text, or null; undefined where it is neither, or no value at all; unknown where more must come. */
function valueAt(bytes: Buffer, from: number): { isText: boolean; from: number } | 'unknown' | undefined {
  const colon = skipSpace(bytes, from);
  if (colon === bytes.length) return 'unknown';
  if (bytes[colon] !== COLON) return undefined;
  const value = skipSpace(bytes, colon + 1);
  if (value === bytes.length) return 'unknown';
  if (bytes[value] === QUOTE) return { isText: true, from: value + 1 };
  const word = bytes.subarray(value, value + NULL.length);
  if (word.equals(NULL)) return { isText: false, from: value + NULL.length };
  return NULL.subarray(0, word.length).equals(word) ? 'unknown' : undefined;
}

/** Where what goes with a member begins, not before `least`: its wrapper, and the comma before it. */
function startOf(bytes: Buffer, key: number, least: number): number {
  const wrapper = key - WRAPPER.length;
  const start = wrapper >= least && bytes.toString('latin1', wrapper, key) === WRAPPER ? wrapper : key;
  let comma = start - 1;
  while (comma > least && start - comma <= MOST_SPACE && isSpace(bytes[comma]!)) comma -= 1;
  return comma >= least && bytes[comma] === COMMA ? comma : start;
}

/** Where at the end of the bytes a member may begin; their length where none does. */
function beginningIn(bytes: Buffer, least: number): number {
  const longest = Math.max(...BEGINNINGS.map(({ length }) => length));
  let start = bytes.length;
  for (let length = Math.min(longest, bytes.length - least); length > 0; length--) {
    const tail = bytes.subarray(bytes.length - length);
    if (!BEGINNINGS.some((text) => text.subarray(0, length).equals(tail))) continue;
    start -= length;
    break;
  }
  // A quote that is escaped is none.
  if (start > least && bytes[start - 1] === BACKSLASH) return start - 1;
  return startOf(bytes, start, least);
}

function skipSpace(bytes: Buffer, from: number): number {
  let at = from;
  while (at < bytes.length && at - from < MOST_SPACE && isSpace(bytes[at]!)) at += 1;
  return at;
}

function isSpace(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
}
