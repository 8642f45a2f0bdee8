/** Certificates, read anew at every reload: they are renewed more often than gateways start. */
import { readFileSync } from 'node:fs';
import { ioError } from '../files.js';

/** @throws GimbalError GIMBAL_IO */
export function readTls({ cert, key }: { cert: string; key: string }): { cert: Buffer; key: Buffer } {
  const read = (file: string) => {
    try {
      return readFileSync(file);
    } catch (error) {
      throw ioError(file, error);
    }
  };
  return { cert: read(cert), key: read(key) };
}
