/** `gimbal serve`, or `gimbal run`, in a process of its own, from its file to its exit code. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import type { GatewaySnapshot } from '../../lib/gateway/types.js';
import { ask } from './gateway.js';

const MAIN = join(__dirname, '..', '..', 'lib', 'cli', 'main.ts');

export class GatewayProcess {
  readonly url: string;
  readonly #child: ChildProcess;
  readonly #log: { text: string };

  private constructor(child: ChildProcess, url: string, log: { text: string }) {
    this.#child = child;
    this.url = url;
    this.#log = log;
  }

  static async start(configFile: string, command = 'serve', ...more: string[]): Promise<GatewayProcess> {
    const words = [command, '--config', configFile, ...more];
    const child = spawn(process.execPath, ['--import', 'tsx', MAIN, ...words]);
    const log = { text: '' };
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      log.text += text;
    });
    let said = '';
    for await (const text of child.stdout.setEncoding('utf8').iterator({ destroyOnReturn: false })) {
      said += text;
      if (said.includes('\n')) return new GatewayProcess(child, JSON.parse(said).url, log);
    }
    throw new Error(`the gateway did not start: ${log.text}`);
  }

  /** One that says what it has to say and ends, within ten seconds. */
  static async ran(...words: string[]): Promise<{ code: number | null; stdout: string }> {
    const child = spawn(process.execPath, ['--import', 'tsx', MAIN, ...words], { timeout: 10_000 });
    let stdout = '';
    child.stderr.resume();
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    const [code] = (await once(child, 'close')) as [number | null];
    return { code, stdout };
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Each line of the log, parsed. */
  get log(): Record<string, unknown>[] {
    const whole = this.#log.text.slice(0, this.#log.text.lastIndexOf('\n') + 1);
    return whole
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line));
  }

  async state(headers: Record<string, string> = {}): Promise<GatewaySnapshot> {
    const { body } = await ask(this.url, '', { method: 'GET', path: '/dashboard/state', headers });
    return JSON.parse(body.toString());
  }

  /** The exit code; a number beyond 128 for a signal. */
  async exited(): Promise<number> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, 'exit');
    return this.#child.exitCode ?? 128;
  }

  /** After a test, whatever became of it. */
  async stop(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.exited();
  }
}
