// Requests to the server; an answer that is no success becomes an error with the server's own line.

export class ServerError extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function request(method, path, content) {
  const options = { method, headers: {} };
  if (method === "POST") {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(content ?? {});
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new ServerError(0, "vpexp does not answer: start it again, and this page goes on");
  }
  const answered = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ServerError(answer.status, answered.error ?? `error ${answer.status}`);
  return answered;
}

export const get = (path) => request("GET", path);
export const post = (path, content) => request("POST", path, content);

/** The page's own name of what it asks for, so that a request that is sent again keeps nothing twice. */
export const makeUid = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Where a kept mask is; by its own name too: after a restart of vpexp another mask may have its number. Without an id: all of that name. */
const pathOf = ({ id, uid }, change = "") => `/api/masks${id ? `/${id}` : ""}${change}${uid ? `?uid=${encodeURIComponent(uid)}` : ""}`;
export const deleteMask = (mask) => request("DELETE", pathOf(mask));
export const changeMask = (mask, change, content) => post(pathOf(mask, `/${change}`), content);

export async function loadPicture(index) {
  const picture = new Image();
  picture.src = `/api/images/${index}/picture`;
  await picture.decode();
  return picture;
}
