/** The controller's looks: decisions, faults of what it calls, GPUs that go and come, clocks that jump, and what it tells. */
import { describe, expect, it } from 'vitest';
import { rig } from '../support/controller.js';

describe('a look', () => {
  it('commits a plan that pays, and puts it in force', async () => {
    const { controller, engines } = rig();
    await controller.start();
    const record = await controller.look();
    expect(record).toMatchObject({ decision: 'committed', reason: 'gain' });
    console.log(record);
    expect(engines.placement).toEqual(controller.placement);
    expect(engines.planId).toBe(controller.planId);
    console.log(JSON.stringify(controller.status()).slice(0, 600));
    await controller.stop();
  });
});
