// Fills the page from its data; differing.js stands before it.
(() => {
  const STEP = 40, FIRST = 2;
  // Pairs are made for so long at a time, at least one: a pair of 2,000 tokens takes longer.
  const AT_ONCE_MS = 25;
  // From so many nats on a token is of strength 1, 2, 3, 4.
  const STRENGTHS = [0.05, 0.25, 0.75, 1.5];
  const data = JSON.parse(document.getElementById("data").textContent);
  const pairs = data.pairs;
  const $ = (id) => document.getElementById(id);
  const gallery = $("gallery"), search = $("search"), sort = $("sort"), status = $("status");
  const texts = pairs.map((pair) => [pair.idx, ...pair.before.map(([, text]) => text), pair.question, pair.chosen, pair.rejected].join("\n").toLowerCase());
  // The pairs that match, in order; those from `start` up to `end` are on the page.
  let order = [], start = 0, end = 0, open = null, growing = 0;

  function make(tag, kind, text) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const withSign = (value, text) => (value < 0 && Number(text) ? "-" : "+") + text;

  // Of a token's d_t, which is in nats, what is below the last digit is nothing.
  const rounded = (value, digits) => withSign(value, Math.abs(value).toFixed(digits));

  // A reward or a margin may be of any size: a small one would read as 0, a huge one as a line of digits. See
  // charts.signed.
  function signed(value, digits) {
    const size = Math.abs(value);
    if (size && size < 10 ** (1 - digits)) return withSign(value, size.toPrecision(2));
    return withSign(value, size >= 1e9 ? size.toPrecision(4) : size.toFixed(digits));
  }

  const plural = (count, noun) => `${count.toLocaleString("en-US")} ${noun}${count === 1 ? "" : "s"}`;

  // ---- one answer

  function answer(pair, side, spans) {
    const text = pair[["chosen", "rejected"][side]], heat = pair.heat[side];
    const into = make("p", ["chosen", "rejected"][side]);
    into.dir = "auto";
    let at = 0, next = 0;
    // The part of the text from one place to another, with what differs marked.
    const fill = (element, from, to) => {
      let done = from;
      while (next < spans.length && spans[next][0] < to) {
        const low = Math.max(done, spans[next][0]), high = Math.min(to, spans[next][1]);
        if (low > done) element.append(text.slice(done, low));
        if (high > low) element.append(make("mark", "differs", text.slice(low, high)));
        done = Math.max(done, high);
        if (spans[next][1] > to) break;
        next++;
      }
      element.append(text.slice(done, to));
    };
    if (!heat) {
      spans = joined(text, spans);
      fill(into, 0, text.length);
      return into;
    }
    const last = heat.sizes.length - 1;
    heat.sizes.forEach((size, place) => {
      const value = heat.values[place], token = make("span");
      const several = heat.several && heat.several[place];
      token.title = rounded(value, 3) + " nat" + (several ? ` (${several} tokens)` : "") + (size ? "" : place === last ? ", end of the answer" : ", no text");
      token.dataset.d = rounded(value, 2);
      const strength = STRENGTHS.filter((least) => Math.abs(value) >= least).length;
      token.className = "token" + (strength ? ` ${value > 0 ? "up" : "down"} m${strength}` : "") + (size ? "" : " empty");
      fill(token, at, at + size);
      token.tabIndex = place ? -1 : 0;
      into.append(token);
      at += size;
    });
    return into;
  }

  // ---- one pair

  function fact(into, name, value) {
    const one = make("span");
    one.append(`${name} `, make("b", "", value));
    into.append(one);
    return one;
  }

  function earlier(turns) {
    const found = make("details", "before");
    found.append(make("summary", "", turns.length === 1 ? "one turn before it" : `${turns.length} turns before it`));
    turns.forEach(([role, text]) => {
      const turn = make("p"), said = make("span", "", text);
      said.dir = "auto";
      turn.append(make("b", "", role), " ", said);
      found.append(turn);
    });
    return found;
  }

  function card(number) {
    const pair = pairs[number], article = make("article", "pair");
    article.dataset.number = number;
    article.tabIndex = 0;
    article.setAttribute("aria-label", `pair ${number}`);
    const picture = make("div", "picture"), body = make("div", "body"), facts = make("p", "facts");
    for (const image of pair.pictures) {
      const shown = make("img");
      shown.alt = "picture of the question";
      shown.decoding = "async";
      shown.src = "data:image/jpeg;base64," + data.images[image];
      picture.append(shown);
    }
    if (!pair.pictures.length) picture.append(make("p", "", pair.problem || "no picture"));
    if (pair.more_pictures) picture.append(make("p", "", `and ${pair.more_pictures} more`));
    const margin = pair.margin === null ? "none" : signed(pair.margin, 3);
    const shown = make("span", "margin");
    shown.append("margin ", make("b", "", margin));
    facts.append(make("span", "status", pair.status), shown);
    fact(facts, "words", `${pair.words[0]} and ${pair.words[1]}`);
    if (pair.disagreement !== null && pair.disagreement !== undefined) fact(facts, "disagreement", pair.disagreement.toFixed(2));
    fact(facts, "idx", String(pair.idx));
    fact(facts, "answers", `${pair.answers[0]} and ${pair.answers[1]}`);
    const link = make("a", "here", "link");
    link.href = `#pair=${number}`;
    facts.append(link);
    const sides = make("div", "sides"), spans = differing(pair.chosen, pair.rejected);
    ["chosen", "rejected"].forEach((name, side) => {
      const one = make("div", `side is-${name}`), head = make("h4", "", name);
      const rewards = Object.entries(pair.rewards).filter(([, both]) => both[side] !== null)
        .map(([reward, both]) => `${signed(both[side], reward === "implicit.avg" ? 4 : 3)} ${reward}`);
      head.append(" ", make("span", "", [...rewards, plural(pair.words[side], "word")].join(" · ")));
      one.append(head, answer(pair, side, spans[side]));
      if (pair.no_heat[side]) one.append(make("p", "why", `No heat: ${pair.no_heat[side]}.`));
      sides.append(one);
    });
    const question = make("p", "question", pair.question);
    question.dir = "auto";
    if (pair.before.length) body.append(earlier(pair.before));
    body.append(question, facts, sides);
    article.append(picture, body);
    if (number === open) article.classList.add("open");
    return article;
  }

  // ---- which pairs, in which order

  const missing = (value) => value === null || value === undefined;
  function by(key, sign) {
    return (one, other) => {
      const a = key(pairs[one]), b = key(pairs[other]);
      if (missing(a) || missing(b)) return missing(a) - missing(b) || one - other;
      return sign * (a - b) || one - other;
    };
  }
  const SORTS = {
    "margin": by((pair) => pair.margin, -1),
    "margin-up": by((pair) => pair.margin, 1),
    "length": by((pair) => Math.abs(pair.words[0] - pair.words[1]), -1),
    "disagreement": by((pair) => pair.disagreement, -1),
  };

  function choose() {
    const wanted = search.value.trim().toLowerCase(), only = status.value;
    order = [];
    for (let number = 0; number < pairs.length; number++) {
      if ((only === "all" || pairs[number].status === only) && (!wanted || texts[number].includes(wanted))) order.push(number);
    }
    order.sort(SORTS[sort.value]);
  }

  function tell() {
    $("shown").textContent = `${order.length.toLocaleString("en-US")} of ${plural(pairs.length, "pair")}`;
    const before = $("earlier");
    before.hidden = start === 0;
    before.textContent = `Show ${plural(Math.min(STEP, start), "pair")} before`;
  }

  function append(to, until = Infinity) {
    const stop = Math.min(order.length, to), part = document.createDocumentFragment();
    while (end < stop) {
      part.append(card(order[end++]));
      if (performance.now() > until) break;
    }
    gallery.append(part);
    tell();
  }

  // Some at a time, so that keys and scrolling are answered meanwhile.
  function grow(to) {
    const mine = ++growing;
    const some = () => {
      if (mine !== growing || end >= Math.min(to, order.length)) return;
      append(to, performance.now() + AT_ONCE_MS);
      setTimeout(some, 10);
    };
    setTimeout(some, 10);
  }

  function show(from) {
    start = end = from;
    gallery.replaceChildren();
    tellToken(null);
    append(start + FIRST);
    grow(start + STEP);
  }

  function renew() {
    choose();
    show(0);
  }

  $("earlier").addEventListener("click", () => {
    const from = Math.max(0, start - STEP), part = document.createDocumentFragment();
    for (let at = from; at < start; at++) part.append(card(order[at]));
    start = from;
    gallery.prepend(part);
    tell();
  });

  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && end < order.length && end > start) grow(end + STEP);
  }, { rootMargin: "800px" }).observe($("more"));

  // ---- opening a pair

  function mark(number) {
    open = number;
    for (const one of gallery.querySelectorAll("article.open")) one.classList.remove("open");
    const article = gallery.querySelector(`article[data-number="${number}"]`);
    if (article) article.classList.add("open");
    if (location.hash !== `#pair=${number}`) history.replaceState(null, "", `#pair=${number}`);
  }

  function go(number) {
    let at = order.indexOf(number);
    if (at < 0) {
      search.value = "";
      status.value = "all";
      choose();
      at = order.indexOf(number);
      start = end = 0;
    }
    if (at < start || at >= end) show(at);
    const article = gallery.querySelector(`article[data-number="${number}"]`);
    mark(number);
    article.focus({ preventScroll: true });
    article.scrollIntoView({ block: "start" });
  }

  function fromHash() {
    const match = /^#pair=(\d+)$/.exec(location.hash);
    if (match && Number(match[1]) < pairs.length) go(Number(match[1]));
  }

  function step(by) {
    const at = open === null ? -1 : order.indexOf(open), first = order.length ? order[start] : null;
    if (first === null) return;
    if (at < 0) { go(first); return; }
    const next = at + by;
    if (next < 0 || next >= order.length) return;
    if (next >= end) {
      append(next + 1);
      grow(end + STEP);
    }
    go(order[next]);
  }

  gallery.addEventListener("focusin", (event) => {
    const article = event.target.closest("article.pair");
    if (article) mark(Number(article.dataset.number));
    tellToken(event.target.closest(".token"));
  });

  gallery.addEventListener("focusout", () => tellToken(null));

  gallery.addEventListener("click", (event) => {
    const article = event.target.closest("article.pair"), token = event.target.closest(".token");
    if (article) mark(Number(article.dataset.number));
    // A finger has no pointer that could rest on a token.
    if (token) token.focus({ preventScroll: true });
  });

  // ---- the value of a token

  // In a line at the foot of the window, where nothing cuts it off; Tab comes back to the token that had the focus last.
  function tellToken(token) {
    const line = $("token");
    line.hidden = !token;
    if (!token) return;
    for (const one of token.parentElement.querySelectorAll('.token[tabindex="0"]')) one.tabIndex = -1;
    token.tabIndex = 0;
    const text = token.textContent.replaceAll("\n", "⏎");
    line.replaceChildren(...(text ? ["“", make("bdi", "", text), "” "] : []), token.title);
  }

  function alongTokens(event) {
    const forth = getComputedStyle(event.target).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = event.key === forth ? event.target.nextElementSibling : event.target.previousElementSibling;
    if (!other) return;
    event.preventDefault();
    other.focus();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (search.value || status.value !== "all") {
        search.value = "";
        status.value = "all";
        renew();
      }
      if (event.target === search) search.blur();
      return;
    }
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.target.classList && event.target.classList.contains("token")) alongTokens(event);
    const card = event.target.classList && event.target.classList.contains("pair");
    if (event.key === "/") { event.preventDefault(); search.focus(); search.select(); }
    else if (event.key === "j" || (card && event.key === "ArrowDown")) { event.preventDefault(); step(1); }
    else if (event.key === "k" || (card && event.key === "ArrowUp")) { event.preventDefault(); step(-1); }
  });

  search.addEventListener("input", renew);
  sort.addEventListener("change", renew);
  status.addEventListener("change", renew);
  const toggles = () => {
    document.body.classList.toggle("heat", $("heat").checked);
    document.body.classList.toggle("values", $("values").checked);
  };
  $("heat").addEventListener("change", toggles);
  $("values").addEventListener("change", toggles);
  addEventListener("hashchange", fromHash);
  toggles();
  renew();
  fromHash();
})();
