/** process.exit() while plans run: the exit code is the script's own, and nothing hangs or crashes on the way out. */
'use strict';

const { planPlacement, LONG } = require('./support.cjs');

for (let i = 0; i < 3; i++) planPlacement(LONG, { effort: 'thorough' });
setTimeout(() => process.exit(7), 100);
