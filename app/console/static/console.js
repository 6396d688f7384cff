// Live parts of the pages. Without this script every page still shows what was true when it was loaded.

const SOON_MS = 500; // to twice as long after an event, so that many events cost one refresh, and many pages do not refresh at once
const PAUSE_MS = 5000; // pages refresh again at multiples of this, so that many of them share one rendering
const PAUSE_TIMES = 100; // the time that the refresh took, at least: many consoles leave a busy server alone
const FALLBACK_MS = 60000; // for what is no event of a session; the longest pause, too

function remaining(ms) {
  if (ms <= 0) return "now";
  const seconds = Math.ceil(ms / 1000);
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([length]) => seconds >= length);
  return parts.slice(first, first + 2).map(([length, unit], index, shown) =>
    `${Math.floor((index ? seconds % shown[index - 1][0] : seconds) / length)} ${unit}`).join(" ");
}

function countDown() {
  for (const time of document.querySelectorAll("[data-countdown]")) {
    const text = remaining(Date.parse(time.dateTime) - Date.now());
    if (time.textContent !== text) time.textContent = text;
  }
}

// The server renders the page once more; the parts marked `data-live` are put in place of the present ones.
async function refresh() {
  const present = document.querySelectorAll("[data-live]");
  const answer = await fetch(location.href, { headers: { accept: "text/html", "x-refresh": "1" } });
  if (answer.redirected) { location.assign(answer.url); return; }
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const renewed = page.querySelectorAll("[data-live]");
  present.forEach((part, index) => {
    const other = renewed[index];
    if (other && !part.contains(document.activeElement) && !part.isEqualNode(other)) part.replaceWith(other);
  });
  countDown();
}

let waiting = false;
let earliest = 0;
async function refreshAndPause() {
  const began = performance.now();
  try {
    await refresh();
  } finally {
    const pause = Math.min(PAUSE_TIMES * (performance.now() - began), FALLBACK_MS);
    earliest = Math.ceil((Date.now() + pause) / PAUSE_MS) * PAUSE_MS;
  }
}

function refreshSoon() {
  if (waiting || document.hidden) return;
  waiting = true;
  const wait = SOON_MS * (1 + Math.random()) + Math.max(0, earliest - Date.now());
  setTimeout(() => { waiting = false; refreshAndPause().catch(() => {}); }, wait);
}

const EVENTS = ["session.opened", "session.reminder", "session.closure_message", "session.closed", "session.updated", "reset"];

// Events only say that the page is out of date, so that every figure on it is rendered in one place.
function follow(part) {
  const source = new EventSource(part.dataset.live);
  const about = part.dataset.about;
  for (const name of EVENTS) {
    source.addEventListener(name, ({ data }) => { if (!about || name === "reset" || data.includes(about)) refreshSoon(); });
  }
  return source;
}

// A browser has few connections to one server: a page that is not seen gives its own back.
function followWhileSeen(part) {
  let source = document.hidden ? null : follow(part);
  document.addEventListener("visibilitychange", () => {
    source?.close();
    source = document.hidden ? null : follow(part);
    refreshSoon();
  });
}

countDown();
setInterval(countDown, 1000);
const live = document.querySelector("[data-live]");
if (live) {
  if (live.dataset.live) followWhileSeen(live);
  setInterval(refreshSoon, FALLBACK_MS);
}

export { refresh, refreshSoon, remaining };

// A form with `data-preview` shows the effects of its present values while one types.
const form = document.querySelector("[data-preview]");
if (form) {
  let timer = 0;
  const preview = async () => {
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.dataset.preview, { method: "POST", body });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const effects = page.querySelector("#effects");
    if (effects) document.querySelector("#effects").replaceWith(effects);
  };
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => preview().catch(() => {}), 250);
  });
}
