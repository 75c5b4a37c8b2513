'use strict';
// Loaded into NNI's node before its own main.js (`node --require`). NNI 3.0 is archived: as it ships it listens on all
// interfaces, hands any file of the machine to whoever asks, and swaps parameters between trials. What mends that is here.
// The numbers and names patched below are those of nni 3.0, which is pinned; elta_tune/studies/nni_node.py checks after
// every start that the doors are closed, each trial that its parameters are its own.

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const Module = require('module');
const net = require('net');
const os = require('os');
const path = require('path');

const LOOPBACK = '127.0.0.1';
const STUDY = process.env.ELTA_TUNE_NNI_STUDY;
const PREFIX = process.env.ELTA_TUNE_NNI_PREFIX;
const FAILURES_IN_A_ROW = 3;
const PATIENCE_MS = 30000; // a trial that is to stop has so long to clean up; NNI's own 5 s kill a busy one
const TUNER_MS = 120000; // NNI gives the tuner 10 s to import; a busy machine needs more

delete process.env.ELTA_TUNE_NNI_PREFIX;
process.argv.push(`--url-prefix=${PREFIX}`); // here, since other users can read a command line
os.homedir = () => path.join(STUDY, 'nni'); // NNI's index of experiments belongs to the study, too

// --- the doors -------------------------------------------------------------------------------------------------------

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
    const isPort = (value) => typeof value === 'number' || /^\d+$/.test(value);
    if (args[0] !== null && typeof args[0] === 'object' && isPort(args[0].port)) {
        args[0] = { ...args[0], host: LOOPBACK };
    } else if (isPort(args[0])) {
        args.splice(1, typeof args[1] === 'string' ? 1 : 0, LOOPBACK);
    } else {
        throw new Error('elta-tune: only ports of the loopback interface may be listened on');
    }
    return listen.apply(this, args);
};

/** The Unix user at the other end of a connection (Linux), or null if it is already gone. */
function peerUid(socket) {
    const port = (number) => number.toString(16).toUpperCase().padStart(4, '0');
    const local = `0100007F:${port(socket.remotePort)}`;
    const remote = `0100007F:${port(socket.localPort)}`;
    for (const line of fs.readFileSync('/proc/net/tcp', 'utf8').split('\n')) {
        const fields = line.trim().split(/\s+/);
        if (fields[1] === local && fields[2] === remote) {
            return Number(fields[7]);
        }
    }
    return null;
}

function isOwnUser(socket) {
    if (socket.remoteAddress !== LOOPBACK) {
        return false;
    }
    return process.platform !== 'linux' || peerUid(socket) === process.getuid();
}

function isSecret(text) {
    const [given, own] = [Buffer.from(text), Buffer.from(PREFIX)];
    return given.length === own.length && crypto.timingSafeEqual(given, own);
}

const TRIAL_FILE = /^\/api\/v1\/nni\/trial-file\/\w+\/(trial\.log|stdout|stderr)$/;
/** All that may be written: the command starts, the study's budget is raised, a trial reports or is killed. */
const WRITES = [
    ['POST', /^\/api\/v1\/nni\/experiment$/, false],
    ['PUT', /^\/api\/v1\/nni\/experiment\?update_type=MAX_TRIAL_NUM$/, false],
    ['PUT', /^\/env\/[\w-]+\/\w+$/, false],
    ['DELETE', /^\/api\/v1\/nni\/trial-jobs\/\w+$/, true], // also from the web UI
];

