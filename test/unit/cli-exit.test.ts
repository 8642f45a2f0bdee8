/** Every kind of failure has its exit code, one line, and a remedy where there is one. */
import { CommanderError } from 'commander';
import { describe, expect, it } from 'vitest';
import { describeFailure, InputError, UsageError } from '../../lib/cli/exit.js';
import { GimbalError, type GimbalErrorCode, type GimbalErrorDetail } from '../../lib/errors.js';

const coded = (code: GimbalErrorCode, detail: GimbalErrorDetail = {}) =>
  new GimbalError(code, 'what', detail);

describe('describeFailure', () => {
  const cases: [name: string, error: unknown, exitCode: number, code: string][] = [
    ['a usage error', new UsageError('what'), 2, 'GIMBAL_USAGE'],
    [
      "commander's",
      new CommanderError(1, 'commander.unknownOption', "error: unknown option '--x'"),
      2,
      'GIMBAL_USAGE',
    ],
    [
      'a wrong option',
      coded('GIMBAL_INVALID_INPUT', { field: 'topology.sources' }),
      2,
      'GIMBAL_INVALID_INPUT',
    ],
    ['a wrong file', coded('GIMBAL_INVALID_INPUT', { field: 'incumbent[3]' }), 3, 'GIMBAL_INVALID_INPUT'],
    ['a malformed file', coded('GIMBAL_FORMAT'), 3, 'GIMBAL_FORMAT'],
    ['files that do not fit', new InputError('what'), 3, 'GIMBAL_FORMAT'],
    ['counts too large', coded('GIMBAL_OUT_OF_RANGE'), 3, 'GIMBAL_OUT_OF_RANGE'],
    ['no placement', coded('GIMBAL_INFEASIBLE'), 4, 'GIMBAL_INFEASIBLE'],
    ['no backend', coded('GIMBAL_BACKEND_UNAVAILABLE'), 5, 'GIMBAL_BACKEND_UNAVAILABLE'],
    ['a backend that failed', coded('GIMBAL_BACKEND_FAILED'), 5, 'GIMBAL_BACKEND_FAILED'],
    ['no addon', coded('GIMBAL_BINDING'), 5, 'GIMBAL_BINDING'],
    ['a file not written', coded('GIMBAL_IO'), 6, 'GIMBAL_IO'],
    ['a broken invariant', coded('GIMBAL_INTERNAL'), 1, 'GIMBAL_INTERNAL'],
    ['an abort', AbortSignal.abort().reason, 130, 'GIMBAL_INTERRUPTED'],
    ['anything else', new TypeError('x is undefined'), 1, 'GIMBAL_INTERNAL'],
    ['no error at all', 'x', 1, 'GIMBAL_INTERNAL'],
  ];
  for (const [name, error, exitCode, code] of cases) {
    it(`${name}: ${exitCode}`, () => {
      const failure = describeFailure(error);
      expect(failure).toMatchObject({ exitCode, code });
      expect(failure.message).not.toContain('\n');
    });
  }

  it('names the path of a system error, and the reason in words', () => {
    const error = Object.assign(new Error('EACCES: permission denied, open'), {
      code: 'EACCES',
      syscall: 'open',
      path: 'x.json',
    });
    expect(describeFailure(error)).toEqual({
      code: 'GIMBAL_IO',
      exitCode: 6,
      message: 'x.json: permission denied',
    });
  });

  it('puts the first line into the message and the rest into the remedy', () => {
    const failure = describeFailure(new GimbalError('GIMBAL_BINDING', 'no addon\nWhat helps:\n- build'));
    expect(failure).toMatchObject({ message: 'no addon', remedy: 'What helps:\n- build' });
    const bug = describeFailure(new TypeError('x is undefined'));
    expect(bug.message).toBe('internal error: TypeError: x is undefined');
    expect(bug.remedy).toMatch(/^this is a bug in gimbal; please report it.*\nat /s);
  });

  it('turns a suggestion of commander into the remedy', () => {
    const error = new CommanderError(
      1,
      'commander.unknownOption',
      "error: unknown option '--ouy'\n(Did you mean --out?)",
    );
    expect(describeFailure(error)).toMatchObject({
      message: "unknown option '--ouy'",
      remedy: 'Did you mean --out?',
    });
  });
});
