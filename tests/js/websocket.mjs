// Defines WebSocket, which Node itself has only from version 22 on: node --import ./websocket.mjs program.mjs
import WebSocket from "ws";

globalThis.WebSocket ??= WebSocket;
