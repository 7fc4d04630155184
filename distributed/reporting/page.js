"use strict";
// The gallery: cards are made a page at a time, from the columns of #data. Texts enter as text, never as markup.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (values) => (a, b) => (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : 0);
  const SORTS = { pck: by(data.pck), loss: by(data.loss.map((loss) => -Number(loss))), group: by(data.group.map((code) => data.groups[code] ?? "\uffff")), sample: by(data.ids) };
  const FIRST = 24, PAGE = 96, PRINTED = 600, SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id), count = data.ids.length;
  const cards = byId("cards"), more = byId("more"), moreRow = byId("more-row"), nothing = byId("nothing");
  const groupInput = byId("filter-group"), sort = byId("sort"), fold = byId("fold"), dialog = byId("close-up");
  const selects = [], dropped = new Set(recall()), unfolded = new Set();
  const twins = data.alike.flatMap((first, index) => (first === index ? [] : [index]));
  let members = new Map(), order = [], made = 0, opened = -1;

  // What is ticked off outlives the window where the browser lets a file remember.
  function recall() {
    try { return JSON.parse(localStorage.getItem("lossight " + data.key)) || []; } catch { return []; }
  }

  function remember() {
    try { localStorage.setItem("lossight " + data.key, JSON.stringify([...dropped])); } catch { /* a private window */ }
  }

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function pose(packed) {
    const bytes = atob(packed), at = (index) => bytes.charCodeAt(index), svg = document.createElementNS(SVG, "svg");
    const lines = { halo: "", right: "", left: "", middle: "", "right unsure": "", "left unsure": "", "middle unsure": "" };
    svg.setAttribute("viewBox", "0 0 255 255");
    for (const [a, b, side] of data.limbs) {
      const trust = Math.min(at(3 * a + 2), at(3 * b + 2));
      if (!trust) continue;
      const line = `M${at(3 * a)} ${at(3 * a + 1)}L${at(3 * b)} ${at(3 * b + 1)}`;
      lines[trust < data.unsure ? side + " unsure" : side] += line;
      lines.halo += line;
    }
    for (const [className, line] of Object.entries(lines)) {
      if (!line) continue;
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", className);
      path.setAttribute("d", line);
      svg.append(path);
    }
    return svg;
  }

  function picture(index, isLarge) {
    const frame = element("span", "picture");
    if (data.pictures[index]) {
      const image = element("img");
      image.alt = "";
      image.decoding = "async";
      const large = isLarge && data.large[index];
      image.src = large ? "data:image/jpeg;base64," + large : "data:image/webp;base64," + data.pictures[index];
      frame.append(image);
      if (data.poses[index]) frame.append(pose(data.poses[index]));
    } else {
      frame.append(element("span", "absent", data.absent[index] || "no picture: beyond the first ranks"));
    }
    return frame;
  }

  function numbers(index) {
    const pck = data.pck[index];
    return "loss " + data.loss[index] + (pck === null ? "" : " · PCK " + pck.toFixed(2));
  }

  function valuesOf(column, index) {
    return column.codes[index].map((code) => column.values[code]);
  }

  function card(index) {
    const frame = element("article", "card"), open = element("button", "open"), about = element("div", "about");
    const head = element("span", "head"), keep = element("label", "keep"), box = element("input");
    const reason = data.reasons[data.reason[index]], others = members.get(index).length - 1;
    frame.title = data.ids[index];
    frame.dataset.index = index;
    frame.classList.toggle("dropped", dropped.has(index));
    open.type = "button";
    open.setAttribute("aria-label", "Enlarge #" + (index + 1) + " " + data.ids[index]);
    open.append(picture(index));
    open.addEventListener("click", () => closeUp(index));
    box.type = "checkbox";
    box.checked = !dropped.has(index);
    box.setAttribute("aria-label", "Keep #" + (index + 1));
    box.addEventListener("change", () => toggle(index, !box.checked));
    keep.append(box, element("b", "", "#" + (index + 1)));
    head.append(keep, element("span", "chip " + reason.replace(/[^a-z]/g, ""), reason));
    about.append(head, element("span", "", numbers(index)), element("span", "quiet id", data.short[index]));
    if (others) {
      const alike = element("button", "alike", (unfolded.has(index) ? "fold " : "+") + others + " alike");
      alike.type = "button";
      alike.setAttribute("aria-expanded", String(unfolded.has(index)));
      alike.addEventListener("click", () => {
        if (!unfolded.delete(index)) unfolded.add(index);
        arrange(index);
      });
      about.append(alike);
    }
    frame.append(open, about);
    return frame;
  }

  function toggle(index, isDropped) {
    if (isDropped) dropped.add(index); else dropped.delete(index);
    decided();
  }

  // Shows in each card what is kept, and in words how many are.
  function decided() {
    for (const frame of cards.children) {
      const isDropped = dropped.has(Number(frame.dataset.index));
      frame.classList.toggle("dropped", isDropped);
      frame.querySelector("input").checked = !isDropped;
    }
    byId("close-up-keep").checked = !dropped.has(opened);
    byId("kept").textContent = dropped.size ? dropped.size.toLocaleString("en") + " ticked off" : "none ticked off";
    byId("download").textContent = "Download " + (count - dropped.size).toLocaleString("en") + " ids (CSV)";
    byId("drop-alike").hidden = !twins.length;
    byId("drop-alike").textContent = "Tick off " + twins.length.toLocaleString("en") + " alike";
    byId("keep-all").disabled = !dropped.size;
    remember();
  }

  function download() {
    const quoted = (id) => (/[",\r\n]|^\s|\s$/.test(id) ? '"' + id.replaceAll('"', '""') + '"' : id);
    const lines = data.ids.flatMap((id, index) => (dropped.has(index) ? [] : [quoted(id)]));
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([["sample_id", ...lines, ""].join("\n")], { type: "text/csv" }));
    link.download = "kept.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function closeUp(index) {
    const group = data.group[index], text = byId("close-up-text");
    const rows = [["rank", index + 1], ["sample", data.ids[index]], ["group", group < 0 ? "–" : data.groups[group]],
      ["reason", data.reasons[data.reason[index]]], ["predicted loss", data.loss[index]]];
    if (data.pck[index] !== null) rows.push(["expected PCK", data.pck[index].toFixed(3)]);
    for (const column of data.columns) rows.push([column.name, valuesOf(column, index).join(", ") || "–"]);
    text.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", String(value))]));
    byId("close-up-image").replaceChildren(picture(index, true));
    opened = index;
    const all = everyone(), at = all.indexOf(index);
    byId("close-up-place").textContent = at + 1 + " of " + all.length;
    byId("close-up-keep").checked = !dropped.has(index);
    if (!dialog.open) dialog.showModal();
  }

  // All images that pass the filters, those alike behind the one that stands for them.
  function everyone() {
    return [...members.values()].flat();
  }

  function step(by) {
    const all = everyone();
    closeUp(all[(all.indexOf(opened) + by + all.length) % all.length]);
  }

  // Moves the focus among cards, by rows and columns as they are laid out.
  function move(open, key) {
    const all = [...cards.querySelectorAll(".open")], at = all.indexOf(open), top = all[0].getBoundingClientRect().top;
    const across = all.filter((each) => Math.abs(each.getBoundingClientRect().top - top) < 2).length;
    const to = at + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[key];
    if (to >= all.length && made < order.length) { addPage(); return move(open, key); }
    if (all[to]) all[to].focus();
  }

  function addPage() {
    const fragment = document.createDocumentFragment(), end = Math.min(made + (made ? PAGE : FIRST), order.length);
    for (; made < end; made++) fragment.append(card(order[made]));
    cards.append(fragment);
    moreRow.hidden = made >= order.length;
  }

  // The images that pass the filters, sorted, and folded into cards.
  function apply() {
    const wanted = groupInput.value.trim(), exact = data.groups.indexOf(wanted), sortBy = SORTS[sort.value];
    const hits = data.groups.map((name) => name.includes(wanted)), matching = [], heads = new Map();
    for (let index = 0; index < count; index++) {
      const group = data.group[index];
      if (wanted && !(exact >= 0 ? group === exact : group >= 0 && hits[group])) continue;
      if (selects.every(([select, codes]) => select.value === "" || codes(index).includes(Number(select.value)))) matching.push(index);
    }
    if (sortBy) matching.sort((a, b) => sortBy(a, b) || a - b);
    members = new Map();
    for (const index of matching) {
      const first = fold.checked ? data.alike[index] : index;
      if (!heads.has(first)) { heads.set(first, index); members.set(index, []); }
      members.get(heads.get(first)).push(index);
    }
    byId("shown").textContent = matching.length.toLocaleString("en") + " of " + count.toLocaleString("en") + " images" +
      (members.size < matching.length ? " on " + members.size.toLocaleString("en") + " cards" : "");
    nothing.hidden = matching.length > 0;
    arrange();
  }

  // Makes the cards anew; `focused` names the one that keeps the focus.
  function arrange(focused) {
    order = [];
    const more = new Map();
    for (const [index, all] of members) order.push(index, ...(unfolded.has(index) ? all.slice(1) : []));
    for (const index of order) if (!members.has(index)) more.set(index, [index]);
    const least = focused === undefined ? 0 : made;
    made = 0;
    cards.replaceChildren();
    const folds = members;
    members = new Map([...folds, ...more]);
    do addPage(); while (made < Math.min(least, order.length));
    members = folds;
    if (focused !== undefined) cards.querySelector(`[data-index="${focused}"] .alike`).focus();
  }

  function addSelect(name, values, codes) {
    const label = element("label", "", name), select = element("select");
    select.dataset.column = name;
    select.append(new Option("all", ""), ...values.map((value, code) => new Option(value, String(code))));
    select.addEventListener("change", apply);
    label.append(select);
    document.getElementById("filter-columns").append(label);
    selects.push([select, codes]);
  }

  if (data.reasons.length > 1) addSelect("reason", data.reasons, (index) => [data.reason[index]]);
  for (const column of data.columns) if (column.filter) addSelect(column.name, column.values, (index) => column.codes[index]);
  document.getElementById("groups").append(...data.groups.slice(0, 500).map((name) => new Option(name, name)));
  groupInput.addEventListener("input", apply);
  sort.addEventListener("change", apply);
  fold.addEventListener("change", apply);
  byId("fold-row").hidden = !twins.length;
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(apply));
  byId("show-all").addEventListener("click", () => byId("filters").reset());
  byId("download").addEventListener("click", download);
  byId("drop-alike").addEventListener("click", () => { twins.forEach((index) => dropped.add(index)); decided(); });
  byId("keep-all").addEventListener("click", () => { dropped.clear(); decided(); });
  byId("close-up-keep").addEventListener("change", (event) => toggle(opened, !event.target.checked));
  byId("before").addEventListener("click", () => step(-1));
  byId("after").addEventListener("click", () => step(1));
  cards.addEventListener("keydown", (event) => {
    const frame = event.target.closest(".card");
    if (event.key.startsWith("Arrow") && event.target.matches(".open")) move(event.target, event.key);
    else if (event.key === "x" && frame) toggle(Number(frame.dataset.index), !dropped.has(Number(frame.dataset.index)));
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "x") toggle(opened, !dropped.has(opened));
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  more.addEventListener("click", addPage);
  addEventListener("beforeprint", () => { while (made < Math.min(order.length, PRINTED)) addPage(); });
  new IntersectionObserver((entries) => { if (made > FIRST && made < order.length && entries[0].isIntersecting) addPage(); }, { rootMargin: "400px" }).observe(moreRow);
  apply();
  decided();
})();
