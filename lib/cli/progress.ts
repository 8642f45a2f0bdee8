/**
 * Progress of long work, on stderr only: one line that is redrawn on a terminal, a line now and then elsewhere. It shows
 * nothing before the work has proved long, so that short commands stay quiet.
 */
import { formatTime } from '../report/format.js';
import type { PlanProgress } from '../types.js';
import type { Output } from './output.js';

const QUIET_MS = 400;
const REDRAW_MS = 100;
const LINE_MS = 2000;
const BAR_WIDTH = 24;

export class Progress {
  private readonly startedAt = performance.now();
  private shownAt = 0;
  private drawn = false;

  constructor(
    private readonly stream: Output['stderr'],
    private readonly label: string,
    /** undefined: on a terminal only. */
    private readonly wanted: boolean | undefined,
  ) {}

  update = ({ done, total }: PlanProgress): void => {
    const terminal = this.stream.isTTY === true;
    if (!(this.wanted ?? terminal)) return;
    const elapsed = performance.now() - this.startedAt;
    // Asked for, the end is always told; unasked, short work shows nothing.
    const last = done >= total;
    if (this.wanted !== true && elapsed < QUIET_MS) return;
    if (!last && elapsed - this.shownAt < (terminal ? REDRAW_MS : LINE_MS)) return;
    this.shownAt = elapsed;
    this.stream.write(terminal ? `\r\u001b[K${this.line(done, total)}` : `${this.line(done, total)}\n`);
    this.drawn = terminal;
  };

  /** Clears the line, whatever became of the work. */
  finish(): void {
    if (this.drawn) this.stream.write('\r\u001b[K');
    this.drawn = false;
  }

  private line(done: number, total: number): string {
    const share = total === 0 ? 1 : Math.min(1, done / total);
    const filled = Math.round(share * BAR_WIDTH);
    const bar = `${'█'.repeat(filled)}${'░'.repeat(BAR_WIDTH - filled)}`;
    const elapsed = formatTime((performance.now() - this.startedAt) * 1e6);
    return `gimbal: ${this.label} ${bar} ${(share * 100).toFixed(0)} % ${elapsed}`;
  }
}
