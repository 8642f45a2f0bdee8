/** A pending plan keeps the process alive; once it is done, an open planner does not. */
'use strict';

const { Planner, LONG } = require('./support.cjs');

const planner = new Planner();
planner.plan(LONG, { effort: 'fast', rounds: 20 }).then(() => console.log('ok'));
