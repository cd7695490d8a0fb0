"use strict";
// Text from the server goes into the page through textContent alone: nothing in it can be markup.
const $ = (id) => document.getElementById(id);
const store = window.localStorage;
let rater = store.getItem("rater") || "";
let item = null;      // what is shown
let revising = false; // whether it was answered before
let busy = false;
let comparing = false;
let timer = null;

async function call(path, body) {
  const answer = await fetch(path, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ rater, ...body }),
  });
  const found = await answer.json().catch(() => ({ why: `the page answered ${answer.status}` }));
  if (!answer.ok) throw new Error(found.why || `the page answered ${answer.status}`);
  return found;
}

function show(section) {
  for (const id of ["welcome", "item", "wait"]) $(id).hidden = id !== section;
  $("main").classList.toggle("rating", section === "item");
}

function say(text, kind) {
  $("status").textContent = text;
  $("status").className = "status " + (kind || "");
}

function progress(found) {
  $("mine").textContent = `${found.mine} rated by you`;
  $("left").textContent = `${found.left} of ${found.budget} left in all`;
  $("done").style.width = `${100 * (1 - found.left / Math.max(found.budget, 1))}%`;
  $("bar").setAttribute("aria-valuenow", String(found.budget - found.left));
  $("bar").setAttribute("aria-valuemax", String(found.budget));
  $("who").textContent = rater;
  $("who").hidden = false;
}

function draft(name, value) {
  const key = `draft ${item ? item.id : ""} ${name}`;
  if (value === undefined) return store.getItem(key) || "";
  if (value === "") store.removeItem(key); else store.setItem(key, value);
  return value;
}

function render(found) {
  item = found.item;
  revising = item.was !== undefined;
  $("prompt").textContent = item.prompt;
  const sides = $("sides");
  sides.replaceChildren();
  sides.classList.toggle("two", item.sides.length === 2);
  item.sides.forEach((text, i) => {
    const side = document.createElement("div");
    side.className = "side";
    const head = document.createElement("h2");
    head.textContent = item.sides.length === 2 ? ["Left", "Right"][i] : "Response";
    const body = document.createElement("p");
    body.textContent = text === "" ? "(empty)" : text;
    body.dir = "auto";
    side.append(head, body);
    sides.append(side);
  });
  const two = item.sides.length === 2;
  $("choices").hidden = !two;
  $("number-form").hidden = two;
  const was = revising && item.was === "label" ? { 1: "left", 0: "right", 0.5: "tie" }[item.value] : "";
  for (const button of document.querySelectorAll(".choice")) {
    button.classList.toggle("was", button.dataset.choice === was);
  }
  $("value").value = draft("value") || (revising && !two && item.value !== null ? String(item.value) : "");
  $("skip-card").hidden = true;
  show("item");
  if (!two) { $("value").focus(); $("value").select(); }
}

async function next() {
  clearTimeout(timer);
  const found = await call("/api/next", {});
  progress(found);
  if (found.state === "item") { render(found); return; }
  item = null;
  $("wait-title").textContent = found.state === "done" ? "Nothing left to rate. Thank you!" : "Choosing the next question";
  $("wait-text").textContent = found.state === "done" ? found.why : "It depends on the answers so far. This takes a moment.";
  show("wait");
  if (found.state === "thinking") timer = setTimeout(() => guarded(next), 700);
}

async function answer(given) {
  if (!item) return;
  const again = revising;
  say("saving");
  const id = item.id;
  await call("/api/answer", { id, ...given });
  for (const name of ["value", "reason"]) draft(name, "");
  await next();
  say(again ? "changed and saved" : "saved", "saved");
}

async function undo() {
  const found = await call("/api/previous", { before: revising && item ? item.id : null });
  progress(found);
  if (found.state === "none") { say("there is nothing before this one"); return; }
  clearTimeout(timer);
  render(found);
  say("your answer from before: answer again to change it, or press N for the next one");
}

async function guarded(work) {
  if (busy) return;
  busy = true;
  try { await work(); } catch (error) {
    say(`not saved: ${error.message}. Your answer is still here; it is tried again when you answer.`, "wrong");
    if (!item) timer = setTimeout(() => guarded(next), 1500);
  } finally { busy = false; }
}

function skipCard() {
  $("skip-card").hidden = false;
  $("reason").value = draft("reason");
  $("reason").focus();
}

function act(name) {
  if (name === "skip") skipCard();
  if (name === "back") $("skip-card").hidden = true;
  if (name === "undo") guarded(undo);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.choice) guarded(() => answer({ choice: button.dataset.choice }));
  if (button.dataset.act) act(button.dataset.act);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "Escape") { $("skip-card").hidden = true; if (document.activeElement) document.activeElement.blur(); return; }
  const typing = event.target.tagName === "INPUT";
  const key = event.key.toLowerCase();
  if (typing && !(event.target.id === "value" && ["s", "u", "n"].includes(key))) return;
  const choice = { 1: "left", 2: "right", 3: "tie", 4: "bad" }[key];
  if (choice && item && item.sides.length === 2 && $("skip-card").hidden) {
    event.preventDefault();
    guarded(() => answer({ choice }));
  } else if (key === "s" && item) { event.preventDefault(); skipCard(); }
  else if (key === "u" && rater) { event.preventDefault(); guarded(undo); }
  else if (key === "n" && rater) { event.preventDefault(); guarded(async () => { await next(); say(""); }); }
});

$("number-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("value").value.trim().replace(",", ".");
  const value = Number(text);
  if (text === "" || !Number.isFinite(value)) { say("expected a number, such as 3.5", "wrong"); return; }
  guarded(() => answer({ value }));
});
$("skip-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const skip = $("reason").value.trim() || "no reason given";
  guarded(() => answer({ skip }));
});
$("value").addEventListener("input", () => draft("value", $("value").value));
$("reason").addEventListener("input", () => draft("reason", $("reason").value));
$("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  rater = $("name").value.trim();
  if (!rater) return;
  store.setItem("rater", rater);
  guarded(next);
});
$("who").addEventListener("click", () => {
  clearTimeout(timer);
  item = null;
  $("name").value = rater;
  show("welcome");
  $("name").focus();
});

(async () => {
  const about = await (await fetch("/api/about")).json();
  comparing = about.comparing;
  $("guide").textContent = about.guidelines;
  $("guide-box").hidden = !about.guidelines;
  document.title = comparing ? "Which response is better?" : "Rate responses";
  if (rater) guarded(next); else { show("welcome"); $("name").focus(); }
})();
