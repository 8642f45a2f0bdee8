/**
 * The statistics over a restart, in a file of their own, since they are some tens of MB and the state is written at every step. They heal
 * by themselves: a file that cannot be read or written is told and does no harm.
 */
import { readFileBounded, writeFileAtomic } from '../files.js';
import type { CheckedController } from './options.js';

/** What the largest statistics that can be made take. */
const MOST_BYTES = 2 ** 31;

type Kept = Pick<CheckedController, 'statistics' | 'statisticsFile' | 'logger'>;

export async function restoreStatistics({ statistics, statisticsFile, logger }: Kept): Promise<void> {
  if (statisticsFile === undefined) return;
  try {
    statistics.restore(await readFileBounded(statisticsFile, { maxBytes: MOST_BYTES }));
  } catch (error) {
    logger?.warn({ error: String(error) }, 'controller: statistics begin anew');
  }
}

export async function saveStatistics({ statistics, statisticsFile, logger }: Kept): Promise<void> {
  if (statisticsFile === undefined) return;
  try {
    await writeFileAtomic(statisticsFile, statistics.snapshot());
  } catch (error) {
    logger?.warn({ error: String(error) }, 'controller: statistics are not kept');
  }
}
