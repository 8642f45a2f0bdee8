/** What a command needs of its surroundings; tests give their own. */
import type { Output } from './output.js';

export interface Context {
  output: Output;
  /** The command line as typed, without the interpreter: `['gimbal', 'plan', …]`. */
  command: readonly string[];
  /** Aborted by Ctrl-C, and by a SIGTERM. */
  signal: AbortSignal;
  /** Calls back at each SIGHUP: whoever runs on shall read its configuration again. */
  onHangUp(call: () => void): void;
  version: string;
}
