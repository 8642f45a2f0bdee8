/**
 * Whether the client of a request is still there. An AbortSignal takes as long to make as an engine takes to pick, so there is one
 * only for those who wait.
 */
import type { ServerResponse } from 'node:http';

export class Client {
  #isGone = false;
  #abort: AbortController | undefined;
  /** Called when the client goes before it has its answer. One call at a time. */
  onGone: (() => void) | undefined;

  constructor(response: ServerResponse) {
    response.once('close', () => {
      if (response.writableFinished) return;
      this.#isGone = true;
      this.#abort?.abort(gone());
      this.onGone?.();
    });
  }

  get isGone(): boolean {
    return this.#isGone;
  }

  get signal(): AbortSignal {
    this.#abort ??= new AbortController();
    if (this.#isGone) this.#abort.abort(gone());
    return this.#abort.signal;
  }
}

function gone(): Error {
  return new Error('the client has gone');
}
