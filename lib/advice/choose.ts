/** Which candidate to advise: the fewest redundant experts that no other beats by more than chance and the least worthwhile gain. */

export interface Gain {
  /** Over the leanest, a share. */
  mean: number;
  /** Standard deviation over the splits. */
  spread: number;
}

/**
 * `rates`: `[candidates][splits]`, tokens a second, the leanest first. Splits of one set of counts are not independent, so their
 * spread is taken as it is and not divided by the root of their number.
 */
export function choose(
  rates: readonly (readonly number[])[],
  { certainty, leastGainShare }: { certainty: number; leastGainShare: number },
): { chosen: number; gains: Gain[] } {
  const gains = rates.map((own) => gainOver(own, rates[0]!));
  const best = gains.reduce((most, { mean }, n) => (mean > gains[most]!.mean ? n : most), 0);
  const chosen = rates.findIndex((own) => {
    const { mean, spread } = gainOver(rates[best]!, own);
    return mean <= Math.max(leastGainShare, certainty * spread);
  });
  return { chosen, gains };
}

function gainOver(rates: readonly number[], base: readonly number[]): Gain {
  const shares = rates.map((rate, n) => rate / base[n]! - 1);
  const mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
  const variance = shares.reduce((sum, share) => sum + (share - mean) ** 2, 0) / (shares.length - 1);
  return { mean, spread: Math.sqrt(variance) };
}
