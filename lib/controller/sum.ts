/** The sum of an array of any kind, in order: a loop, since the counts of a large model are some hundred thousand. */
export function sumOf(values: ArrayLike<number>): number {
  let sum = 0;
  for (let n = 0; n < values.length; n++) sum += values[n]!;
  return sum;
}
