// Many clients that keep their connections and ask once a second: none is refused, and the connections last.
//
//     k6 run k6/connections.js  see k6/README.md

import { check, sleep } from 'k6';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { number, ready, request } from './lib/cluster.js';

const CLIENTS = number('CLIENTS', 600);
const DURATION = `${number('DURATION_S', 30)}s`;
const P95_MS = number('P95_MS', 200);

// A client that had a connection needed a new one. A gateway that closes them does so to all; of one client in a hundred it may
// be k6 itself: Go's transport gives a connection up when its own goroutine reports more than 50 ms after the answer that the
// request is written (`maxWriteWaitBeforeConnReuse`), which happens where k6 waits for a core. benches/soak allows none: its wrk
// counts every connection that is closed under it as an error.
const reconnects = new Counter('reconnects');
const RECONNECTS_MAX = Math.floor(CLIENTS / 100);

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
