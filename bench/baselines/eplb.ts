/** The EPLB family's planner: the simulator offers it too, so it lies there. */
export * from '../../lib/simulator/rivals/eplb.js';
