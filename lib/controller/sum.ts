/** The sum of an array of any kind, in order: a loop, since the counts of a large model are some hundred thousand. */
export function sum(values: ArrayLike<number>): number {
  let total = 0;
  for (let n = 0; n < values.length; n++) total += values[n]!;
  return total;
}
