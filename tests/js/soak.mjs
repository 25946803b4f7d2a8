// Clients for the soak: node soak.mjs URL COUNT TOKEN_SECONDS CHATS SETTINGS. They print what they receive.
import { createHmac } from "node:crypto";
import WebSocket from "ws";
import { NotifyClient } from "../../notify/web/client/notify-client.js";

const [url, count, tokenSeconds, chats, settings] = process.argv.slice(2);
const user = 5;
const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

function token() {
  const now = Date.now() / 1000, expiresAt = Math.floor(now + Number(tokenSeconds));
  const text = `${part({ alg: "HS256", typ: "JWT" })}.${part({
    sub: String(user), id: user, workspace_id: 1, iat: Math.floor(now), exp: expiresAt,
  })}`;
  const signature = createHmac("sha256", process.env.NOTIFY_SECRET).update(text).digest("base64url");
  return { value: `${text}.${signature}`, expiresAt };
}

async function read(name, number, stream) {
  stream.onLost = (loss) => console.log(`lost ${name} ${JSON.stringify(loss)}`);
  await stream.ready();
  console.log(`ready ${name} ${number}`);
  for await (const message of stream) console.log(`message ${name} ${number} ${number ? message.content : message.data}`);
}

process.stdout.on("error", () => process.exit());
for (let index = 0; index < Number(count); index++) {
  const name = `javascript-${index}`;
  const client = new NotifyClient(url, { token, WebSocket, settings: JSON.parse(settings), queue: 64 });
  client.on("state", ({ state }) => console.log(`state ${name} ${state}`));
  const streams = [[0, client.notifications], ...chats.split(",").map((chat) => [Number(chat), client.chat(Number(chat))])];
  const failed = (error) => {
    console.log(`failed ${name} ${error}`);
    process.exit(1);
  };
  client.start().catch(failed);
  for (const [number, stream] of streams) read(name, number, stream).catch(failed);
}
