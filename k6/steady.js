// A constant rate of requests through all nodes: nothing fails, nothing is late, and the rate is kept.
//
//     k6 run k6/steady.js       see k6/README.md

import { check } from 'k6';
import exec from 'k6/execution';
import { number, ready, request } from './lib/cluster.js';

const RATE = number('RATE', 500);
const DURATION = `${number('DURATION_S', 30)}s`;
const P99_MS = number('P99_MS', 50);

export const options = {
  scenarios: {
    steady: { executor: 'constant-arrival-rate', rate: RATE, duration: DURATION, preAllocatedVUs: 50, maxVUs: 500 },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'http_req_duration{scenario:steady}': [`p(99)<${P99_MS}`],
    // Requests that were not sent in time, because all that were sent before still waited.
    dropped_iterations: [`count<${Math.max(1, RATE / 20)}`],
  },
};

export function setup() {
  ready();
}

export default function () {
  check(request(exec.scenario.iterationInTest), { 'a request is answered': (r) => r.status === 200 });
}
