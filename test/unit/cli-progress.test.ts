/** When progress is told: on a terminal once work proves long, elsewhere only where asked for. */
import { Writable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Progress } from '../../lib/cli/progress.js';

function fakeStream(isTTY: boolean) {
  let text = '';
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      text += chunk.toString('utf8');
      done();
    },
  }) as Writable & { isTTY?: boolean };
  stream.isTTY = isTTY;
  return { stream, text: () => text };
}

/** Ten steps, `stepMs` apart. */
function work(progress: Progress, stepMs: number): void {
  for (let done = 1; done <= 10; done++) {
    vi.advanceTimersByTime(stepMs);
    progress.update({ done, total: 10 });
  }
  progress.finish();
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] });
});

afterEach(() => {
  vi.useRealTimers();
});

describe('Progress', () => {
  it('redraws one line on a terminal and clears it in the end', () => {
    const { stream, text } = fakeStream(true);
    work(new Progress(stream, 'planning', undefined), 200);
    expect(text()).toMatch(/\r.*planning .* 50 % 1\.00 s/);
    expect(text()).not.toContain('\n');
    expect(text().endsWith('\r\u001b[K')).toBe(true);
  });

  it('is quiet about short work, where nobody looks, and where it is not wanted', () => {
    for (const [isTTY, wanted, stepMs] of [
      [true, undefined, 10],
      [false, undefined, 1000],
      [true, false, 1000],
    ] as const) {
      const { stream, text } = fakeStream(isTTY);
      work(new Progress(stream, 'planning', wanted), stepMs);
      expect(text(), `${isTTY} ${wanted} ${stepMs}`).toBe('');
    }
  });

  it('writes a line now and then where asked for, and the end always', () => {
    const long = fakeStream(false);
    work(new Progress(long.stream, 'planning', true), 1000);
    expect(long.text().trimEnd().split('\n')).toHaveLength(5);
    const short = fakeStream(false);
    work(new Progress(short.stream, 'planning', true), 1);
    expect(short.text()).toMatch(/^gimbal: planning .* 100 % .*\n$/);
  });
});
