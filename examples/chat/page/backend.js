// @ts-check
/** The backend's API. */

/** For a moment, before something is tried again. */
export const pause = (milliseconds = 1000) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** What it answers. Throws an Error with its `status`, which is undefined where there was no answer. */
export async function api(method, path, body = undefined) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(`/api/${path}`, { method, headers, body: JSON.stringify(body) });
  if (response.ok) return response.status === 204 ? null : response.json();
  const { detail } = await response.json().catch(() => ({}));
  const words = typeof detail === "string" ? detail : `the server answered ${response.status}`;
  throw Object.assign(new Error(words), { status: response.status });
}

/** The same until it does answer: it may be away for a while. */
export async function eventually(method, path, body = undefined) {
  for (;;) {
    try {
      return await api(method, path, body);
    } catch (error) {
      if (error.status < 500) throw error;
      await pause();
    }
  }
}
