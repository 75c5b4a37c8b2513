'use strict';
// Decides when failed trials end a study: the rules of elta_tune/studies/events.py, for NNI's node.

const FAILED = ['FAILED', 'USER_CANCELED', 'SYS_CANCELED'];

/** A failure's reason without its details, like `cause_of` in elta_tune/studies/events.py. */
function causeOf(reason) {
    return reason.split(/[:\d]/)[0].replace(/\b(nan|inf)\b/g, '');
}

/**
 * Counts the trials in a row that failed.
 *
 * Returns a function of a trial's state and reason. It returns 'alike' or 'failures' when so many failed in a row, for
 * the same cause or for any, that the study should end; otherwise null. `limits` returns both numbers.
 */
function failureWatch(limits) {
    let causes = [];
    return (status, reason) => {
        if (status !== 'FAILED') {
            causes = FAILED.includes(status) ? causes : []; // one that is cancelled in the web UI means nothing
            return null;
        }
        causes.push(causeOf(reason));
        const { alike, any } = limits();
        const last = causes.slice(-alike);
        if (last.length === alike && last.every((cause) => cause === last[0])) {
            return 'alike';
        }
        return causes.length >= any ? 'failures' : null;
    };
}

module.exports = { FAILED, causeOf, failureWatch };
