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

/** Where a kept mask is; by its own name too: after a restart of vpexp another mask may have its number. */
const pathOf = ({ id, uid }, change = "") => `/api/masks/${id}${change}${uid ? `?uid=${encodeURIComponent(uid)}` : ""}`;
export const deleteMask = (mask) => request("DELETE", pathOf(mask));
export const changeMask = (mask, change, content) => post(pathOf(mask, `/${change}`), content);

export async function loadPicture(index) {
  const picture = new Image();
  picture.src = `/api/images/${index}/picture`;
  await picture.decode();
  return picture;
}
