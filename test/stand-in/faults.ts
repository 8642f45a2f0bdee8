/**
 * What can go wrong between an engine and whoever asks it, and the outlet through which every answer leaves, which sees to it.
 *
 * `after` says when: 'request', before any byte of an answer; 'headers', when they are out and nothing else; n, after n events of
 * a stream. The body of an answer that does not stream is cut in its middle, whatever n is.
 */
import type http from 'node:http';
import { errorEvents } from './wire.js';

export type After = 'request' | 'headers' | number;

export type Fault =
  /** The socket is destroyed. */
  | { kind: 'die'; after: After }
  /** Nothing more comes, and the connection stays. */
  | { kind: 'hang'; after: After }
  /** A stream ends as if whole. */
  | { kind: 'end'; after: number }
  /** A stream tells of the engine's death, as vLLM's do, and ends. */
  | { kind: 'error-event'; after: number }
  /** An error; `message` is what its document says. */
  | { kind: 'status'; status: number; retryAfter?: string; message?: string }
  | { kind: 'garbage'; what: Garbage }
  /** The answer begins so much later. */
  | { kind: 'delay'; delayMs: number }
  /** The body comes in pieces of so many bytes, one each interval. */
  | { kind: 'slow'; bytes: number; intervalMs: number }
  /** `/metrics` and the loads say what they said when the fault was set. */
  | { kind: 'stale' };

/** `too-long` and `too-short`: what content-length says, for the body that comes. */
export type Garbage = 'not-http' | 'html' | 'truncated-json' | 'too-long' | 'too-short';

/** Oddities that are no faults: whoever reads a stream must bear them. */
export interface SseOptions {
  /** A comment before each event. */
  comments?: boolean;
  /** Lines end in CR LF. */
  crlf?: boolean;
  /** Events are cut apart, within a character where there is one of several bytes; the rest comes with the next event. */
  split?: boolean;
  /** Each event has a field of so many characters more. */
  paddingChars?: number;
}

export class Outlet {
  readonly #response: http.ServerResponse;
  readonly #fault: Fault | undefined;
  readonly #sse: SseOptions;
  /** Events sent. */
  events = 0;
  /** Nothing more leaves. */
  shut = false;
  /** By the fault, where that ended it. */
  broken = false;
  #rest: Buffer = Buffer.alloc(0);
  #slow: { queue: Buffer; ended: boolean } | undefined;

  constructor(response: http.ServerResponse, fault: Fault | undefined, sse: SseOptions) {
    this.#response = response;
    this.#fault = fault;
    this.#sse = sse;
    this.#tripAfter('request');
  }

  /** At once, before there is a body. */
  stream(): void {
    if (this.shut) return;
    this.#response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' });
    this.#response.flushHeaders();
    this.#tripAfter('headers');
    this.#tripAfter(0);
  }

  event(text: string): void {
    if (this.shut) return;
    const { comments, crlf, split, paddingChars = 0 } = this.#sse;
    const padding = paddingChars === 0 ? '' : `"padding":"${'x'.repeat(paddingChars)}",`;
    const framed = `${comments ? ': still here\n\n' : ''}${text.replace('data: {', `data: {${padding}`)}`;
    const bytes = Buffer.from(crlf ? framed.replaceAll('\n', '\r\n') : framed);
    this.#write(split ? this.#cut(bytes) : bytes);
    this.events += 1;
    this.#tripAfter(this.events);
  }

  endStream(): void {
    if (this.shut) return;
    this.#write(this.#rest);
    this.#end();
  }

  document(status: number, body: string, headers: http.OutgoingHttpHeaders = {}): void {
    if (this.shut) return;
    const bytes = Buffer.from(body);
    this.#response.writeHead(status, { ...headers, 'content-length': bytes.length });
    if (this.#fault !== undefined) this.#response.flushHeaders();
    this.#tripAfter('headers');
    if (this.shut) return;
    if (this.#fault?.kind === 'die' || this.#fault?.kind === 'hang') {
      this.#write(bytes.subarray(0, bytes.length >>> 1));
      this.#trip();
      return;
    }
    this.#write(bytes);
    this.#end();
  }

  /** In the answer's stead; closes the connection. */
  garbage(what: Garbage): void {
    this.shut = true;
    this.broken = true;
    this.#response.socket?.end(garbage(what));
  }

  /** Calls back once the connection is gone or the answer is out. */
  onClose(callback: () => void): void {
    this.#response.once('close', callback);
  }

  /** Of all that is said so far, what leaves now. */
  #cut(bytes: Buffer): Buffer {
    const all = Buffer.concat([this.#rest, bytes]);
    const wide = all.findLastIndex((byte) => byte >= 0xc0);
    const at = wide === -1 ? all.length - 3 : wide + 1;
    this.#rest = all.subarray(at);
    return all.subarray(0, at);
  }

  #write(bytes: Buffer): void {
    if (bytes.length === 0) return;
    if (this.#fault?.kind !== 'slow') this.#response.write(bytes);
    else this.#drip(this.#fault).queue = Buffer.concat([this.#drip(this.#fault).queue, bytes]);
  }

  #end(): void {
    this.shut = true;
    if (this.#slow === undefined) this.#response.end();
    else this.#slow.ended = true;
  }

  #drip({ bytes, intervalMs }: Fault & { kind: 'slow' }): { queue: Buffer; ended: boolean } {
    if (this.#slow !== undefined) return this.#slow;
    const slow = { queue: Buffer.alloc(0), ended: false };
    const timer = setInterval(() => {
      if (slow.queue.length > 0) this.#response.write(slow.queue.subarray(0, bytes));
      slow.queue = slow.queue.subarray(bytes);
      if (slow.queue.length === 0 && slow.ended) this.#response.end();
    }, intervalMs);
    this.#response.once('close', () => clearInterval(timer));
    this.#slow = slow;
    return slow;
  }

  #tripAfter(point: After): void {
    if (this.#fault !== undefined && 'after' in this.#fault && this.#fault.after === point) this.#trip();
  }

  #trip(): void {
    const { kind } = this.#fault!;
    this.shut = true;
    this.broken = kind !== 'hang';
    switch (kind) {
      case 'die':
        // What was written in this turn is still to leave.
        setImmediate(() => this.#response.destroy());
        return;
      case 'error-event':
        this.#response.end(
          errorEvents('EngineCore encountered an issue. See stack trace (above) for the root cause.'),
        );
        return;
      case 'end':
        this.#response.end();
    }
  }
}

const PAGE = '<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>\n';
const DOCUMENT =
  '{"id":"chatcmpl-0","object":"chat.completion","created":0,"model":"m","choices":[],"usage":null}';

function garbage(what: Garbage): string {
  const head = 'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length:';
  const texts: Record<Garbage, string> = {
    'not-http': '\u0000\u0016SSH-2.0-stand-in\r\n',
    html: `HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/html\r\ncontent-length: ${PAGE.length}\r\n\r\n${PAGE}`,
    'truncated-json': `${head} ${DOCUMENT.length >>> 1}\r\n\r\n${DOCUMENT.slice(0, DOCUMENT.length >>> 1)}`,
    'too-long': `${head} ${DOCUMENT.length + 100}\r\n\r\n${DOCUMENT}`,
    'too-short': `${head} ${DOCUMENT.length - 10}\r\n\r\n${DOCUMENT}`,
  };
  return texts[what];
}
