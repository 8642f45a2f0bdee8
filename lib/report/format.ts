/**
 * Numbers as people read them. The terminal, the HTML report and the demo share these, so that one figure reads the same
 * everywhere; the browser halves of the pages import this file too, so nothing here may need Node.
 */

const TIME_UNITS: readonly [number, string][] = [
  [1e9, 's'],
  [1e6, 'ms'],
  [1e3, 'µs'],
  [1, 'ns'],
];

/** Three significant digits without an exponent: 1234 → "1,234", 12.34 → "12.3", 0.1234 → "0.123". */
export function formatNumber(value: number): string {
  if (value === 0) return '0';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : value < 0 ? '−∞' : '–';
  const size = Math.abs(value);
  if (size < 0.0005) return value.toExponential(1).replace('-', '−');
  const digits = size >= 99.95 ? 0 : size >= 9.995 ? 1 : size >= 0.9995 ? 2 : 3;
  return withMinus(
    value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits }),
  );
}

/** A value on an axis: no digits that say nothing. */
export function formatTick(value: number): string {
  return withMinus(Number(value.toPrecision(3)).toLocaleString('en-US', { maximumSignificantDigits: 3 }));
}

export function formatCount(value: number): string {
  return withMinus(value.toLocaleString('en-US', { maximumFractionDigits: 0 }));
}

/** A count where room is short: 1,234,567 → "1.23 M". */
export function shortCount(value: number): string {
  if (value >= 1e6) return `${formatTick(value / 1e6)} M`;
  return value >= 1e4 ? `${formatTick(value / 1e3)} k` : formatCount(value);
}

/** Nanoseconds in the largest unit that leaves a figure of at least 1. */
export function formatTime(ns: number): string {
  if (ns === 0) return '0';
  const [scale, unit] = timeUnit(ns);
  return `${formatNumber(ns / scale)} ${unit}`;
}

/** The unit in which a whole column or axis is shown: the one that suits its largest value. */
export function timeUnit(largestNs: number): [scale: number, unit: string] {
  for (const [scale, unit] of TIME_UNITS) if (Math.abs(largestNs) >= scale) return [scale, unit];
  return [1, 'ns'];
}

/** 0.1234 → "12.3 %". */
export function formatShare(share: number): string {
  if (!Number.isFinite(share)) return formatNumber(share);
  const percent = share * 100;
  const digits = Math.abs(percent) < 9.995 ? 2 : 1;
  return `${withMinus(percent.toFixed(digits))} %`;
}

/** max/mean load: 1 is perfect. */
export function formatRatio(ratio: number): string {
  return Number.isFinite(ratio) ? ratio.toFixed(3) : formatNumber(ratio);
}

/** The change from one figure to another, signed: "−43.1 %", "+2.0 %", "±0". */
export function formatChange(from: number, to: number): string {
  if (from === to) return '±0';
  if (from === 0) return 'from 0';
  const percent = (to / from - 1) * 100;
  if (Math.abs(percent) < 0.05) return '±0.0 %';
  const sign = percent < 0 ? '−' : '+';
  return `${sign}${Math.abs(percent).toFixed(1)} %`;
}

/** The change of a share, in points of a percent: a percentage of a percentage misleads. */
export function formatPoints(from: number, to: number): string {
  const points = (to - from) * 100;
  if (Math.abs(points) < 0.05) return '±0 points';
  return `${points < 0 ? '−' : '+'}${Math.abs(points).toFixed(1)} points`;
}

export function plural(count: number, noun: string, nouns = `${noun}s`): string {
  return `${formatCount(count)} ${count === 1 ? noun : nouns}`;
}

function withMinus(text: string): string {
  return text.startsWith('-') ? `−${text.slice(1)}` : text;
}
