import { NotifyClient } from "notify-client";
import { receive } from "./receive.mjs";

await receive(NotifyClient);
