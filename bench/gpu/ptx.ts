/**
 * Where the kernels' PTX lies, for those that are not written in TypeScript: `node --import tsx bench/gpu/ptx.ts sm_80 sm_90`
 * compiles what is not kept yet and prints `{ reason }` where there is no compiler, else `{ files, unknown }`.
 */
import { findNvcc, knownArchitectures, ptxFile } from './toolchain.js';

export interface PtxFiles {
  files: { architecture: string; file: string }[];
  /** Architectures that this compiler does not know. */
  unknown: string[];
}

async function ptxFiles(wanted: string[]): Promise<PtxFiles> {
  const known = knownArchitectures().filter(({ name }) => wanted.includes(name));
  const files: PtxFiles['files'] = [];
  for (const architecture of known) {
    files.push({ architecture: architecture.name, file: await ptxFile(architecture) });
  }
  return {
    files,
    unknown: wanted.filter((name) => !known.some((architecture) => architecture.name === name)),
  };
}

async function main(wanted: string[]): Promise<void> {
  const found = findNvcc();
  console.log(JSON.stringify('reason' in found ? found : await ptxFiles(wanted)));
}

main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
