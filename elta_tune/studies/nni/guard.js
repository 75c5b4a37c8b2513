'use strict';
// Access control for NNI 3.0, which is archived. Loaded into its node before main.js (`node --require`). Without it NNI
// listens on all interfaces and serves any file of the machine to everybody. elta_tune/studies/nni/node.py checks after
// every start that it is in force.

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const net = require('net');
const os = require('os');
const path = require('path');

const LOOPBACK = '127.0.0.1';
const STUDY = process.env.ELTA_TUNE_NNI_STUDY;
const PREFIX = process.env.ELTA_TUNE_NNI_PREFIX;

delete process.env.ELTA_TUNE_NNI_PREFIX;
process.argv.push(`--url-prefix=${PREFIX}`); // here, since other users can read a command line
os.homedir = () => path.join(STUDY, 'nni'); // NNI keeps its index of experiments there

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

/** Linux's tables of connections, and 127.0.0.1 as they write it: a socket of IPv6, too, may connect to it. */
const LOOPBACK_IN = { '/proc/net/tcp': '0100007F', '/proc/net/tcp6': '0000000000000000FFFF00000100007F' };

/** The Unix user at the other end of a connection (Linux), or null if it is already gone. */
function peerUid(socket) {
    const port = (number) => number.toString(16).toUpperCase().padStart(4, '0');
    for (const [table, address] of Object.entries(LOOPBACK_IN)) {
        const local = `${address}:${port(socket.remotePort)}`;
        const remote = `${address}:${port(socket.localPort)}`;
        for (const line of fs.existsSync(table) ? fs.readFileSync(table, 'utf8').split('\n') : []) {
            const fields = line.trim().split(/\s+/);
            if (fields[1] === local && fields[2] === remote) {
                return Number(fields[7]);
            }
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
/** The only writes: the command starts the study or raises its budget, a trial reports or is killed. */
const WRITES = [
    ['POST', /^\/api\/v1\/nni\/experiment$/, false],
    ['PUT', /^\/api\/v1\/nni\/experiment\?update_type=MAX_TRIAL_NUM$/, false],
    ['PUT', /^\/env\/[\w-]+\/\w+$/, false],
    ['DELETE', /^\/api\/v1\/nni\/trial-jobs\/\w+$/, true], // also from the web UI
];

const NO_SECRET = 'open the whole address that the command printed; elta-tune ui prints it again';

/** Why a request is refused, or null. */
function refusal({ method, url, headers }) {
    const host = headers.host || '';
    if (!/^(127\.0\.0\.1|localhost)(:\d+)?$/i.test(host)) {
        return 'foreign host'; // DNS rebinding
    }
    if (headers.origin !== undefined && headers.origin !== `http://${host}`) {
        return 'foreign origin';
    }
    if (/^(cross|same)-site$/.test(headers['sec-fetch-site']) && headers['sec-fetch-mode'] !== 'navigate') {
        return 'foreign site';
    }
    const [, prefix, inside] = /^\/([^/?#]*)(.*)$/.exec(url) || [];
    if (prefix === undefined || !isSecret(prefix)) {
        return NO_SECRET;
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
        return 'no JSON'; // a form of another site can send it
    }
    const isAllowed = ([verb, form, byBrowser]) =>
        verb === method && form.test(inside) && (byBrowser || headers.origin === undefined);
    return WRITES.some(isAllowed) ? null : 'not to be changed here';
}

const PAGES = /^\/(oview|detail|experiment)?$/;
/** The first columns of the table of trials, until the user chooses others. */
const COLUMNS = `{
    const columns = ['sequenceId', 'id', 'status', 'latestAccuracy'];
    const metrics = ['metric/srcc', 'metric/plcc', 'metric/accuracy'];
    const choice = { value: JSON.stringify([...columns, ...metrics]), time: Date.now(), expire: 1e15, isSelectall: false };
    if (localStorage.getItem('experiment_columns') === null) {
        localStorage.setItem('experiment_columns', JSON.stringify(choice));
    }
}`;

/** Icons from the installation, since the pages may ask no other host for theirs, and a layout that cuts nothing. */
const STYLE = fs.readFileSync(path.join(__dirname, 'page.css'), 'utf8');

function sendPage(response) {
    const page = fs.readFileSync(path.join(process.cwd(), 'static', 'index.html'), 'utf8');
    response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8', 'Cache-Control': 'no-store' });
    response.end(page.replace('</head>', `<script>${COLUMNS}</script><style>${STYLE}</style></head>`));
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
