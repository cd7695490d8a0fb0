"use strict";
const $ = (id) => document.getElementById(id);

function figure(value, text) {
  const box = document.createElement("div");
  box.className = "figure";
  const number = document.createElement("b");
  number.textContent = value;
  const name = document.createElement("span");
  name.textContent = text;
  box.append(number, name);
  return box;
}

function short(value) { return value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString(); }

async function look() {
  try {
    const answer = await fetch("/owner/panel");
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.why);
    $("title").textContent = `${found.labels} of ${found.budget} labels`;
    $("done").style.width = `${100 * Math.min(found.labels / Math.max(found.budget, 1), 1)}%`;
    $("reason").textContent = found.reason;
    const boxes = [figure(String(found.waiting), "questions are out"), figure(String(found.skips), "were skipped")];
    if (found.given) boxes.push(figure(String(found.given), "labels were there already"));
    boxes.push(figure(found.draws.toLocaleString("en"), "draws of the model"));
    if (found.agreement.pairs) {
      boxes.push(figure(`${Math.round(100 * found.agreement.share)} %`, `of ${found.agreement.pairs} pairs of raters agree`));
    } else if (found.overlap > 1) boxes.push(figure("–", "no response has two ratings yet"));
    if (found.money !== null) boxes.push(figure(found.money.toFixed(2), "spent, open questions included"));
    if (found.predicted_regret !== undefined) boxes.push(figure(short(found.predicted_regret), "predicted regret, in reward units"));
    if (found.labels_to_target !== null && found.labels_to_target !== undefined) {
      boxes.push(figure(`≈ ${found.labels_to_target}`, `more labels to a regret of ${short(found.target_regret)}`));
    } else if (found.predicted_regret !== undefined && !found.target_regret) {
      boxes.push(figure("–", "no target_regret was set: labels to it are not known"));
    }
    $("figures").replaceChildren(...boxes);
    $("raters").replaceChildren(...found.raters.map((one) => {
      const row = document.createElement("tr");
      for (const text of [one.name, String(one.labels)]) {
        const cell = document.createElement("td");
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    }));
  } catch (error) { $("reason").textContent = `no answer from the page: ${error.message}`; }
  setTimeout(look, 2000);
}
look();
