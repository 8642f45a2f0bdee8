/** What can run a plan on this machine. */
import { binding } from './binding.js';
import type { BackendInfo } from './types.js';

/**
 * Every backend the package knows, whether it can be used here, and if not, why.
 *
 * @throws GimbalError GIMBAL_BINDING where the addon cannot be loaded
 */
export function backends(): BackendInfo[] {
  return binding().backends();
}
