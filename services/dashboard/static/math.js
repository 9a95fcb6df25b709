// TeX of model answers to MathML, which browsers draw themselves, and Markdown's headings and bold text. What it does not
// know stays as it was written.

const MATH = "http://www.w3.org/1998/Math/MathML";
const DELIMITED = /\\\$|\$\$((?:\\\$|[^$])+)\$\$|\$((?:\\\$|[^$\n])+)\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|(\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})/g;
const STRONG = /\*\*([^*\n]+)\*\*|^#{1,6} (.+)$/gm;
const MAX_TEX = 4000;

const LETTERS = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ϵ", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ", iota: "ι", kappa: "κ",
  lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", upsilon: "υ", phi: "ϕ", varphi: "φ", chi: "χ", psi: "ψ",
  omega: "ω", Gamma: "Γ", Delta: "Δ", Theta: "Θ", Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ", Phi: "Φ", Psi: "Ψ", Omega: "Ω",
  infty: "∞", ell: "ℓ", emptyset: "∅", hbar: "ℏ", partial: "∂", nabla: "∇", degree: "°",
};
const SIGNS = {
  cdot: "⋅", times: "×", div: "÷", pm: "±", mp: "∓", le: "≤", leq: "≤", ge: "≥", geq: "≥", ne: "≠", neq: "≠", approx: "≈", equiv: "≡",
  sim: "∼", cong: "≅", propto: "∝", to: "→", rightarrow: "→", Rightarrow: "⇒", implies: "⟹", iff: "⟺", leftarrow: "←", mapsto: "↦",
  in: "∈", notin: "∉", subset: "⊂", subseteq: "⊆", cup: "∪", cap: "∩", setminus: "∖", forall: "∀", exists: "∃", land: "∧", lor: "∨", neg: "¬",
  ldots: "…", dots: "…", cdots: "⋯", vdots: "⋮", mid: "∣", parallel: "∥", perp: "⊥", angle: "∠", triangle: "△", circ: "∘", star: "⋆",
  sum: "∑", prod: "∏", int: "∫", oint: "∮", lfloor: "⌊", rfloor: "⌋", lceil: "⌈", rceil: "⌉", langle: "⟨", rangle: "⟩", "{": "{", "}": "}",
  "%": "%", "#": "#", "&": "&", _: "_", $: "$", "|": "∥", prime: "′", therefore: "∴", because: "∵",
};
const NAMES = new Set(["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln", "exp", "lim", "max", "min", "gcd", "lcm", "det", "dim", "deg", "mod", "sup", "inf", "ker", "arg"]);
const SPACES = { ",": "0.17em", ":": "0.22em", ";": "0.28em", "!": "0", " ": "0.33em", quad: "1em", qquad: "2em" };
const SILENT = new Set(["left", "right", "displaystyle", "limits", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "bigg", "Bigg"]);
const TEXTS = new Set(["text", "mathrm", "textbf", "textit", "operatorname", "mbox", "mathbf", "mathbb", "mathcal", "mathit"]);
const ACCENTS = { overline: "¯", bar: "¯", hat: "^", vec: "→", dot: "˙", tilde: "~" };

const FENCES = { matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], Bmatrix: ["{", "}"], vmatrix: ["|", "|"], cases: ["{", ""], array: ["", ""], aligned: ["", ""], "align*": ["", ""], align: ["", ""] };

// Text to nodes: formulas drawn, the rest as text with what was searched for marked.
export function withMath(text, wanted = "") {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(DELIMITED)) {
    const tex = match[1] ?? match[2] ?? match[3] ?? match[4] ?? match[5];
    if (tex === undefined) { // an escaped dollar is money
      nodes.push(...marked(`${text.slice(at, match.index)}$`, wanted));
      at = match.index + match[0].length;
      continue;
    }
    const drawn = tex.length <= MAX_TEX ? formula(tex, match[1] !== undefined || match[3] !== undefined) : null;
    if (drawn === null) continue;
    nodes.push(...marked(text.slice(at, match.index), wanted), drawn);
    at = match.index + match[0].length;
  }
  return [...nodes, ...marked(text.slice(at), wanted)];
}

// Markdown's headings and bold text are bold; what was searched for is marked.
function marked(text, wanted) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(STRONG)) {
    const strong = document.createElement("strong");
    strong.append(...found(match[1] ?? match[2], wanted));
    nodes.push(...found(text.slice(at, match.index), wanted), strong);
    at = match.index + match[0].length;
  }
  return [...nodes, ...found(text.slice(at), wanted)];
}

function found(text, wanted) {
  if (!wanted) return text ? [text] : [];
  const nodes = [], small = text.toLowerCase(), part = wanted.toLowerCase();
  let at = 0;
  for (let hit = small.indexOf(part); hit >= 0; hit = small.indexOf(part, at)) {
    const mark = document.createElement("mark");
    mark.textContent = text.slice(hit, hit + part.length);
    nodes.push(text.slice(at, hit), mark);
    at = hit + part.length;
  }
  return [...nodes, text.slice(at)];
}

