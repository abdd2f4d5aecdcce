"""The report's style sheet: system fonts, one column, light and dark as the reader's system asks."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --card: #f5f5f1; --ink: #1c2127; --muted: #5c6570; --hair: #dfe0db; --tint: #d9e6f0;
  --accent: #00629a; --right: #006b50; --right-tint: #cfeade; --wrong: #a33c00; --wrong-tint: #f8dccb;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16191d; --card: #1e2328; --ink: #e8eaec; --muted: #a4acb5; --hair: #333a42; --tint: #1f3f54;
    --accent: #6fc1f0; --right: #5fd6ae; --right-tint: #17463a; --wrong: #ffa877; --wrong-tint: #57301a;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 var(--sans);
  overflow-wrap: anywhere; }
body > * { max-width: 62rem; margin-inline: auto; padding-inline: clamp(1rem, 4vw, 2rem); }
header { padding-top: clamp(2rem, 6vw, 4rem); }
.over { margin: 0; color: var(--accent); font-size: .8125rem; font-weight: 600; letter-spacing: .04em; }
h1 { margin: .25rem 0 0; font-size: clamp(1.75rem, 5vw, 2.75rem); line-height: 1.12; letter-spacing: -.02em;
  font-weight: 700; }
.where { margin: .35rem 0 0; color: var(--muted); font-size: .9375rem; }
.lead { max-width: 44rem; margin: 1.25rem 0 0; font-size: clamp(1.0625rem, 2.2vw, 1.25rem);
  line-height: 1.5; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: 0 1.25rem;
  margin: 1.75rem 0 0; border-top: 2px solid var(--ink); }
.tiles div { padding: .7rem 0 .5rem; }
.tiles dt { color: var(--muted); font-size: .8125rem; }
.tiles dd { margin: 0; font-size: 1.625rem; font-weight: 650; line-height: 1.2; letter-spacing: -.015em;
  font-variant-numeric: tabular-nums; }
.tiles small { color: var(--muted); font-size: .875rem; font-weight: 400; letter-spacing: 0; }
.commands { margin-top: 1rem; }
pre { margin: 0 0 .4rem; padding: .55rem .8rem; overflow-x: auto; background: var(--card);
  border-radius: .4rem; font-size: .8125rem; line-height: 1.5; overflow-wrap: normal; }
code { font-family: var(--mono); font-size: .95em; }
pre code { font-size: inherit; }
.note { padding: .6rem .8rem; border-left: 3px solid var(--wrong); background: var(--card); }
nav { position: sticky; top: 0; z-index: 2; margin-top: 1.25rem; background: var(--paper);
  border-bottom: 1px solid var(--hair); }
nav ul { display: flex; gap: 1.35rem; margin: 0; padding: 0; list-style: none; overflow-x: auto;
  scrollbar-width: none; }
nav ul::-webkit-scrollbar { display: none; }
nav a { display: block; padding: .7rem 0; color: var(--muted); font-size: .875rem; text-decoration: none;
  white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
section { padding-block: 2.25rem 1rem; }
section + section { border-top: 1px solid var(--hair); }
h2 { margin: 0 0 .75rem; font-size: 1.5rem; line-height: 1.2; letter-spacing: -.015em; }
h3 { margin: 2rem 0 .75rem; font-size: 1.0625rem; line-height: 1.3; }
h4 { margin: 0; font-size: .875rem; line-height: 1.3; font-weight: 600; }
p { margin: .5rem 0; }
.intro { max-width: 44rem; margin: 0 0 1.25rem; }
.quiet { color: var(--muted); font-size: .875rem; }
.unseen { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
figure { margin: 0; }
.drawing { margin: 1rem 0 1.5rem; }
.drawing img { display: block; width: 100%; height: auto; }
.drawing figcaption { max-width: 46rem; margin-top: .5rem; color: var(--muted); font-size: .875rem;
  line-height: 1.45; }
.scroll { margin: 1rem 0; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
.caption { margin: 1.25rem 0 0; color: var(--muted); font-size: .875rem; }
.caption + .scroll { margin-top: .25rem; }
th, td { padding: .38rem .75rem .38rem 0; border-bottom: 1px solid var(--hair); text-align: left;
  vertical-align: baseline; overflow-wrap: normal; }
th + th, td, tbody th + td { padding-left: .5rem; }
thead th { color: var(--muted); font-size: .8125rem; font-weight: 500; white-space: nowrap;
  border-bottom-color: var(--muted); }
tbody th { font-weight: 500; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
.best { font-weight: 700; }
.final > * { background: var(--card); }
.final th { font-weight: 700; }
td small { color: var(--muted); font-size: .8125rem; }
td.right { color: var(--right); font-weight: 600; }
.settings { min-width: 22rem; }
.setting { display: inline-block; margin-right: .9rem; vertical-align: top; }
.setting i { color: var(--muted); font-style: normal; }
.grid { display: grid; gap: 1rem; margin: 0; padding: 0; list-style: none; }
.pairs { grid-template-columns: repeat(auto-fill, minmax(min(18.5rem, 100%), 1fr)); }
.answers { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.card { position: relative; padding: .85rem; background: var(--card); border-radius: .6rem; }
.confusion { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.side { display: flex; flex-direction: column; min-width: 0; }
.side h4 { min-height: 1.3em; }
.side .pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; margin-top: auto;
  padding-top: .4rem; }
.side .quiet { margin: .3rem 0 0; font-size: .8125rem; }
.mini figcaption { color: var(--muted); font-size: .75rem; line-height: 1.5; }
.mini .thumb { width: 100%; }
.misread figcaption { color: var(--wrong); font-weight: 600; }
.misread .thumb { box-shadow: 0 0 0 2px var(--wrong); }
.thumb { display: block; width: 7.5rem; height: auto; aspect-ratio: 1; object-fit: cover;
  border-radius: .3rem; background: var(--hair); }
.thumb.small { width: 3.25rem; flex: none; }
.gone { display: grid; place-items: center; color: var(--muted); font-size: .75rem; line-height: 1.2;
  text-align: center; border: 1px dashed var(--muted); background: none; }
.answer { display: grid; grid-template-columns: auto 1fr; gap: .85rem; }
.said { min-width: 0; }
.answer h4 { margin-bottom: .3rem; color: var(--muted); font-size: .8125rem; font-weight: 500; }
.guesses { margin: 0; padding: 0; list-style: none; font-size: .875rem; line-height: 1.3; }
.guesses li { display: flex; justify-content: space-between; gap: .6rem; margin-bottom: 2px;
  padding: .16rem .4rem; border-radius: .2rem;
  background: linear-gradient(90deg, var(--bar, var(--tint)) var(--p), transparent var(--p)); }
.guesses .name b { color: var(--right); font-weight: 600; white-space: nowrap; }
.guesses .share { font-variant-numeric: tabular-nums; white-space: nowrap; }
.guesses .right { --bar: var(--right-tint); }
.guesses .wrong { --bar: var(--wrong-tint); }
.beyond { margin: .3rem 0 0; padding-left: .4rem; color: var(--right); font-size: .8125rem;
  font-weight: 600; }
.was { margin: .4rem 0 0; padding-left: .4rem; color: var(--muted); font-size: .8125rem; }
.nearest { grid-column: 1 / -1; display: grid; grid-template-columns: 1fr 1fr; gap: .5rem 1rem; }
.nearest figure { display: flex; gap: .5rem; align-items: center; }
.nearest figcaption { color: var(--muted); font-size: .75rem; line-height: 1.35; }
.stages { max-width: 32rem; }
details { margin: 1rem 0; border-top: 1px solid var(--hair); }
details + details { margin-top: -1rem; }
summary { padding: .6rem 0; color: var(--accent); font-weight: 600; font-size: .9375rem; cursor: pointer; }
details .scroll { max-height: 32rem; overflow: auto; }
details .caption { margin-top: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr));
  gap: .75rem 2rem; margin: 0; }
.facts dt { color: var(--muted); font-size: .8125rem; }
.facts dd { margin: 0; }
.meter { height: .6rem; overflow: hidden; border-radius: .3rem; background: var(--hair); }
.meter span { display: block; height: 100%; background: var(--accent); }
footer { padding-block: 1rem 3rem; color: var(--muted); font-size: .875rem; }
@media (max-width: 640px) {
  .answer { grid-template-columns: 5.5rem 1fr; }
  .answer .thumb { width: 5.5rem; }
  .answer .thumb.small { width: 2.75rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles dd { font-size: 1.5rem; }
  .confusion { gap: .75rem; }
  .settings { min-width: 48rem; }
}
@media print { nav { position: static; } .card { break-inside: avoid; } }
"""
