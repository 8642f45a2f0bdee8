/**
 * A stand-in engine in a process of its own, told what to do by its parent: `EngineProcess` starts it, and the module is its own
 * program.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { StandIn, type StandInOptions } from '../stand-in/server.js';

/** What became of the requests so far. */
export interface Tally {
  open: number;
  finished: number;
  aborted: number;
  error: number;
}

type Command = 'pause' | 'resume' | 'tally';

export class EngineProcess {
  readonly url: string;
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess, url: string) {
    this.#child = child;
    this.url = url;
  }

  static async start(options: StandInOptions): Promise<EngineProcess> {
    const child = fork(__filename, [JSON.stringify(options)], { execArgv: ['--import', 'tsx'] });
    const [url] = await once(child, 'message');
    return new EngineProcess(child, url as string);
  }

  pause = () => this.#tell('pause');
  resume = () => this.#tell('resume');
  tally = () => this.#tell('tally');

  async stop(): Promise<void> {
    this.#child.kill();
    if (this.#child.exitCode === null) await once(this.#child, 'exit');
  }

  async #tell(command: Command): Promise<Tally> {
    this.#child.send(command);
    const [tally] = await once(this.#child, 'message');
    return tally as Tally;
  }
}

async function serve(options: StandInOptions, tell: (message: unknown) => void): Promise<void> {
  const engine = await StandIn.start(options);
  process.on('message', (command: Command) => {
    if (command === 'pause') engine.pause();
    if (command === 'resume') engine.resume();
    const tally: Tally = { open: 0, finished: 0, aborted: 0, error: 0 };
    for (const { outcome } of engine.requests) tally[outcome] += 1;
    tell(tally);
  });
  // Its parent has died.
  process.once('disconnect', () => process.exit());
  tell(engine.url);
}

if (require.main === module) void serve(JSON.parse(process.argv[2]!), (message) => process.send!(message));
