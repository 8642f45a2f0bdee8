// node-gyp-build ships no types of its own.
declare module 'node-gyp-build' {
  interface Load {
    /** Loads the addon that belongs to the package in `root`. */
    (root: string): unknown;
    /** The file that would be loaded. */
    path(root: string): string;
  }
  const load: Load;
  export = load;
}
