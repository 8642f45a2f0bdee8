/**
 * The commands and their words. Every help text teaches by examples; what a command does is in its own file.
 */
import { Command, Option } from 'commander';
import { POLICIES } from '../dispatch/validate.js';
import { ALL_TO_ALLS } from '../simulator/check.js';
import { servedModels, servingHardware } from '../simulator/hardware.js';
import { simulatedPolicies } from '../simulator/policies.js';
import { lengthShapes } from '../simulator/shapes.js';
import { traceFormats } from '../simulator/traces.js';
import { EFFORTS, REPLICA_CHOICES } from '../validate.js';
import { type AdviseOptions, adviseCommand } from './advise-command.js';
import { backendsCommand } from './backends-command.js';
import type { Context } from './context.js';
import { type DiffOptions, diffCommand } from './diff-command.js';
import { type EvaluateOptions, evaluateCommand } from './evaluate-command.js';
import {
  ALL_TO_ALL,
  BACKENDS,
  budget,
  clusterShape,
  exportFormats,
  gpuList,
  LOG_LEVELS,
  milliseconds,
  oneOf,
  positive,
  seed,
  share,
  slo,
  slots,
  timeNs,
  weights,
  wholeNumber,
  wholeNumbers,
} from './options.js';
import { type PlanCommandOptions, planCommand } from './plan-command.js';
import { countsFormatNames, hardwareNames, modelNames } from './problem.js';
import type { RunOptions } from './run-command.js';
import type { ServeOptions } from './serve-command.js';
import { type SimulateOptions, simulateCommand } from './simulate-command.js';

export const commandNames = [
  'plan',
  'evaluate',
  'diff',
  'simulate',
  'advise',
  'serve',
  'run',
  'backends',
] as const;

const EXIT_CODES = `
Exit codes:
  0 done   1 internal error   2 wrong command line   3 bad input file or format   4 no placement can exist
  5 backend not available   6 file could not be read or written   130 interrupted (Ctrl-C)
`;

