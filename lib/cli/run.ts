/**
 * One command from words to exit code: parse, run, and tell every failure the same way: one line on stderr with a remedy
 * below it, and under `--json` an object on stdout besides.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { CommanderError } from 'commander';
import type { Context } from './context.js';
import { describeFailure, EXIT, type Failure } from './exit.js';
import { type Output, write } from './output.js';
import { buildProgram, commandNames } from './program.js';

export async function run(
  words: readonly string[],
  surroundings: Pick<Context, 'output' | 'signal' | 'onHangUp'>,
): Promise<number> {
  const { output } = surroundings;
  const context: Context = { ...surroundings, version: packageVersion(), command: ['gimbal', ...words] };
  try {
    await buildProgram(context).parseAsync([...words], { from: 'user' });
    return EXIT.ok;
  } catch (error) {
    if (error instanceof CommanderError && helpWasShown(error))
      return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    const failure = withHelp(describeFailure(error), words);
    await tell(failure, output, words.includes('--json'));
    return failure.exitCode;
  }
}

/** Commander has printed the help or the version already: on stdout where asked for, on stderr where no command was given. */
function helpWasShown(error: CommanderError): boolean {
  return ['commander.helpDisplayed', 'commander.help', 'commander.version'].includes(error.code);
}

function withHelp(failure: Failure, words: readonly string[]): Failure {
  if (failure.exitCode !== EXIT.usage || failure.remedy !== undefined) return failure;
  const command = commandNames.find((name) => words.includes(name));
  return { ...failure, remedy: `see \`gimbal ${command === undefined ? '' : `${command} `}--help\`` };
}

async function tell(failure: Failure, output: Output, json: boolean): Promise<void> {
  const remedy = failure.remedy === undefined ? [] : failure.remedy.split('\n').map((line) => `  ${line}\n`);
  await write(output.stderr, `gimbal: ${failure.message}\n${remedy.join('')}`);
  if (json) await write(output.stdout, `${JSON.stringify({ error: failure }, null, 2)}\n`);
}

/** The package's own; it lies two folders up from the sources and from the build alike. */
export function packageVersion(): string {
  const file = path.join(__dirname, '..', '..', 'package.json');
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}
