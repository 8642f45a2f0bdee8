/** `gimbal backends`: what this machine can run, and why not the rest. */
import { backends } from '../index.js';
import type { Context } from './context.js';
import { write } from './output.js';
import { table } from './table.js';

export async function backendsCommand(options: { json?: boolean }, { output }: Context): Promise<void> {
  const found = backends();
  if (options.json) {
    await write(output.stdout, `${JSON.stringify({ backends: found }, null, 2)}\n`);
    return;
  }
  const rows = found.map((backend) => [
    backend.name,
    backend.available ? 'available' : 'not available',
    backend.available
      ? backend.description
      : `${backend.description}: ${backend.reason ?? 'no reason given'}`,
  ]);
  for (const { devices = [] } of found) {
    for (const [number, device] of devices.entries()) {
      // The first one is the description.
      if (number > 0)
        rows.push([
          '',
          '',
          `${device.name}, device ${number}, compute capability ${device.computeCapability}`,
        ]);
    }
  }
  await write(output.stdout, table(rows, { left: [0, 1, 2] }));
}
