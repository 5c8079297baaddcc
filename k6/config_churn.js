// A new gateway document every second, each time applied at another node, while requests run through all of them and a
// WebSocket stays open: no request fails, no version is lost. The document that was there is restored at the end.
//
//     k6 run k6/config_churn.js see k6/README.md

import { check, fail } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import ws from 'k6/ws';
import { ADMIN, answered, number, ready, request, WEB } from './lib/cluster.js';

const DURATION_S = number('DURATION_S', 30);
const P99_MS = number('P99_MS', 100);
// A WebSocket echo behind the cluster, such as ws://127.0.0.1:8081/echo.
const WS_URL = __ENV.WS_URL;
// It echoes five times a second. After this long it is dead, though nobody may have closed it.
const SILENCE_MS_MAX = 2000;

export const options = {
  scenarios: {
    traffic: { executor: 'constant-arrival-rate', exec: 'traffic', rate: 200, duration: `${DURATION_S}s`, preAllocatedVUs: 20, maxVUs: 200 },
    churn: { executor: 'constant-arrival-rate', exec: 'churn', rate: 1, duration: `${DURATION_S}s`, preAllocatedVUs: 1, maxVUs: 1 },
    ...(WS_URL ? { socket: { executor: 'per-vu-iterations', exec: 'socket', vus: 1, iterations: 1, maxDuration: `${DURATION_S + 10}s` } } : {}),
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'http_req_duration{scenario:traffic}': [`p(99)<${P99_MS}`],
    // Documents that could not be applied, because the one before took longer than a second.
    'dropped_iterations{scenario:churn}': ['count==0'],
  },
};

const CONFIG = { tags: { name: '/v1/config' } };

// The text and the tag of the document.
function current(admin) {
  const response = http.get(`${admin}/v1/config`, CONFIG);
  if (response.status !== 200) fail(`${admin}/v1/config answers ${response.status}`);
  return { text: response.body, tag: response.headers.Etag };
}

function apply(admin, text, tag) {
  return http.put(`${admin}/v1/config`, text, { ...CONFIG, headers: { 'If-Match': tag } });
}

export function setup() {
  ready();
  return current(ADMIN[0]);
}

export function traffic() {
  check(request(exec.scenario.iterationInTest), { 'a request is answered': (r) => r.status === 200 });
}

// The document as it was, with one more service and a route to it: another one each time.
export function churn(before) {
  const n = exec.scenario.iterationInTest;
  const name = `churn-${n}`;
  const text = before.text
    .replace(/^services:[ \t]*(#.*)?$/m, `services:\n  ${name}: {}`)
    .replace(/^routes:[ \t]*(#.*)?$/m, `routes:\n  - { name: ${name}, match: { path_prefix: /${name} }, service: ${name} }`);
  if (!text.includes(`  - { name: ${name},`) || !text.includes(`  ${name}: {}`)) fail(`the document has another shape:\n${before.text}`);

  const [here, there] = [ADMIN[n % ADMIN.length], WEB[(n + 1) % WEB.length]];
  const applied = apply(here, text, current(here).tag);
  check(applied, {
    'the document is applied': (r) => r.status === 200,
    'every node runs it': (r) => r.status === 200 && Object.values(r.json('nodes')).every((state) => state === 'active'),
  });
  // A route without an instance is 503, where there was 404.
  const routed = http.get(`${there}/${name}`, { ...answered(503), tags: { name: 'routed' } });
  check(routed, { 'another node has its route': (r) => r.status === 503 });
}

// One WebSocket for the whole time: what is sent comes back, and nobody closes it.
export function socket() {
  let [echoed, heard, silence, finished] = [0, Date.now(), 0, false];
  const listened = () => {
    silence = Math.max(silence, Date.now() - heard);
    heard = Date.now();
  };
  const response = ws.connect(WS_URL, {}, (socket) => {
    socket.on('open', () => socket.send('0'));
    socket.on('message', (text) => {
      if (Number(text) !== echoed) return socket.close();
      listened();
      echoed += 1;
      socket.setTimeout(() => socket.send(String(echoed)), 200);
    });
    socket.setTimeout(() => {
      listened();
      finished = true;
      socket.close();
    }, DURATION_S * 1000);
  });
  check(response, { 'the WebSocket is accepted': (r) => r && r.status === 101 });
  check(silence, { 'the WebSocket lived through every change': (ms) => finished && ms < SILENCE_MS_MAX });
}

export function teardown(before) {
  const restored = apply(ADMIN[0], before.text, current(ADMIN[0]).tag);
  if (restored.status !== 200) fail(`the document could not be restored: ${restored.status} ${restored.body}`);
  check(current(ADMIN[0]), { 'the document is restored': (now) => now.text === before.text });
}