export function buildProgram(context: Context): Command {
  const program = new Command('gimbal')
    .description(
      'Scheduling for Mixture-of-Experts serving: places experts on GPUs, and dispatches requests over engines.',
    )
    .version(`gimbal-moe ${context.version}`, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand(false)
    .addHelpText(
      'after',
      `
Examples:
  # Plan DeepSeek-V3 on 4 nodes of 8 H100s with 32 redundant experts, for SGLang:
  gimbal plan --counts counts.npy --topology 4x8 --model deepseek-v3 --hardware h100 --slots 288 \\
    --format sglang --out placement.json

  # The same cluster a day later, moving at most 5 % of the slots:
  gimbal plan --counts today.npy --topology 4x8 --model deepseek-v3 --hardware h100 --slots 288 \\
    --incumbent placement.json --budget 5% --format sglang --out next.json --report plan.html

  # What has to be moved?
  gimbal diff placement.json next.json --topology 4x8

  # An OpenAI-compatible gateway in front of two servers of four DP ranks each:
  gimbal serve --engines http://10.0.0.1:8000,ranks=4 http://10.0.0.2:8000,ranks=4

\`gimbal COMMAND --help\` shows the options and examples of a command.
${EXIT_CODES}`,
    );
  addPlan(program, context);
  addEvaluate(program, context);
  addDiff(program, context);
  addSimulate(program, context);
  addAdvise(program, context);
  addServe(program, context);
  addRun(program, context);
  addBackends(program, context);
  for (const command of [program, ...program.commands]) quieten(command, context);
  return program;
}

/** Commander throws instead of exiting, writes where we say, and leaves the telling of errors to run.ts. */
function quieten(command: Command, { output }: Context): void {
  command.exitOverride().configureOutput({
    writeOut: (text) => output.stdout.write(text),
    writeErr: (text) => output.stderr.write(text),
    outputError: () => undefined,
    getOutHelpWidth: () => Math.min(output.stdout.columns ?? 100, 120),
    getErrHelpWidth: () => Math.min(output.stderr.columns ?? 100, 120),
  });
}

/** The options that state a problem, shared by the commands that cost placements. */
function addProblemOptions(command: Command): Command {
  return command
    .requiredOption(
      '--counts <file...>',
      'routing counts: .npy, .pt, .json, .csv, a folder; several per-rank files give the sources',
    )
    .addOption(
      choice('--counts-format <name>', 'of --counts, where the content does not tell', countsFormatNames()),
    )
    .requiredOption('--topology <shape>', 'the cluster: NODESxGPUS such as 4x8, or a JSON file')
    .option(
      '--sources <n>',
      'source DP ranks, in equal blocks over the GPUs (default: one a GPU)',
      wholeNumber('--sources', 1, '4'),
    )
    .option('--model <name>', `what a token costs: ${modelNames().join(', ')}`)
    .option('--hardware <name>', `what it runs on: ${hardwareNames().join(', ')}`)
    .addOption(
      choice('--all-to-all <kind>', 'how tokens travel', ALL_TO_ALL, ' (then nothing depends on who sends)'),
    )
    .addOption(
      choice('--replica-choice <rule>', 'how a token finds a replica', REPLICA_CHOICES).default('even'),
    )
    .option(
      '--weights <list>',
      'of the objective; what is not named keeps load=1,comm-max=1,comm-total=0.1,migration=1',
      weights,
    )
    .option('--incumbent <file>', 'the placement in force, in any format that --format writes')
    .addOption(formatOption('--incumbent-format', 'its format, where the file does not tell'))
    .option(
      '--migration-cost <time>',
      'of one move, over the statistics window: ns, or with a unit',
      timeNs('--migration-cost'),
    )
    .option('--dead-gpus <list>', 'GPUs to leave empty, e.g. 3,7 or 8-15', gpuList('--dead-gpus'))
    .addOption(choice('--backend <name>', 'where to compute', BACKENDS).default('auto'))
    .option(
      '--threads <n>',
      'changes the time, never the result (default: all cores)',
      wholeNumber('--threads', 1, '2'),
    );
}

/** The options that state what serves a model, shared by the commands that simulate or predict it. */
function addServedOptions(command: Command): Command {
  return command
    .requiredOption('--model <name>', Object.keys(servedModels).join(', '))
    .requiredOption('--hardware <name>', Object.keys(servingHardware).join(', '))
    .option('--sigma <x>', 'spread of the generative model’s expert popularity', positive('--sigma', '0.5'))
    .addOption(choice('--all-to-all <kind>', 'how tokens travel', ALL_TO_ALLS))
    .option(
      '--max-num-seqs <n>',
      'requests that run at once on an engine',
      wholeNumber('--max-num-seqs', 1, '256'),
    )
    .option(
      '--max-num-batched-tokens <n>',
      'tokens of a step',
      wholeNumber('--max-num-batched-tokens', 1, '8192'),
    )
    .option('--profiles <folder>', 'measured kernels as CSV, in place of the built-in fits');
}

/** Takes one of the names, which its description ends in. */
function choice(flags: string, description: string, names: readonly string[], more = ''): Option {
  const [flag] = flags.split(' ');
  return new Option(flags, `${description}: ${names.join(', ')}${more}`).argParser(oneOf(flag!, names));
}

function formatOption(flag: string, description: string): Option {
  return new Option(`${flag} <name>`, description).argParser(oneOf(flag, exportFormats()));
}

function addPlan(program: Command, context: Context): void {
  addProblemOptions(
    program
      .command('plan')
      .description('Plan a placement from routing counts, and show it beside the one before.'),
  )
    .option(
      '--slots <n>',
      'physical experts of all GPUs together (288), or of one GPU (9/gpu); default: the incumbent’s, else the fewest',
      slots,
    )
    .option(
      '--budget <n>',
      'moves allowed over all layers: a number, or a share of the slots such as 5%',
      budget,
    )
    .option('--allow-duplicates', 'allow two new replicas of an expert on one GPU')
    .addOption(choice('--effort <name>', 'how long to search', EFFORTS).default('balanced'))
    .option(
      '--walkers <n>',
      'independent searches a layer (default: from --effort)',
      wholeNumber('--walkers', 1, '8'),
    )
    .option(
      '--rounds <n>',
      'search rounds a walker (default: from --effort)',
      wholeNumber('--rounds', 1, '16'),
    )
    .option('--seed <n>', 'same seed, same plan, on any machine (default: 0)', seed)
    .option(
      '--time-limit <ms>',
      'stop the search after this time; the plan then depends on the machine',
      milliseconds('--time-limit'),
    )
    .option('--out <file>', 'write the placement; - is stdout')
    .addOption(
      formatOption(
        '--format',
        `of --out: ${exportFormats().join(', ')} (default: by its extension, else json)`,
      ),
    )
    .option('--report <file>', 'write an HTML report with charts that opens offline')
    .option('--json', 'print one JSON document instead of the text report')
    .option('--progress', 'tell progress on stderr even where it is no terminal')
    .option('--no-progress', 'tell no progress')
    .addHelpText(
      'after',
      `
Examples:
  # Counts [layers, experts] or [layers, sources, experts] in NumPy's format; print what would be won:
  gimbal plan --counts counts.npy --topology 1x8 --model qwen3-30b-a3b --hardware h100 --slots 144

  # SGLang's recorder, a file for each rank (they give the sources); write what --init-expert-location loads:
  gimbal plan --counts record/*.pt --topology 2x8 --model qwen3-235b-a22b --hardware h100 --slots 144 \\
    --format sglang --out placement.json

  # Node 1 has failed: plan around its GPUs, moving no more than that forces plus 200:
  gimbal plan --counts counts.npy --topology 4x8 --model deepseek-v3 --hardware h100 --slots 12/gpu \\
    --incumbent placement.json --dead-gpus 8-15 --budget 200 --out next.json

  # For a script: figures, placement and notes as one JSON document.
  gimbal plan --counts counts.npy --topology 4x8 --slots 288 --json > plan.json
${EXIT_CODES}`,
    )
    .action((options: PlanCommandOptions) => planCommand(options, context));
}

function addEvaluate(program: Command, context: Context): void {
  addProblemOptions(
    program
      .command('evaluate')
      .description('Cost placements side by side under the same counts and cluster.'),
  )
    .requiredOption('--placement <file...>', 'placements, in any format that plan writes')
    .addOption(formatOption('--placement-format', 'their format, where the files do not tell'))
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Examples:
  gimbal evaluate --counts today.npy --topology 4x8 --model deepseek-v3 --hardware h100 \\
    --placement running.json planned.json

  # How many moves from the placement in force would each need?
  gimbal evaluate --counts today.npy --topology 4x8 --incumbent running.json --placement a.json b.json
${EXIT_CODES}`,
    )
    .action((options: EvaluateOptions) => evaluateCommand(options, context));
}

function addDiff(program: Command, context: Context): void {
  program
    .command('diff')
    .description(
      'The moves from one placement to another: which expert has to come to which GPU, and who holds it.',
    )
    .argument('<before>', 'the placement in force')
    .argument('<after>', 'the placement wanted')
    .option('--topology <shape>', 'put the cheapest sender first: NODESxGPUS or a JSON file')
    .option(
      '--gpus <n>',
      'GPUs of both, where neither the files nor --topology tell',
      wholeNumber('--gpus', 1, '8'),
    )
    .addOption(formatOption('--format', 'of both files, where they do not tell'))
    .option(
      '--rounds',
      'order the moves: rounds in which a GPU sends at most one expert and receives at most one',
    )
    .option(
      '--staging <n>',
      'staging slots of each GPU; more may save rounds (default: 4)',
      wholeNumber('--staging', 0, '1'),
    )
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Two placements that differ are no error: the exit code is 0 whether there are moves or none.

Examples:
  gimbal diff running.json planned.json --topology 4x8
  gimbal diff running.pt planned.json --gpus 32 --json
  gimbal diff running.json planned.json --topology 4x8 --rounds --staging 1
${EXIT_CODES}`,
    )
    .action((before: string, after: string, options: DiffOptions) =>
      diffCommand(before, after, options, context),
    );
}

