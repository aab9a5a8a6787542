"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const search = byId("q"), chapter = byId("chapter"), call = byId("call"), differ = byId("differ");
  const count = byId("count"), theme = byId("theme"), keys = byId("keys");
  const verdicts = all("#bar button[data-v]");
  const blocks = all("tbody.b"), subjects = all(".subject"), chapters = all("h3.chapter");
  let words = null;

  // What stands in a behaviour's rows, without its pictures; made when it is first asked for.
  const wordsOf = (n) => {
    words ??= blocks.map((block) => {
      const file = block.parentNode.previousElementSibling.textContent;
      const cells = all("th, .note", block).map((cell) => cell.textContent);
      return [block.id, file, ...cells].join(" ").toLowerCase();
    });
    return words[n];
  };
  const hasCall = (text, name) =>
    new RegExp(`(^|[^a-z0-9])${name}([^a-z0-9]|$)`).test(text);

  const apply = (keep = true) => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const letters = verdicts.filter((b) => b.ariaPressed === "true").map((b) => b.dataset.v);
    const shown = new Set();
    let number = 0;
    blocks.forEach((block, n) => {
      const subject = block.parentNode.parentNode;
      const fits = (!letters.length || letters.some((v) => block.dataset.v.includes(v)))
        && (!chapter.value || subject.dataset.chapter === chapter.value)
        && (!differ?.checked || "d" in block.dataset)
        && (!call.value || hasCall(wordsOf(n), call.value))
        && wanted.every((word) => wordsOf(n).includes(word));
      block.hidden = !fits;
      number += fits;
      if (fits) shown.add(subject).add(subject.dataset.chapter);
    });
    for (const subject of subjects) subject.hidden = !shown.has(subject);
    for (const heading of chapters) heading.hidden = !shown.has(heading.id);
    count.textContent = `${number} of ${blocks.length} behaviours`;
    if (keep) {
      const state = new URLSearchParams();
      if (search.value) state.set("q", search.value);
      if (letters.length) state.set("verdict", letters.join(""));
      if (chapter.value) state.set("chapter", chapter.value);
      if (call.value) state.set("call", call.value);
      if (differ?.checked) state.set("differ", "1");
      const text = state.toString();
      history.replaceState(null, "", text ? `#?${text}` : location.pathname + location.search);
    }
  };
  const restore = (state) => {
    search.value = state.get("q") ?? "";
    for (const b of verdicts)
      b.ariaPressed = String((state.get("verdict") ?? "").includes(b.dataset.v));
    chapter.value = state.get("chapter") ?? "";
    call.value = state.get("call") ?? "";
    if (differ) differ.checked = state.has("differ");
    apply(false);
  };

  // A link that was sent: a filter behind "#?", else a behaviour or one of its variants.
  const follow = () => {
    const name = location.hash.slice(1);
    if (name.startsWith("?")) return restore(new URLSearchParams(name.slice(1)));
    if (!name) return;
    const target = byId(decodeURIComponent(name));
    if (!target) {
      count.textContent = `no behaviour ${name} in this page`;
      return;
    }
    if (target.closest("[hidden]")) restore(new URLSearchParams());
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.closest("tbody.b")?.querySelector("a.s").focus({ preventScroll: true });
    target.scrollIntoView();
  };

  const draw = (picture) => {
    const text = picture.querySelector("noscript");
    if (text) picture.innerHTML = text.textContent;
  };
  const pictures = all(".pic");
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting) { draw(target); seen.unobserve(target); }
  }, { rootMargin: "800px" });
  for (const picture of pictures) seen.observe(picture);
  addEventListener("beforeprint", () => pictures.forEach(draw));

  const themes = { system: "dark", dark: "light", light: "system" };
  const paint = (name) => {
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
    theme.textContent = `Theme: ${name}`;
    try { localStorage.setItem("memlock-theme", name); } catch { /* not kept, then */ }
  };
  const turn = () => paint(themes[root.dataset.theme ?? "system"]);
  theme.textContent = `Theme: ${root.dataset.theme ?? "system"}`;
  theme.addEventListener("click", turn);

  const step = (by) => {
    const visible = blocks.filter((block) => !block.hidden);
    const here = document.activeElement?.closest("tbody.b") ?? byId(location.hash.slice(1))?.closest("tbody.b");
    const at = visible.indexOf(here);
    const next = visible[at < 0 ? 0 : Math.min(Math.max(at + by, 0), visible.length - 1)];
    if (!next) return;
    const link = next.querySelector("a.s");
    link.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
    if (next.getBoundingClientRect().top < bar.getBoundingClientRect().bottom)
      next.scrollIntoView();
  };
  const doing = {
    "/": () => { search.focus(); search.select(); },
    j: () => step(1), k: () => step(-1), t: turn,
    ArrowDown: () => step(1), ArrowUp: () => step(-1),
    o: () => {
      const more = document.activeElement?.closest("tbody.b")?.querySelector("details");
      if (more) more.open = !more.open;
    },
    x: () => { restore(new URLSearchParams()); apply(); },
    "?": () => { keys.open = true; keys.querySelector("summary").focus(); },
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key === "Escape" && event.target === search) {
      if (search.value) { search.value = ""; apply(); } else search.blur();
      event.preventDefault();
    } else if (event.key === "Enter" && event.target === search) {
      event.preventDefault();
      search.blur();
      step(1);
    } else if (!typing && Object.hasOwn(doing, event.key)) {
      // Arrows scroll the page as ever, until a behaviour has the focus.
      if (event.key.startsWith("Arrow") && !document.activeElement?.closest("tbody.b")) return;
      event.preventDefault();
      doing[event.key]();
    }
  });

  for (const b of verdicts)
    b.addEventListener("click", () => { b.ariaPressed = String(b.ariaPressed !== "true"); apply(); });
  for (const field of [search, chapter, call, differ])
    field?.addEventListener("input", () => apply());
  byId("bar").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => { restore(new URLSearchParams()); apply(); });
  const bar = document.querySelector(".top");
  new ResizeObserver(() => root.style.setProperty("--bar", `${bar.offsetHeight}px`)).observe(bar);
  root.style.setProperty("--bar", `${bar.offsetHeight}px`);
  addEventListener("hashchange", follow);
  count.textContent = `${blocks.length} of ${blocks.length} behaviours`;
  follow();
})();
