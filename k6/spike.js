// Calm, ten times as much within a second, calm again: every request is answered, or refused by the book (503 with
// Retry-After) while the spike lasts, and after it the cluster is as quick as before.
//
//     k6 run k6/spike.js        see k6/README.md

import { check } from 'k6';
import exec from 'k6/execution';
import { number, ready, request } from './lib/cluster.js';

const CALM = number('CALM', 100);
const SPIKE = number('SPIKE', CALM * 10);
const DURATION_S = number('DURATION_S', 10);
const P95_MS = number('P95_MS', 100);

const steady = (startTime) => ({
  executor: 'constant-arrival-rate', exec: 'calm', rate: CALM, duration: `${DURATION_S}s`, startTime, preAllocatedVUs: 20, maxVUs: 200,
});

export const options = {
  scenarios: {
    before: steady('0s'),
    spike: {
      executor: 'ramping-arrival-rate', exec: 'spike', startTime: `${DURATION_S}s`, startRate: CALM, preAllocatedVUs: 100, maxVUs: 1000,
      stages: [{ target: SPIKE, duration: '1s' }, { target: SPIKE, duration: `${DURATION_S}s` }, { target: CALM, duration: '1s' }],
    },
    // Three seconds later: what was asked for in the spike is answered by then.
    after: steady(`${2 * DURATION_S + 5}s`),
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'http_req_duration{scenario:before}': [`p(95)<${P95_MS}`],
    'http_req_duration{scenario:after}': [`p(95)<${P95_MS}`],
  },
};

export function setup() {
  ready();
}

export function calm() {
  check(request(exec.scenario.iterationInTest), { 'a request in calm times is answered': (r) => r.status === 200 });
}

export function spike() {
  check(request(exec.scenario.iterationInTest, [200, 503]), {
    'a request in the spike is answered or refused by the book': (r) => r.status === 200 || (r.status === 503 && r.headers['Retry-After'] !== undefined),
  });
}
