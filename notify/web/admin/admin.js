/**
 * The admin page. The API key is in a variable of this module and nowhere else. Whatever is shown becomes text nodes: names,
 * addresses and ids come from strangers.
 */

import { decode, encode } from "./int64.js";

const MOST_ROWS = 1000;
const byId = (id) => document.getElementById(id);

let key = "";
let tracing = null;

// --- the API ---------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function ask(path, { query, body, signal } = {}) {
  const headers = { Authorization: `Bearer ${key}` };
  if (body) headers["Content-Type"] = "application/json";
  const asked = query ? `${path}?${new URLSearchParams(query)}` : path;
  let response;
  try {
    response = await fetch(asked, {
      method: body ? "POST" : "GET", headers, body: body && encode(body), signal, cache: "no-store", credentials: "omit",
      redirect: "error", referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer.");
  }
  if (!response.ok) throw new Refused(await reason(response), response.status);
  return response;
}

async function reason(response) {
  try {
    return decode(await response.text()).error.message;
  } catch {
    return `The server answers ${response.status}.`;
  }
}

const answer = async (path, asked) => decode(await (await ask(path, asked)).text());

/** An id as JSON has it: an integer, or text. */
const id = (text) => (/^-?\d+$/.test(text.trim()) ? decode(text.trim()) : text.trim());

// --- what is shown ---------------------------------------------------------------------------------------------------

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function button(text, press) {
  const made = element("button", "grave", text);
  made.type = "button";
  made.addEventListener("click", press);
  return made;
}

function head(columns) {
  const cells = columns.map((column) => {
    const cell = element("th", "", column);
    cell.scope = "col";
    return cell;
  });
  return element("thead", "", element("tr", "", ...cells));
}

function fill(table, columns, rows) {
  byId(table).replaceChildren(head(columns), element("tbody", "", ...rows));
}

const row = (...cells) =>
  element("tr", "", ...cells.map((cell) => (cell?.tagName === "TD" ? cell : element("td", "", cell ?? ""))));

const say = (where, text) => { byId(`${where}-said`).textContent = text; };

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

function reached({ answered, missing, detail }) {
  const parts = [`${answered} ${answered === 1 ? "node" : "nodes"} answered`];
  if (missing.length) parts.push(`NO ANSWER from ${missing.join(", ")}`);
  if (detail) parts.push(detail);
  return `${parts.join("; ")}.`;
}

function duration(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

const since = (unix) => duration(Math.max(0, Date.now() / 1000 - unix));

// --- nodes, chats, connections ---------------------------------------------------------------------------------------

async function showNodes() {
  say("nodes", "Asking…");
  const found = await answer("v1/nodes");
  fill("nodes", ["Node", "Version", "Up", "Clients", "Topics", "Published/s", "Delivered/s", "Stage", "Broker", "Reloaded"],
    found.nodes.map((node) => {
      const broker = `${node.broker.ready ? "" : "NOT READY: "}${node.broker.detail}`;
      const reload = node.reload_failed ? `FAILED: ${node.reload_failed}` : node.reloaded ? `${since(node.reloaded)} ago` : "";
      return row(node.node, node.version, duration(node.uptime), node.connections, node.topics, node.published, node.delivered,
        node.stage, element("td", node.broker.ready ? "" : "bad", broker), element("td", node.reload_failed ? "bad" : "", reload));
    }));
  say("nodes", reached(found.reached));
}

async function showTopics() {
  say("topics", "Asking…");
  const found = await answer("v1/topics", { query: { workspace_id: value("topics-form", "workspace") } });
  fill("topics", ["Chat", "Messages/s", "Connections", "On nodes"], found.topics.slice(0, 50).map((topic) =>
    row(topic.chat_id, topic.rate, topic.members, Object.entries(topic.nodes).map(([node, n]) => `${node}: ${n}`).join(", "))));
  const more = found.topics.length > 50 || !found.complete ? "The busiest 50. " : "";
  say("topics", more + reached(found.reached));
}

/** Columns that not every version of a node has to say something in. */
const PERHAPS = [["client", "Client"], ["client_id", "Client id"]];

async function showConnections() {
  say("connections", "Asking…");
  const workspace = value("connections-form", "workspace");
  const user = value("connections-form", "user");
  const found = await answer("v1/connections", { query: { workspace_id: workspace, user_id: user } });
  const some = PERHAPS.filter(([name]) => found.connections.some((one) => one[name]));
  fill("connections", ["Node", "Connection", "Since", "From", ...some.map(([, title]) => title), "Encoding", "Queued", "Heard", "Chats"],
    found.connections.map((one) => {
      const chats = one.chats.slice(0, 50).map((chat) => button(`${chat} ×`, () => unsubscribe(workspace, user, chat)));
      for (const each of chats) each.setAttribute("aria-label", `Unsubscribe from chat ${each.textContent.slice(0, -2)}`);
      const more = one.subscriptions - chats.length;
      const cell = element("td", "", ...(chats.length ? chats : ["none"]), more > 0 ? ` and ${more} more` : "");
      return row(one.node, one.connection_id, `${since(one.opened)} ago`, one.peer, ...some.map(([name]) => one[name] ?? ""),
        one.encoding, one.queued, `${duration(one.silent)} ago`, cell);
    }));
  const more = found.count > found.connections.length ? `The oldest ${found.connections.length} of ${found.count}. ` : "";
  say("connections", more + reached(found.reached));
}

function sure(question, again) {
  const dialog = byId("sure");
  byId("question").textContent = question;
  byId("again-label").hidden = !again;
  byId("again").checked = false;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((settle) => {
    dialog.addEventListener("close", () => settle(dialog.returnValue === "yes"), { once: true });
  });
}

async function unsubscribe(workspace, user, chat) {
  if (!(await sure(`End what user ${user} of workspace ${workspace} has of chat ${chat}?`, false))) return;
  await guarded(async () => {
    const done = await answer("v1/unsubscribe", { body: { workspace_id: id(workspace), user_id: id(user), chat_id: chat } });
    await showConnections();
    say("connections", `${done.ended} ended; ${reached(done.reached)}`);
  });
}

async function disconnect() {
  const workspace = value("connections-form", "workspace");
  const user = value("connections-form", "user");
  if (!(await sure(`Close all connections of user ${user} of workspace ${workspace}?`, true))) return;
  await guarded(async () => {
    const body = { workspace_id: id(workspace), user_id: id(user), reconnect: byId("again").checked };
    const done = await answer("v1/disconnect", { body });
    await showConnections();
    say("connections", `${done.closed} closed; ${reached(done.reached)}`);
  });
}

// --- trace -----------------------------------------------------------------------------------------------------------

const MOMENT = new Intl.DateTimeFormat("en-GB",
  { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hour12: false });

const TROUBLE = new Set(["missing", "alone", "busy", "left_out"]);

/** What an event says beside its time, node and kind. */
function told(event, workspace) {
  const parts = [];
  if (event.subject) parts.push(event.subject);
  else if (event.claimed) parts.push(`says it is user ${event.user_id} of workspace ${event.workspace_id}: NOT VERIFIED`);
  else if (event.user_id !== undefined && String(event.workspace_id) !== workspace)
    parts.push(`user ${event.user_id} of ANOTHER workspace, ${event.workspace_id}`);
  else if (event.user_id !== undefined) parts.push(`user ${event.user_id}`);
  else if (event.peer) parts.push("somebody");
  if (event.chat_id !== undefined) parts.push(`chat ${event.chat_id}`);
  if (event.peer && ["connect", "connection", "turned_away", "auth"].includes(event.what)) parts.push(`from ${event.peer}`);
  if (event.origin) parts.push(`origin ${event.origin}`);
  if (event.what === "watching") parts.push(`it has ${event.connections} connections here`);
  if (event.what === "connection") {
    parts.push(`since ${since(event.since)}`, event.chats?.length ? `in chats ${event.chats.join(", ")}` : "subscribed to NOTHING");
  } else if (event.what === "frame") parts.push(`${event.way === "in" ? "from" : "to"} it: ${event.type}`);
  else if (event.type) parts.push(event.type);
  if (event.count && event.what === "left_out") parts.push(`${event.count} events were too many`);
  else if (event.count && event.what === "frame") parts.push(event.way === "in" ? `${event.count} frames` : `${event.count} missed messages`);
  if (event.code !== undefined) parts.push(event.code);
  if (event.outcome) parts.push(event.outcome);
  if (event.reason) parts.push(event.reason);
  if (event.size !== undefined) parts.push(`${event.size} bytes`);
  if (event.seq !== undefined) parts.push(`position ${event.seq}`);
  if (event.what === "message") parts.push(`to ${event.connections} of its connections here`);
  return parts.join(", ");
}

function show(event, workspace) {
  const made = row(MOMENT.format(event.at * 1000), event.what.replaceAll("_", " "), element("td", "text", told(event, workspace)),
    event.node ?? "", (event.connection_id ?? "").slice(0, 8));
  const good = event.outcome === "ok" || event.outcome === "recovered";
  const bad = TROUBLE.has(event.what) || (event.outcome && !good) || (event.what === "close" && event.reason);
  const aside = event.claimed || (event.workspace_id === undefined ? event.peer : String(event.workspace_id) !== workspace);
  made.className = bad ? "bad" : aside ? "aside" : good ? "good" : "";
  const body = byId("trace").tBodies[0];
  const region = byId("trace").parentElement;
  const follows = region.scrollTop + region.clientHeight >= region.scrollHeight - 40;
  body.append(made);
  while (body.rows.length > MOST_ROWS) body.rows[0].remove();
  if (follows) region.scrollTop = region.scrollHeight;
}

async function trace() {
  stop();
  const mine = tracing = new AbortController();
  const workspace = value("trace-form", "workspace");
  const query = { workspace_id: workspace, [value("trace-form", "kind")]: value("trace-form", "id"), seconds: value("trace-form", "seconds") };
  const peer = value("trace-form", "peer");
  if (peer) query.peer = peer;
  fill("trace", ["Time", "What", "How", "Node", "Connection"], []);
  byId("stop").disabled = false;
  say("trace", "It runs…");
  let ended = "It was stopped.";
  try {
    const response = await ask("v1/trace", { query, signal: mine.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    ended = "The server ended it.";
    for (;;) {
      const { value: text, done } = await reader.read();
      if (done) break;
      const blocks = (rest + text).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (!block.startsWith("data: ")) continue;
        const event = decode(block.slice(6));
        if (event.what === "end") ended = `The server ended it: ${event.reason}.`;
        else show(event, workspace);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") ended = "It was stopped.";
    else {
      ended = "It was broken off.";
      throw error instanceof Refused ? error : new Refused("The connection to the server broke.");
    }
  } finally {
    if (tracing === mine) {
      tracing = null;
      byId("stop").disabled = true;
      say("trace", ended);
    }
  }
}

function stop() {
  tracing?.abort();
}

// --- what is pressed -------------------------------------------------------------------------------------------------

const value = (form, name) => byId(form).elements[name].value.trim();

async function guarded(work) {
  trouble("");
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    trouble(error.message);
  }
}

function onSubmit(form, work) {
  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(work);
  });
}

onSubmit("enter", async () => {
  key = byId("enter").elements.key.value.trim();
  byId("enter").reset();
  forget();
  try {
    await showNodes();
  } catch (error) {
    // A key for some workspaces may not list nodes, and is good for the rest.
    if (error.status !== 403) {
      key = "";
      throw error;
    }
    say("nodes", error.message);
  }
  byId("main").hidden = byId("forget").hidden = false;
});
onSubmit("nodes-form", showNodes);
onSubmit("topics-form", showTopics);
onSubmit("connections-form", showConnections);
onSubmit("trace-form", trace);
byId("disconnect").addEventListener("click", () => byId("connections-form").reportValidity() && disconnect());
byId("stop").addEventListener("click", stop);
byId("forget").addEventListener("click", () => {
  key = "";
  trouble("");
  forget();
});

/** Show nothing of what was asked for by another key. */
function forget() {
  stop();
  for (const name of ["nodes", "topics", "connections", "trace"]) {
    byId(name).replaceChildren();
    say(name, "");
  }
  byId("main").hidden = byId("forget").hidden = true;
}
