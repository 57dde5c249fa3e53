"""Style and script of the report page; both are written into it, so that it needs nothing from anywhere."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #fbfbfa; --card: #ffffff; --ink: #1b2126; --soft: #5c6770; --line: #e2e5e8; --accent: #0f6fb0;
  --good-ink: #0b6b46; --good: #dff3e8; --warn-ink: #8a5200; --warn: #fdeecf; --bad-ink: #a3261a; --bad: #fbe3df;
  --plain: #eceff1; --heat: 15, 130, 196;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14181b; --card: #1c2125; --ink: #e6eaed; --soft: #9aa6af; --line: #30373d; --accent: #63b7ef;
    --good-ink: #7fdcae; --good: #173a2a; --warn-ink: #f2c26b; --warn: #41310f; --bad-ink: #f59a8e; --bad: #47201b;
    --plain: #2a3137; --heat: 53, 165, 235;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4rem; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, footer { max-width: 1240px; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; letter-spacing: -0.01em; margin: 0 0 .35rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
h4 { font-size: .93rem; font-weight: 600; margin: .9rem 0 .1rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 76ch; }
.lead, figcaption, .meta, .note { color: var(--soft); font-size: .93rem; }
.absent { color: var(--soft); font-style: italic; border-left: 3px solid var(--line); padding-left: .8rem; }
a { color: var(--accent); }
nav {
  position: sticky; top: 0; z-index: 5; background: var(--ground); border-bottom: 1px solid var(--line);
  margin-top: 1.4rem;
}
nav div {
  max-width: 1240px; margin: 0 auto; padding: .55rem 1.25rem; display: flex; gap: 1.15rem;
  overflow-x: auto; white-space: nowrap; font-size: .9rem; scrollbar-width: none;
}
nav a { text-decoration: none; color: var(--soft); }
nav a:hover { color: var(--accent); }
section { padding: 2.1rem 0 .6rem; border-bottom: 1px solid var(--line); }
section:last-child { border-bottom: 0; }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: .7rem 0 0; font-size: .93rem; color: var(--soft); }
.facts b { color: var(--ink); font-weight: 600; }
p.lead, p.note { max-width: 94ch; }
.notes { background: var(--plain); border-radius: 10px; padding: .7rem 1rem .7rem 2rem; font-size: .93rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(232px, 1fr)); gap: .9rem; margin: 1rem 0; }
.card {
  background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--tint); border-radius: 10px;
  padding: .8rem 1rem .9rem; display: flex; flex-direction: column; gap: .1rem;
}
.card h3 {
  margin: 0; overflow-wrap: anywhere; font-size: .98rem;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
.card .big { font-size: 2.05rem; line-height: 1.15; font-weight: 650; letter-spacing: -0.02em; }
.card .big small { font-size: .85rem; font-weight: 500; color: var(--soft); letter-spacing: 0; }
.card dl {
  display: grid; grid-template-columns: auto 1fr; gap: .12rem .8rem; margin: .45rem 0 .5rem; font-size: .9rem;
}
.card dt { color: var(--soft); } .card dd { margin: 0; text-align: right; white-space: nowrap; }
.card .foot { margin-top: auto; display: flex; flex-wrap: wrap; gap: .3rem; }
.badge {
  display: inline-block; border-radius: 99px; padding: .06rem .6rem; font-size: .8rem; font-weight: 550;
  background: var(--plain); color: var(--soft); white-space: nowrap;
}
.badge + .badge { margin-left: .3rem; } .foot .badge + .badge { margin-left: 0; }
.badge.good { background: var(--good); color: var(--good-ink); }
.badge.warn { background: var(--warn); color: var(--warn-ink); }
.badge.bad { background: var(--bad); color: var(--bad-ink); }
.scroll {
  overflow-x: auto; margin: .7rem 0; border: 1px solid var(--line); border-radius: 10px; background: var(--card);
}
.scroll.tall { max-height: 30rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .89rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .8rem; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
th { font-weight: 600; color: var(--soft); font-size: .82rem; white-space: nowrap; background: var(--card); }
.tall th { position: sticky; top: 0; z-index: 1; box-shadow: inset 0 -1px var(--line); border-bottom: 0; }
td.r, th.r { text-align: right; white-space: nowrap; } td.l, th.l { text-align: left; white-space: nowrap; }
td .heat { display: inline-block; min-width: 3.4em; padding: .05rem .4rem; border-radius: 5px; }
td .wide { display: inline-block; min-width: 15em; max-width: 60em; white-space: normal; overflow-wrap: anywhere; }
tbody tr:hover td { background: color-mix(in srgb, var(--accent) 6%, transparent); }
.whole { white-space: nowrap; } td wbr { display: none; }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .5em; }
.bar {
  display: inline-block; width: 100%; min-width: 8rem; height: .62rem; background: var(--plain); border-radius: 99px;
}
.bar i { display: block; height: 100%; border-radius: 99px; min-width: 2px; }
figure { margin: .8rem 0 1.2rem; } figcaption { margin-top: .1rem; max-width: 86ch; }
.plot { width: 100%; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 0 1.4rem; }
.pictures { display: grid; gap: .9rem; }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(118px, 1fr); gap: .5rem; overflow-x: auto; }
.row figure { margin: 0; } .row figcaption { font-size: .8rem; margin-top: .15rem; }
.row img { width: 100%; display: block; border-radius: 6px; background: var(--plain); }
.row .gone {
  aspect-ratio: 1; display: grid; place-items: center; border: 1px dashed var(--line); border-radius: 6px;
  color: var(--soft); font-size: .8rem;
}
pre {
  background: var(--plain); border-radius: 8px; padding: .7rem 1rem; overflow-x: auto; font-size: .86rem;
  margin: .6rem 0;
}
code, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.mono { font-size: .82rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); font-size: .93rem; }
ul { margin: .5rem 0; padding-left: 1.3rem; } li { margin: .15rem 0; }
.warnings { font-size: .9rem; } .warnings li::marker { color: var(--warn-ink); }
footer { padding: 1.5rem 1.25rem 3rem; color: var(--soft); font-size: .88rem; }
@media (max-width: 560px) {
  body { font-size: 15px; } .cards { grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: .6rem; }
  .card { padding: .65rem .75rem; } .card .big { font-size: 1.6rem; } .card dl { font-size: .84rem; gap: .1rem .4rem; }
  th, td { padding: .4rem .6rem; } header { padding-top: 1.4rem; }
  .scroll td:first-child, .scroll th:first-child {
    position: sticky; left: 0; z-index: 1; background: var(--card); white-space: normal;
    max-width: 11rem; overflow-wrap: break-word; box-shadow: inset -1px 0 var(--line);
  }
  .scroll td:first-child:has(.dot) { min-width: 8.8rem; } .scroll td:first-child wbr { display: inline; }
  .tall th:first-child { z-index: 2; }
}
@media print { nav { display: none; } section { break-inside: avoid-page; } .scroll.tall { max-height: none; } }
"""

