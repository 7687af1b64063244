"use strict";
// Everything is drawn already. This adds: texts on hovering, one trial stressed in all charts,
// and tables sorted by a column.
document.addEventListener("DOMContentLoaded", () => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const body = document.body, reach = 28;
  const tip = body.appendChild(Object.assign(document.createElement("div"), { id: "tip" }));
  let pinned = null;

  const trials = JSON.parse(document.getElementById("labels").textContent);
  const labels = new Map();
  for (const title of all("g > title")) {
    labels.set(title.parentNode, title.textContent);
    title.remove(); // the browser's own text would lie over ours
  }

  const byTrial = new Map();
  for (const one of all("[data-trial]")) {
    const trial = one.dataset.trial;
    byTrial.set(trial, [...(byTrial.get(trial) ?? []), one]);
  }

  let shown = null;
  function stress(trial) {
    if (trial === shown) return;
    for (const one of byTrial.get(shown) ?? []) one.classList.remove("on");
    for (const one of byTrial.get(trial) ?? []) one.classList.add("on");
    body.classList.toggle("focused", trial !== null);
    shown = trial;
  }

  function pin(trial) {
    pinned = pinned === trial ? null : trial;
    stress(pinned);
  }

  function say(text, event) {
    tip.textContent = text;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 6);
    const above = event.clientY - tip.offsetHeight - 12;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
  }

  for (const plot of all("svg.plot")) {
    const dots = all("circle", plot).map((dot) => ({
      dot, x: parseFloat(dot.getAttribute("cx")) / 100, y: parseFloat(dot.getAttribute("cy")),
    }));
    const find = (event) => {
      const box = plot.getBoundingClientRect();
      let near = null, least = reach;
      for (const one of dots) {
        const far = Math.hypot(one.x * box.width + box.left - event.clientX,
                               one.y + box.top - event.clientY);
        if (far < least) [near, least] = [one.dot, far];
      }
      return near ?? (event.target.closest("path") && event.target);
    };
    const follow = (event) => {
      const mark = find(event);
      const group = mark?.closest("g");
      stress(group?.dataset.trial ?? pinned);
      const texts = [labels.get(group) ?? trials[group?.dataset.trial], mark?.dataset.tip];
      say(group ? texts.filter(Boolean).join("\n") : "", event);
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerleave", () => { stress(pinned); tip.textContent = ""; });
    plot.addEventListener("click", (event) => {
      follow(event);
      pin(find(event)?.closest("g")?.dataset.trial ?? null);
    });
  }

  for (const row of all("tr[data-trial]")) {
    row.tabIndex = 0;
    row.addEventListener("click", () => { if (!String(getSelection())) pin(row.dataset.trial); });
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter") pin(row.dataset.trial);
      if (event.key === "Escape") pin(null);
    });
  }

  for (const table of all("table.sortable")) {
    const heads = all("thead th", table), rows = table.tBodies[0];
    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falls = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const key = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
        const order = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === "" || y === "") return (x === "") - (y === ""); // empty cells stay last
          const numbers = x - y;
          return (Number.isNaN(numbers) ? x.localeCompare(y) : numbers) * (falls ? -1 : 1);
        };
        rows.append(...[...rows.rows].sort(order));
      });
    });
  }
});