function addServe(program: Command, context: Context): void {
  program
    .command('serve')
    .description('Run an OpenAI-compatible gateway that dispatches requests over engines by their pressure.')
    .option('--config <file>', 'YAML or JSON, read again at SIGHUP and when it changes; options go before it')
    .option(
      '--engines <server...>',
      'URL[,ranks=N][,kind=vllm|sglang][,group=NAME]: the servers, and the DP ranks behind each',
    )
    .option('--host <address>', 'where to listen (default: 127.0.0.1)')
    .option(
      '--port <n>',
      'where to listen; 0 takes a free one (default: 8080)',
      wholeNumber('--port', 0, '8080'),
    )
    .option(
      '--admin-port <n>',
      'a port of their own for /metrics, /healthz, /readyz and /dashboard (default: beside the API)',
      wholeNumber('--admin-port', 0, '9090'),
    )
    .addOption(choice('--policy <name>', 'how to pick an engine', POLICIES))
    .option(
      '--max-in-flight <n>',
      'requests on one engine before others wait',
      wholeNumber('--max-in-flight', 1, '256'),
    )
    .option(
      '--queue-capacity <n>',
      'requests that may wait; beyond it 429',
      wholeNumber('--queue-capacity', 1, '1000'),
    )
    .option(
      '--gateways <n>',
      'gateways that share these engines without Redis',
      wholeNumber('--gateways', 1, '2'),
    )
    .option('--api-keys-file <file>', 'a key in each line; clients must send one as a bearer token')
    .option('--tls-cert <file>', 'PEM; with --tls-key serves HTTPS')
    .option('--tls-key <file>', 'PEM')
    .option('--redis <url>', 'share the ledger with other gateways, e.g. redis://10.0.0.9:6379')
    .option(
      '--ext-proc-port <n>',
      'serve as an endpoint picker for Envoy (ext-proc gRPC) on this port too',
      wholeNumber('--ext-proc-port', 0, '9002'),
    )
    .addOption(choice('--log-level <name>', 'of the JSON log on stderr', LOG_LEVELS))
    .option('--check', 'check the configuration, print it with its defaults, and exit')
    .addHelpText(
      'after',
      `
Prints one JSON line with its URLs on stdout once it listens. SIGTERM and Ctrl-C drain: no new requests, those in flight end.

Examples:
  # Two vLLM servers of four DP ranks each, started with --data-parallel-size 4; open http://127.0.0.1:8080/dashboard
  gimbal serve --engines http://10.0.0.1:8000,ranks=4 http://10.0.0.2:8000,ranks=4

  # SGLang, reachable from outside, with keys, operators' pages on a port of their own:
  gimbal serve --engines http://10.0.0.3:30000,ranks=8,kind=sglang --host 0.0.0.0 --port 443 \\
    --tls-cert cert.pem --tls-key key.pem --api-keys-file keys.txt --admin-port 9090

  # Everything else is in a file; see what it comes to:
  gimbal serve --config gimbal.yaml --check
${EXIT_CODES}`,
    )
    .action(async (options: ServeOptions) => {
      // Other commands shall not wait for what only a gateway needs.
      const { serveCommand } = await import('./serve-command.js');
      await serveCommand(options, context);
    });
}

