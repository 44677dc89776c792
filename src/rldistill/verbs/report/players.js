"use strict";
(() => {
  const plays = JSON.parse(document.getElementById("plays").textContent);
  if (!plays) return;
  const { length, rate, actions, players } = plays;
  const make = (parent, tag, name, text) => {
    const element = parent.appendChild(document.createElement(tag));
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const views = players.map((player, number) => {
    const figure = document.getElementById("player-" + number);
    const canvas = figure.querySelector("canvas");
    const list = figure.querySelector(".bars");
    const bars = actions.map((action) => {
      const item = make(list, "li");
      make(item, "span", "label", action);
      const track = make(item, "span", "track");
      const fill = make(track, "span", "fill");
      const tick = player.other ? make(track, "span", "tick") : null;
      return { item, fill, tick, share: make(item, "span", "share") };
    });
    const images = player.sheets.map((source) => {
      const image = new Image();
      image.src = source;
      return image;
    });
    return { player, bars, images, pen: canvas.getContext("2d"), score: figure.querySelector(".score b"), status: figure.querySelector(".status") };
  });
  const scrub = document.getElementById("scrub"), toggle = document.getElementById("toggle");
  const speed = document.getElementById("speed"), clock = document.getElementById("clock");
  let now = 0, playing = false, last = 0, owed = 0;

  const best = (row) => row.indexOf(Math.max(...row));
  function show(t) {
    now = t;
    for (const { player, bars, images, pen, score, status } of views) {
      const { width, height, columns, per } = player, place = t % per;
      const image = images[Math.floor(t / per)];
      if (image.complete && image.naturalWidth) pen.drawImage(image, (place % columns) * width, Math.floor(place / columns) * height, width, height, 0, 0, width, height);
      const row = player.preferences[t], taken = player.actions[t];
      bars.forEach((bar, action) => {
        bar.item.classList.toggle("taken", action === taken);
        bar.fill.style.width = row[action] + "%";
        bar.share.textContent = Math.round(row[action]) + " %";
        if (bar.tick) bar.tick.style.left = player.other[t][action] + "%";
      });
      score.textContent = player.scores[t];
      const notes = ["game " + player.games[t]];
      if (player.random[t]) notes.push("took a random action (exploration)");
      if (player.other && taken >= 0) notes.push(best(player.other[t]) === best(row) ? "the teacher would choose the same" : "the teacher would choose " + actions[best(player.other[t])]);
      status.textContent = notes.join(" · ");
    }
    scrub.value = t;
    scrub.setAttribute("aria-valuetext", (t / rate).toFixed(1) + " seconds");
    clock.textContent = (t / rate).toFixed(1) + " s · decision " + (t + 1) + " of " + length;
  }
  function set(on) {
    playing = on;
    toggle.textContent = on ? "Pause" : "Play";
    last = 0; owed = 0;
    if (on) requestAnimationFrame(frame);
  }
  function frame(time) {
    if (!playing) return;
    if (last) owed += Math.min(time - last, 250) / 1000 * rate * Number(speed.value);
    last = time;
    const steps = Math.floor(owed);
    if (steps) { owed -= steps; show((now + steps) % length); }
    requestAnimationFrame(frame);
  }
  toggle.addEventListener("click", () => set(!playing));
  scrub.addEventListener("input", () => { set(false); show(Number(scrub.value)); });
  document.getElementById("back").addEventListener("click", () => { set(false); show((now + length - 1) % length); });
  document.getElementById("forward").addEventListener("click", () => { set(false); show((now + 1) % length); });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const wanted = /^#t=(\d+)$/.exec(location.hash);
  show(wanted ? Math.min(Number(wanted[1]), length - 1) : 0);
  const loads = views.flatMap((view) => view.images).map((image) => image.complete ? null : new Promise((done) => {
    image.addEventListener("load", done);
    image.addEventListener("error", done);
  }));
  Promise.all(loads).then(() => { show(now); set(!still && !wanted); });
})();
