"""How every page looks: one style sheet, for light and dark screens, phones and desks."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1d1f; --paper: #fff; --soft: #f4f4f1; --line: #dcdcd6;
  --muted: #5d6066; --accent: #0a6ab4; --s0: #0a6ab4; --s1: #c8500a; --s2: #0a8a66; --s3: #b0508c;
  --s4: #8a7000; --s5: #5a58c8; --heat: 55%; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e7e3; --paper: #16181b; --soft: #202327;
  --line: #3a3e44; --muted: #a2a6ad; --accent: #62b0f0; --s0: #62b0f0; --s1: #f39154; --s2: #3fc79c;
  --s3: #e58fc4; --s4: #d9bd45; --s5: #a5a3ff; --heat: 36%; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto;
  padding: 1.5rem clamp(1rem, 4vw, 2rem) 4rem; color: var(--ink); background: var(--paper);
  overflow-wrap: anywhere; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p, ul { max-width: 46rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem; margin: 0 0 1.2rem; }
.wide { overflow-x: auto; max-width: 100%; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .94rem;
  overflow-wrap: normal; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12rem; }
td.text:first-child { white-space: nowrap; min-width: 0; }
figure { margin: 1rem 0; min-width: 0; }
figure h3 { margin: 0 0 .1rem; }
figcaption { color: var(--muted); font-size: .88rem; }
img { max-width: 100%; height: auto; background: #fff; }
svg.chart { display: block; width: 100%; height: auto; max-width: 40rem; }
.chart text { fill: var(--muted); font: 12px system-ui, sans-serif; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .boundary { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 4 3; }
.chart .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem;
  color: var(--muted); }
.key { display: inline-block; width: .85em; height: .85em; border-radius: .2em;
  vertical-align: -.06em; margin-right: .35em; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: .4rem 2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .6rem;
  margin: 1rem 0; padding: 0; }
.tiles div { background: var(--soft); border-radius: .5rem; padding: .55rem .8rem; }
.tiles dt { color: var(--muted); font-size: .84rem; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.note { border-left: .25rem solid var(--s1); background: var(--soft); padding: .5rem .9rem;
  border-radius: 0 .4rem .4rem 0; }
pre { background: var(--soft); padding: .7rem .9rem; margin: .3rem 0 1rem; border-radius: .4rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .92rem; }
.label { margin: .8rem 0 0; color: var(--muted); font-size: .9rem; }
mark { background: none; color: var(--accent); font-weight: 600; }
.strip { font-size: 1.2rem; line-height: 1.9; white-space: pre-wrap; max-width: none; }
.strip span { padding: .12em 0; border-radius: .15em; }
.glyphs { display: flex; flex-wrap: wrap; align-items: flex-end; gap: .7rem; margin: 0 0 1.2rem;
  padding: 0; list-style: none; max-width: none; }
.glyphs li { text-align: center; font-size: .78rem; color: var(--muted); line-height: 1.3;
  max-width: 6rem; }
.glyphs svg { display: block; width: 3.4rem; height: 3.4rem; margin: 0 auto .2rem;
  background: var(--soft); border-radius: .3rem; color: var(--ink); }
.glyphs li:first-child svg { width: 5.2rem; height: 5.2rem; outline: 2px solid var(--accent); }
.glyphs b { color: var(--ink); font-weight: 600; }
"""
