"use strict";
(function () {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = Array.from(document.querySelectorAll("[data-figure]"));
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");

  function dark() { return preferred.matches; }

  // Colours come as "@tone": deep copy with those of the present theme.
  function themed(value, tones) {
    if (typeof value === "string") return value[0] === "@" ? tones[value.slice(1)] : value;
    if (Array.isArray(value)) return value.map(function (item) { return themed(item, tones); });
    if (value !== null && typeof value === "object") {
      const copy = {};
      for (const key of Object.keys(value)) copy[key] = themed(value[key], tones);
      return copy;
    }
    return value;
  }

  // A phone has no room for panels side by side: one below the other, each as high as before.
  function stacked(layout, panels, columns, height) {
    if (columns < 2) return layout;
    const gap = 110, top = layout.margin.t, bottom = layout.margin.b, total = panels * height + (panels - 1) * gap;
    for (let index = 0; index < panels; index++) {
      const number = index ? String(index + 1) : "", upper = 1 - index * (height + gap) / total;
      layout["xaxis" + number].domain = [0, 1];
      layout["yaxis" + number].domain = [Math.max(upper - height / total, 0), upper];
    }
    const titles = layout.annotations;
    for (const title of titles) {
      const index = title.panel;
      title.x = 0;
      title.y = 1 - index * (height + gap) / total;
    }
    layout.height = total + top + bottom;
    return layout;
  }

  // On a phone a long name takes several lines, or it would take the room of what it names.
  function wrapped(text, most) {
    const lines = [""];
    for (const word of text.split(" ")) {
      const line = lines[lines.length - 1];
      if (line && line.length + word.length >= most) lines.push(word);
      else lines[lines.length - 1] = line ? line + " " + word : word;
    }
    return lines.join("<br>");
  }

  function draw(place) {
    const figure = figures.drawn[place.dataset.figure];
    const tones = dark() ? figures.dark : figures.light;
    const copy = themed(figure, tones);
    const narrow = place.clientWidth < 560;
    if (narrow) {
      copy.layout.margin.l = 54;
      copy.layout.margin.r = 16;  // half of the last tick's number
      for (const key of Object.keys(copy.layout).filter(function (name) { return name.startsWith("yaxis"); })) {
        const axis = copy.layout[key];
        if (axis.ticktext && axis.ticktext.some(function (text) { return text.length > 20; })) {
          axis.ticktext = axis.ticktext.map(function (text) { return wrapped(text, 20); });
          axis.tickfont = Object.assign({}, axis.tickfont, { size: 10 });
        }
      }
      for (const title of copy.layout.annotations) title.text = wrapped(title.text, 28);
      copy.layout = stacked(copy.layout, figure.panels, figure.columns, figure.height);
    }
    for (const title of copy.layout.annotations) delete title.panel;
    return window.Plotly.react(place, copy.data, copy.layout, {
      responsive: true, displaylogo: false, displayModeBar: false,
    });
  }

  // One figure after another, so that the page answers while it is being drawn.
  function drawAll() {
    let number = 0;
    root.dataset.drawn = "0";
    function next() {
      if (number >= places.length) { root.dataset.done = "yes"; return; }
      draw(places[number]).then(function () {
        number += 1;
        root.dataset.drawn = String(number);
        window.setTimeout(next, 0);
      });
    }
    next();
  }

  preferred.addEventListener("change", drawAll);
  drawAll();
})();
