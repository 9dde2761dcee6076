"use strict";
// All text goes in by textContent; nothing is asked of any other server.

const MOST_CARDS = 60, AT_ONCE = 2, BARS = 5, PATIENCE = 60;
const part = (id) => document.getElementById(id);
const waiting = [];
let model = null, running = 0, stream = null;

// The fragment of an address is never sent; what it held is kept for this tab alone.
if (location.hash.startsWith("#token=")) {
  sessionStorage.setItem("token", decodeURIComponent(location.hash.slice(7)));
  history.replaceState(null, "", location.pathname);
}

async function ask(path, body) {
  const headers = {"Content-Type": "application/octet-stream"};
  const token = sessionStorage.getItem("token");
  if (token) headers["Authorization"] = `Bearer ${token}`;
  const options = body ? {method: "POST", headers, body} : {headers};
  for (let tries = 0; ; tries++) {
    const response = await fetch(path, options).catch(() => {
      throw new Error("The server does not answer.");
    });
    if (response.status === 503 && tries < PATIENCE) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      continue;
    }
    if (response.status === 401) part("entry").hidden = false;
    if (response.headers.get("Content-Type") === "image/png") return response.blob();
    const answer = await response.json().catch(() => ({}));
    if (!response.ok && !answer.answers) throw new Error(answer.error || `The server says ${response.status}.`);
    return answer;
  }
}

function trouble(text) {
  part("trouble").textContent = text;
  part("trouble").hidden = !text;
}

async function open() {
  try {
    model = await ask("/model");
  } catch (error) {
    part("about").textContent = error.message;
    return;
  }
  part("entry").hidden = true;
  const kind = model.task === "multiclass" ? "classes" : "labels";
  part("about").textContent = model.task === "regression" ? `It answers with a number: ${model.class_names[0]}.`
    : `It knows ${model.class_names.length} ${kind}: ${listed(model.class_names)}.`;
  if (model.cannot.length) part("about").textContent += ` It is an export: it cannot ${listed(model.cannot)}.`;
  part("keeping").textContent = model.keeps_corrections
    ? "Images are held in memory while they are answered. Only one that you correct is kept, with the label that you give it."
    : "Images are held in memory while they are answered. Nothing is kept.";
  next();
}

function listed(names) {
  return names.length <= 12 ? names.join(", ") : `${names.slice(0, 12).join(", ")} and ${names.length - 12} more`;
}

function add(files) {
  const images = [...files];
  if (!images.length) return;
  trouble("");
  for (const file of images) {
    const card = part("card").content.firstElementChild.cloneNode(true);
    card.file = file;
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.alt = `The image ${file.name || "that was pasted"}`;
    card.querySelector(".name bdi").textContent = file.name || "";
    card.querySelector(".verdict bdi").textContent = "…";
    part("answers").prepend(card);
    waiting.push(card);
  }
  while (part("answers").children.length > MOST_CARDS) {
    const last = part("answers").lastElementChild;
    URL.revokeObjectURL(last.querySelector("img").src);
    last.remove();
  }
  next();
}

function next() {
  while (model && running < AT_ONCE && waiting.length) {
    running++;
    answer(waiting.shift()).finally(() => { running--; next(); });
  }
}

async function answer(card) {
  const most = model.limits.body_bytes;
  try {
    if (card.file.size > most) throw new Error(`The file has more than ${Math.floor(most / 2 ** 20)} MiB.`);
    const found = (await ask("/predict", card.file)).answers[0];
    if (found.error) throw new Error(found.error);
    show(card, found);
  } catch (error) {
    card.classList.add("none");
    card.querySelector(".verdict bdi").textContent = "No answer";
    card.querySelector(".said").textContent = error.message;
  }
}

function show(card, found) {
  const several = Array.isArray(found.prediction);
  const named = several ? found.prediction : [shown(found.prediction)];
  card.querySelector(".verdict bdi").textContent = found.unknown ? "Unknown" : named.join(", ") || "None of the labels";
  const nearest = model.task === "regression" ? "it would say" : "the nearest";
  if (found.unknown) note(card, `nothing like what it has learnt (${nearest}: ${named.join(", ")})`, true);
  if ("lower" in found) note(card, `from ${shown(found.lower)} to ${shown(found.upper)}`, false);
  if (found.rejected) note(card, "not sure enough: ask a human", true);
  const set = found.prediction_set;
  if (set) note(card, set.length ? `may be: ${listed(set)}` : "none of its classes is likely enough", false);
  const ranked = Object.entries(found.probabilities || {}).sort((a, b) => b[1] - a[1]);
  for (const [name, probability] of ranked.slice(0, BARS)) bar(card, name, probability, (set || named).includes(name));
  if (ranked.length > BARS) card.querySelector(".more").textContent = `${ranked.length - BARS} others are less likely.`;
  const look = card.querySelector(".look"), wrong = card.querySelector(".wrong-answer");
  look.hidden = !model.explains;
  look.addEventListener("click", () => explain(card, look));
  const like = card.querySelector(".like");
  like.hidden = !model.compares;
  like.addEventListener("click", () => compare(card, like), {once: true});
  wrong.hidden = !model.keeps_corrections;
  wrong.addEventListener("click", () => correct(card, wrong, named, several));
}

