// The one place that talks to the server. Paths are relative to the page, so that a proxy may put it anywhere.

const STORED = "moesaic-key";
const listeners = { refused: new Set(), key: new Set() };
let refused = null; // the key that the server did not take, with its words: it is not asked again and again

export class ServerError extends Error {
  constructor({ message, param }, status) {
    super(message);
    this.status = status;
    this.param = param; // the field of the request at fault, if one is
  }
}

export const apiKey = () => sessionStorage.getItem(STORED) ?? "";

// Kept for this tab alone.
export function setApiKey(key) {
  sessionStorage.setItem(STORED, key.trim());
  refused = null;
  for (const listener of listeners.key) listener();
}

// `event` is "refused" (the server wants another API key) or "key" (the user typed one).
export function when(event, listener) {
  listeners[event].add(listener);
}

async function reasonOf(response) {
  try {
    const { message, param } = (await response.json()).error;
    return { message, param };
  } catch {
    return { message: `the server answered ${response.status}` };
  }
}

async function ask(path, { body, signal, method = body === undefined ? "GET" : "POST" } = {}) {
  if (method === "GET" && refused?.key === apiKey()) throw refused.error;
  const headers = {};
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (response.status !== 401) refused = null;
  if (response.ok) return response;
  const error = new ServerError(await reasonOf(response), response.status);
  if (response.status === 401) {
    refused = { key: apiKey(), error };
    for (const listener of listeners.refused) listener(error);
  }
  throw error;
}

export const get = async (path) => (await ask(path)).json();
export const post = async (path, body) => (await ask(path, { body })).json();

// The messages of a stream of server-sent events.
export async function* stream(path, body, signal) {
  const reader = (await ask(path, { body, signal })).body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const message = JSON.parse(data);
      if (message.error) throw new ServerError(message.error, message.error.code);
      yield message;
    }
  }
}
