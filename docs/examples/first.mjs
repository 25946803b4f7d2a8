import { NotifyClient } from "../../notify/web/client/notify-client.js";

const { NOTIFY_URL, NOTIFY_TOKEN } = process.env;
const client = new NotifyClient(NOTIFY_URL, { token: NOTIFY_TOKEN });
await client.start();
for await (const message of client.chat(1)) {
  console.log(message.sender_id, message.content);
}
