// Where the cluster is, and what every script asks of it before it begins.

import http from 'k6/http';
import { fail, sleep } from 'k6';

const urls = (name, fallback) => (__ENV[name] || fallback).split(',').map((url) => url.trim().replace(/\/$/, ''));

export const WEB = urls('BASE_URLS', 'http://127.0.0.1:8081,http://127.0.0.1:8082,http://127.0.0.1:8083');
export const ADMIN = urls('ADMIN_URLS', 'http://127.0.0.1:7071,http://127.0.0.1:7072,http://127.0.0.1:7073');

// The sample services of `gogate dev` and of docker-compose.yml, each at a path of its name.
export const SERVICES = ['hello', 'time'];

const READY_SECONDS = 30;

// A number from the environment.
export const number = (name, fallback) => {
  const value = Number(__ENV[name] || fallback);
  if (!Number.isFinite(value) || value <= 0) fail(`${name} is not a number above 0: ${__ENV[name]}`);
  return value;
};

// Which statuses count as a request that did not fail.
export const answered = (...statuses) => ({ responseCallback: http.expectedStatuses(...statuses) });

// Waits until every node is ready and routes to every sample service.
export function ready() {
  const deadline = Date.now() + READY_SECONDS * 1000;
  const wait = (url, statuses) => {
    while (http.get(url, { ...answered(...statuses), tags: { name: 'ready' } }).status !== 200) {
      if (Date.now() > deadline) fail(`${url} does not answer 200 within ${READY_SECONDS} s`);
      sleep(0.25);
    }
  };
  for (const admin of ADMIN) wait(`${admin}/readyz`, [0, 200, 503]);
  for (const web of WEB) for (const service of SERVICES) wait(`${web}/${service}`, [0, 200, 404, 502, 503]);
}

// One request through one of the nodes, in turn by `n`; other statuses than `statuses` count as failed.
export function request(n, statuses = [200]) {
  const service = SERVICES[n % SERVICES.length];
  return http.get(`${WEB[n % WEB.length]}/${service}`, { ...answered(...statuses), tags: { name: service } });
}
