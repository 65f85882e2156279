"use strict";

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (name, kind = "", text = "") =>
  Object.assign(document.createElement(name), { className: kind, textContent: text });

// Light or dark: the system's choice until the reader makes one.
const theme = document.getElementById("theme");
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemIsDark.matches ? "dark" : "light")) === "dark";
const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
theme.hidden = false;
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
systemIsDark.addEventListener("change", showTheme);
showTheme();

// A legend's entry switches its lines in every chart that has them.
const off = new Set();
const isOff = (keys) => keys.some((key) => off.has(key));
for (const button of all(".legend button")) {
  button.addEventListener("click", () => {
    const key = button.dataset.key;
    if (!off.delete(key)) off.add(key);
    for (const other of all(".legend button"))
      if (other.dataset.key === key) other.setAttribute("aria-pressed", String(!off.has(key)));
    for (const part of all("[data-keys]")) part.classList.toggle("off", isOff(part.dataset.keys.split(" ")));
  });
}

// The place in ascending `steps` of the one that is nearest.
function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

const shown = (value) =>
  value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(5)));

function readable(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot"), cursor = plot.querySelector(".cursor"), box = plot.querySelector(".readout");
  const [first, last] = data.steps;
  const every = [...new Set(data.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  let at = every.length - 1;

  const scale = figure.querySelector(".scale");
  scale?.addEventListener("click", () => {
    scale.setAttribute("aria-pressed", String(plot.classList.toggle("is-log")));
  });

  function hide() {
    cursor.hidden = box.hidden = true;
  }

  function show(place) {
    at = place;
    const step = every[at], across = (step - first) / (last - first), reach = (last - first) / 80;
    const epoch = data.perEpoch ? ` · epoch ${Math.max(1, Math.ceil(step / data.perEpoch))}` : "";
    box.replaceChildren(make("strong", "", `step ${step.toLocaleString("en")}${epoch}`));
    for (const line of data.lines) {
      const index = nearest(line.x, step);
      const far = line.x.length === 1 ? reach : Math.max(reach, ((last - first) / line.x.length) * 1.5);
      if (isOff(line.keys) || Math.abs(line.x[index] - step) > far) continue;
      const name = make("span", "", line.label);
      name.prepend(make("i", `swatch c${line.colour}`));
      const row = make("div");
      row.append(name, make("span", "", shown(line.y[index])));
      box.append(row);
    }
    for (const [where, text] of data.signs)
      if (Math.abs(where - step) < reach) box.append(make("p", "", text));
    cursor.style.left = `${100 * across}%`;
    cursor.hidden = box.hidden = false;
    const width = plot.clientWidth, left = across * width;
    box.style.left = `${Math.max(0, left > width / 2 ? left - box.offsetWidth - 12 : Math.min(left + 12, width - box.offsetWidth))}px`;
  }

  plot.addEventListener("pointermove", (event) => {
    const area = plot.getBoundingClientRect();
    show(nearest(every, first + ((event.clientX - area.left) / area.width) * (last - first)));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const stride = event.shiftKey ? Math.ceil(every.length / 20) : 1;
    const move = { ArrowLeft: -stride, ArrowRight: stride, Home: -every.length, End: every.length }[event.key];
    if (event.key === "Escape") hide();
    if (move === undefined) return;
    event.preventDefault();
    show(Math.min(Math.max(box.hidden && Math.abs(move) === 1 ? at : at + move, 0), every.length - 1));
  });
}
all("figure").forEach(readable);

// Tables: numbers go down first, words go up first; another click turns them round.
for (const table of all("table.sortable")) {
  const headings = all("thead th", table), body = table.tBodies[0];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const isNumber = heading.classList.contains("number");
      const before = heading.getAttribute("aria-sort") ?? (isNumber ? "ascending" : "descending");
      const order = before === "ascending" ? "descending" : "ascending";
      const text = ({ cells }) => cells[column].dataset.value ?? cells[column].textContent.replaceAll(",", "");
      const value = (row) => (Number.isNaN(Number(text(row))) ? -Infinity : Number(text(row)));
      const compare = isNumber ? (a, b) => value(a) - value(b) : (a, b) => text(a).localeCompare(text(b));
      const sign = order === "ascending" ? 1 : -1;
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
    });
  });
}

// On a narrow screen the style puts a row's cells below one another, with what the heading says before each.
for (const table of all("table.stack")) {
  const labels = all("thead th", table).map((heading) => heading.textContent.trim());
  for (const row of table.tBodies[0].rows)
    [...row.cells].forEach((cell, column) => {
      const own = make("div");
      own.append(...cell.childNodes);
      cell.append(own);
      cell.dataset.label = labels[column];
      cell.classList.toggle("empty", ["", "—"].includes(cell.textContent.trim()));
    });
  table.classList.add("stacked");
}

// Mistakes: one pair of classes, and paths to the clipboard; where that is refused, a path is selected instead.
async function copied(button, text, source) {
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = "selected";
  }
  setTimeout(() => (button.textContent = words), 1500);
}
for (const box of all(".pairs")) {
  const list = box.nextElementSibling, items = all("li", list), select = box.querySelector("select");
  box.hidden = false;
  select.addEventListener("change", () => {
    for (const item of items) item.hidden = select.value !== "" && item.dataset.pair !== select.value;
  });
  box.querySelector(".copy-all")?.addEventListener("click", ({ target }) => {
    const paths = all("li:not([hidden]) .path code", list).map((path) => path.textContent);
    copied(target, paths.join("\n"), list);
  });
}
for (const button of all(".copy")) {
  const path = button.previousElementSibling;
  button.hidden = false;
  button.addEventListener("click", () => copied(button, path.textContent, path));
}

// The confusion matrix tells what the cell under the pointer counts.
for (const table of all("table.confusion")) {
  const note = table.closest(".scroll").nextElementSibling, how = note.textContent;
  const names = all("thead th", table).map((heading) => heading.textContent);
  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("tbody td");
    if (!cell) return void (note.textContent = how);
    const row = cell.parentElement, counts = all("td", row).map((other) => Number(other.textContent));
    const total = counts.reduce((sum, count) => sum + count, 0), count = Number(cell.textContent);
    const share = total ? ((100 * count) / total).toFixed(1) : "0.0";
    const label = row.cells[0].textContent, predicted = names[cell.cellIndex - 1];
    note.textContent = `${label}, predicted as ${predicted}: ${count} of ${total} (${share} %)`;
  });
  table.addEventListener("pointerleave", () => (note.textContent = how));
}
