/** 64-bit integers, and JSON that contains them: integers that a Number cannot hold exactly are BigInts. */

const MARK = `\u0000${Math.random().toString(36).slice(2)}:`;
const WRITTEN_MARK = JSON.stringify(MARK).slice(1, -1);
const LONG = /\d{16}/;
const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const HALF = /\p{Surrogate}/u;
const MARKED = new RegExp(`"${WRITTEN_MARK.replace(/\\/g, "\\\\")}(-?\\d+)"`, "g");

/** Parse JSON. */
export function decode(text) {
  if (!LONG.test(text)) return JSON.parse(text);
  const marked = text.replace(TOKENS, (token) =>
    /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${WRITTEN_MARK}${token}"` : token);
  return JSON.parse(marked, (_, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value);
}

/** Write a value as JSON. */
export function encode(value) {
  return JSON.stringify(value, (_, part) => (typeof part === "bigint" ? `${MARK}${part}` : part))
    .replace(MARKED, "$1");
}

/** Whether a value can be written as JSON in UTF-8: a function cannot, nor text with an unpaired surrogate. */
export function isJson(value) {
  let whole = true;
  const text = JSON.stringify(value, (key, part) => {
    whole &&= !HALF.test(key) && !(typeof part === "string" && HALF.test(part));
    return typeof part === "bigint" ? 0 : part;
  });
  return whole && text !== undefined;
}

/** Whether a value parsed from JSON contains a BigInt. */
export function holdsBigInt(value) {
  if (typeof value !== "object" || value === null) return typeof value === "bigint";
  return Object.values(value).some(holdsBigInt);
}

/** A copy of a value with each BigInt as text. */
export function asText(value) {
  if (typeof value === "bigint") return String(value);
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(asText);
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, asText(part)]));
}

/**
 * A chat's id in the form in which ids are compared. An integer is a Number if that holds it exactly, else a BigInt. Text that
 * spells a canonical integer is that integer; other text stays as it is. Throws TypeError if it is not a valid id.
 */
export function chatKey(id) {
  if (typeof id === "string" && /^[A-Za-z0-9_-]{1,64}$/.test(id) && !/^-?[0-9]+$/.test(id)) return id;
  const key = typeof id === "string" && /^(?:0|-?[1-9]\d*)$/.test(id) ? BigInt(id) : id;
  if (typeof key === "bigint" && BigInt.asIntN(64, key) === key) {
    return Number.isSafeInteger(Number(key)) ? Number(key) : key;
  }
  if (Number.isSafeInteger(key)) return key;
  throw new TypeError(
    "a chat's id is a 64-bit integer (beyond 2^53 a BigInt), or text of 1 to 64 of A-Z a-z 0-9 _ -");
}

/** Whether a value received from the server can be an id. */
export function isId(value) {
  return Number.isInteger(value) || typeof value === "bigint" || typeof value === "string";
}
