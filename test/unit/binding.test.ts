/** What a user reads when the addon is missing or broken. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { binding, load } from '../../lib/binding.js';
import { GimbalError } from '../../lib/errors.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'gimbal-binding-'));
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));

function failure(root: string): GimbalError {
  try {
    load(root);
  } catch (error) {
    expect(error).toBeInstanceOf(GimbalError);
    return error as GimbalError;
  }
  throw new Error('it loaded');
}

describe('the binding', () => {
  it('is loaded once', () => {
    expect(binding()).toBe(binding());
  });

  it('that is missing: names the platform, where it looked, and what helps', () => {
    const error = failure(folder);
    expect(error).toMatchObject({ code: 'GIMBAL_BINDING', field: 'binding' });
    expect(error.message).toContain(`${process.platform}-${process.arch}`);
    expect(error.message).toContain(folder);
    expect(error.message).toMatch(/npm rebuild gimbal-moe/);
    expect(error.message).toMatch(/npm run build:native/);
  });

  it('that is broken: names the file and the reason of the loader', () => {
    const file = path.join(folder, 'build', 'Release', 'gimbal.node');
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, 'not a library');
    const error = failure(folder);
    expect(error.code).toBe('GIMBAL_BINDING');
    expect(error.message).toContain(`Tried: ${file}`);
    expect(error.cause).toBeInstanceOf(Error);
    expect(error.received).toBe((error.cause as Error).message.trim());
  });
});
