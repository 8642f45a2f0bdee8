/** A contender for a file lease, as a process: says `held TOKEN` and `lost` on its output. Arguments: the folder, ttlMs. */
import { fileLease } from '../../lib/controller/lease/file.js';

const [folder = '', ttlMs] = process.argv.slice(2);
const lease = fileLease({ folder, ttlMs: Number(ttlMs) });
lease.open((token) => process.stdout.write(token === undefined ? 'lost\n' : `held ${token}\n`));
process.on('SIGTERM', () => void lease.close().then(() => process.exit(0)));
