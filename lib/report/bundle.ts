/** The scripts of pages, bundled at build time (scripts/bundle-browser.cjs) to be inlined. */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { GimbalError } from '../errors.js';

/**
 * A bundled script by its place in dist, `report/echarts.bundle.js`. From the sources it is the built one too.
 *
 * @throws GimbalError GIMBAL_INTERNAL where it is missing, or would end the element that it is inlined in
 */
export function bundledScript(name: string): string {
  const places = [path.join(__dirname, '..', name), path.join(__dirname, '..', '..', 'dist', name)];
  const place = places.find((candidate) => existsSync(candidate));
  if (place === undefined) {
    throw new GimbalError(
      'GIMBAL_INTERNAL',
      `the page's script ${places[0]} is missing; \`npm run build:ts\` makes it`,
    );
  }
  const script = readFileSync(place, 'utf8');
  if (/<\/script/i.test(script)) {
    throw new GimbalError('GIMBAL_INTERNAL', `the page's script ${place} would end its own element`);
  }
  return script;
}

/** What a content policy lets an inlined script or style sheet through by. */
export function inlineSource(text: string): string {
  return `'sha256-${createHash('sha256').update(text, 'utf8').digest('base64')}'`;
}