function addRun(program: Command, context: Context): void {
  program
    .command('run')
    .description(
      'Run the closed loop: the gateway, statistics of what it routes, and the controller that places experts by them.',
    )
    .requiredOption('--config <file>', 'YAML or JSON: the keys of serve, `routing`, and `controller`')
    .option('--shadow', 'put nothing in force; only report what would have been gained')
    .option('--check', 'check the configuration, print it with its defaults, and exit')
    .addHelpText(
      'after',
      `
Prints one JSON line with its URLs on stdout once it listens. SIGTERM and Ctrl-C stop the controller, which ends or takes back
what it is about, and drain the gateway. SIGHUP reads the file again; what is under \`routing\` and \`controller\` waits for a restart.

Examples:
  # See what the file comes to, then watch for a day what it would do, then let it:
  gimbal run --config gimbal.yaml --check
  gimbal run --config gimbal.yaml --shadow
  gimbal run --config gimbal.yaml
${EXIT_CODES}`,
    )
    .action(async (options: RunOptions) => {
      const { runCommand } = await import('./run-command.js');
      await runCommand(options, context);
    });
}

function addSimulate(program: Command, context: Context): void {
  addServedOptions(
    program
      .command('simulate')
      .description(
        'What policies would do to your traffic: a simulated cluster of lockstep engines, not a measured one.',
      ),
  )
    .option(
      '--trace <file>',
      'requests: Azure, BurstGPT, Mooncake, vLLM’s benchmark, or CSV/JSONL of your own',
    )
    .addOption(choice('--trace-format <name>', 'where the content does not tell', traceFormats))
    .addOption(choice('--synthetic <shape>', 'seeded traffic in place of a trace', lengthShapes))
    .option(
      '--requests <n>',
      'so many of the first (default: all; synthetic: 2000)',
      wholeNumber('--requests', 1, '2000'),
    )
    .option(
      '--rate <n>',
      'requests a second in the mean (default: as recorded; synthetic: 4)',
      positive('--rate', '4'),
    )
    .option(
      '--scale-arrivals <x>',
      'multiply times of arrival: 0.5 doubles the load',
      positive('--scale-arrivals', '0.5'),
    )
    .option('--dp <n>', 'data-parallel engines in all', wholeNumber('--dp', 1, '2'), 1)
    .option('--tp <n>', 'GPUs of an engine', wholeNumber('--tp', 1, '2'), 1)
    .option('--ep <n>', 'GPUs over which experts are spread (default: dp · tp)', wholeNumber('--ep', 1, '4'))
    .option('--nodes <n>', 'over which the GPUs are spread', wholeNumber('--nodes', 1, '4'), 1)
    .option(
      '--kv-blocks <n>',
      'of 16 tokens, on an engine (default: what memory leaves)',
      wholeNumber('--kv-blocks', 1, '32000'),
    )
    .addOption(
      choice('--replica-choice <rule>', 'how a token finds a replica', REPLICA_CHOICES, ' (default: even)'),
    )
    .option(
      '--routing <file...>',
      'counts as plan takes them, or recorded choices, .npy [tokens, layers, k] or vLLM’s routed_experts (default: a generative model)',
    )
    .option(
      '--policy <name...>',
      `to compare, the first is the base: ${Object.keys(simulatedPolicies).join(', ')}, or dispatch/queue/placement`,
      ['vllm', 'gimbal'],
    )
    .option(
      '--pacing [tokens]',
      'gimbal holds prefill back at the gateway beyond so many tokens an engine',
      wholeNumber('--pacing', 1, '2048'),
    )
    .option(
      '--redundant-experts <n>',
      'physical experts beyond the logical ones',
      wholeNumber('--redundant-experts', 0, '16'),
    )
    .option(
      '--rearrange-every <steps>',
      'plan placements so often (default: 3000)',
      wholeNumber('--rearrange-every', 1, '3000'),
    )
    .option('--slo <list>', 'what counts as good, ms', slo)
    .option('--seed <n>', 'of the first run', wholeNumber('--seed', 0, '7'), 0)
    .option('--seeds <n>', 'runs of each policy, for confidence intervals', wholeNumber('--seeds', 1, '5'), 1)
    .option('--threads <n>', 'runs at once; the result is the same', wholeNumber('--threads', 1, '4'), 1)
    .option('--log <file>', 'write a line of JSON for each request')
    .option('--report <file>', 'write an HTML page with charts that opens offline')
    .option('--json', 'print one JSON document instead of the table')
    .option('--progress', 'tell progress on stderr even where it is no terminal')
    .option('--no-progress', 'tell no progress')
    .addHelpText(
      'after',
      `
Examples:
  # Two engines of two H100s each under vLLM's rules and under gimbal's, on your own traffic:
  gimbal simulate --trace requests.csv --model qwen3-30b-a3b --hardware h100 --dp 2 --tp 2

  # Synthetic traffic near saturation, five seeds on four threads, with a page of charts:
  gimbal simulate --synthetic two-end --rate 60 --requests 5000 --model qwen3-30b-a3b --hardware h100 \\
    --dp 2 --tp 2 --policy vllm sglang gimbal --seeds 5 --threads 4 --report simulation.html
${EXIT_CODES}`,
    )
    .action((options: SimulateOptions) => simulateCommand(options, context));
}

