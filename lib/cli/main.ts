#!/usr/bin/env node
/**
 * The command `gimbal`. Here are the process's own matters only: arguments, signals, exit code; the rest is in run.ts.
 */
import { EXIT } from './exit.js';
import { run } from './run.js';

async function main(): Promise<void> {
  const abort = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      // The second one does not wait. Files appear by rename, so there is still nothing half-written.
      if (abort.signal.aborted) process.exit(EXIT.interrupted);
      abort.abort();
    });
  }
  // A reader that has seen enough (`gimbal plan … | head`) is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(EXIT.ok);
    throw error;
  });
  process.exitCode = await run(process.argv.slice(2), {
    output: { stdout: process.stdout, stderr: process.stderr },
    signal: abort.signal,
    onHangUp: (call) => process.on('SIGHUP', call),
  });
}

void main();
