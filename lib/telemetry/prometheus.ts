/**
 * Prometheus' text format, version 0.0.4, down to its samples: names, labels, values, times. Strict, since what answers may be a
 * proxy's error page or half a body: a line that is wrong is an error with its number, and so is a text that is cut off.
 *
 * Series that nobody asked for are skipped after their name. Engines expose thousands of histogram buckets, many times a second.
 */
import { formatError, quote } from '../import/limits.js';

/** Characters of one text. An engine with 16 ranks stays below 2 MB. */
export const MAX_METRICS_CHARS = 8 * 1024 * 1024;
/** Characters of one line that is read. Labels hold names of models and a few settings. */
const MAX_LINE_CHARS = 65_536;

const NAME = /[a-zA-Z_:][a-zA-Z0-9_:]*/y;
const BLANK = /[ \t]*/y;
const LABEL = /[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"([^"\\]*(?:\\[\\"n][^"\\]*)*)"[ \t]*/y;
const VALUE = /[ \t]*([^ \t]+)(?:[ \t]+(-?\d{1,16}))?[ \t]*$/y;
const NUMBER = /^[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|inf|nan)$/i;

export interface PrometheusSample {
  name: string;
  labels: ReadonlyMap<string, string>;
  /** May be NaN or infinite. */
  value: number;
  /** By the clock of the server; most give none. */
  timestampMs?: number;
  /** Counted from 1. */
  line: number;
}

export interface PrometheusText {
  samples: PrometheusSample[];
  /** Of all series, those included that were skipped. */
  names: ReadonlySet<string>;
}

/**
 * Series may repeat, as they stand in the text; `only` names the series to read.
 *
 * @throws GimbalError GIMBAL_FORMAT (names the line)
 */
export function parsePrometheus(text: string, source: string, only?: ReadonlySet<string>): PrometheusText {
  if (text.length > MAX_METRICS_CHARS) {
    throw formatError(source, '', `at most ${MAX_METRICS_CHARS} characters`, `${text.length}`);
  }
  const samples: PrometheusSample[] = [];
  const names = new Set<string>();
  let line = 1;
  for (let at = 0; at < text.length; line++) {
    const end = text.indexOf('\n', at);
    if (end < 0) throw formatError(source, `line ${line}`, 'a line feed at its end', 'the end of the text');
    const start = skip(BLANK, text, at);
    at = end + 1;
    if (start >= end || text[start] === '#') continue;
    const nameEnd = Math.min(skip(NAME, text, start), end);
    const name = text.slice(start, nameEnd);
    if (nameEnd === start || !endsName(text[nameEnd]!)) {
      throw formatError(source, `line ${line}`, 'the name of a series', received(text.slice(start, end)));
    }
    names.add(name);
    if (only !== undefined && !only.has(name)) continue;
    samples.push(parseRest(name, text.slice(nameEnd, end), source, line));
  }
  return { samples, names };
}

/** What follows the name: `{label="value", …}`, which may be missing, a value, and a time, which may be missing. */
function parseRest(name: string, rest: string, source: string, line: number): PrometheusSample {
  const wrong = (expected: string, from: number) =>
    formatError(source, `line ${line}, ${name}`, expected, received(rest.slice(from)));
  if (rest.length > MAX_LINE_CHARS) throw wrong(`at most ${MAX_LINE_CHARS} characters`, 0);
  const labels = new Map<string, string>();
  let at = skip(BLANK, rest, 0);
  if (rest[at] === '{') {
    at = skip(BLANK, rest, at + 1);
    while (rest[at] !== '}') {
      const label = match(LABEL, rest, at);
      if (label === null) throw wrong('label="value" or }', at);
      if (labels.has(label[1]!)) throw wrong('each label once', at);
      labels.set(label[1]!, unescaped(label[2]!));
      at = skip(BLANK, rest, LABEL.lastIndex);
      if (rest[at] === ',') at = skip(BLANK, rest, at + 1);
      else if (rest[at] !== '}') throw wrong('a comma or }', at);
    }
    at += 1;
  }
  const tail = match(VALUE, rest, at);
  if (tail === null || !NUMBER.test(tail[1]!)) throw wrong('a number and the end of the line', at);
  const value = toNumber(tail[1]!);
  return tail[2] === undefined
    ? { name, labels, value, line }
    : { name, labels, value, line, timestampMs: Number(tail[2]) };
}

function match(pattern: RegExp, text: string, at: number): RegExpExecArray | null {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Where `pattern`, begun at `at`, ends; `at` where it does not match. */
function skip(pattern: RegExp, text: string, at: number): number {
  pattern.lastIndex = at;
  return pattern.test(text) ? pattern.lastIndex : at;
}

function endsName(character: string): boolean {
  return character === '{' || character === ' ' || character === '\t';
}

function unescaped(value: string): string {
  if (!value.includes('\\')) return value;
  return value.replace(/\\(.)/g, (_, escaped: string) => (escaped === 'n' ? '\n' : escaped));
}

function toNumber(word: string): number {
  if (/nan$/i.test(word)) return Number.NaN;
  if (!/inf$/i.test(word)) return Number(word);
  return word.startsWith('-') ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
}

function received(text: string): string {
  return text === '' ? 'the end of the line' : quote(text);
}
