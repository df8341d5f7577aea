"use strict";

const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const parsed = JSON.parse(document.getElementById("looks").textContent); // [caption][word]: [text, largest in percent, levels]
const looks = new Map([...document.querySelectorAll(".words")].map((line, number) => [line, parsed[number]]));
const list = document.getElementById("cards");
const cards = [...list.children]; // in the order of the data set

// Attention: every word becomes a button; one of each caption takes part in the order of Tab.
const SIZE = 320; // pixels of the canvas, about; it is scaled to the image
const canvas = document.createElement("canvas");
let shown = null;

for (const [line, words] of looks) {
  if (!words.length) continue;
  let rest = line.textContent;
  line.setAttribute("role", "toolbar");
  line.setAttribute("aria-label", line.dataset.label);
  line.replaceChildren(...words.flatMap(([word], place) => {
    const gap = rest.slice(0, rest.indexOf(word)); // a blank; in Chinese nothing
    rest = rest.slice(gap.length + word.length);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.tabIndex = place ? -1 : 0;
    return [gap, button];
  }));
}

function show(button) {
  hide();
  const line = button.parentElement;
  const [, largest, levels] = looks.get(line)[[...line.children].indexOf(button)];
  const side = Math.round(Math.sqrt(levels.length));
  const values = [...levels].map((sign) => LEVELS.indexOf(sign) / 63);
  draw(values, side);
  const card = button.closest(".card");
  card.querySelector(".frame").append(canvas);
  const top = values.indexOf(Math.max(...values));
  card.querySelector("figcaption").textContent = `“${button.textContent}”: most in row ${Math.floor(top / side) + 1}, ` +
    `column ${(top % side) + 1} of ${side} × ${side}: ${largest} % (evenly spread: ${(100 / values.length).toFixed(1)} %)`;
  button.classList.add("shown");
  shown = button;
}

// The darker a cell, the less attention; those of at least half of the largest are framed, since images may be dark.
function draw(values, side) {
  const cell = Math.ceil(SIZE / side);
  canvas.width = canvas.height = side * cell; // clears it
  const brush = canvas.getContext("2d");
  brush.strokeStyle = "#ffd84d";
  brush.lineWidth = 1.5;
  values.forEach((value, token) => {
    const [x, y] = [(token % side) * cell, Math.floor(token / side) * cell];
    brush.fillStyle = `rgb(0 0 0 / ${0.8 * (1 - value)})`;
    brush.fillRect(x, y, cell, cell);
    if (value >= 0.5) brush.strokeRect(x + 1, y + 1, cell - 2, cell - 2);
  });
}

function hide() {
  if (!shown) return;
  shown.classList.remove("shown");
  shown.closest(".card").querySelector("figcaption").textContent = "";
  canvas.remove();
  shown = null;
}

const wordAt = (event) => event.target.closest(".words button");
const focused = () => (document.activeElement.matches(".words button") ? document.activeElement : null);

list.addEventListener("pointerover", (event) => { if (wordAt(event)) show(wordAt(event)); });
list.addEventListener("pointerout", (event) => {
  if (!wordAt(event) || event.pointerType === "touch") return;
  if (focused()) show(focused()); else hide();
});
list.addEventListener("click", (event) => { if (wordAt(event)) show(wordAt(event)); });
list.addEventListener("focusin", (event) => {
  const button = wordAt(event);
  if (!button) return;
  for (const other of button.parentElement.children) other.tabIndex = -1;
  button.tabIndex = 0;
  show(button);
  document.getElementById("spoken").textContent = button.closest(".card").querySelector("figcaption").textContent;
});
list.addEventListener("focusout", hide);
list.addEventListener("keydown", (event) => {
  const button = wordAt(event);
  if (!button) return;
  const words = [...button.parentElement.children];
  const place = words.indexOf(button);
  const next = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: words.length - 1 }[event.key];
  if (event.key === "Escape") hide();
  if (next === undefined) return;
  event.preventDefault();
  words[next]?.focus();
});

// Order and filter.
const chosen = document.getElementById("chosen");
const input = document.getElementById("words");
const value = document.getElementById("value");
const orders = [...document.querySelectorAll("[data-order]")];
const wordsOf = new Map(cards.map((card) => {
  const lines = [...card.querySelectorAll(".truths li, .words")].map((line) => line.textContent.toLowerCase());
  return [card, new Set(lines.flatMap((line) => line.split(/[^\p{L}\p{N}'-]+/u)))];
}));

function sort() {
  const order = orders.find((button) => button.getAttribute("aria-pressed") === "true").dataset.order;
  const gain = (card) => Number(card.dataset.values.split(" ")[value.selectedIndex]);
  const sorted = [...cards];
  if (order === "down") sorted.sort((a, b) => gain(b) - gain(a));
  if (order === "up") sorted.sort((a, b) => gain(a) - gain(b));
  list.append(...sorted);
}

function filter() {
  const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const card of cards) {
    const words = [...wordsOf.get(card)];
    const inside = (want) => /\p{Script=Han}/u.test(want); // Chinese has no blanks: a word starts anywhere
    const found = wanted.every((want) => words.some((word) => inside(want) ? word.includes(want) : word.startsWith(want)));
    card.hidden = !found || !(chosen.value === "" || card.dataset.chosen === chosen.value);
    count += !card.hidden;
  }
  document.getElementById("count").textContent = `${count} of ${cards.length} images`;
}

for (const button of orders) {
  button.addEventListener("click", () => {
    for (const other of orders) other.setAttribute("aria-pressed", String(other === button));
    sort();
  });
}
value.addEventListener("change", sort);
chosen.addEventListener("change", filter);
input.addEventListener("input", filter);
filter();
document.querySelector(".tools").hidden = false;
