// The service over HTTP: one function a path, one error class, and the key that it may ask for.

const KEY = "tandem.key";

/** What the service refused; `code` is its own word, "network" where nobody answered; `faults` begin with a field. */
export class ApiError extends Error {
  constructor(status, code, message, faults = []) {
    super(message);
    Object.assign(this, { status, code, faults });
  }
}

let asking = null;
let askForKey = async () => null;

/** Who is asked for a key when the service wants one: (reason) → the key, or null. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

export const about = () => get("v1/about");
export const report = () => get("v1/report");
export const users = (search, limit = 12, signal = undefined) =>
  get(`v1/users?${new URLSearchParams({ search, limit })}`, signal).then((found) => found.users.map(String));
export const items = (search, limit = 12, signal = undefined) =>
  get(`v1/items?${new URLSearchParams({ search, limit })}`, signal).then((found) => found.items);
export const recommend = (body, signal) =>
  call("v1/recommend", { method: "POST", body: JSON.stringify(body), signal });

/** The same request for a terminal. */
export function asCurl(body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = storedKey() ? ` \\\n  -H "Authorization: Bearer $TANDEM_KEY"` : "";
  const url = new URL("v1/recommend", document.baseURI);
  return `curl ${url} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
}

function get(path, signal) {
  return call(path, { signal });
}

async function call(path, options) {
  const used = storedKey();
  const response = await answered(path, options, used);
  if (response.status !== 401 && !(response.status === 403 && used)) return read(response);
  const refused = await fault(response);
  if (storedKey() !== used) return call(path, options); // another call has just been given one
  asking ??= askForKey(used ? refused.message : "").finally(() => (asking = null));
  const key = await asking;
  if (!key) throw refused;
  sessionStorage.setItem(KEY, key);
  return call(path, options);
}

async function answered(path, options, key) {
  const headers = { Accept: "application/json" };
  if (options.body) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "network", "The service does not answer. Is it still running?");
  }
}

async function read(response) {
  if (!response.ok) throw await fault(response);
  return response.json();
}

async function fault(response) {
  let said = null;
  try {
    said = (await response.json()).error;
  } catch {
    // a proxy may answer with a page of its own
  }
  const message = said?.message ?? `The service answered ${response.status} ${response.statusText}.`;
  return new ApiError(response.status, said?.code ?? "unknown", message, said?.faults ?? []);
}

function storedKey() {
  return sessionStorage.getItem(KEY);
}
