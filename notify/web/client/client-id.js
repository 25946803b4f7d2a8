/** The client id. Proxies hash it to route a reconnecting client to the same node: docs/client.md, rule 25. */

const FORM = /^[A-Za-z0-9_-]{1,64}$/;
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/** Characters of a random id, of the suffix added to the application's own id, and of that id that leave room for a suffix. */
const WHOLE = 16, SUFFIX = 8, KEPT = 55;
const PARAMETER = "client_id=";

/** `url` may already contain an id. `given` is the application's own id, or null: then the URL's id is used, else a random one. */
export class ClientId {
  value;
  #given; #random; #path; #query;

  constructor(url, given, random) {
    const [path, ...query] = url.split("#", 1)[0].split("?");
    const parameters = query.join("?").split("&").filter((one) => one !== "");
    this.#path = path;
    this.#query = parameters.filter((one) => !one.startsWith(PARAMETER));
    this.#given = given ?? parameters.find((one) => one.startsWith(PARAMETER))?.slice(PARAMETER.length) ?? null;
    if (this.#given !== null && !FORM.test(this.#given)) throw new TypeError("clientId: 1 to 64 of A-Z a-z 0-9 _ -");
    this.#random = random;
    this.value = this.#given ?? this.#draw(WHOLE);
  }

  /** The URL with this id. */
  get url() {
    return `${this.#path}?${[...this.#query, PARAMETER + this.value].join("&")}`;
  }

  /** Change the id, so that a proxy may route the client to another node. */
  move() {
    this.value = this.#given === null ? this.#draw(WHOLE) : `${this.#given.slice(0, KEPT)}-${this.#draw(SUFFIX)}`;
  }

  #draw(letters) {
    return Array.from({ length: letters }, () => LETTERS[Math.floor(this.#random() * LETTERS.length)]).join("");
  }
}
