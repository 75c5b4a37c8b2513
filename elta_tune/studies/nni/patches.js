'use strict';
// The trials. Loaded into NNI's node before its own main.js (`node --require`): NNI 3.0 is archived, and as it ships it
// swaps parameters between trials, kills them while they save, counts failed ones, and never notices a dead tuner. The
// names patched here are those of nni 3.0, which is pinned; each trial checks that its parameters are its own.

const fs = require('fs');
const Module = require('module');
const path = require('path');

const STUDY = process.env.ELTA_TUNE_NNI_STUDY;
const PATIENCE_MS = 30000; // a trial that is to stop has so long to clean up; NNI's own 5 s kill a busy one
const TUNER_MS = 120000; // NNI gives the tuner 10 s to import; a busy machine needs more
const LOOK_MS = 500; // between looks whether the tuner lives
const FAILED = ['FAILED', 'USER_CANCELED', 'SYS_CANCELED'];

const processes = new Map(); // trial id → TrialProcess
const messages = new Map(); // trial id → how it ended, for the web UI and the command
const failed = new Set(); // ids of trials that use no budget
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

/** What this start is: NNI's `experiment`, and `failures`: how many in a row, alike or of any kind, end it. */
function readStart() {
    return JSON.parse(fs.readFileSync(path.join(STUDY, 'nni', 'config.json'), 'utf8'));
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

/** The budget counts trials that did not fail; those in a row and a used-up space end the experiment. */
function patchBudget(prototype) {
    const { setStatus, requestTrialJobsStatus, updateExperimentProfile } = prototype;
    const watchFailures = failureWatch();

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
            watchFailures(status, messages.get(id) ?? '');
        }
        const isIdle = this.trialJobs.size === 0 && this.waitingTrials.length === 0;
        if (this.status.status === 'TUNER_NO_MORE_TRIAL' && isIdle) {
            finish('exhausted');
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
}

/** Hears how trials end, and ends a study that burns, as elta_tune/studies/events.py does. */
function failureWatch() {
    let causes = [];
    return (status, reason) => {
        if (status !== 'FAILED') {
            causes = FAILED.includes(status) ? causes : []; // one that is cancelled in the web UI says nothing
            return;
        }
        causes.push(causeOf(reason));
        const { alike, any } = readStart().failures;
        const last = causes.slice(-alike);
        if (last.length === alike && last.every((cause) => cause === last[0])) {
            finish('alike', reason);
        } else if (causes.length >= any) {
            finish('failures', reason);
        }
    };
}

/** What comes before the details, as in elta_tune/studies/events.py. */
function causeOf(reason) {
    return reason.split(/[:\d]/)[0].replace(/\b(nan|inf)\b/g, '');
}

/** A resumed experiment counts on; a tuner that dies ends it, also before it has connected. */
function patchStart(prototype) {
    const { setupTuner, addRecoveredTrialJob } = prototype;

    // NNI forgets a trial that it was about to resume when it was stopped. And it counts on from the trials that it
    // resumes, and so gives numbers and ids of finished ones again.
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

/** A resumed experiment takes the configuration of this start, not that of the first. */
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
