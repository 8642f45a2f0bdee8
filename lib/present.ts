/** Optional fields: `exactOptionalPropertyTypes` tells one that is undefined from one that is not there. */

/** Without the keys that are undefined. */
export function present<T extends object>(object: T): { [Key in keyof T]?: Exclude<T[Key], undefined> } {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as never;
}
