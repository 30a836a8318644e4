import base64
import hashlib
import html
import json
import os
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunet_topomae.benchmark.jobs import make_jobs
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.commands.demo import print_summary
from nnunet_topomae.files import strict_json
from nnunet_topomae.reports.benchmark import write_benchmark_report
from nnunet_topomae.reports.page import format_number, format_p
from nnunet_topomae.reports.training_plots import persistence_figure


class Page(HTMLParser):
    """Collects tags with their attributes, and the text outside the style sheet."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.style = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "style" and not self.style:
            self.style = data
        else:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(finished_demo, tmp_path_factory):
    """Results, folder and page of the demo's report with all its images."""
    folder = tmp_path_factory.mktemp("report")
    spec = read_spec(finished_demo)
    results, _ = write_benchmark_report(spec, make_jobs(spec), folder, images=True)
    assert (folder / "report.html").stat().st_size < 4_000_000
    return results, folder, Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(report):
    return report[2]


@pytest.mark.slow
def test_the_page_loads_nothing(page):
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"'sha256-{digest}'" in policy and "unsafe" not in policy
    assert not [attributes for _, attributes in page.tags if "style" in attributes]


@pytest.mark.slow
def test_tests_of_a_shared_fixture_run_in_one_process(page, request):
    """pytest-xdist reads the group from the name of a test."""
    assert request.node.nodeid.endswith("@finished_demo") or "PYTEST_XDIST_WORKER" not in os.environ


@pytest.mark.slow
def test_pictures_are_all_there_and_described(page):
    images = page.all("img")
    # differences, cases, structures; worst and median case of two recipes; curves; 2 previews, persistence, losses
    assert len(images) == 3 + 4 + 1 + 4
    assert all(len(image["alt"]) > 20 for image in images)
    # With two cases of equal scores, the worst one is the median one too.
    assert len({image["src"] for image in images}) == 12 - 2


