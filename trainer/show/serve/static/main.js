// The page's state, which its address holds, and what is asked of the server for it.

import { Plane } from "./map.js";
import { palette, rgb } from "./raster.js";
import { HOME, Solid } from "./solid.js";

const $ = id => document.getElementById(id);
const PAGE = 24;  // shapes of the list shown at once
const FINENESS = 32000;
const PLAIN = [122, 138, 158];
const dark = matchMedia("(prefers-color-scheme: dark)");

let data = null;  // what /api/start said
let sent = null;  // the file that was searched by last
let own = null;  // a file that was searched by: { points }, while it is shown in a shape's place
let listed = [], cosines = null, about = null, attention = null;
/** What the address holds. `list` is one of text:WORDS, like:UID, category:NAME, lasso:X,Y;X,Y... or "" for all. */
const state = { shape: -1, mode: "points", list: "", page: 0, query: 1, block: -1, head: -1, point: -1 };

// ---- asking

// What is said where a file was cut off in the middle of sending, and the answer's own words with it.
const CUT_OFF = { 408: "the file took too long to arrive", 413: "the file is larger than the server takes (--upload-mb)" };
async function ask(address, options) {
  let answer;
  try { answer = await fetch(address, options); } catch { throw new Error("the server does not answer; it may have been ended, or have refused what was sent"); }
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? CUT_OFF[answer.status] ?? `the server answers ${answer.status}`);
  return answer;
}
const json = async (address, options) => (await ask(address, options)).json();
const buffer = async address => (await ask(address)).arrayBuffer();
function warn(text) { $("alert").textContent = text; $("alert").hidden = !text; }

/** Run what asks; of several of a kind that were begun the last one counts. What goes wrong is told in the page. */
const begun = {};
async function latest(kind, asking, then, otherwise = () => {}) {
  const mine = begun[kind] = (begun[kind] ?? 0) + 1;
  try {
    const found = await asking();
    if (begun[kind] === mine) then(found);
  } catch (error) { if (begun[kind] === mine) { otherwise(); warn(error.message); } }
}

// ---- the shape

const solid = new Solid($("solid"), {
  turned: () => keep(),
  clicked: point => { if (state.mode === "attention" && !own) set({ point }); },
});
const points16 = (bytes, count) => Float32Array.from(new Int16Array(bytes, 0, 3 * count), v => v / FINENESS);
const solids = new Map();  // the last few shapes' points and surfaces

async function kept(address, read) {
  if (!solids.has(address)) {
    const bytes = await buffer(address);
    solids.set(address, read(bytes));
    if (solids.size > 12) solids.delete(solids.keys().next().value);
  }
  return solids.get(address);
}
function cloud(bytes) {
  const count = bytes.byteLength / 9, colors = new Uint8Array(bytes, 6 * count);
  const same = colors.every((value, i) => value === colors[i % 3]);  // many clouds have no colours of their own
  return { points: points16(bytes, count), colors: same ? plain(count) : colors, radius: count > 3000 ? 0.009 : 0.014 };
}
const plain = count => Uint8Array.from({ length: 3 * count }, (_, i) => PLAIN[i % 3]);
function surface(bytes) {
  const [vertices, faces] = new Int32Array(bytes, 0, 2);
  return { vertices: new Float32Array(bytes, 8, 3 * vertices), faces: new Int32Array(bytes, 8 + 12 * vertices, 3 * faces), colors: new Uint8Array(bytes, 8 + 12 * vertices + 12 * faces) };
}
const attended = bytes => points16(bytes, bytes.byteLength / 6);

function display(found, what) {
  solid.show(found);
  $("solid").setAttribute("aria-label", `${what} of ${own ? own.name : data.uids[state.shape]}. Arrow keys turn it.`);
}
function showSolid() {
  const { shape, mode } = state;
  $("attention").hidden = mode !== "attention" || Boolean(own);
  for (const button of $("modes").querySelectorAll("[data-mode]")) {
    button.setAttribute("aria-pressed", button.dataset.mode === mode && !own);
    button.disabled = Boolean(own) || (button.dataset.mode === "surface" && !data.surfaces);
  }
  $("like").disabled = Boolean(own);
  if (own) {
    latest("solid", async () => own.points && { points: own.points, colors: plain(own.points.length / 3), radius: 0.016 }, found => display(found, "points"));
  } else if (mode === "attention") {
    const asked = new URLSearchParams({ query: state.query, point: state.point, block: state.block, head: state.head });
    const asking = () => Promise.all([kept(`/api/attended/${shape}`, attended), json(`/api/attention/${shape}?${asked}`)]);
    latest("solid", asking, ([points, found]) => { attention = found; showAttention(points); });
  } else if (mode === "surface") latest("solid", () => kept(`/api/surface/${shape}`, surface), found => display(found, "mesh"));
  else latest("solid", () => kept(`/api/cloud/${shape}`, cloud), found => display(found, "points"));
}

