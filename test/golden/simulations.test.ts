/** The pinned simulations are what this machine simulates. They guard sameness, not rightness. */
import { expect, it } from 'vitest';
import { figuresNow, pinnedFigures } from './simulations.js';

it('pinned simulations (after a change of the model: npx tsx test/golden/simulations.ts --write)', async () => {
  expect(await figuresNow()).toEqual(pinnedFigures());
});
