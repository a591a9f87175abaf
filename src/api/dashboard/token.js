// What a token says of itself. It decides what is shown, never what may be done: the service does.

const KEPT = "livecount-token";

/** What the payload says, or nothing where this is no JWT. The signature is not looked at. */
function claims(token) {
  try {
    const [, payload] = token.split(".");
    const bytes = atob(payload.replaceAll("-", "+").replaceAll("_", "/"));
    const text = new TextDecoder().decode(Uint8Array.from(bytes, (char) => char.charCodeAt(0)));
    const said = JSON.parse(text);
    return typeof said === "object" && said !== null ? said : undefined;
  } catch {
    return undefined;
  }
}

export class Token {
  constructor(text) {
    const said = claims(text) ?? {};
    this.text = text;
    this.sub = String(said.sub ?? "");
    this.expires = typeof said.exp === "number" ? said.exp * 1000 : undefined;
    this.scopes = typeof said.scope === "string" ? said.scope.split(" ").filter(Boolean) : [];
    this.rooms = Array.isArray(said.rooms) ? said.rooms.map(String) : undefined;
  }

  /** True where its scopes say so, for anything at all. */
  has(scope) {
    return this.scopes.includes(scope) || this.scopes.includes("admin");
  }

  /** True where scope and rooms say so for this room. A prefix never covers personal rooms. */
  may(scope, room) {
    const covers = (pattern) => pattern === room
      || (pattern.endsWith("*") && !room.startsWith("user:") && room.startsWith(pattern.slice(0, -1)));
    return this.has(scope) && (this.rooms === undefined || this.rooms.some(covers));
  }
}

/** Reads what was pasted: with or without `Bearer`, quotes and line breaks. Throws a sentence. */
export function read(pasted) {
  const text = pasted.replace(/^\s*(authorization:)?\s*(bearer\s)?/i, "").replace(/[\s"'`]/g, "");
  if (text === "") throw new Error("Paste a token first.");
  if (text.startsWith("lct1.")) {
    throw new Error("This is a ticket of one reader's stream. The dashboard needs a token.");
  }
  if (!/^[\w-]+\.[\w-]+\.[\w-]*$/.test(text) || claims(text) === undefined) {
    throw new Error("This is no token: one has three parts, joined by dots. Was all of it copied?");
  }
  return new Token(text);
}

// Within this tab alone, and only where asked: nothing is left when the tab is closed.
export const kept = () => {
  const text = sessionStorage.getItem(KEPT);
  try {
    return read(text ?? "");
  } catch {
    return undefined;
  }
};
export const keep = (token) => sessionStorage.setItem(KEPT, token.text);
export const forget = () => sessionStorage.removeItem(KEPT);
