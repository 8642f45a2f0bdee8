/** Certificates, read anew at every reload: they are renewed more often than gateways start. */
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { mismatch } from '../errors.js';
import { ioError } from '../files.js';

/** @throws GimbalError GIMBAL_IO; GIMBAL_FORMAT where they are none, or not of each other, as while they are being renewed */
export function readTls({ cert, key }: { cert: string; key: string }): { cert: Buffer; key: Buffer } {
  const read = (file: string) => {
    try {
      return readFileSync(file);
    } catch (error) {
      throw ioError(file, error);
    }
  };
  const pair = { cert: read(cert), key: read(key) };
  try {
    createSecureContext(pair);
  } catch (error) {
    const expected = `a certificate in PEM, and its key in ${key}`;
    throw mismatch('GIMBAL_FORMAT', cert, expected, (error as Error).message, error);
  }
  return pair;
}
