/** The library's seeded stream, under the name that the benches know. */
export { mix32, Random } from '../lib/random.js';
