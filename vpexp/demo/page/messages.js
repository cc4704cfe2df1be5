// Lines that the page says, and the order in which what changes what is kept runs.

const byId = (id) => document.getElementById(id);

let toastEnds;
export function tell(line, wrong = false) {
  const toast = byId("toast");
  toast.textContent = line;
  toast.classList.toggle("wrong", wrong);
  toast.hidden = false;
  clearTimeout(toastEnds);
  toastEnds = setTimeout(() => { toast.hidden = true; }, wrong ? 8000 : 1800);
}

export function setStatus(line, busy = false) {
  byId("status").textContent = line;
  byId("status").classList.toggle("busy", busy);
}

/** Run what asks the server; what goes wrong is one line on the page. */
export const guarded = (action) => async (...given) => {
  try {
    return await action(...given);
  } catch (error) {
    tell(error.message, true);
    return undefined;
  }
};

let turns = Promise.resolve();

/** Run what changes what is kept, one thing after another: Ctrl+Z undoes the keep that it follows at once. */
export const inTurn = (action) => guarded((...given) => {
  const turn = turns.then(() => action(...given));
  turns = turn.catch(() => {});
  return turn;
});
