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
export const remove = (path) => request("DELETE", path);
