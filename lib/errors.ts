/**
 * The errors of the package. Each has a stable `code`; those about input name the field, what was expected and what came.
 */

export type GimbalErrorCode =
  | 'GIMBAL_INVALID_INPUT'
  | 'GIMBAL_INFEASIBLE'
  | 'GIMBAL_NO_ENGINE'
  | 'GIMBAL_OUT_OF_RANGE'
  | 'GIMBAL_BACKEND_UNAVAILABLE'
  | 'GIMBAL_BACKEND_FAILED'
  | 'GIMBAL_FORMAT'
  | 'GIMBAL_IO'
  | 'GIMBAL_BINDING'
  | 'GIMBAL_INTERNAL';

export interface GimbalErrorDetail {
  /** The field, option or file location at fault, e.g. `tokens` or `counts.npy: header`. */
  field?: string;
  expected?: string;
  received?: string;
  cause?: unknown;
}

export class GimbalError extends Error {
  readonly code: GimbalErrorCode;
  readonly field: string | undefined;
  readonly expected: string | undefined;
  readonly received: string | undefined;

  constructor(code: GimbalErrorCode, message: string, detail: GimbalErrorDetail = {}) {
    super(message, detail.cause === undefined ? undefined : { cause: detail.cause });
    this.name = 'GimbalError';
    this.code = code;
    this.field = detail.field;
    this.expected = detail.expected;
    this.received = detail.received;
  }
}

/** The usual form: "<field>: expected <expected> but received <received>". */
export function mismatch(
  code: GimbalErrorCode,
  field: string,
  expected: string,
  received: string,
  cause?: unknown,
): GimbalError {
  return new GimbalError(code, `${field}: expected ${expected} but received ${received}`, {
    field,
    expected,
    received,
    cause,
  });
}
