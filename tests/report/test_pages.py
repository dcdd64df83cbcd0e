"""HTML pages: a file that loads and runs nothing, in which a corpus is text, and that reads well in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import records as made
from support.paths import ROOT
from support.patience import HANGS

from lorasize import records as r
from lorasize import report
from lorasize.artifacts.calibrations import read_calibration
from lorasize.cli import main
from lorasize.corpus.surprise import Surprise, Token, spelled
from lorasize.planning import Wishes, Workload, make_plan, ranks_at_site
from lorasize.report import Companions
from lorasize.report.formats.html.page import HEAT, heat
from lorasize.report.formats.html.plan import MAX_TOKENS, coloured_corpus

NASTY = "</pre><script>alert(1)</script>\"'><img src=http://x onerror=alert(2)> & $\\frac{$ \x1b[31m\x00\u202e ]]>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--disable-background-networking", "--disable-component-update", "--no-first-run")  # no calls home
FLAGS = ("--no-sandbox", "--disable-gpu", *QUIET)


# Pages to look at.
@pytest.fixture(scope="module")
def calibration() -> r.Calibration:
    return read_calibration(next((ROOT / "calibrations").glob("*.json")))


def planned(calibration: r.Calibration, name: str = "page.md", **changes: Any) -> r.Plan:
    """What `plan` would say of 460 tokens, 2,100 nats in three passages."""
    places = ((1, 900), (9, 700), (4, 500))
    costs = [r.PassageDemand(id=f"{name}:{k}", file=name, line=k, n_tokens=100, nats=n) for k, n in places]
    demand = r.Demand(base_loss=4.6, nats=2100, bits=3030, costliest=tuple(costs))
    corpus = r.CorpusSummary(n_passages=3, n_tokens=460, sha256="a" * 64, files=(r.CorpusFile(path=name, sha256="b"),))
    corpus = corpus.model_copy(update={"n_positions": 520})
    return make_plan(
        calibration=calibration, model=r.PlanModel(ref="tiny", fingerprint="f", dtype="float32", n_layers=30),
        corpus=corpus, demand=demand, inputs=made.plan().inputs,
        work=Workload(n_positions=520, linear_parameters_per_rank=10**5), wishes=Wishes(**changes),
    )  # fmt: skip


def trained() -> tuple[r.Memorization, list[r.StepReport]]:
    """A run of 60 steps with its histogram."""
    seen = r.Histogram(
        edges=tuple(k / 20 for k in range(21)), before=(400, *[3] * 19, ), after=(*[0] * 10, *[20] * 10)
    )  # fmt: skip
    steps = [
        r.StepReport(
            step=k, loss=4 / k, n_tokens=457, n_stubborn=max(0, 400 - 7 * k), n_active=max(1, 440 - 7 * k),
            min_probability=min(0.52, k / 100), seconds=0.5 * k, evaluated=k == 60,
        )
        for k in range(1, 61)
    ]  # fmt: skip
    return made.memorization(probabilities=seen), steps


def page_of(kind: str, calibration: r.Calibration) -> str:
    if kind == "plan":
        tokens = tuple(Token(f" word{k}", k % 12, again=k % 7 == 0) for k in range(80))
        plan = planned(calibration)
        beside = Companions(calibration, ranks_at_site(plan, calibration), [Surprise("page.md:1", tokens)])
        return report.html(plan, beside)
    if kind == "apply":
        run, steps = trained()
        return report.html(run, Companions(steps=steps, recall=made.recall()))
    return report.html(calibration)


KINDS = ("plan", "apply", "calibration")


# The file.
def assert_inert(page: str) -> None:
    """Nothing in the file runs, loads or escapes its policy."""
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert policy is not None
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    assert policy.group(1) == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    tags = re.findall(r"<[a-zA-Z][^>]*>", page)
    assert not [tag for tag in tags if re.match(r"<(script|img|link|iframe|object|embed|a|form)\b", tag)]
    assert not [tag for tag in tags if re.search(r"\s(style|on\w+|src|href)=", tag) and "xlink:href" not in tag]
    assert {link for tag in tags for link in re.findall(r'xlink:href="(.)', tag)} <= {"#"}
    assert "\x1b" not in page
    assert "\u202e" not in page


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_inert_and_always_the_same(kind: str, calibration: r.Calibration) -> None:
    page = page_of(kind, calibration)
    assert_inert(page)
    assert page == page_of(kind, calibration)
    assert page.count("<figure>") >= 2


@pytest.mark.parametrize("name", list(made.RECORDS))
def test_every_record_has_a_page(name: str) -> None:
    assert_inert(report.html(made.RECORDS[name]))


def test_text_from_a_corpus_stays_text(calibration: r.Calibration) -> None:
    plan = planned(calibration, NASTY)
    beside = Companions(
        calibration, ranks_at_site(plan, calibration), [Surprise(NASTY, (Token(NASTY, 3.0), Token("", 1.0)))]
    )
    for page in (
        report.html(plan, beside),
        report.html(made.infeasible(made.issue(NASTY))),
        report.html(made.recall(recalled=False, passage=NASTY)),
    ):
        assert_inert(page)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_rank_off_the_ladder_has_its_bar_and_the_steps_of_the_plan(calibration: r.Calibration) -> None:
    free = planned(calibration)
    assert free.adapter is not None
    five = free.adapter.model_copy(update={"rank": 5})
    found = ranks_at_site(free.model_copy(update={"adapter": five}), calibration)
    assert [a.candidate.rank for a in found if a.candidate.rank in (4, 5, 6)] == [4, 5, 6]
    (same,) = [a for a in ranks_at_site(free, calibration) if a.candidate.rank == free.adapter.rank]
    assert free.prediction is not None
    assert same.steps == free.prediction.steps


def test_an_infeasible_plan_names_its_lines() -> None:
    page = report.html(made.infeasible())
    assert 'class="bad"' in page
    assert '<data value="9">9</data>' in page
    assert "same prompt" in page


def test_a_record_without_a_page() -> None:
    with pytest.raises(TypeError, match="no page"):
        report.html(made.adapter())


# Where the bits go.
def test_colours_follow_nats() -> None:
    assert [heat(Token("", nats)) for nats in (0.0, 0.68, 0.7, 2.5, 5, 7, 12)] == [0, 0, 1, 2, 3, 4, 5]
    assert heat(Token("", 12, again=True)) == 0
    assert list(HEAT) == sorted(HEAT)


def test_a_long_corpus_is_cut_after_its_costliest_passages() -> None:
    def passage(n: int, nats: float) -> Surprise:
        return Surprise(str(nats), (Token("x", nats / n),) * n)

    few = coloured_corpus([passage(10, 1.0), passage(10, 5.0)])
    assert [p.name for p in few.passages] == ["5.0", "1.0"]
    assert few.left_out == 0
    many = coloured_corpus([passage(MAX_TOKENS // 2, float(k)) for k in range(1, 6)])
    assert [p.name for p in many.passages] == ["5.0", "4.0"]
    assert many.left_out == 3
    assert len(coloured_corpus([passage(2 * MAX_TOKENS, 9.0)]).passages) == 1


def test_tokens_that_make_a_character_together() -> None:
    data = {0: b"[", 1: b" caf", 2: b"\xc3", 3: b"\xa9", 4: b" ok", 5: b"\xff"}

    def decode(ids: Any) -> str:
        return b"".join(data[k] for k in ids).decode("utf-8", "replace")

    assert spelled(0, (1, 2, 3, 4), decode) == [" caf", "", "é", " ok"]
    assert spelled(0, (5,) * 7, decode)[5] != ""  # bytes that make no character are shown in the end


# In a browser.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=1000 * HANGS)
        yield opened
        opened.close()


LOOK = """() => {
  const box = e => e.getBoundingClientRect();
  const figures = [...document.querySelectorAll('figure svg')].map(svg => {
    const frame = box(svg);
    const outside = [...svg.querySelectorAll('text')].filter(t => {
      const b = box(t);
      return b.width > 0 && (b.left < frame.left - 4 || b.right > frame.right + 4 || b.bottom > frame.bottom + 4);
    });
    return {area: frame.width * frame.height, outside: outside.map(t => t.textContent),
            shapes: svg.querySelectorAll('path, use').length, name: svg.getAttribute('aria-label')};
  });
  const tables = Object.fromEntries([...document.querySelectorAll('figure')].map(f => [
    f.parentElement.querySelector('h2').textContent,
    [...f.querySelectorAll('tbody tr')].map(tr => [...tr.cells].map(c => {
      const d = c.querySelector('data'); return d ? Number(d.value) : c.textContent; }))]));
  return {figures, tables, width: document.documentElement.scrollWidth,
          ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
          text: getComputedStyle(document.querySelector('figure svg text')).fill};
}"""


def looked_at(browser: Any, page: str, path: Path, width: int, scheme: str) -> tuple[dict[str, Any], list[str]]:
    """What a reader sees, and everything that the console or the network said."""
    path.write_text(page, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(1000 * HANGS)
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
    tab.goto(path.as_uri())
    found = tab.evaluate(LOOK)
    context.close()
    return found, said


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_page_in_a_browser(
    kind: str, width: int, scheme: str, browser: Any, calibration: r.Calibration, tmp_path: Path
) -> None:
    found, said = looked_at(browser, page_of(kind, calibration), tmp_path / "page.html", width, scheme)
    assert said == []
    assert len(found["figures"]) >= 2
    for figure in found["figures"]:
        assert figure["area"] > 250 * 80, figure
        assert figure["outside"] == [], figure
        assert figure["shapes"] > 5, figure
    assert found["width"] <= width  # nothing to scroll sideways but tables, in their own frames
    light = sum(map(int, re.findall(r"\d+", found["paper"])[:3])) > 600
    assert light is (scheme == "light")
    assert found["text"] == found["ink"]  # the figures wear the page's colours


@pytest.mark.slow
def test_the_figures_of_a_page_are_those_of_its_json(browser: Any, calibration: r.Calibration, tmp_path: Path) -> None:
    def tables(kind: str) -> dict[str, Any]:
        page = page_of(kind, calibration)
        return dict(looked_at(browser, page, tmp_path / f"{kind}.html", 1280, "light")[0]["tables"])

    plan = json.loads(report.to_json(planned(calibration)))
    shown = tables("plan")
    chosen, *others = shown["What else would do"]
    names = ("n_parameters", "bytes", "bits_per_parameter", "success_probability", "seconds")
    assert chosen[4:7] == [plan["adapter"][name] for name in names[:3]]
    assert chosen[7:] == [plan["prediction"]["success_probability"], plan["prediction"]["seconds"]["point"]]
    assert [row[4:] for row in others] == [[a[name] for name in names] for a in plan["alternatives"]]
    assert [row[4] for row in shown["The costliest passages"]] == [p["nats"] for p in plan["demand"]["costliest"]]
    (here,) = [row for row in shown["Demand against capacity"] if row[0] == plan["adapter"]["rank"]]
    assert here[2:4] == [plan["prediction"][name] for name in ("capacity_slack", "success_probability")]

    run, steps = trained()
    shown = tables("apply")
    assert run.probabilities is not None
    assert [row[2] for row in shown["Every token's p, before and after"]] == list(run.probabilities.before)
    assert [row[3] for row in shown["Every token's p, before and after"]] == list(run.probabilities.after)
    assert [row[1] for row in shown["Stubborn tokens over time"]] == [s.n_stubborn for s in steps]

    shown = tables("calibration")
    efficiencies = [row[1] for row in shown["Where a parameter is worth most"]]
    assert efficiencies == sorted((s.efficiency for s in calibration.sites), reverse=True)
    held = [row[2] for row in shown["From mean loss to every token"]]
    assert held.count("yes") == calibration.transition.n_successes
    assert len(held) == calibration.transition.n_observations


# The command.
def test_show_writes_a_page(calibration: r.Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text(report.to_json(made.plan()), encoding="utf-8")
    assert main(["show", str(path), "--report", f"html={tmp_path / 'out' / 'p.html'}"]) == 0
    assert "rank 1" in capsys.readouterr().out  # the table still goes to standard output
    assert_inert((tmp_path / "out" / "p.html").read_text(encoding="utf-8"))
    assert main(["show", str(path), "--report", "html"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


def test_html_without_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from lorasize.errors import LorasizeError

    for name in [n for n in sys.modules if n.startswith("lorasize.report.formats.html")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LorasizeError, match=r"lorasize\[report\]"):
        report.html(made.plan())
