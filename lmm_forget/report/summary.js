"use strict";
// Tips: one box for everything that carries data-tip, by pointer, keyboard or touch.
(function () {
  const box = document.getElementById("tip");
  function show(target, x, y) {
    box.textContent = target.dataset.tip;
    box.hidden = false;
    const size = box.getBoundingClientRect();
    box.style.left = Math.max(4, Math.min(x + 12, window.innerWidth - size.width - 4)) + "px";
    box.style.top = (y + 18 + size.height > window.innerHeight ? Math.max(4, y - size.height - 12) : y + 18) + "px";
  }
  function at(event) { return event.target.closest ? event.target.closest("[data-tip]") : null; }
  document.addEventListener("pointermove", function (event) {
    const target = at(event);
    if (target) show(target, event.clientX, event.clientY);
    else if (event.pointerType === "mouse") box.hidden = true;
  });
  document.addEventListener("pointerdown", function (event) {
    const target = at(event);
    if (target) show(target, event.clientX, event.clientY);
    else box.hidden = true;
  });
  document.addEventListener("focusin", function (event) {
    const target = at(event);
    if (!target) return;
    const place = target.getBoundingClientRect();
    show(target, place.left, place.bottom - 10);
  });
  document.addEventListener("focusout", function () { box.hidden = true; });
  document.addEventListener("scroll", function () { box.hidden = true; }, { passive: true });
  document.addEventListener("keydown", function (event) { if (event.key === "Escape") box.hidden = true; });
})();

// The browser of samples that turned wrong or right.
(function () {
  const source = document.getElementById("samples-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const PAGE = 12;
  const field = (name) => document.getElementById("filter-" + name);
  const cards = document.getElementById("cards");
  const more = document.getElementById("more");
  const sampleCount = document.getElementById("sample-count");
  let shown = PAGE;

  function element(tag, words, text) {
    const made = document.createElement(tag);
    if (words) made.className = words;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function option(select, value, text) {
    const made = element("option", "", text);
    made.value = value;
    select.append(made);
  }
  const plain = (task) => task.replace(/^tiny_/, "");
  function stages() {
    const job = data.jobs[field("job").value];
    const before = field("stage").value;
    field("stage").replaceChildren();
    job.stages.forEach(function (task, index) { option(field("stage"), index + 1, (index + 1) + ": " + plain(task)); });
    field("stage").value = before && before <= job.stages.length ? before : job.stages.length;
  }
  // shown as right from one half on: a score of 0.5 and more is what the strict scorers call a match
  const mark = (value) => value >= 0.5 ? "\u2713" : "\u2717";
  const state = (value) => value >= 0.5 ? "right" : "wrong";
  function answer(list, name, given) {
    list.append(element("dt", "", name));
    const line = element("dd");
    line.append(element("span", given[1] >= 0.5 ? "good" : "bad", mark(given[1]) + " "), given[0] || "(nothing)");
    if (given[1] > 0 && given[1] < 1) line.append(element("span", "soft", " (score " + given[1] + ")"));
    list.append(line);
  }
  function card(sample, run, stage, job) {
    const made = element("article", "card");
    const picture = data.pictures[sample.picture];
    if (picture) {
      const image = element("img");
      image.src = picture[0]; image.width = picture[1]; image.height = picture[2];
      image.alt = "image of " + sample.id;
      made.append(image);
    } else {
      made.append(element("div", "nothing", "no picture was kept"));
    }
    const words = element("div");
    const count = sample.images > 1 ? ", first of " + sample.images + " images" : "";
    words.append(element("div", "about", plain(sample.task) + " \u00b7 " + sample.id + count));
    words.append(element("div", "prompt", sample.question));
    made.append(words);
    const list = element("dl");
    list.append(element("dt", "", "reference"), element("dd", "", sample.references.join(" | ")));
    answer(list, "base", run[0]);
    answer(list, "stage " + stage, run[stage]);
    list.append(element("dt", "", "course"));
    const course = element("dd", "course");
    run.forEach(function (given, index) {
      const step = element("span", state(given[1]) + (index === stage ? " now" : ""), (index || "base") + mark(given[1]));
      const when = index ? "after stage " + index + " (" + plain(job.stages[index - 1]) + ")" : "base";
      step.dataset.tip = when + ": " + (given[0] || "(nothing)");
      step.tabIndex = 0;
      course.append(step);
    });
    list.append(course);
    made.append(list);
    return made;
  }
  function fits(sample, run, stage) {
    const task = field("task").value;
    const about = data.tasks.find(function (each) { return each.name === sample.task; });
    if (task === "held-out" ? !about.held_out : task === "trained" ? about.held_out : task && task !== sample.task) return false;
    const moved = run[stage][1] - run[0][1];
    const way = field("way").value;
    if (way === "wrong" ? moved >= 0 : way === "right" ? moved <= 0 : moved === 0) return false;
    const searchText = field("text").value.trim().toLowerCase();
    if (!searchText) return true;
    const texts = [sample.id, sample.question, run[0][0], run[stage][0]].concat(sample.references);
    return texts.some(function (text) { return text.toLowerCase().includes(searchText); });
  }
  function draw() {
    const index = field("job").value, job = data.jobs[index], stage = Number(field("stage").value);
    const fitting = data.samples.filter(function (sample) {
      return sample.runs[index] && fits(sample, sample.runs[index], stage);
    });
    cards.replaceChildren(...fitting.slice(0, shown).map(function (sample) { return card(sample, sample.runs[index], stage, job); }));
    more.hidden = fitting.length <= shown;
    const task = field("task").value, way = field("way").value;
    let all = 0;
    data.tasks.forEach(function (each) {
      const isSelected = task === "held-out" ? each.held_out : task === "trained" ? !each.held_out : !task || task === each.name;
      const count = job.counts[stage - 1][each.name];
      if (isSelected && count) all += way === "wrong" ? count[0] : way === "right" ? count[1] : count[0] + count[1];
    });
    const turned = way === "wrong" ? "turned wrong" : way === "right" ? "turned right" : "changed";
    sampleCount.textContent = fitting.length === 0 ? "No kept sample fits (" + all.toLocaleString("en") + " questions " + turned + " here in all)."
      : Math.min(shown, fitting.length) + " of " + fitting.length + " kept samples shown; " + all.toLocaleString("en") +
        " questions " + turned + " after this stage in all.";
  }
  data.jobs.forEach(function (job, index) { option(field("job"), index, job.name); });
  const held = data.tasks.some(function (task) { return task.held_out; });
  const trained = data.tasks.some(function (task) { return !task.held_out; });
  if (held) option(field("task"), "held-out", "all held-out benchmarks");
  if (trained) option(field("task"), "trained", "all trained skills");
  option(field("task"), "", "everything");
  data.tasks.forEach(function (task) { option(field("task"), task.name, plain(task.name) + (task.held_out ? "" : " (trained)")); });
  stages();
  field("job").addEventListener("change", stages);
  for (const name of ["job", "stage", "task", "way"]) {
    field(name).addEventListener("change", function () { shown = PAGE; draw(); });
  }
  field("text").addEventListener("input", function () { shown = PAGE; draw(); });
  more.addEventListener("click", function () { shown += PAGE; draw(); });
  draw();
})();