function formula(tex, display) {
  try {
    const parser = new Parser(tex);
    const row = parser.row();
    if (!parser.done()) return null;
    const drawn = node("math", { display: display ? "block" : "inline" }, node("semantics", {}, row, annotation(tex)));
    return drawn;
  } catch (error) {
    if (error instanceof Unknown) return null;
    throw error;
  }
}

class Unknown extends Error {}

class Parser {
  constructor(tex) { this.tokens = tex.match(/\\[a-zA-Z]+|\\.|[0-9]+(?:\.[0-9]+)?|\s+|./gs) ?? []; this.at = 0; this.depth = 0; }

  done() { return this.at >= this.tokens.length; }

  peek() { while (/^\s+$/.test(this.tokens[this.at] ?? "")) this.at += 1; return this.tokens[this.at]; }

  take() { const token = this.peek(); this.at += 1; return token; }

  row(end = null) {
    if ((this.depth += 1) > 40) throw new Unknown();
    const made = [];
    while (!this.done() && this.peek() !== undefined && this.peek() !== end) made.push(this.scripts(this.atom()));
    if (end !== null && this.take() !== end) throw new Unknown();
    this.depth -= 1;
    return made.length === 1 ? made[0] : node("mrow", {}, ...made);
  }

  scripts(base) {
    let below = null, above = null;
    for (let sign = this.peek(); sign === "_" || sign === "^" || sign === "'"; sign = this.peek()) {
      this.take();
      if (sign === "_") below = this.argument();
      else above = sign === "'" ? node("mo", {}, "′") : this.argument();
    }
    if (below && above) return node("msubsup", {}, base, below, above);
    if (below) return node("msub", {}, base, below);
    return above ? node("msup", {}, base, above) : base;
  }

  argument() {
    const token = this.peek();
    if (token === undefined || token === "}") throw new Unknown();
    return this.atom();
  }

  atom() {
    const token = this.take();
    if (token === undefined || token === "}" || token === "&") throw new Unknown();
    if (token === "{") return this.row("}");
    if (/^[0-9]/.test(token)) return node("mn", {}, token);
    if (/^\p{L}$/u.test(token)) return node("mi", {}, token);
    if (token.startsWith("\\")) return this.command(token.slice(1));
    return node("mo", {}, token === "-" ? "−" : token);
  }

  command(name) {
    if (name in LETTERS) return node("mi", {}, LETTERS[name]);
    if (name in SIGNS) return node("mo", {}, SIGNS[name]);
    if (name in SPACES) return node("mspace", { width: SPACES[name] });
    if (NAMES.has(name)) return node("mi", {}, name);
    if (SILENT.has(name)) { if (this.peek() === ".") this.take(); return node("mrow", {}); }
    if (TEXTS.has(name)) return node("mtext", {}, this.raw());
    if (name in ACCENTS) return node("mover", {}, this.argument(), node("mo", {}, ACCENTS[name]));
    if (["frac", "dfrac", "tfrac"].includes(name)) return node("mfrac", {}, this.argument(), this.argument());
    if (name === "binom") return node("mrow", {}, node("mo", {}, "("), node("mfrac", { linethickness: "0" }, this.argument(), this.argument()), node("mo", {}, ")"));
    if (name === "boxed" || name === "fbox") return node("mrow", { class: "boxed" }, this.argument());
    if (name === "sqrt") return this.root();
    if (name === "begin") return this.table();
    throw new Unknown();
  }

  root() {
    if (this.peek() !== "[") return node("msqrt", {}, this.argument());
    this.take();
    const degree = this.row("]");
    return node("mroot", {}, this.argument(), degree);
  }

  // \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}, and the other tables.
  table() {
    const kind = this.raw();
    const fences = FENCES[kind];
    if (!fences) throw new Unknown();
    if (kind === "array") this.raw(); // how columns are aligned
    const rows = [[]];
    let cell = [];
    const end = (row) => { row.push(node("mtd", {}, ...cell)); cell = []; };
    for (let token = this.peek(); token !== "\\end"; token = this.peek()) {
      if (token === undefined) throw new Unknown();
      if (token === "&") { this.take(); end(rows.at(-1)); }
      else if (token === "\\\\") { this.take(); end(rows.at(-1)); rows.push([]); }
      else cell.push(this.scripts(this.atom()));
    }
    this.take();
    if (this.raw() !== kind) throw new Unknown();
    if (cell.length || rows.at(-1).length) end(rows.at(-1));
    const drawn = node("mtable", {}, ...rows.filter((row) => row.length).map((row) => node("mtr", {}, ...row)));
    return node("mrow", {}, node("mo", {}, fences[0]), drawn, node("mo", {}, fences[1]));
  }

  raw() {
    if (this.take() !== "{") throw new Unknown();
    let text = "";
    while (this.tokens[this.at] !== "}") { if (this.done()) throw new Unknown(); text += this.tokens[this.at]; this.at += 1; }
    this.at += 1;
    return text;
  }
}

function node(tag, attributes, ...children) {
  const made = document.createElementNS(MATH, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function annotation(tex) { return node("annotation", { encoding: "application/x-tex" }, tex); }
