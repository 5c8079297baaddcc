// Many clients that keep their connections and ask once a second: none is refused, none is closed under its client.
//
//     k6 run k6/connections.js  see k6/README.md

import { check, sleep } from 'k6';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { number, ready, request } from './lib/cluster.js';

const CLIENTS = number('CLIENTS', 600);
const DURATION = `${number('DURATION_S', 30)}s`;
const P95_MS = number('P95_MS', 200);

// A client that had a connection needed a new one. On a machine without a free core k6 itself gives some up: Go's transport does when
// its own goroutine reports more than 50 ms after the answer that the request is written (`maxWriteWaitBeforeConnReuse`).
// Only there may RECONNECTS be more than none.
const reconnects = new Counter('reconnects');
const RECONNECTS_MAX = __ENV.RECONNECTS ? number('RECONNECTS', 0) : 0;

export const options = {
  scenarios: {
    clients: { executor: 'constant-vus', vus: CLIENTS, duration: DURATION, gracefulStop: '5s' },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'http_req_duration{scenario:clients}': [`p(95)<${P95_MS}`],
    reconnects: [`count<=${RECONNECTS_MAX}`],
  },
};

export function setup() {
  ready();
}

let asked = 0;

export default function () {
  // A client stays with one node. The first requests are spread over a second.
  if (asked === 0) sleep(Math.random());
  const response = request(exec.vu.idInTest);
  check(response, { 'a request is answered': (r) => r.status === 200 });
  reconnects.add(asked > 0 && response.timings.connecting > 0 ? 1 : 0);
  asked += 1;
  sleep(1);
}