function showAttention(points) {
  const stops = data.scales[+dark.matches].map(rgb), most = Math.max(...attention.values, 1e-12), colors = new Uint8Array(points.length);
  attention.values.forEach((value, i) => {
    const at = Math.min(value / most, 1) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    for (let k = 0; k < 3; k++) colors[3 * i + k] = stops[low][k] + (stops[low + 1][k] - stops[low][k]) * (at - low);
  });
  display({ points, colors, radius: 0.02 }, "attention");
  $("scale").style.background = `linear-gradient(90deg, ${stops.map(c => `rgb(${c})`)})`;
  const share = `${(100 * attention.most).toFixed(1)} %`, who = attention.token < 0 ? `query ${attention.queries[state.query]}` : `token ${attention.token + 1} of ${attention.groups}`;
  $("most").textContent = `${share} on one group`;
  $("attentionSaid").textContent = `${who}, block ${state.block + 1}, ${state.head < 0 ? "all heads" : `head ${state.head + 1}`}: the group attended to most has ${share}. Click a point for what its token attends to.`;
  $("queries").replaceChildren(...attention.queries.map((name, query) => {
    const button = document.createElement("button"); button.textContent = name;
    button.setAttribute("aria-pressed", state.point < 0 && query === state.query);
    button.onclick = () => set({ query, point: -1 });
    return button;
  }));
  $("block").value = state.block; $("head").value = state.head;
}

function showAbout() {
  if (own) { $("name").textContent = own.name; $("what").textContent = own.told; $("about").hidden = true; return; }
  $("about").hidden = false;
  const { shape } = state;
  $("name").textContent = data.uids[shape]; $("what").textContent = `${data.categories[data.category[shape]]}, ${data.splits[data.split[shape]]}`;
  latest("about", () => json(`/api/shape/${shape}`), found => {
    about = found;
    $("captions").replaceChildren(...(found.captions.length ? found.captions : ["no captions"]).map(text => Object.assign(document.createElement("li"), { textContent: text })));
    $("views").replaceChildren(...Array.from({ length: found.views }, (_, view) => picture(`/views/${shape}/${view}.png`, `view ${view + 1} of ${found.uid}`)));
    $("views").previousElementSibling.hidden = !found.views;
    $("neighbours").replaceChildren(...found.neighbours.map(({ place, cosine }) => tile(place, cosine)));
  });
}
function picture(address, words) {
  return Object.assign(new Image(), { loading: "lazy", alt: words, src: address });
}
function tile(place, cosine) {
  const button = document.createElement("button");
  button.dataset.place = place;
  button.append(picture(`/thumbnails/${place}.png`, ""), cosine === undefined ? data.uids[place] : `${cosine.toFixed(3)} ${data.uids[place]}`);
  button.title = data.categories[data.category[place]];
  button.onclick = () => { choose(place); if (innerWidth <= 720) $("name").scrollIntoView(); };  // it stands far below there
  return button;
}

// ---- the list

