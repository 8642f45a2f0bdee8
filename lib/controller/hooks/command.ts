/**
 * A hook that runs a program: without a shell, with the change as JSON on its standard input and the plan's name in its environment.
 * Exit code 0 says that the engines have it. When time is up its whole process group is killed, so that nothing of it goes on.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { checkKeys, describe, invalid } from '../../checks.js';
import { mismatch } from '../../errors.js';
import type { ApplyHook } from '../types.js';
import { toWire } from './wire.js';

/** Of what the program says, kept for errors and for the plan's name. */
const MOST_OUTPUT = 4096;

export interface CommandHookOptions {
  /** The program, and its arguments. */
  command: readonly string[];
  /** Prints the name of the plan in force; nothing, or a code other than 0, where it cannot tell. Default: nobody is asked. */
  verify?: readonly string[];
  /** Besides the controller's own environment. */
  env?: Readonly<Record<string, string>>;
}

/** @throws GimbalError GIMBAL_INVALID_INPUT */
export function commandHook(options: CommandHookOptions): ApplyHook {
  checkKeys('options', options, ['command', 'verify', 'env']);
  const { verify } = options;
  const command = checkCommand('options.command', options.command);
  const env = { ...process.env, ...options.env };
  const apply: ApplyHook['apply'] = async (change, signal) => {
    const told = {
      ...env,
      GIMBAL_PLAN_ID: change.planId,
      GIMBAL_PREVIOUS_PLAN_ID: change.previousPlanId,
      GIMBAL_FENCING_TOKEN: String(change.fencingToken),
      GIMBAL_IS_ROLLBACK: change.isRollback ? '1' : '0',
      ...(change.file !== undefined && { GIMBAL_PLACEMENT_FILE: change.file }),
    };
    const { code, stderr } = await run(command, told, JSON.stringify(toWire(change)), signal);
    if (code === '0') return;
    const said = stderr.trim() === '' ? '' : `: ${stderr.trim()}`;
    throw mismatch('GIMBAL_IO', command[0]!, 'exit code 0', `${code}${said}`);
  };
  if (verify === undefined) return { apply };
  const asked = checkCommand('options.verify', verify);
  return {
    apply,
    verify: async (signal) => {
      const { code, stdout } = await run(asked, env, '', signal);
      const planId = stdout.trim();
      return code !== '0' || planId === '' ? undefined : planId;
    },
  };
}

function checkCommand(field: string, command: readonly string[]): readonly string[] {
  const isCommand = Array.isArray(command) && command.every((word) => typeof word === 'string');
  if (!isCommand || (command[0] ?? '') === '') {
    throw invalid(field, 'a program and its arguments, as an array of text', describe(command));
  }
  return command;
}

interface Ended {
  /** The exit code, or the signal's name. */
  code: string;
  stdout: string;
  stderr: string;
}

function run(
  [program, ...args]: readonly string[],
  env: NodeJS.ProcessEnv,
  input: string,
  signal: AbortSignal,
): Promise<Ended> {
  signal.throwIfAborted();
  // A group of its own, of which the program is the leader.
  const child = spawn(program!, args, { env, detached: true, stdio: ['pipe', 'pipe', 'pipe'] });
  const kill = () => killGroup(child);
  signal.addEventListener('abort', kill, { once: true });
  const [stdout, stderr] = [textOf(child.stdout), textOf(child.stderr)];
  // A program that does not read its input is none the worse.
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  return new Promise<Ended>((resolve, reject) => {
    child.on('error', (error) => reject(mismatch('GIMBAL_IO', program!, 'to run', error.message, error)));
    // Not `close`: who inherits the pipes may live on.
    child.on('exit', (code, name) => {
      if (signal.aborted) reject(signal.reason);
      // What is in the pipes is read before.
      else setImmediate(() => resolve({ code: String(code ?? name), stdout: stdout(), stderr: stderr() }));
    });
  }).finally(() => signal.removeEventListener('abort', kill));
}

function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

/** The last of what comes. */
function textOf(stream: NodeJS.ReadableStream): () => string {
  let text = '';
  stream.setEncoding('utf8');
  stream.on('data', (chunk: string) => {
    text = (text + chunk).slice(-MOST_OUTPUT);
  });
  return () => text;
}
