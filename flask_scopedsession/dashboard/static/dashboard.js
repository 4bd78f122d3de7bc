/* Updates the page, and draws the charts of what it has seen since it was opened. */
"use strict";

(() => {
  const EVERY = 2; // seconds between two refreshes
  const KEEP = 600; // seconds that the charts show
  const PATIENCE = 10; // seconds to wait for an answer
  const GAP = 15; // seconds without a sample that the charts leave open
  const LEAST = 30; // seconds that they show in any case
  const SPARK = 120; // seconds that a row of the table shows
  const ROWS = 30; // samples in the table of a chart

  const content = document.getElementById("content");
  const announcement = document.getElementById("announcement");
  const refreshed = document.getElementById("refreshed");
  const pause = document.getElementById("pause");

  const history = new Map(); // samples of each series: {at, used, waiting}
  const plots = new Map(); // by figure
  let timer = null;
  let paused = false;
  let asking = false;
  let failures = 0;
  let said = null;

  // -- the page, without loss of focus, selection and what is unfolded ---------

  function update(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    if (old.hasAttribute("data-drawn")) return; // its content is drawn here
    for (const { name } of [...old.attributes]) {
      if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    updateChildren(old, fresh);
  }

  function updateChildren(old, fresh) {
    const keyed = new Map();
    for (const child of old.children) {
      if (child.dataset.key) keyed.set(child.dataset.key, child);
    }
    const left = visible(old);
    for (const node of visible(fresh)) {
      const key = node.dataset?.key;
      const match = key ? keyed.get(key) : left[0];
      if (!match || match.nodeName !== node.nodeName || match.dataset?.key !== key) {
        old.insertBefore(node, left[0] ?? null);
        continue;
      }
      keyed.delete(key);
      // To move a node would take the focus from it.
      if (match === left[0]) left.shift();
      else old.insertBefore(...left.splice(left.indexOf(match), 1), left[0]);
      update(match, node);
    }
    left.forEach((node) => node.remove());
  }

  function visible(parent) {
    return [...parent.childNodes].filter(
      (node) => node.nodeType === Node.ELEMENT_NODE || node.data?.trim(),
    );
  }

  // -- samples -----------------------------------------------------------------

  function clock(seconds) {
    return new Date(seconds * 1000).toISOString().slice(11, 19);
  }

  function collect() {
    const now = Number(document.getElementById("now").dataset.at);
    for (const { dataset } of content.querySelectorAll("[data-series]")) {
      let samples = history.get(dataset.series);
      if (!samples) history.set(dataset.series, (samples = []));
      const last = samples[samples.length - 1];
      if (last && last.at >= now) continue;
      if (last && last.at < now - GAP) {
        samples.push({ at: last.at + 0.001, used: null, waiting: null });
      }
      samples.push({
        at: now,
        used: Number(dataset.used),
        waiting: Number(dataset.waiting),
      });
    }
    for (const [key, samples] of history) {
      while (samples.length && samples[0].at < now - KEEP) samples.shift();
      if (!samples.length) history.delete(key);
    }
    return now;
  }

  // -- charts ------------------------------------------------------------------

  function element(name, parent, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text) made.textContent = text;
    parent.append(made);
    return made;
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // Not what uPlot suggests, which is a day if there is one sample.
  function span(at) {
    const now = at[at.length - 1] ?? 0;
    return [Math.min(at[0] ?? 0, now - LEAST), now];
  }

  function makePlot(figure) {
    figure.textContent = "";
    const caption = element("figcaption", figure);
    element("span", caption, "key", "checked out");
    element("span", caption, "key waiting", "waiting");
    const most = element("span", caption, "key most");
    const since = element("span", caption);
    const place = element("div", figure, "plot");
    place.setAttribute("role", "img");
    const details = element("details", figure);
    element("summary", details, "", "The last samples as a table");
    const table = element("table", details);
    element("caption", table, "", `Connections of ${figure.dataset.series}`);
    const heads = element("tr", element("thead", table));
    element("th", heads, "", "Time (UTC)").scope = "col";
    for (const name of ["Checked out", "Waiting"]) {
      element("th", heads, "number", name).scope = "col";
    }
    const rows = element("tbody", table);
    const axis = {
      stroke: colour("--quiet"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1 },
    };
    const plot = new uPlot(
      {
        width: place.clientWidth,
        height: place.clientHeight,
        legend: { show: false },
        cursor: { show: false },
        tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
        scales: {
          x: { range: ({ data: [at] }) => span(at) },
          y: { range: (_, low, high) => [0, Math.max(high * 1.08, 2)] },
        },
        axes: [
          { ...axis, space: 90, values: (_, splits) => splits.map(clock) },
          {
            ...axis,
            size: 44,
            incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
          },
        ],
        series: [
          {},
          {
            stroke: colour("--accent"),
            fill: colour("--fill"),
            width: 2,
            points: { show: false },
          },
          {
            stroke: colour("--wrong"),
            dash: [2, 3],
            width: 2,
            points: { show: false },
          },
          {
            stroke: colour("--quiet"),
            dash: [8, 5],
            width: 1.5,
            points: { show: false },
          },
        ],
      },
      [[], [], [], []],
      place,
    );
    const sizes = new ResizeObserver(() => {
      plot.setSize({ width: place.clientWidth, height: place.clientHeight });
    });
    sizes.observe(place);
    return { plot, place, most, since, details, rows, sizes };
  }

  function drawChart(figure) {
    const samples = history.get(figure.dataset.series) ?? [];
    if (!samples.length) return;
    if (!plots.has(figure)) plots.set(figure, makePlot(figure));
    const { plot, place, most, since, details, rows } = plots.get(figure);
    const limit = figure.dataset.most === undefined ? null : +figure.dataset.most;
    const used = samples.map((each) => each.used);
    const waiting = samples.map((each) => each.waiting);
    const from = clock(samples[0].at);
    const now = samples[samples.length - 1];
    most.hidden = limit === null;
    most.textContent = `${limit} may be open`;
    since.textContent = `Seen by this page since ${from} UTC, 10 minutes at most`;
    place.setAttribute(
      "aria-label",
      `Since ${from} UTC: at most ${Math.max(...used)} checked out and ` +
        `${Math.max(...waiting)} waiting. Now: ${now.used} checked out, ` +
        `${now.waiting} waiting.`,
    );
    plot.setData([
      samples.map((each) => each.at),
      used,
      waiting,
      samples.map(() => limit),
    ]);
    if (details.open) {
      rows.textContent = "";
      for (const each of samples.slice(-ROWS).reverse()) {
        const row = element("tr", rows);
        element("th", row, "", clock(each.at)).scope = "row";
        element("td", row, "number", String(each.used ?? "-"));
        element("td", row, "number", String(each.waiting ?? "-"));
      }
    }
  }

  function drawSpark(svg, now) {
    const all = history.get(svg.dataset.series) ?? [];
    const samples = all.filter((each) => each.at >= now - SPARK && each.used !== null);
    const highest = Math.max(
      +(svg.dataset.most ?? 0),
      1,
      ...samples.map((each) => each.used),
    );
    const x = (at) => 120 - ((now - at) / SPARK) * 120;
    const y = (used) => 23 - (used / highest) * 22;
    const points = samples.map((each) => `${x(each.at)},${y(each.used)}`);
    svg.textContent = "";
    const shape = (name, attributes) => {
      const made = document.createElementNS(svg.namespaceURI, name);
      for (const [key, value] of Object.entries(attributes)) {
        made.setAttribute(key, value);
      }
      svg.append(made);
    };
    if (points.length) {
      const first = x(samples[0].at);
      shape("path", { d: `M${first},24 L${points.join(" L")} L120,24 Z` });
    }
    for (const each of samples) {
      if (each.waiting) shape("rect", { x: x(each.at) - 2, y: 0, width: 3, height: 4 });
    }
  }

  function draw() {
    const now = collect();
    for (const [figure, { plot, sizes }] of plots) {
      if (!figure.isConnected) {
        sizes.disconnect();
        plot.destroy();
        plots.delete(figure);
      }
    }
    content.querySelectorAll(".chart").forEach(drawChart);
    content.querySelectorAll(".spark").forEach((svg) => drawSpark(svg, now));
  }

  function drawAgain() {
    for (const { plot, sizes } of plots.values()) {
      sizes.disconnect();
      plot.destroy();
    }
    plots.clear();
    draw();
  }

  // -- refreshes ---------------------------------------------------------------

  function say(text) {
    if (announcement.textContent !== text) announcement.textContent = text;
  }

  function show() {
    const { verdict, kinds, at } = document.getElementById("now").dataset;
    // Numbers change all the time. Only what is wrong is announced.
    const news = kinds ? `${verdict}: ${kinds}` : verdict;
    if (said !== null && said !== news) say(news);
    said = news;
    document.title = document.title.replace(/^.*? · /, `${verdict} · `);
    refreshed.textContent = `${paused ? "Paused at" : "Updated"} ${clock(+at)} UTC`;
    draw();
  }

  function stop(text) {
    paused = true;
    pause.hidden = true;
    refreshed.textContent = text;
    say(text);
  }

  async function refresh() {
    timer = null;
    if (asking) return;
    asking = true;
    try {
      const answer = await fetch(content.dataset.source, {
        cache: "no-store",
        redirect: "manual",
        signal: AbortSignal.timeout(1000 * PATIENCE),
      });
      const text = await answer.text();
      const fresh = new DOMParser().parseFromString(text, "text/html");
      const isOther = answer.ok && !fresh.getElementById("now"); // a page to log in
      const { type, status } = answer;
      if (isOther || type === "opaqueredirect" || [401, 403].includes(status)) {
        stop("You may no longer see this page. Reload it to log in.");
        return;
      }
      if (!answer.ok) throw new Error(String(status));
      if (paused) return;
      updateChildren(content, fresh.body);
      failures = 0;
      show();
    } catch {
      failures += 1;
      refreshed.textContent = "The server does not answer. Trying again.";
      if (failures === 3) say(refreshed.textContent);
    } finally {
      asking = false;
      schedule();
    }
  }

  function schedule() {
    clearTimeout(timer);
    timer = null;
    if (paused || document.hidden) return;
    timer = setTimeout(refresh, 1000 * Math.min(30, EVERY * 2 ** failures));
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    if (paused) {
      schedule();
      show();
    } else {
      refresh();
    }
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || paused) schedule();
    else refresh();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAgain);
  content.addEventListener("toggle", draw, true);

  pause.hidden = false;
  show();
  schedule();
})();
