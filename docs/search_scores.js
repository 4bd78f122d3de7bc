// Search finds pages that help before those that tell how things are made.
const PAGES = {
  troubleshooting: 15, howto: 10, faq: 10,
  design: -15, changes: -15, benchmarks: -15, robustness: -10, "contextual-sessions": -5,
};
// Not 'const', as Sphinx declares it again with 'var'.
var Scorer = {
  score: ([page, , , , score]) => score + (PAGES[page] ?? 0),
  // The values below are Sphinx's own.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
