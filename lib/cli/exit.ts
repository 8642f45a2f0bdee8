/**
 * The stable exit codes, and how every failure becomes one of them, one clear line and a remedy.
 */
import { CommanderError } from 'commander';
import { GimbalError, type GimbalErrorCode, type GimbalErrorDetail } from '../errors.js';
import { present } from '../present.js';

export const EXIT = {
  ok: 0,
  internal: 1,
  usage: 2,
  badInput: 3,
  infeasible: 4,
  backend: 5,
  io: 6,
  interrupted: 130,
} as const;

/** A mistake in the command line itself: which option, what it takes, and what to write instead. */
export class UsageError extends Error {
  readonly remedy: string | undefined;

  constructor(message: string, remedy?: string) {
    super(message);
    this.name = 'UsageError';
    this.remedy = remedy;
  }
}

/** A GimbalError of the command line's own, which knows what to do about it. */
export class RemediedError extends GimbalError {
  readonly remedy: string | undefined;

  constructor(code: GimbalErrorCode, message: string, detail: GimbalErrorDetail & { remedy?: string } = {}) {
    super(code, message, detail);
    this.remedy = detail.remedy;
  }
}

/** Input files that are well formed each, but do not fit each other. */
export class InputError extends RemediedError {
  constructor(message: string, detail: GimbalErrorDetail & { remedy?: string } = {}) {
    super('GIMBAL_FORMAT', message, detail);
  }
}

export class InterruptedError extends Error {
  constructor() {
    super('interrupted; nothing was written');
    this.name = 'AbortError';
  }
}

/** What a failure means to the outside. `--json` prints this object under the key `error`. */
export interface Failure {
  code: string;
  exitCode: number;
  message: string;
  field?: string;
  expected?: string;
  received?: string;
  remedy?: string;
}

/** The first line says what; what follows it (a stack, a list of cures) belongs to the remedy. */
function firstLine(text: string): { line: string; rest: string | undefined } {
  const [line = '', ...rest] = text.split('\n');
  return { line, rest: rest.length === 0 ? undefined : rest.map((one) => one.trim()).join('\n') };
}

/** Fields of a problem that come from files, so that a native complaint about them is about a file. */
const FILE_FIELDS = /^(tokens|incumbent|candidates|layerIds|counts|placement)/;

export function describeFailure(error: unknown): Failure {
  if (error instanceof UsageError) {
    return {
      code: 'GIMBAL_USAGE',
      exitCode: EXIT.usage,
      message: error.message,
      ...present({ remedy: error.remedy }),
    };
  }
  if (error instanceof CommanderError) return describeCommanderError(error);
  if (error instanceof GimbalError) return describeGimbalError(error);
  if (isAbort(error)) {
    return {
      code: 'GIMBAL_INTERRUPTED',
      exitCode: EXIT.interrupted,
      message: new InterruptedError().message,
    };
  }
  if (isSystemError(error)) {
    return { code: 'GIMBAL_IO', exitCode: EXIT.io, message: systemMessage(error) };
  }
  const { line, rest } = firstLine(error instanceof Error ? (error.stack ?? error.message) : String(error));
  const report =
    'this is a bug in gimbal; please report it with the command line and, where you can, the input';
  return {
    code: 'GIMBAL_INTERNAL',
    exitCode: EXIT.internal,
    message: `internal error: ${line}`,
    remedy: rest === undefined ? report : `${report}\n${rest}`,
  };
}

function describeCommanderError(error: CommanderError): Failure {
  const message = error.message.replace(/^error: /, '');
  const [first, ...rest] = message.split('\n');
  const suggestion = rest
    .join(' ')
    .trim()
    .replace(/^\(|\)$/g, '');
  return {
    code: 'GIMBAL_USAGE',
    exitCode: EXIT.usage,
    message: first ?? message,
    ...present({ remedy: suggestion === '' ? undefined : suggestion }),
  };
}

function describeGimbalError(error: GimbalError): Failure {
  const { field, expected, received } = error;
  const { line, rest } = firstLine(error.message);
  const remedy = error instanceof RemediedError ? error.remedy : (remedyOf(error) ?? rest);
  return {
    code: error.code,
    exitCode: exitCodeOf(error),
    message: line,
    ...present({ field, expected, received, remedy }),
  };
}

function exitCodeOf(error: GimbalError): number {
  switch (error.code) {
    case 'GIMBAL_INVALID_INPUT':
      return FILE_FIELDS.test(error.field ?? '') ? EXIT.badInput : EXIT.usage;
    case 'GIMBAL_FORMAT':
    case 'GIMBAL_OUT_OF_RANGE':
      return EXIT.badInput;
    case 'GIMBAL_INFEASIBLE':
    case 'GIMBAL_NO_ENGINE':
      return EXIT.infeasible;
    case 'GIMBAL_BACKEND_UNAVAILABLE':
    case 'GIMBAL_BACKEND_FAILED':
    case 'GIMBAL_BINDING':
      return EXIT.backend;
    case 'GIMBAL_IO':
      return EXIT.io;
    case 'GIMBAL_INTERNAL':
      return EXIT.internal;
  }
}

function remedyOf(error: GimbalError): string | undefined {
  switch (error.code) {
    case 'GIMBAL_INFEASIBLE':
      if (error.field === 'memory')
        return 'spread the model over more GPUs (--topology), take GPUs with more memory (--hardware), or a larger --memory-share';
      return 'every expert needs a slot on a live GPU: give more slots (--slots), more GPUs (--topology) or fewer --dead-gpus';
    case 'GIMBAL_BACKEND_UNAVAILABLE':
      return '`gimbal backends` lists what this machine can run; --backend auto takes the best of them';
    case 'GIMBAL_BACKEND_FAILED':
      return 'the GPU or its driver refused; --backend cpu gives the same plan without them';
    case 'GIMBAL_OUT_OF_RANGE':
      return 'the products of tokens and costs are too large to add exactly: use a shorter statistics window';
    default:
      return undefined;
  }
}

export function isAbort(error: unknown): boolean {
  return (
    error instanceof Error &&
    (error.name === 'AbortError' || (error as { code?: unknown }).code === 'ABORT_ERR')
  );
}

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).syscall === 'string';
}

function systemMessage(error: NodeJS.ErrnoException): string {
  const reasons: Record<string, string> = {
    ENOENT: 'no such file or folder',
    EACCES: 'permission denied',
    EPERM: 'not permitted',
    EISDIR: 'it is a folder',
    ENOTDIR: 'a part of the path is not a folder',
    ENOSPC: 'no space left on the device',
    EROFS: 'the file system is read-only',
  };
  const reason = reasons[error.code ?? ''] ?? error.message;
  return error.path === undefined ? reason : `${error.path}: ${reason}`;
}
