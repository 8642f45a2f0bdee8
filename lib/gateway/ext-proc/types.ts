/** What the endpoint picker needs of the rest of the gateway. */
import type { AcquireOptions } from '../fleet.js';
import type { Logger } from '../log.js';
import type { PromptSize } from '../tokens.js';
import type { Assignment, FleetEngine, FleetRequest } from '../types.js';
import type { AnswerEnd } from './answer.js';
import type { HeaderRecord } from './messages.js';

/** What dispatch goes by, of a request, and what its answer's usage is to be compared with. */
export type RequestFacts = Omit<FleetRequest, 'id' | 'arrivalMs'> & { model?: string; size?: PromptSize };

/** A fleet, as the picker sees it. */
export interface Picker {
  readonly targets: readonly FleetEngine[];
  /** @throws RefusedError; what `options.signal` is aborted with */
  acquire(request: FleetRequest, options: AcquireOptions): Promise<Assignment>;
  reportFailure(target: FleetEngine, reason: string): void;
  reportSuccess(target: FleetEngine): void;
}

/** The gateway's limits of these names. */
export interface ExtProcLimits {
  bodyBytes: number;
  requestMs: number;
  firstByteMs: number;
  idleMs: number;
}

/** How a request went that was placed. */
export interface Outcome extends AnswerEnd {
  /** Without its query; as the client wrote it. */
  path: string;
  facts: RequestFacts;
  target: FleetEngine;
  /** In the gateway's queue. */
  waitedMs: number;
}

export interface ExtProcEvents {
  /** The request has left the ledger. */
  ended(outcome: Outcome): void;
  /** It never came in. */
  refused(path: string, status: number, totalMs: number): void;
}

export interface ExtProcParts {
  picker: Picker;
  /**
   * `path` is without its query.
   *
   * @throws GimbalError GIMBAL_FORMAT: the client is told what is wrong
   */
  inspect(path: string, body: Buffer, headers: HeaderRecord): RequestFacts;
  log: Logger;
  limits: ExtProcLimits;
  events?: ExtProcEvents;
}
