/**
 * The log: one JSON object a line on stderr, with the names that OpenTelemetry's collectors take as they are: `timestamp` (ISO
 * 8601), `severityText` and `severityNumber` of its log data model, `body`, and `traceId` and `spanId` of requests that carry a
 * W3C `traceparent`. Bodies, prompts and keys are never logged.
 */
import { type DestinationStream, type Logger, pino } from 'pino';

export type { Logger } from 'pino';

const SEVERITY: Readonly<Record<string, number>> = {
  trace: 1,
  debug: 5,
  info: 9,
  warn: 13,
  error: 17,
  fatal: 21,
};

export function createLog(level: string, destination?: DestinationStream): Logger {
  return pino(
    {
      level,
      base: { service: 'gimbal' },
      messageKey: 'body',
      timestamp: () => `,"timestamp":"${new Date().toISOString()}"`,
      formatters: {
        level: (label) => ({ severityText: label.toUpperCase(), severityNumber: SEVERITY[label] ?? 9 }),
      },
    },
    destination ?? pino.destination({ fd: 2, sync: false }),
  );
}

const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$/;

/** The fields of a trace that a request belongs to; empty where it says none. */
export function traceOf(traceparent: string | undefined): { traceId?: string; spanId?: string } {
  const found = traceparent === undefined ? null : TRACEPARENT.exec(traceparent);
  return found === null ? {} : { traceId: found[1]!, spanId: found[2]! };
}
