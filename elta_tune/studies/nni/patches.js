'use strict';
// Patches of NNI 3.0, which is archived. Loaded into its node before main.js (`node --require`). Without them NNI swaps
// parameters between trials, kills trials while they save, counts failed ones, and never notices a dead tuner. The names
// are those of nni 3.0, which is pinned; each trial checks that its parameters are its own.

const fs = require('fs');
const Module = require('module');
const path = require('path');
const { FAILED, failureWatch } = require('./failures.js');

const STUDY = process.env.ELTA_TUNE_NNI_STUDY;
const PATIENCE_MS = 30000; // for a trial to stop; after NNI's 5 s a busy one is killed
const TUNER_MS = 120000; // NNI gives the tuner 10 s to import; a busy machine needs more
const LOOK_MS = 500; // between checks that the tuner runs

const processes = new Map(); // trial id → TrialProcess
const messages = new Map(); // trial id → how it ended, for the web UI and the command
const failed = new Set(); // ids of trials that use no budget
let service = null; // the V3asV1 in use

/** `result.json` of a trial: its folder says how it ended. */
function readResult(number) {
    try {
        const folder = path.join(STUDY, 'trials', String(number).padStart(4, '0'));
        return JSON.parse(fs.readFileSync(path.join(folder, 'result.json'), 'utf8'));
    } catch {
        return null;
    }
}

/** This start: NNI's `experiment`, and `failures`: how many in a row end it, of the same cause or of any. */
function readStart() {
    return JSON.parse(fs.readFileSync(path.join(STUDY, 'nni', 'config.json'), 'utf8'));
}

/** Ends NNI and records why. Trials that run are stopped; the next start resumes them. */
function finish(reason, detail) {
    if (finish.called) {
        return;
    }
    finish.called = true;
    fs.writeFileSync(path.join(STUDY, 'nni', 'ended.json'), JSON.stringify({ reason, detail }));
    process.kill(process.pid, 'SIGTERM');
}

/** Gives parameters to the trial that they were submitted for, not to the one that asks first (microsoft/nni#5726). */
function patchBinding(prototype) {
    const { submitTrialJob, cancelTrialJob, getTrialJob } = prototype;
    prototype.submitTrialJob = async function (form) {
        service = this;
        this.allocatedParameters.delete = () => false; // a trial that the answer did not reach asks again
        const value = form.hyperParameters.value;
        const trial = await submitTrialJob.call(this, form);
        const index = this.parameters.indexOf(value);
        if (index >= 0) {
            this.parameters.splice(index, 1);
            this.allocatedParameters.set(trial.id, value);
        }
        return trial;
    };
    // The assessor's verdict is another signal: the trial writes its result before it ends.
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

/** Takes a trial's end from its folder; a trial without a result failed, whatever its exit code. */
function patchEnds(prototype) {
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

function patchManager(prototype) {
    patchBudget(prototype);
    patchStart(prototype);
}

/** Counts trials that did not fail toward the budget; failures in a row and a used-up space end the experiment. */
function patchBudget(prototype) {
    const { setStatus, requestTrialJobsStatus, updateExperimentProfile } = prototype;
    const watchFailures = failureWatch(() => readStart().failures);

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
            const reason = messages.get(id) ?? '';
            const end = watchFailures(status, reason);
            if (end !== null) {
                finish(end, reason);
            }
        }
        const isIdle = this.trialJobs.size === 0 && this.waitingTrials.length === 0;
        if (this.status.status === 'TUNER_NO_MORE_TRIAL' && isIdle) {
            finish('exhausted');
        }
        return count;
    };

    // While the last trials run, NNI loses count of how many more it may start.
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
}

/** Resumes trials under their numbers, and ends an experiment whose tuner died, also before it has connected. */
function patchStart(prototype) {
    const { setupTuner, addRecoveredTrialJob } = prototype;

    // NNI drops a trial that it was about to resume when it was stopped. And it continues to count from the trials that
    // it resumes, so that new trials would get the numbers and ids of finished ones.
    prototype.addRecoveredTrialJob = function (jobs) {
        const isOver = (job) => ['SUCCEEDED', 'EARLY_STOPPED', ...FAILED].includes(job.status);
        const recovered = addRecoveredTrialJob.call(
            this,
            jobs.map((job) => (isOver(job) ? job : { ...job, status: 'RUNNING' })),
        );
        jobs.filter((job) => FAILED.includes(job.status)).forEach((job) => failed.add(job.trialJobId));
        this.experimentProfile.nextSequenceId = 1 + Math.max(-1, ...jobs.map((job) => job.sequenceId ?? -1));
        const proposed = jobs.map((job) => JSON.parse(job.hyperParameters[0]));
        this.trialDataForResume = proposed.length > 0 ? JSON.stringify(proposed) : ''; // of [] NNI counts on from 1
        return recovered;
    };

    prototype.setupTuner = async function (...args) {
        await setupTuner.apply(this, args);
        const look = setInterval(() => {
            if (['STOPPING', 'STOPPED'].includes(this.status.status)) {
                clearInterval(look);
            } else if (!isAlive(this.dispatcherPid)) {
                clearInterval(look);
                finish('tuner');
            }
        }, LOOK_MS);
    };
}

function isAlive(pid) {
    try {
        return process.kill(pid, 0);
    } catch {
        return false;
    }
}

/** Resumes with the configuration of this start, and with nothing that the database has of it. */
function patchStore(prototype) {
    const { getExperimentProfile } = prototype;
    prototype.getExperimentProfile = async function (id) {
        const profile = await getExperimentProfile.call(this, id);
        return { ...profile, params: readStart().experiment };
    };
}

const PATCHES = { V3asV1: patchBinding, TrialProcess: patchEnds, NNIManager: patchManager, NNIDataStore: patchStore };
const patched = new Set();
const load = Module._load;
Module._load = function (...args) {
    const loaded = load.apply(this, args);
    for (const [name, patch] of Object.entries(PATCHES)) {
        if (!patched.has(name) && typeof loaded?.[name] === 'function') {
            patched.add(name);
            patch(loaded[name].prototype);
            fs.writeFileSync(path.join(STUDY, 'nni', 'patched.json'), JSON.stringify([...patched]));
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
