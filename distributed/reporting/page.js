"use strict";
// The gallery: cards are made a page at a time, from the columns of #data. Texts enter as text, never as markup.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const FIRST = 24, PAGE = 96, SVG = "http://www.w3.org/2000/svg";
  const cards = document.getElementById("cards"), more = document.getElementById("more");
  const moreRow = document.getElementById("more-row"), shown = document.getElementById("shown");
  const groupInput = document.getElementById("filter-group"), dialog = document.getElementById("close-up");
  const selects = [];
  let matching = [], made = 0;

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

  function picture(index) {
    const frame = element("span", "picture");
    if (data.pictures[index]) {
      const image = element("img");
      image.alt = "";
      image.decoding = "async";
      image.src = "data:image/webp;base64," + data.pictures[index];
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
    const button = element("button", "card"), about = element("span", "about"), head = element("span", "head");
    const reason = data.reasons[data.reason[index]];
    button.type = "button";
    button.title = data.ids[index];
    head.append(element("b", "", "#" + (index + 1)), element("span", "chip " + reason.replace(/[^a-z]/g, ""), reason));
    about.append(head, element("span", "", numbers(index)), element("span", "quiet", data.ids[index]));
    button.append(picture(index), about);
    button.addEventListener("click", () => closeUp(index));
    return button;
  }

  function closeUp(index) {
    const group = data.group[index], text = document.getElementById("close-up-text");
    const rows = [["rank", index + 1], ["sample", data.ids[index]], ["group", group < 0 ? "–" : data.groups[group]],
      ["reason", data.reasons[data.reason[index]]], ["predicted loss", data.loss[index]]];
    if (data.pck[index] !== null) rows.push(["expected PCK", data.pck[index].toFixed(3)]);
    for (const column of data.columns) rows.push([column.name, valuesOf(column, index).join(", ") || "–"]);
    text.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", String(value))]));
    document.getElementById("close-up-image").replaceChildren(picture(index));
    dialog.showModal();
  }

  function addPage() {
    const fragment = document.createDocumentFragment(), end = Math.min(made + (made ? PAGE : FIRST), matching.length);
    for (; made < end; made++) fragment.append(card(matching[made]));
    cards.append(fragment);
    moreRow.hidden = made >= matching.length;
    shown.textContent = matching.length.toLocaleString("en") + " of " + data.ids.length.toLocaleString("en") + " images";
  }

  function apply() {
    const wanted = groupInput.value.trim(), exact = data.groups.indexOf(wanted);
    const hits = data.groups.map((name) => name.includes(wanted));
    matching = [];
    for (let index = 0; index < data.ids.length; index++) {
      const group = data.group[index];
      if (wanted && !(exact >= 0 ? group === exact : group >= 0 && hits[group])) continue;
      if (selects.every(([select, codes]) => select.value === "" || codes(index).includes(Number(select.value)))) matching.push(index);
    }
    made = 0;
    cards.replaceChildren();
    addPage();
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
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("filters").addEventListener("reset", () => setTimeout(apply));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  more.addEventListener("click", addPage);
  new IntersectionObserver((entries) => { if (made > FIRST && made < matching.length && entries[0].isIntersecting) addPage(); }, { rootMargin: "400px" }).observe(moreRow);
  apply();
})();
