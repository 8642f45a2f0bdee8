/**
 * The maximum of an array after two of its values change, without looking at the array again: the largest of the three
 * largest that did not change, or one of the new values.
 */

/** The three largest values' places, largest first; −1 where there are fewer values. */
export function topThree(values: Float64Array, top: Int32Array): void {
  let first = -1;
  let second = -1;
  let third = -1;
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i]!;
    if (third >= 0 && value <= values[third]!) continue;
    if (first < 0 || value > values[first]!) {
      third = second;
      second = first;
      first = i;
    } else if (second < 0 || value > values[second]!) {
      third = second;
      second = i;
    } else {
      third = i;
    }
  }
  top[0] = first;
  top[1] = second;
  top[2] = third;
}

/** The maximum once places p and q have the values vp and vq. */
export function maxWith(
  values: Float64Array,
  top: Int32Array,
  p: number,
  q: number,
  vp: number,
  vq: number,
): number {
  let most = vp;
  if (vq > most) most = vq;
  let rest = top[0]!;
  if (rest === p || rest === q) rest = top[1]!;
  if (rest === p || rest === q) rest = top[2]!;
  if (rest >= 0) {
    const value = values[rest]!;
    if (value > most) most = value;
  }
  return most;
}

/** Whether new values at p and q can change which three are the largest. */
export function topTouched(
  values: Float64Array,
  top: Int32Array,
  p: number,
  q: number,
  vp: number,
  vq: number,
): boolean {
  const third = top[2]!;
  if (third < 0) return true;
  const first = top[0]!;
  const second = top[1]!;
  if (p === first || p === second || p === third || q === first || q === second || q === third) return true;
  return vp > values[third]! || vq > values[third]!;
}
