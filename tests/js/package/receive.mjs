/** Receives one message of chat 1 and prints it, after "ready". The program's last arguments: URL, token. */
export async function receive(NotifyClient) {
  const [url, token] = process.argv.slice(-2);
  setTimeout(() => process.exit(1), 20_000).unref();
  const client = new NotifyClient(url, { token });
  await client.start();
  const chat = client.chat(1);
  await chat.ready();
  console.log("ready");
  console.log((await chat.next()).value.content);
  await client.close();
}