function showList() {
  const at = state.list.indexOf(":"), [kind, of] = at < 0 ? ["", ""] : [state.list.slice(0, at), state.list.slice(at + 1)];
  const every = () => data.uids.map((_, place) => place);
  map.polygon = [];
  $("words").value = kind === "text" ? of : "";
  if (kind === "text" || kind === "like") {
    const place = data.places.get(of);
    if (kind === "like" && place === undefined) { set({ list: "" }); warn(`no shape is called ${of}`); return; }
    $("listSaid").textContent = "searching…";
    latest("list", () => json(kind === "text" ? `/api/search?${new URLSearchParams({ text: of })}` : `/api/like/${place}`), answered, () => set({ list: "" }));
    return;
  }
  begun.list = (begun.list ?? 0) + 1;
  if (kind === "category") fill(every().filter(place => data.categories[data.category[place]] === of), null, of);
  else if (kind === "lasso") {
    map.polygon = of.split(";").map(corner => corner.split(",").map(Number));
    fill(map.within(map.polygon), null, "in the lasso");
  } else if (kind === "file") { if (own) answered(own.answer); else set({ list: "" }); }  // of a link: the file is not there
  else fill(every(), null, "");
}
function answered(found) {
  fill(found.found.map(each => each.place), new Map(found.found.map(each => [each.place, each.cosine])), `nearest to ${found.asked}`);
}
function fill(places, found, words) {
  [listed, cosines] = [places, found];
  $("listSaid").textContent = `${places.length} shapes${words ? `, ${words}` : ""}`;
  $("all").hidden = !state.list;
  map.listed = state.list ? new Set(places) : null;
  for (const button of $("legend").children) button.setAttribute("aria-pressed", state.list === `category:${button.dataset.name}`);
  map.draw();
  showPage();
}
function showPage() {
  const pages = Math.max(Math.ceil(listed.length / PAGE), 1);
  state.page = Math.max(0, Math.min(pages - 1, state.page));
  const shown = listed.slice(state.page * PAGE, (state.page + 1) * PAGE), held = [...$("list").children].map(each => +each.dataset.place);
  if (cosines || shown.length !== held.length || shown.some((place, i) => place !== held[i])) $("list").replaceChildren(...shown.map(place => tile(place, cosines?.get(place))));
  for (const each of $("list").children) each.setAttribute("aria-current", +each.dataset.place === state.shape && !own);
  $("page").textContent = `${state.page + 1} of ${pages}`; $("pager").hidden = pages < 2;
  $("before").disabled = !state.page; $("after").disabled = state.page >= pages - 1;
}

// ---- the state

/** Change the state, show it, and put it into the address; `back` makes a step that the browser's back undoes. */
function set(changes, back = true) {
  const before = { ...state };
  if ("shape" in changes && !("point" in changes)) changes.point = -1;
  if ("list" in changes && !("page" in changes)) changes.page = 0;
  Object.assign(state, changes);
  const num = data.uids.length;
  state.shape = num ? Math.max(0, Math.min(num - 1, state.shape)) : -1;
  state.block = state.block < 0 ? data.depth - 1 : Math.min(state.block, data.depth - 1); state.head = Math.max(-1, Math.min(data.heads - 1, state.head));
  if (state.mode === "surface" && !data.surfaces) state.mode = "points";
  warn("");
  map.current = own ? -1 : state.shape; map.draw();
  showSolid();  // first, since what is asked first is answered first
  if ("list" in changes) showList(); else showPage();
  if (state.shape !== before.shape) showAbout();
  keep(back && (state.shape !== before.shape || state.list !== before.list));
}
/** Show another shape; the file that was searched by makes room. */
function choose(shape, changes = {}) {
  const had = own; own = null;
  set({ shape, ...changes });
  if (had) { showAbout(); showPage(); }
}
function address() {
  const { camera } = solid, view = map.view, fine = value => Math.round(value * 1000) / 1000;
  const held = { ...state, shape: data.uids[state.shape] ?? "", yaw: fine(camera.yaw), pitch: fine(camera.pitch), zoom: fine(camera.zoom), x: fine(view.x), y: fine(view.y), scale: fine(view.zoom) };
  return `#${new URLSearchParams(Object.entries(held).filter(([, value]) => value !== ""))}`;
}
let keeping = 0;
function keep(back = false) {
  if (back) { clearTimeout(keeping); history.pushState(null, "", address()); return; }
  clearTimeout(keeping); keeping = setTimeout(() => history.replaceState(null, "", address()), 150);  // browsers allow few a second
}
/** What the address says, taken over where it makes sense. */
function restore() {
  const held = new URLSearchParams(location.hash.slice(1)), number = (name, other) => held.has(name) && Number.isFinite(+held.get(name)) ? +held.get(name) : other;
  Object.assign(solid.camera, { yaw: number("yaw", HOME.yaw), pitch: number("pitch", HOME.pitch), zoom: Math.max(0.5, Math.min(12, number("zoom", HOME.zoom))) });
  Object.assign(map.view, { x: number("x", 0), y: number("y", 0), zoom: Math.max(0.5, Math.min(60, number("scale", 1))) });
  const named = held.get("shape"), mode = held.get("mode"), unknown = named && !data.places.has(named);
  own = null; state.shape = -1;
  set({
    shape: data.places.get(named) ?? 0, mode: ["points", "surface", "attention"].includes(mode) ? mode : "points", list: held.get("list") ?? "",
    page: Math.trunc(number("page", 0)), query: Math.max(0, Math.trunc(number("query", Math.min(1, data.teachers.length)))), block: Math.trunc(number("block", -1)), head: Math.trunc(number("head", -1)), point: Math.trunc(number("point", -1)),
  }, false);
  if (unknown) warn(`no shape is called ${named}`);
}