function addAdvise(program: Command, context: Context): void {
  addServedOptions(
    program
      .command('advise')
      .description(
        'How many redundant experts a layer are worth their memory, against the KV cache that they displace.',
      ),
  )
    .requiredOption('--topology <shape>', 'the cluster: NODESxGPUS such as 4x8', clusterShape)
    .option(
      '--sources <n>',
      'source DP ranks, which are the engines (default: one a GPU)',
      wholeNumber('--sources', 1, '4'),
    )
    .option('--counts <file...>', 'routing counts as plan takes them (default: a generative model)')
    .addOption(
      choice('--counts-format <name>', 'of --counts, where the content does not tell', countsFormatNames()),
    )
    .requiredOption(
      '--input-tokens <n>',
      'of a prompt in the mean, less what prefix caches find',
      positive('--input-tokens', '1024'),
    )
    .requiredOption('--output-tokens <n>', 'of an answer in the mean', positive('--output-tokens', '256'))
    .option(
      '--concurrency <n>',
      'requests that decode at once over all engines, where memory has room',
      positive('--concurrency', '512'),
    )
    .option('--rate <n>', 'or requests a second, from which that follows', positive('--rate', '20'))
    .option('--kv-use <share>', 'or the measured use of the KV cache', share('--kv-use', '65%'))
    .option(
      '--redundant-experts <n>',
      'beside which --kv-use was measured (default: the fewest)',
      wholeNumber('--redundant-experts', 0, '32'),
    )
    .option(
      '--kv-tokens-per-request <n>',
      'in the KV cache in the mean (default: the prompt and half of the answer)',
      positive('--kv-tokens-per-request', '1500'),
    )
    .option(
      '--candidates <list>',
      'redundant experts to weigh (default: whole slots more on each GPU, while they fit)',
      wholeNumbers('--candidates', '0,32,64'),
    )
    .addOption(
      choice('--replica-choice <rule>', 'how a token finds a replica', REPLICA_CHOICES).default('even'),
    )
    .option(
      '--memory-share <share>',
      'of a GPU, for the engine (default: 0.9)',
      share('--memory-share', '0.9'),
    )
    .option(
      '--activation-gb <n>',
      'of that, neither weights nor KV cache (default: 4)',
      positive('--activation-gb', '4'),
    )
    .option(
      '--splits <n>',
      'times that the counts are split into a half to plan on and a half to judge by (default: 4)',
      wholeNumber('--splits', 2, '4'),
    )
    .option(
      '--least-gain <share>',
      'in throughput, that redundancy must win (default: 0.5%)',
      share('--least-gain', '0.5%'),
    )
    .option(
      '--simulate [n]',
      'simulate the n best beside the fewest (2), and print that beside the prediction',
      wholeNumber('--simulate', 1, '2'),
    )
    .addOption(choice('--effort <name>', 'how long to search for each plan', EFFORTS).default('balanced'))
    .addOption(choice('--backend <name>', 'where to plan', BACKENDS).default('auto'))
    .option(
      '--threads <n>',
      'changes the time, never the result (default: all cores)',
      wholeNumber('--threads', 1, '2'),
    )
    .option('--seed <n>', 'of plans, splits and simulations', wholeNumber('--seed', 0, '7'), 0)
    .option('--json', 'print one JSON document instead of the table')
    .option('--progress', 'tell progress on stderr even where it is no terminal')
    .option('--no-progress', 'tell no progress')
    .addHelpText(
      'after',
      `
A replica balances load, but its weights take room from the KV cache of every engine on its GPU, and each step reads them. The
table sets both against each other in output tokens a second; → marks the fewest redundant experts that no other number
beats by more than chance. The last lines tell from which demand for memory on the advice would be another.

Examples:
  # DeepSeek-V3 on 4 nodes of 8 H100s, with what was counted there and 4,096 requests under way:
  gimbal advise --counts counts.npy --topology 4x8 --model deepseek-v3 --hardware h100 --all-to-all a2a-dedup \\
    --input-tokens 1024 --output-tokens 512 --concurrency 4096

  # A running cluster without redundant experts uses 65 % of its KV cache; check the advice in the simulator:
  gimbal advise --counts counts.npy --topology 4x8 --model deepseek-v3 --hardware h100 --all-to-all a2a-dedup \\
    --input-tokens 1024 --output-tokens 512 --kv-use 65% --simulate

  # No counts yet: a generative model of routing, and a rate of requests.
  gimbal advise --topology 1x8 --model qwen3-30b-a3b --hardware h100 --input-tokens 1024 --output-tokens 256 --rate 40
${EXIT_CODES}`,
    )
    .action((options: AdviseOptions) => adviseCommand(options, context));
}

function addBackends(program: Command, context: Context): void {
  program
    .command('backends')
    .description('List the backends, and why one is not available.')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Examples:
  gimbal backends
  gimbal backends --json
`,
    )
    .action((options: { json?: boolean }) => backendsCommand(options, context));
}
