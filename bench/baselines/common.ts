/** What every baseline needs of a problem, under the name that the others know. */
export * from '../../lib/simulator/rivals/common.js';
