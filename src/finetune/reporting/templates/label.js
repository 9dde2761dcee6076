"use strict";
const images = JSON.parse(document.body.dataset.images);
const labels = new Map(); // by the image's number
const history = []; // [number, the label that it had before]
const added = []; // classes that nobody knew
let at = 0;
let unsaved = false;
const by = (id) => document.getElementById(id);

function show() {
  const image = images[at];
  by("image").hidden = image.image === null;
  by("none").hidden = image.image !== null;
  if (image.image !== null) by("image").src = image.image;
  by("image").alt = `Image ${at + 1}`;
  by("path").textContent = image.path;
  by("said").textContent = image.said;
  const own = labels.get(at);
  by("choices").replaceChildren(
    ...[...image.choices, ...added.filter((name) => !image.choices.includes(name))].map((name, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(name === own));
      if (index < 9) {
        const key = document.createElement("kbd");
        key.textContent = String(index + 1);
        button.append(key);
      }
      const text = document.createElement("bdi");
      text.textContent = name;
      button.append(text);
      button.addEventListener("click", () => label(name));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  by("name").value = own !== undefined && !image.choices.includes(own) && !added.includes(own) ? own : "";
  by("progress").textContent = `Image ${at + 1} of ${images.length}; ${labels.size} labelled`;
  by("bar").value = labels.size;
  by("back").disabled = at === 0;
  by("skip").disabled = at === images.length - 1;
  by("undo").disabled = history.length === 0;
  by("save").disabled = labels.size === 0;
}

function label(name) {
  history.push([at, labels.get(at)]);
  labels.set(at, name);
  unsaved = true;
  by("saved").textContent = labels.size === images.length ? "All are labelled: save them." : "";
  step(1);
}

function step(by_) {
  at = Math.min(Math.max(at + by_, 0), images.length - 1);
  show();
}

function undo() {
  if (history.length === 0) return;
  const [number, before] = history.pop();
  if (before === undefined) labels.delete(number);
  else labels.set(number, before);
  at = number;
  unsaved = true;
  show();
}

function cell(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function manifest() {
  const rows = [...labels].sort(([a], [b]) => a - b);
  return "path,label\n" + rows.map(([number, name]) => `${cell(images[number].path)},${cell(name)}\n`).join("");
}

function save() {
  if (labels.size === 0) return;
  const address = URL.createObjectURL(new Blob([manifest()], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = "labels.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  unsaved = false;
  by("saved").textContent = `${labels.size} labels saved as labels.csv.`;
}

by("other").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = by("name").value.trim();
  if (name === "") return;
  if (!images.some((image) => image.choices.includes(name)) && !added.includes(name)) added.push(name);
  by("name").blur();
  label(name);
});
by("back").addEventListener("click", () => step(-1));
by("skip").addEventListener("click", () => step(1));
by("undo").addEventListener("click", undo);
by("save").addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if (event.target === by("name") || event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = by("choices").children[Number(event.key) - 1];
  if (/^[1-9]$/.test(event.key) && choice) choice.querySelector("button").click();
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "u" || event.key === "U") undo();
  else if (event.key === "s" || event.key === "S") save();
  else return;
  event.preventDefault();
});
addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});
show();