// ---- what people do

const map = new Plane($("map"), {
  chosen: place => choose(place),
  lassoed: polygon => { toggleLasso(false); set({ list: `lasso:${polygon.map(corner => corner.join(",")).join(";")}` }); },
  hovered: (place, x, y) => {
    $("tip").hidden = place < 0;
    if (place < 0) return;
    if ($("tipPicture").dataset.place !== String(place)) { $("tipPicture").dataset.place = place; $("tipPicture").src = `/thumbnails/${place}.png`; }
    $("tipName").textContent = data.uids[place];
    const right = x > $("map").clientWidth / 2;
    Object.assign($("tip").style, { left: right ? "" : `${x + 14}px`, right: right ? `${$("map").clientWidth - x + 14}px` : "", top: `${Math.min(y, $("map").clientHeight - 130)}px` });
  },
  moved: () => keep(),
});
function toggleLasso(on = !map.lassoing) { map.lassoing = on; $("lasso").setAttribute("aria-pressed", on); }
function search(text) { const list = text.trim() ? `text:${text.trim()}` : ""; set({ list }); }
const next = by => {
  if (!listed.length) return;
  const at = listed.indexOf(state.shape), to = at < 0 ? 0 : Math.max(0, Math.min(listed.length - 1, at + by));
  choose(listed[to], { page: Math.floor(to / PAGE) });
};

async function send(file) {
  if (file.size > data.megabytes * 2 ** 20) { warn(`${file.name}: larger than ${data.megabytes} MB, which is all that is taken`); return; }
  sent = file; $("listSaid").textContent = `reading ${file.name}…`; warn("");
  const given = new URLSearchParams({ name: file.name, up: $("up").value, columns: $("columns").value });
  const mine = begun.list = (begun.list ?? 0) + 1;
  try {
    const answer = await json(`/api/search?${given}`, { method: "POST", body: file });
    if (begun.list !== mine) return;
    const bytes = answer.points && Uint8Array.from(atob(answer.points), c => c.charCodeAt(0)).buffer;
    own = { name: file.name, told: answer.asked, answer, points: bytes ? attended(bytes) : null };
    set({ list: "file:" }); showAbout();
  } catch (error) { if (begun.list === mine) { showList(); warn(error.message); } }
}

const modes = mode => { if (!own) set({ mode }); };
const KEYS = {
  "/": () => $("words").focus(), j: () => next(1), k: () => next(-1), "[": () => set({ page: state.page - 1 }), "]": () => set({ page: state.page + 1 }),
  n: () => set({ list: `like:${data.uids[state.shape]}` }), Escape: () => { if (map.lassoing) toggleLasso(false); else { const had = own; own = null; set({ list: "" }); if (had) showAbout(); } },
  1: () => modes("points"), 2: () => { if (data.surfaces) modes("surface"); else warn("the meshes are not at hand: start the server with --root FOLDER"); }, 3: () => modes("attention"),
  q: () => set({ mode: "attention", point: -1, query: state.point < 0 && state.mode === "attention" ? (state.query + 1) % (attention?.queries.length ?? 1) : state.query }),
  b: () => set({ mode: "attention", block: (state.block + 1) % data.depth }), h: () => set({ mode: "attention", head: (state.head + 2) % (data.heads + 1) - 1 }),
  m: () => $("map").focus(), v: () => $("solid").focus(), l: () => toggleLasso(), "?": () => $("keys").showModal(),
};
const towards = (dx, dy) => { const place = map.towards(state.shape, dx, dy); if (place >= 0) choose(place); };
const ON_MAP = { ArrowLeft: () => towards(-1, 0), ArrowRight: () => towards(1, 0), ArrowUp: () => towards(0, 1), ArrowDown: () => towards(0, -1), "+": () => map.near(1.3), "=": () => map.near(1.3), "-": () => map.near(1 / 1.3), 0: () => map.home() };
const ON_SOLID = { ArrowLeft: () => solid.turn(-0.15, 0), ArrowRight: () => solid.turn(0.15, 0), ArrowUp: () => solid.turn(0, 0.15), ArrowDown: () => solid.turn(0, -0.15), "+": () => solid.near(1.2), "=": () => solid.near(1.2), "-": () => solid.near(1 / 1.2), 0: () => solid.home() };

