/** What a command needs of its surroundings; tests give their own. */
import type { Output } from './output.js';

export interface Context {
  output: Output;
  /** The command line as typed, without the interpreter: `['gimbal', 'plan', …]`. */
  command: readonly string[];
  /** Aborted by Ctrl-C. */
  signal: AbortSignal;
  version: string;
}