@pytest.mark.slow
def test_without_images_no_case_is_shown(finished_demo, tmp_path):
    spec = read_spec(finished_demo)
    write_benchmark_report(spec, make_jobs(spec), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "image/png" not in text
    assert len(Page(text).all("img")) == 3 + 1 + 2


@pytest.mark.slow
def test_tables_hold_the_numbers(page):
    text = re.sub(r"\s+", " ", " ".join(page.words))
    # Fusion is perfect; the other model misses the vessel in both cases.
    assert "fusion 1.0000 0.00 0.0 1.0000 0.00 0.0 1.0000 0.00 0.0 1.0000 0.00 0.0" in text
    assert re.search(r"from scratch (1\.0000 0\.00 0\.0 ){3}0\.0000 \d+\.\d\d 2\.0", text)
    assert re.search(r"phantom_test_001 vessel 1\.000 0\.00 0\.000 \d+\.\d\d", text)
    assert "ViT 0.4000 – – 12.5" in text
    # Eight jobs of 18 seconds.
    assert "2.4 min of work, 2 held-out cases" in text
    assert "It is no evidence for or against pre-training." in text
    assert "fusion 1.50 100 40 2.5 2.10 0.01 0.01 2.0 0.02 1.0 3.0" in text
    assert "from scratch 1.50 0 40 2.5 0.300 0.01 0.00 1.0 0.01 1.0 2.0" in text


@pytest.mark.slow
def test_the_headline_comes_first_then_a_figure_then_tables(page):
    tags = [tag for tag, _ in page.tags]
    assert tags.index("h1") < tags.index("p") < tags.index("img") < tags.index("table")
    assert page.tags[tags.index("p")][1] == {"class": "headline"}
    sentence = next(words for words in page.words if words.startswith("fusion: mean Dice"))
    assert sentence.startswith(
        "fusion: mean Dice 1.0000, 0.2500 above from scratch (2 cases, 1 seed). No difference is"
    )


@pytest.mark.slow
def test_what_scrolls_can_be_reached_with_the_keyboard_and_has_a_name(page):
    scrolling = [found for _, found in page.tags if found.get("class") == "scroll"] + page.all("pre")
    assert len(scrolling) > 8
    assert all(found["tabindex"] == "0" and found["role"] == "region" for found in scrolling)
    names = [found["aria-label"] for found in scrolling]
    assert len(set(names)) == len(names)
    assert all(found.get("scope") in ("col", "row", "colgroup") for found in page.all("th"))
    # Every other table wraps its text.
    assert len(page.all("table")) == len(scrolling) - 1 + sum(t.get("class") == "facts" for t in page.all("table"))


# Shows a page in a frame and writes what is wider than the frame, outside of regions that scroll.
FRAME = """<!doctype html><iframe width={width} height=2000 srcdoc="{page}"></iframe><p></p><script>
addEventListener("load", () => {{
  const inside = document.querySelector("iframe").contentDocument;
  for (const closed of inside.querySelectorAll("details")) closed.open = true;
  const wide = [...inside.querySelectorAll("body *")].filter((part) => !part.closest(".scroll, pre")
    && part.getBoundingClientRect().right > {width} + 0.5);
  document.querySelector("p").textContent = "cut off: " + wide.map((part) => part.tagName).join(" ") + ".";
}});</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_cut_off_in_a_browser(report, tmp_path, find_browser, width):
    text = (report[1] / "report.html").read_text(encoding="utf-8")
    file = tmp_path / "frame.html"
    file.write_text(FRAME.format(width=width, page=html.escape(text)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--virtual-time-budget=5000", "--dump-dom"]
    command = [find_browser(), *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "<p>cut off: .</p>" in done.stdout, done.stdout[-200:]


@pytest.mark.slow
def test_commands_are_escaped_and_name_no_folder(page, finished_demo):
    assert any("nnUNetv2_train $nnUNet_raw '<&>'" in words for words in page.words)
    assert not any(str(finished_demo.parent) in words for words in page.words)


@pytest.mark.slow
def test_results_are_strict_json(report, finished_demo):
    results, folder, _ = report
    text = (folder / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert str(finished_demo.parent) not in text
    read = json.loads(text)
    (table,) = read["tables"]
    scratch, fusion = table["rows"]["unetrpp"], table["rows"]["full"]
    assert (scratch["structures"]["vessel"]["missed"], scratch["mean"]["missed"]) == (2, 2)
    assert scratch["mean"]["dice"] == pytest.approx(0.75)
    assert (fusion["mean"]["dice"], fusion["mean"]["hd95"], fusion["mean"]["missed"]) == (1.0, 0.0, 0.0)
    assert fusion["by_case"]["phantom_test_000"]["ring"] == {"dice": 1.0, "hd95": 0.0, "betti_error": None}
    dice = next(one for one in table["contrasts"] if one["metric"] == "dice")
    assert (dice["recipe"], dice["baseline"], dice["primary"]) == ("full", "unetrpp", False)
    assert dice["verdict"] == "too few patients to test (2, at least 6)"
    assert (table["patients"], table["trainings"]) == (2, 1)
    assert [job["seconds"] for job in read["jobs"]] == 8 * [18.0]
    assert read["settings"]["finetuning.epochs"] == 5
    assert read["versions"]["torch"] == "9.9" and read["machine"]["processor"] == "a quick one"
    assert read["tables"][0]["rows"] == results.to_json()["tables"][0]["rows"]


@pytest.mark.slow
def test_the_demo_prints_its_table(report, capsys):
    print_summary(report[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["held-out", "phantoms", "fusion", "from", "scratch"]
    assert re.fullmatch(r"vessel +1\.000 +0\.0 +0\.000 +\d+\.\d", lines[6])
    assert lines[7].split()[:4] == ["mean", "1.000", "0.0", "0.750"]
    assert lines[8].split() == ["missed", "structures", "0", "2"]


def test_an_unfinished_benchmark_is_refused(finished_demo, tmp_path):
    spec = replace(read_spec(finished_demo), out=tmp_path)
    with pytest.raises(ValueError, match="2 of 2 scores are missing"):
        write_benchmark_report(spec, make_jobs(spec), tmp_path / "report")


def test_undefined_numbers():
    assert format_number(None, 2) == format_number(float("nan"), 2) == "–"
    assert format_number(1.005, 1) == "1.0"
    assert strict_json({"a": [float("nan"), -float("inf"), 2.5], "b": (1, "x", None, True)}) == {
        "a": [None, None, 2.5],
        "b": [1, "x", None, True],
    }


def test_persistence_figure_draws_every_point():
    rng = np.random.default_rng(0)
    diagrams = {
        name: [np.sort(rng.random((n, 2)), axis=1)[:, ::-1] for n in sizes]
        for name, sizes in (("input", (3, 4, 0)), ("vit", (2, 1, 5)), ("partner", (1, 1, 1)))
    }
    panels = persistence_figure(diagrams).axes
    for dimension, panel in enumerate(panels):
        drawn = [np.asarray(c.get_offsets()) for c in panel.collections]
        for offsets, name in zip(drawn, diagrams, strict=True):
            assert np.allclose(offsets.reshape(-1, 2), diagrams[name][dimension])


def test_p_values_are_never_a_bare_zero():
    shown = [format_p(value) for value in (None, 0.0, 9.9e-5, 1e-4, 0.05)]
    assert shown == ["–", "< 0.0001", "< 0.0001", "0.0001", "0.0500"]