function shown(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(6))) : value;
}

function note(card, text, doubt) {
  const chip = document.createElement("span");
  chip.textContent = text;
  if (doubt) chip.className = "doubt";
  card.querySelector(".notes").append(chip);
}

function bar(card, name, probability, inside) {
  const row = document.createElement("li"), label = document.createElement("bdi");
  const meter = document.createElement("meter"), number = document.createElement("span");
  label.textContent = label.title = name;
  meter.value = probability;
  meter.setAttribute("aria-label", name);
  number.textContent = `${(100 * probability).toFixed(1)} %`;
  if (inside) row.className = "in";
  row.append(label, meter, number);
  card.querySelector(".bars").append(row);
}

async function explain(card, button) {
  const image = card.querySelector("img");
  if (card.heat) {
    [image.src, card.other] = [card.other, image.src];
    card.mapped = !card.mapped;
  } else {
    button.disabled = true;
    try {
      card.heat = await ask("/explain", card.file);
      card.other = image.src;
      image.src = URL.createObjectURL(card.heat);
      card.mapped = true;
    } catch (error) {
      card.querySelector(".said").textContent = error.message;
    }
    button.disabled = false;
  }
  button.textContent = card.mapped ? "Show the image" : "Where did it look?";
}

async function compare(card, button) {
  button.disabled = true;
  try {
    for (const {label, distance, image} of (await ask("/similar", card.file)).nearest) {
      const item = document.createElement("li"), shown = document.createElement("img"), name = document.createElement("bdi");
      shown.src = image;
      shown.alt = `A training image of ${label}`;
      name.textContent = label;
      item.append(shown, name, ` ${distance.toFixed(2)}`);
      card.querySelector(".neighbours").append(item);
    }
  } catch (error) {
    card.querySelector(".said").textContent = error.message;
  }
}

function correct(card, button, named, several) {
  const form = card.querySelector(".correction"), choices = card.querySelector(".choices");
  form.hidden = !form.hidden;
  if (choices.children.length) return;
  const number = model.task === "regression";
  const list = several ? choices : document.createElement(number ? "input" : "select");
  for (const name of number ? [] : model.class_names) {
    if (several) {
      const label = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.value = name;
      box.checked = named.includes(name);
      label.append(box, name);
      list.append(label);
    } else {
      const option = new Option(name, name);
      option.selected = named.includes(name);
      list.append(option);
    }
  }
  if (number) {
    list.inputMode = "decimal";
    list.required = true;
    list.value = named[0];
  }
  if (!several) {
    list.setAttribute("aria-label", number ? "The true number" : "The true class");
    choices.append(list);
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const said = several ? [...choices.querySelectorAll(":checked")].map((box) => box.value) : [list.value];
    const query = new URLSearchParams(said.map((name) => ["label", name]));
    try {
      const {kept} = await ask(`/correct?${query}`, card.file);
      card.querySelector(".said").textContent = `Kept as ${said.join(", ") || "none of the labels"}. ${kept} so far.`;
      form.hidden = true;
    } catch (error) {
      card.querySelector(".said").textContent = error.message;
    }
  });
}

async function film() {
  if (!navigator.mediaDevices || matchMedia("(pointer: coarse)").matches) {
    part("capture").click();
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {width: 1280}});
  } catch {
    trouble("There is no camera that this page may use.");
    return;
  }
  part("video").srcObject = stream;
  part("viewfinder").hidden = false;
}

function unfilm() {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
  part("viewfinder").hidden = true;
}

function shoot() {
  const video = part("video"), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => { if (blob) add([new File([blob], "photograph.png", {type: "image/png"})]); });
  unfilm();
}

for (const id of ["choose", "capture"]) {
  part(id).addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
}
part("camera").addEventListener("click", film);
part("shoot").addEventListener("click", shoot);
part("close").addEventListener("click", unfilm);
part("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", part("token").value);
  open();
});
addEventListener("paste", (event) => add(event.clipboardData.files));
addEventListener("dragover", (event) => { event.preventDefault(); part("drop").classList.add("over"); });
addEventListener("dragleave", () => part("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
open();
