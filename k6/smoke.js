// Is this cluster what it says it is? Ten seconds of requests through every node, while instances come and go at every
// node. Nothing may fail. It leaves the registry as it found it and never touches the gateway document.
//
//     k6 run k6/smoke.js        see k6/README.md

import http from 'k6/http';
import { check, sleep } from 'k6';
import exec from 'k6/execution';
import { ADMIN, answered, ready, request, WEB } from './lib/cluster.js';

const ROUTED_SECONDS = 2;
const JSON_BODY = { headers: { 'Content-Type': 'application/json' } };

export const options = {
  scenarios: {
    traffic: { executor: 'constant-vus', exec: 'traffic', vus: 6, duration: '10s', gracefulStop: '5s' },
    registry: { executor: 'shared-iterations', exec: 'registry', vus: 2, iterations: 30, maxDuration: '30s' },
    routing: { executor: 'shared-iterations', exec: 'routing', vus: 1, iterations: ADMIN.length, maxDuration: '30s' },
    configuration: { executor: 'shared-iterations', exec: 'configuration', vus: 1, iterations: ADMIN.length, maxDuration: '30s' },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'http_req_duration{scenario:traffic}': ['p(95)<500'],
  },
};

export function setup() {
  ready();
}

// Requests through each node in turn, to each service.
export function traffic() {
  check(request(exec.scenario.iterationInTest), { 'a request through any node is answered': (r) => r.status === 200 });
}

// What is registered at one node is known at the next and may be removed at a third.
export function registry() {
  const n = exec.scenario.iterationInTest;
  const [here, there, elsewhere] = [0, 1, 2].map((step) => ADMIN[(n + step) % ADMIN.length]);
  const id = `k6-smoke-${n}`;
  const instance = JSON.stringify({ id, name: 'k6-smoke', address: '127.0.0.1:9', ttl: '60s' });
  const tags = { tags: { name: '/v1/services' } };

  const registered = http.post(`${here}/v1/services`, instance, { ...JSON_BODY, ...tags });
  check(registered, { 'an instance is registered': (r) => r.status === 201 || r.status === 200 });
  const read = http.get(`${there}/v1/services/${id}`, tags);
  check(read, { 'another node knows it at once': (r) => r.status === 200 && r.json('id') === id });
  const beat = http.put(`${there}/v1/services/${id}/heartbeat`, null, tags);
  check(beat, { 'any node takes its heartbeat': (r) => r.status === 200 });
  const removed = http.del(`${elsewhere}/v1/services/${id}`, null, tags);
  check(removed, { 'a third node removes it': (r) => r.status === 204 });
  const gone = http.get(`${here}/v1/services/${id}`, { ...tags, ...answered(404) });
  check(gone, { 'it is gone everywhere': (r) => r.status === 404 });
}

// One more instance of `hello`, registered at one node, is routed to by the next one. Its address is that of `time`, whose
// answers tell it from the others.
export function routing() {
  const n = exec.scenario.iterationInTest;
  const [here, next] = [ADMIN[n % ADMIN.length], WEB[(n + 1) % WEB.length]];
  const tags = { tags: { name: 'routing' } };
  const [time] = http.get(`${here}/v1/services?name=time`, tags).json();
  const id = `k6-smoke-hello-${n}`;
  const instance = JSON.stringify({ id, name: 'hello', address: time.address, ttl: '60s' });

  const registered = http.post(`${here}/v1/services`, instance, { ...JSON_BODY, ...tags });
  check(registered, { 'one more instance of hello is registered': (r) => r.status === 201 || r.status === 200 });
  const deadline = Date.now() + ROUTED_SECONDS * 1000;
  let routed = false;
  while (!routed && Date.now() < deadline) routed = http.get(`${next}/hello`, tags).json('service') === 'time';
  check(routed, { 'the next node routes to it': (yes) => yes });
  check(http.del(`${here}/v1/services/${id}`, null, tags), { 'and it leaves again': (r) => r.status === 204 });
}

// Every node runs the same document.
export function configuration() {
  const admin = ADMIN[exec.scenario.iterationInTest % ADMIN.length];
  const status = http.get(`${admin}/v1/config/status`);
  check(status, {
    'every node runs the current document': (r) =>
      r.status === 200 && Object.values(r.json('nodes')).length === ADMIN.length &&
      Object.values(r.json('nodes')).every((node) => node.state === 'active'),
  });
  const metrics = http.get(`${admin}/metrics`);
  check(metrics, { 'metrics are served': (r) => r.status === 200 && r.body.includes('gogate_requests_total') });
}
