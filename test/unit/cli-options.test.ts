/** The words of the command line: what each takes, and that a wrong one is told with an example. */
import { describe, expect, it } from 'vitest';
import { UsageError } from '../../lib/cli/exit.js';
import {
  budget,
  gpuList,
  milliseconds,
  oneOf,
  seed,
  slots,
  timeNs,
  weights,
  wholeNumber,
} from '../../lib/cli/options.js';

function usageError(work: () => unknown): UsageError {
  try {
    work();
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    return error as UsageError;
  }
  throw new Error('expected a UsageError but nothing was thrown');
}

describe('numbers', () => {
  it('takes whole numbers from the least on', () => {
    const parse = wholeNumber('--threads', 1, '2');
    expect(parse('1')).toBe(1);
    expect(parse('64')).toBe(64);
    for (const wrong of ['0', '-1', '1.5', '', '1e3', '0x10', 'four', '99999999999999999999']) {
      const error = usageError(() => parse(wrong));
      expect(error.message).toContain('--threads');
      expect(error.message).toContain(JSON.stringify(wrong));
      expect(error.remedy).toContain('--threads 2');
    }
  });

  it('keeps a seed exact up to 2^64 - 1', () => {
    expect(seed('7')).toBe(7);
    expect(seed('9007199254740991')).toBe(9007199254740991);
    expect(seed('9007199254740993')).toBe(9007199254740993n);
    expect(seed('18446744073709551615')).toBe(18446744073709551615n);
    for (const wrong of ['18446744073709551616', '-1', '1.0', '']) usageError(() => seed(wrong));
  });

  it('reads times with units', () => {
    const parse = timeNs('--migration-cost');
    expect(parse('250')).toBe(250);
    expect(parse('250ns')).toBe(250);
    expect(parse('1.5us')).toBe(1500);
    expect(parse('1.5µs')).toBe(1500);
    expect(parse('2ms')).toBe(2e6);
    expect(parse('3s')).toBe(3e9);
    for (const wrong of ['', '-1', '5min', 'ms', 'NaN', 'Infinity']) usageError(() => parse(wrong));
    expect(milliseconds('--time-limit')('0.5')).toBe(0.5);
    for (const wrong of ['0', '-1', 'soon', '1s']) usageError(() => milliseconds('--time-limit')(wrong));
  });
});

describe('lists', () => {
  it('reads GPUs and ranges, ascending and once each', () => {
    const parse = gpuList('--dead-gpus');
    expect(parse('7,3')).toEqual([3, 7]);
    expect(parse('8-10, 9,1')).toEqual([1, 8, 9, 10]);
    for (const wrong of ['', 'a', '3-1', '1,,2', '-1', '0-99999999']) usageError(() => parse(wrong));
  });

  it('reads weights by their names', () => {
    expect(weights('load=1,comm-max=0.5')).toEqual({ load: 1, commMax: 0.5 });
    expect(weights('comm-total=0, migration=2e-3')).toEqual({ commTotal: 0, migration: 0.002 });
    expect(usageError(() => weights('speed=1')).message).toContain('unknown weight "speed"');
    expect(usageError(() => weights('load=1,load=2')).message).toContain('load is given twice');
    for (const wrong of ['load', 'load=', 'load=-1', 'load=NaN', 'load=1=2', 'load=Infinity', '']) {
      expect(usageError(() => weights(wrong)).remedy).toContain('comm-max');
    }
  });
});

describe('amounts in two units', () => {
  it('reads slots in total or a GPU', () => {
    expect(slots('288')).toEqual({ total: 288 });
    expect(slots('9/gpu')).toEqual({ perGpu: 9 });
    expect(slots('9/GPU')).toEqual({ perGpu: 9 });
    for (const wrong of ['0', '-4', '9/node', '1.5', '']) {
      expect(usageError(() => slots(wrong)).remedy).toContain('9/gpu');
    }
  });

  it('reads a budget in moves or in percent', () => {
    expect(budget('0')).toEqual({ pairs: 0 });
    expect(budget('800')).toEqual({ pairs: 800 });
    expect(budget('5%')).toEqual({ share: 0.05 });
    expect(budget('2.5%')).toEqual({ share: 0.025 });
    for (const wrong of ['101%', '1.5', '-1', '%', 'all']) usageError(() => budget(wrong));
  });

  it('takes one of the names, whatever their case', () => {
    expect(oneOf('--effort', ['fast', 'balanced'])('FAST')).toBe('fast');
    expect(usageError(() => oneOf('--effort', ['fast', 'balanced'])('slow')).message).toContain(
      'fast, balanced',
    );
  });
});