function listen() {
  addEventListener("keydown", event => {
    const { target } = event, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open || ["SELECT", "TEXTAREA"].includes(target.tagName)) return;
    if (target.tagName === "INPUT") { if (key === "Escape") target.blur(); return; }
    const does = (target === $("map") && ON_MAP[key]) || (target === $("solid") && ON_SOLID[key]) || KEYS[key];
    if (does) { event.preventDefault(); does(); }
  });
  $("search").onsubmit = event => { event.preventDefault(); own = null; search($("words").value); };
  $("own").onsubmit = event => { event.preventDefault(); if (sent) send(sent); };
  $("file").onchange = event => { if (event.target.files[0]) send(event.target.files[0]); event.target.value = ""; };
  addEventListener("dragover", event => event.preventDefault());
  addEventListener("drop", event => { event.preventDefault(); if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]); });
  for (const button of $("modes").querySelectorAll("[data-mode]")) button.onclick = () => set({ mode: button.dataset.mode });
  $("like").onclick = KEYS.n; $("all").onclick = KEYS.Escape; $("lasso").onclick = () => toggleLasso(); $("mapHome").onclick = () => map.home(); $("help").onclick = KEYS["?"];
  $("before").onclick = KEYS["["]; $("after").onclick = KEYS["]"];
  $("block").onchange = event => set({ block: +event.target.value }); $("head").onchange = event => set({ head: +event.target.value });
  addEventListener("popstate", restore); dark.onchange = () => { themed(); showSolid(); };
}
function themed() {
  const style = getComputedStyle(document.documentElement), ground = rgb(dark.matches ? "#14181f" : "#ffffff");
  map.colors = palette(data.categories.length, dark.matches); map.mark = style.getPropertyValue("--mark"); map.ground = solid.ground = ground;
  for (const button of $("legend").children) button.firstChild.style.background = `rgb(${map.colors[button.dataset.number]})`;
  map.draw(); solid.draw();
}
function furnish() {
  document.title = `${data.run} on ${data.store}`; $("title").textContent = document.title;
  $("file").accept = data.suffixes.join(); $("columns").value = data.columns;
  if (data.no_words) $("words").placeholder = "This run knows no words";
  $("mapSaid").textContent = `${data.map}${map.places.length < data.uids.length ? `, ${map.places.length} of ${data.uids.length} shapes` : ""}`;
  const counts = data.categories.map(() => 0); for (const number of data.category) counts[number]++;
  data.categories.forEach((name, number) => {
    if (!counts[number]) return;
    const button = document.createElement("button"), spot = document.createElement("span");
    spot.className = "spot"; button.append(spot, `${name} ${counts[number]}`); Object.assign(button.dataset, { name, number });
    button.onclick = () => set({ list: state.list === `category:${name}` ? "" : `category:${name}` });
    $("legend").append(button);
  });
  $("block").replaceChildren(...Array.from({ length: data.depth }, (_, i) => new Option(`${i + 1} of ${data.depth}`, i)));
  $("head").replaceChildren(...Array.from({ length: data.heads + 1 }, (_, i) => new Option(i ? `head ${i}` : "all, their mean", i - 1)));
}

try {
  const [started, bytes] = await Promise.all([json("/api/start"), buffer("/api/map")]);
  data = started;
  data.places = new Map(data.uids.map((uid, place) => [uid, place]));
  const count = bytes.byteLength / 12;
  map.category = data.category;
  map.load(new Int32Array(bytes, 0, count), new Float32Array(bytes, 4 * count));
  furnish(); themed(); listen(); restore();
} catch (error) { warn(error.message); }
Object.assign(window, { page: { state, map, solid, data } });  // for the browser's console, and for tests