/** Why a request is refused, or null. */
function refusal({ method, url, headers }) {
    const host = headers.host || '';
    if (!/^(127\.0\.0\.1|localhost)(:\d+)?$/i.test(host)) {
        return 'foreign host'; // a name that was rebound to this address
    }
    if (headers.origin !== undefined && headers.origin !== `http://${host}`) {
        return 'foreign origin';
    }
    if (/^(cross|same)-site$/.test(headers['sec-fetch-site']) && headers['sec-fetch-mode'] !== 'navigate') {
        return 'foreign site';
    }
    const [, prefix, inside] = /^\/([^/?#]*)(.*)$/.exec(url) || [];
    if (prefix === undefined || !isSecret(prefix)) {
        return 'no secret';
    }
    let place;
    try {
        place = decodeURIComponent(inside.split(/[?#]/)[0]);
    } catch {
        return 'malformed';
    }
    if (/\.\.|\\|\0/.test(place) || (/trial-file/i.test(place) && !TRIAL_FILE.test(place)) || /netron/i.test(place)) {
        return 'traversal';
    }
    if (method === 'GET' || method === 'HEAD') {
        return null;
    }
    const hasBody = Number(headers['content-length'] || 0) > 0 || headers['transfer-encoding'] !== undefined;
    if (hasBody && !/^application\/json\b/i.test(headers['content-type'] || '')) {
        return 'no JSON'; // what a form of another site can send
    }
    const isAllowed = ([verb, form, byBrowser]) =>
        verb === method && form.test(inside) && (byBrowser || headers.origin === undefined);
    return WRITES.some(isAllowed) ? null : 'not to be changed here';
}

const PAGES = /^\/(oview|detail|experiment)?$/;
/** The table of trials begins with the metrics that count here; whoever chooses other columns keeps his. */
const COLUMNS = `{
    const columns = ['sequenceId', 'id', 'status', 'latestAccuracy'];
    const metrics = ['metric/srcc', 'metric/plcc', 'metric/accuracy'];
    const choice = { value: JSON.stringify([...columns, ...metrics]), time: Date.now(), expire: 1e15, isSelectall: false };
    if (localStorage.getItem('experiment_columns') === null) {
        localStorage.setItem('experiment_columns', JSON.stringify(choice));
    }
}`;

function sendPage(response) {
    const page = fs.readFileSync(path.join(process.cwd(), 'static', 'index.html'), 'utf8');
    response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8', 'Cache-Control': 'no-store' });
    response.end(page.replace('<head>', `<head><script>${COLUMNS}</script>`));
}

const HEADERS = {
    'Content-Security-Policy':
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; " +
        "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'",
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
};

const emit = http.Server.prototype.emit;
http.Server.prototype.emit = function (event, first, second, ...rest) {
    if (event === 'connection' && !isOwnUser(first)) {
        first.destroy();
        return true;
    }
    if (event === 'upgrade' && refusal(first) !== null) {
        second.destroy();
        return true;
    }
    if (event === 'request') {
        Object.entries(HEADERS).forEach(([name, value]) => second.setHeader(name, value));
        const reason = refusal(first);
        if (reason !== null) {
            second.writeHead(403, { 'Content-Type': 'text/plain', Connection: 'close' });
            second.end(`forbidden: ${reason}\n`);
            return true;
        }
        if (first.method === 'GET' && PAGES.test(first.url.slice(1 + PREFIX.length))) {
            sendPage(second);
            return true;
        }
    }
    return emit.call(this, event, first, second, ...rest);
};

// --- the trials ------------------------------------------------------------------------------------------------------

const processes = new Map(); // trial id → TrialProcess
const messages = new Map(); // trial id → how it ended, for the web UI and the command
let service = null; // the V3asV1 in use

/** `result.json` of a trial by its number: the folder is the truth of how it ended. */
function readResult(number) {
    try {
        const folder = path.join(STUDY, 'trials', String(number).padStart(4, '0'));
        return JSON.parse(fs.readFileSync(path.join(folder, 'result.json'), 'utf8'));
    } catch {
        return null;
    }
}

/** Ends NNI in order, and leaves word why: trials that run are stopped, and resumed by the next start. */
function finish(reason, detail) {
    if (finish.called) {
        return;
    }
    finish.called = true;
    fs.writeFileSync(path.join(STUDY, 'nni', 'ended.json'), JSON.stringify({ reason, detail }));
    process.kill(process.pid, 'SIGTERM');
}

/** A parameter belongs to the trial that it was submitted for, not to the one that asks first (microsoft/nni#5726). */
function mendBinding(prototype) {
    const { submitTrialJob, cancelTrialJob, getTrialJob } = prototype;
    prototype.submitTrialJob = async function (form) {
        service = this;
        const value = form.hyperParameters.value;
        const trial = await submitTrialJob.call(this, form);
        const index = this.parameters.indexOf(value);
        if (index >= 0) {
            this.parameters.splice(index, 1);
            this.allocatedParameters.set(trial.id, value);
        }
        return trial;
    };
    // The assessor's verdict is a signal of its own: the trial writes its result before it goes.
    prototype.cancelTrialJob = async function (id, isEarlyStopped) {
        if (isEarlyStopped) {
            processes.get(id)?.proc?.kill('SIGUSR1');
            return;
        }
        await cancelTrialJob.call(this, id, false);
    };
    prototype.getTrialJob = async function (id) {
        const trial = await getTrialJob.call(this, id);
        if (trial !== undefined && messages.has(id)) {
            trial.message = messages.get(id);
        }
        return trial;
    };
}

const CODES = { complete: 0, pruned: null, failed: 1 }; // exit codes, as NNI reads them

/** A trial ended as its folder says; one that left no result failed, whatever its exit code. */
function mendEnds(prototype) {
    const { spawn, kill, resolveStop } = prototype;
    prototype.spawn = function (options) {
        this.number = options.sequenceId;
        processes.set(this.id, this);
        return spawn.call(this, options);
    };
    prototype.kill = function (timeout) {
        this.cancelled = true;
        return kill.call(this, timeout ?? PATIENCE_MS);
    };
    prototype.resolveStop = function (event, code, signal, timestamp) {
        let status = code;
        if (!this.stopped.settled) {
            const result = readResult(this.number);
            if (result !== null) {
                status = CODES[result.state];
                messages.set(this.id, result.reason ?? undefined);
            } else if (this.cancelled) {
                messages.set(this.id, 'cancelled in the web UI');
            } else {
                status = code || 1;
                const how = signal ? `was ended by ${signal}` : `ended with exit code ${code}`;
                messages.set(this.id, `the process ${how}`);
            }
            const trial = service?.trialJobs[this.id];
            if (trial !== undefined) {
                trial.isEarlyStopped = result?.state === 'pruned';
            }
        }
        return resolveStop.call(this, event, status, signal, timestamp);
    };
}

/** The budget counts trials that did not fail; a dead tuner and a used-up grid end the experiment; numbers go on. */
function mendManager(prototype) {
    const { setStatus, requestTrialJobsStatus, addRecoveredTrialJob, updateExperimentProfile } = prototype;
    const FAILED = ['FAILED', 'USER_CANCELED', 'SYS_CANCELED'];
    const failed = new Set();
    let inARow = [];

    Object.defineProperty(prototype, 'maxTrialNum', {
        get() {
            return this.experimentProfile.params.maxTrialNumber + failed.size;
        },
    });

    prototype.requestTrialJobsStatus = async function () {
        const before = Array.from(this.trialJobs.keys());
        const count = await requestTrialJobsStatus.call(this);
        for (const id of before.filter((key) => !this.trialJobs.has(key))) {
            const { status } = await this.trainingService.getTrialJob(id);
            if (FAILED.includes(status)) {
                failed.add(id);
            }
            const cause = status === 'FAILED' ? messages.get(id).replace(/\d/g, '') : null;
            inARow = inARow.filter((earlier) => earlier === cause).concat(cause ?? []);
            if (inARow.length >= FAILURES_IN_A_ROW) {
                finish('failures', messages.get(id));
            }
        }
        const isIdle = this.trialJobs.size === 0 && this.waitingTrials.length === 0;
        if (this.status.status === 'TUNER_NO_MORE_TRIAL' && isIdle) {
            finish('done');
        }
        if (this.dispatcherPid > 0 && !isAlive(this.dispatcherPid)) {
            finish('tuner');
        }
        return count;
    };

    // While the last trials run, NNI forgets how many more it may start.
    prototype.updateExperimentProfile = async function (profile, kind) {
        if (this.status.status === 'NO_MORE_TRIAL') {
            const underWay = this.trialJobs.size + this.waitingTrials.length;
            this.trialConcurrencyChange += this.experimentProfile.params.trialConcurrency - underWay;
        }
        return updateExperimentProfile.call(this, profile, kind);
    };

    prototype.setStatus = function (status) {
        setStatus.call(this, status);
        if (status === 'DONE') {
            finish('done');
        } else if (status === 'ERROR') {
            finish('error', this.status.errors.at(-1));
        }
    };

    // NNI counts on from the trials that it resumes, and so gives numbers and ids of finished ones again.
    prototype.addRecoveredTrialJob = function (jobs) {
        const recovered = addRecoveredTrialJob.call(this, jobs);
        jobs.filter((job) => FAILED.includes(job.status)).forEach((job) => failed.add(job.trialJobId));
        this.experimentProfile.nextSequenceId = 1 + Math.max(-1, ...jobs.map((job) => job.sequenceId ?? -1));
        this.trialDataForResume = JSON.stringify(jobs.map((job) => JSON.parse(job.hyperParameters[0])));
        return recovered;
    };
}

function isAlive(pid) {
    try {
        return process.kill(pid, 0);
    } catch {
        return false;
    }
}

/** A resumed experiment takes the configuration of this start, not that of the first. */
function mendStore(prototype) {
    const { getExperimentProfile } = prototype;
    prototype.getExperimentProfile = async function (id) {
        const profile = await getExperimentProfile.call(this, id);
        const own = JSON.parse(fs.readFileSync(path.join(STUDY, 'nni', 'config.json'), 'utf8'));
        return { ...profile, params: { ...profile.params, ...own } };
    };
}

const MENDS = { V3asV1: mendBinding, TrialProcess: mendEnds, NNIManager: mendManager, NNIDataStore: mendStore };
const mended = new Set();
const load = Module._load;
Module._load = function (...args) {
    const loaded = load.apply(this, args);
    for (const [name, mend] of Object.entries(MENDS)) {
        if (!mended.has(name) && typeof loaded?.[name] === 'function') {
            mended.add(name);
            mend(loaded[name].prototype);
        }
    }
    return loaded;
};

const { setTimeout: later } = global;
global.setTimeout = function (callback, delay, ...args) {
    const waitsForTuner = delay === 10000 && String(callback).includes('Tuner did not connect');
    return later(callback, waitsForTuner ? TUNER_MS : delay, ...args);
};
Object.assign(global.setTimeout, later);
