#!/usr/bin/env node
/**
 * Stands in for node-gyp when prebuildify makes the prebuild with the CUDA plug-in: `prebuildify --node-gyp <this file>`. What
 * it builds comes from CMake, which alone compiles CUDA; prebuildify takes gimbal.node and the plug-in from build/Release. The
 * arguments are node-gyp's (a target, an architecture), and mean this machine.
 */
'use strict';

const { spawnSync } = require('node:child_process');
const path = require('node:path');

const env = { ...process.env, GIMBAL_BUILD: 'cmake', GIMBAL_CUDA: 'ON' };
const install = path.join(__dirname, 'install.cjs');
const child = spawnSync(process.execPath, [install, '--force'], { env, stdio: 'inherit' });
process.exit(child.status ?? 1);
