"use strict";

const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const parsed = JSON.parse(document.getElementById("looks").textContent); // [caption][word]: [text, largest in percent, levels]
const looks = new Map([...document.querySelectorAll(".words")].map((line, number) => [line, parsed[number]]));
const list = document.getElementById("cards");
const cards = [...list.children]; // in dataset order

// Attention: every word becomes a button; one button of each caption is in the Tab order.
const SIZE = 320; // approximate pixels of the canvas, which is scaled to the image
const canvas = document.createElement("canvas");
let shown = null;

for (const [line, words] of looks) {
  if (!words.length) continue;
  let rest = line.textContent;
  line.setAttribute("role", "toolbar");
  line.setAttribute("aria-label", line.dataset.label);
  line.replaceChildren(...words.flatMap(([word], place) => {
    const gap = rest.slice(0, rest.indexOf(word)); // a blank; nothing in Chinese
    rest = rest.slice(gap.length + word.length);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.tabIndex = place ? -1 : 0;
    return [gap, button];
  }));
}

const described = (button) => button.closest(".card").querySelector("figcaption");

function show(button) {
  hide();
  const line = button.parentElement;
  const [, largest, levels] = looks.get(line)[[...line.children].indexOf(button)];
  const side = Math.round(Math.sqrt(levels.length));
  const values = [...levels].map((sign) => LEVELS.indexOf(sign) / 63);
  draw(values, side);
  button.closest(".card").querySelector(".frame").append(canvas);
  const top = values.indexOf(Math.max(...values));
  described(button).textContent = `“${button.textContent}”: most in row ${Math.floor(top / side) + 1}, ` +
    `column ${(top % side) + 1} of ${side} × ${side}: ${largest} % (uniform: ${(100 / values.length).toFixed(1)} %)`;
  button.classList.add("shown");
  shown = button;
}

// Darker cells received less attention; cells of at least half of the largest are framed, since images may be dark.
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
  described(shown).textContent = "";
  canvas.remove();
  shown = null;
}

// Calls react(button, event) for events on words.
function onWords(type, react) {
  list.addEventListener(type, (event) => {
    const button = event.target.closest(".words button");
    if (button) react(button, event);
  });
}

onWords("pointerover", show);
onWords("click", show);
onWords("pointerout", (_, event) => {
  if (event.pointerType === "touch") return;
  const focused = list.querySelector(".words button:focus");
  if (focused) show(focused); else hide();
});
onWords("focusin", (button) => {
  for (const other of button.parentElement.children) other.tabIndex = -1;
  button.tabIndex = 0;
  show(button);
  document.getElementById("spoken").textContent = described(button).textContent;
});
onWords("focusout", hide);
onWords("keydown", (button, event) => {
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
  return [card, [...new Set(lines.flatMap((line) => line.split(/[^\p{L}\p{N}'-]+/u)))]];
}));

function sort() {
  const order = orders.find((button) => button.getAttribute("aria-pressed") === "true").dataset.order;
  const sign = { down: -1, up: 1, none: 0 }[order];
  const gain = (card) => Number(card.dataset.values.split(" ")[value.selectedIndex]);
  list.append(...[...cards].sort((a, b) => sign * (gain(a) - gain(b))));
}

function filter() {
  const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const inside = (want) => /\p{Script=Han}/u.test(want); // Chinese has no blanks: a word starts anywhere
  for (const card of cards) {
    const found = wanted.every((want) =>
      wordsOf.get(card).some((word) => inside(want) ? word.includes(want) : word.startsWith(want)));
    card.hidden = !found || !["", card.dataset.chosen].includes(chosen.value);
  }
  document.getElementById("count").textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} images`;
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
