/** The client's `token`: a fresh one each time, or null when the user has signed out. */
export async function fetchToken() {
  const answer = await fetch("/notify/token", {
    method: "POST",
    cache: "no-store",
    headers: { "X-Requested-With": "fetch", "X-CSRFToken": cookie("csrftoken") },
  });
  if (answer.status === 401) return null;
  if (!answer.ok) throw new Error(`the token endpoint answered ${answer.status}`); // tried again, with backoff
  const { token, expires_at } = await answer.json();
  return { value: token, expiresAt: expires_at };
}

function cookie(name) {
  return document.cookie.split("; ").find((one) => one.startsWith(`${name}=`))?.slice(name.length + 1) ?? "";
}