SCRIPT = """
"use strict";
(function () {
  var specs = Array.prototype.map.call(document.querySelectorAll("script.spec"), function (node) {
    return { div: document.getElementById(node.dataset.for), spec: JSON.parse(node.textContent) };
  });
  function themed(layout) {
    var style = getComputedStyle(document.documentElement);
    function color(name) { return style.getPropertyValue(name).trim(); }
    var narrow = window.innerWidth < 560;
    var axis = {
      gridcolor: color("--line"), linecolor: color("--line"), zerolinecolor: color("--line"),
      automargin: true, fixedrange: narrow, tickfont: { size: 12 }, tickangle: 0
    };
    var title = { font: { size: 13, color: color("--soft") }, standoff: 12 };
    var full = JSON.parse(JSON.stringify(layout));
    ["xaxis", "yaxis"].forEach(function (name) {
      var own = full[name] || {};
      full[name] = Object.assign({}, axis, own, { title: Object.assign({}, title, own.title) });
    });
    return Object.assign({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--ink") },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") } },
      legend: {
        orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", traceorder: "normal",
        itemsizing: "constant"
      },
      margin: { l: 56, r: 24, t: 28, b: 48 }, hovermode: "closest"
    }, full);
  }
  function height(spec) {
    var marks = spec.data.filter(function (trace) { return trace.name && trace.showlegend !== false; }).length;
    return spec.height + (window.innerWidth < 560 && marks > 2 ? 19 * marks : 0);
  }
  function draw() {
    specs.forEach(function (item) {
      item.div.style.height = height(item.spec) + "px";
      try {
        Plotly.react(item.div, item.spec.data, themed(item.spec.layout), { displayModeBar: false, responsive: true });
      } catch (error) {
        item.div.textContent = "This plot could not be drawn: " + error;
      }
    });
  }
  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
"""
