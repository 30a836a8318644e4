import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunet_topomae.benchmark.layout import DemoFolders
from nnunet_topomae.benchmark.pipeline import write_demo_plans
from nnunet_topomae.files import strict_json
from nnunet_topomae.reports.demo import write_report
from nnunet_topomae.reports.page import format_number, format_p
from nnunet_topomae.reports.plots import overlay_figure, persistence_figure


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
def page(finished_demo):
    file = write_report(finished_demo)
    assert file.stat().st_size < 4_000_000
    return Page(file.read_text(encoding="utf-8"))


def test_the_page_loads_nothing(page):
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"'sha256-{digest}'" in policy and "unsafe" not in policy
    assert not [attributes for _, attributes in page.tags if "style" in attributes]


def test_pictures_are_all_there_and_described(page):
    images = page.all("img")
    # scores, 2 overlays, 2 previews, persistence, losses, training curves
    assert len(images) == 8
    assert all(len(image["alt"]) > 20 for image in images)
    assert len({image["src"] for image in images}) == 8


def test_tables_hold_the_numbers(page):
    text = re.sub(r"\s+", " ", " ".join(page.words))
    assert "vessel 1.000 0.00 0 / 2 0.000" in text
    assert "2 / 2" in text
    assert "ViT 0.4000 – – 12.5" in text
    assert "1.5 min" in text


def test_text_from_data_is_escaped(page):
    assert any("nnUNetv2_train 777 <&>" in words for words in page.words)


def test_results_are_strict_json(finished_demo):
    text = (finished_demo / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    results = json.loads(text)
    scratch = results["models"]["scratch"]
    assert scratch["mean"]["vessel"]["missed"] == 2 and scratch["foreground_mean"]["missed"] == 2
    assert scratch["foreground_mean"]["dice"] == pytest.approx(0.75)
    assert results["models"]["fusion"]["foreground_mean"] == {"dice": 1.0, "hd95": 0.0, "missed": 0}
    assert str(finished_demo) not in text


def test_an_unfinished_demo_is_refused(tmp_path):
    with pytest.raises(ValueError, match="demo --out"):
        write_report(tmp_path)


def test_undefined_numbers():
    assert format_number(None, 2) == "–"
    assert format_number(1.005, 1) == "1.0"
    assert strict_json({"a": [float("nan"), -float("inf"), 2.5], "b": (1, "x", None, True)}) == {
        "a": [None, None, 2.5],
        "b": [1, "x", None, True],
    }


def test_overlay_shows_the_slice_with_most_structures():
    truth = np.zeros((5, 7, 9), dtype=np.uint8)
    truth[1, 2:6, 2:8] = 1
    truth[3, 2, 3], truth[3, 4, 5] = 1, 2
    image = np.zeros(truth.shape)
    figure = overlay_figure(image, truth, {"fusion": truth, "scratch": truth}, (3.0, 1.5, 1.0), {"a": 1, "b": 2})
    assert figure.axes[0].get_ylabel() == "axial, slice 3"
    assert figure.axes[0].get_images()[0].get_array().shape == (7, 9, 3)
    assert figure.axes[4].get_aspect() == pytest.approx(3.0)
    shown = np.asarray(figure.axes[1].get_images()[0].get_array())
    assert np.array_equal(np.ptp(shown, axis=-1) > 0, truth[3] > 0)


def test_persistence_figure_draws_every_point():
    rng = np.random.default_rng(0)
    diagrams = {
        name: [np.sort(rng.random((n, 2)), axis=1)[:, ::-1] for n in sizes]
        for name, sizes in (("input", (3, 4, 0)), ("vit", (2, 1, 5)), ("unetrpp", (1, 1, 1)))
    }
    panels = persistence_figure(diagrams).axes
    for dimension, panel in enumerate(panels):
        drawn = [np.asarray(c.get_offsets()) for c in panel.collections]
        for offsets, name in zip(drawn, diagrams, strict=True):
            assert np.allclose(offsets.reshape(-1, 2), diagrams[name][dimension])


def test_demo_plans_share_the_preprocessed_data(tmp_path):
    from nnunet_topomae.benchmark.layout import DemoSettings
    from nnunet_topomae.config import TopoMAEConfig

    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    configuration = {
        "data_identifier": "TopoMAEPlans_3d_fullres",
        "patch_size": [48, 64, 64],
        "batch_size": 2,
        "architecture": {"arch_kwargs": {"strides": strides}},
    }
    plans = {"plans_name": "TopoMAEPlans", "configurations": {"3d_fullres": configuration}}
    (tmp_path / "TopoMAEPlans.json").write_text(json.dumps(plans))
    settings = DemoSettings(pretraining_epochs=3, finetuning_epochs=5, patch_size=(16, 24, 32))
    write_demo_plans(tmp_path / "TopoMAEPlans_demo.json", settings)
    written = json.loads((tmp_path / "TopoMAEPlans_demo.json").read_text())
    found = written["configurations"]["3d_fullres"]
    assert written["plans_name"] == "TopoMAEPlans_demo"
    assert (found["patch_size"], found["data_identifier"]) == ([16, 24, 32], "TopoMAEPlans_3d_fullres")
    config = TopoMAEConfig.from_configuration(found)
    assert (config.pretraining.epochs, config.finetuning.epochs) == (3, 5)
    with pytest.raises(ValueError, match="not a multiple"):
        write_demo_plans(tmp_path / "TopoMAEPlans_demo.json", DemoSettings(patch_size=(17, 24, 32)))


def test_folders_lie_below_the_output(tmp_path):
    folders = DemoFolders(tmp_path)
    environment = folders.environment()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert environment[name].startswith(str(tmp_path))
    assert int(environment["nnUNet_n_proc_DA"]) >= 1


def test_p_values_are_never_a_bare_zero():
    shown = [format_p(value) for value in (None, 0.0, 9.9e-5, 1e-4, 0.05)]
    assert shown == ["–", "< 0.0001", "< 0.0001", "0.0001", "0.0500"]
