"""Pages to leaf through cases. NiiVue itself is used where the variable NIIVUE_UMD names its niivue.umd.js."""

import base64
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_topomae.reports.case_files import CaseFiles
from nnunet_topomae.reports.viewer import read_niivue, write_viewer

# Does what our script asks of NiiVue and notes it in the page.
STAND_IN = """(function(a,b){b(a.niivue={})})(globalThis,function(n){
let calls=[];
n.NVImage={loadFromBase64:async(o)=>{if(atob(o.base64).charCodeAt(0)!==31)throw Error("no gzip");
return {name:o.name,setColormapLabel(c){calls.push("colours:"+c.labels.join("|"))}}}};
n.Niivue=class{volumes=[];async attachToCanvas(c){if(!c)throw Error("no canvas")}
addVolume(v){this.volumes.push(v);calls.push("volume:"+v.name)}
setOpacity(i,o){if(!this.volumes[i])throw Error("no volume "+i);calls.push("opacity:"+i+":"+o)}
setSliceType(t){calls.push("slices:"+t);document.body.dataset.calls=calls.join(";")}setInterpolation(){}};
});// </script> inside
"""


@pytest.fixture
def files(tmp_path: Path) -> CaseFiles:
    rng = np.random.default_rng(0)
    paths = {}
    for name, values in (
        ("image", (1000 * rng.standard_normal((6, 8, 10))).astype(np.float32)),
        ("truth", rng.integers(0, 3, (6, 8, 10)).astype(np.int16)),
        ("prediction", rng.integers(0, 3, (6, 8, 10)).astype(np.uint8)),
    ):
        written = SimpleITK.GetImageFromArray(values)
        written.SetSpacing((0.7, 0.8, 3.0))
        paths[name] = tmp_path / f"{name}.mha"
        SimpleITK.WriteImage(written, paths[name])
    return CaseFiles(
        "case <1>",
        "Dataset005_A",
        "+vit",
        "worst",
        0.5,
        paths["image"],
        paths["truth"],
        {"base & line": paths["prediction"]},
        {"liver": 1, "</script>": 2},
        "MR",
    )


@pytest.fixture
def page(files: CaseFiles, tmp_path: Path) -> Path:
    return write_viewer(files, "fusion, reconstruction only", STAND_IN, tmp_path)


def test_the_policy_allows_both_scripts_and_nothing_else(page: Path) -> None:
    assert page.name == "Dataset005_A_+vit_worst_case__1_.html"
    text = page.read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(scripts) == text.count("<script") == 2
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    allowed = re.search(r"script-src ([^;]*)", policy)
    assert allowed is not None
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert allowed[1].split() == [f"'sha256-{digest}'" for digest in digests]
    assert policy.startswith("default-src 'none'")
    assert not re.findall(r'(?:src|href)="', text)
    assert "case &lt;1&gt;" in text and "base &amp; line" in text
    assert "Window from 1 to 99 % of intensities. Radiological convention" in text
    assert "isRadiologicalConvention: true" in text and "sagittalNoseLeft: true" in text
    assert "Redistribution and use in source and binary forms" in text


def test_the_volumes_in_the_page_are_those_of_the_case(page: Path, files: CaseFiles, tmp_path: Path) -> None:
    (found,) = re.findall(r"const DATA = (.*);\nconst PLANES", page.read_text())
    data = json.loads(found)
    assert [layer["name"] for layer in data["layers"]] == ["Truth", "base & line"]
    volumes = []
    for encoded in (data["image"], *(layer["base64"] for layer in data["layers"])):
        (tmp_path / "read.nii.gz").write_bytes(base64.b64decode(encoded))
        volumes.append(SimpleITK.ReadImage(tmp_path / "read.nii.gz"))
    assert all(volume.GetSpacing() == pytest.approx((0.7, 0.8, 3.0)) for volume in volumes)
    image, truth, prediction = (SimpleITK.GetArrayFromImage(volume) for volume in volumes)
    np.testing.assert_array_equal(truth, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files.truth)))
    np.testing.assert_array_equal(
        prediction, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files.predictions["base & line"]))
    )
    original = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files.image))
    assert (image.min(), image.max()) == (0, 255)
    assert np.corrcoef(image.ravel(), original.ravel())[0, 1] > 0.99
    assert data["colours"]["I"] == [0, 1, 2] and data["colours"]["A"] == [0, 255, 255]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.js does not exist.*@niivue/niivue"):
        read_niivue(tmp_path / "missing.js")
    (tmp_path / "other.js").write_text("alert(1)")
    with pytest.raises(ValueError, match=r"other\.js is not NiiVue's niivue\.umd\.js"):
        read_niivue(tmp_path / "other.js")


@pytest.mark.parametrize("real", [False, True])
def test_the_page_runs_in_a_browser(
    files: CaseFiles, tmp_path: Path, find_browser: Callable[[], str], real: bool
) -> None:
    browser = find_browser()
    if real and "NIIVUE_UMD" not in os.environ:
        pytest.skip("NIIVUE_UMD does not name NiiVue's niivue.umd.js")
    program = read_niivue(Path(os.environ["NIIVUE_UMD"])) if real else STAND_IN
    page = write_viewer(files, "fusion", program, tmp_path)
    webgl = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    options = ["--headless", "--no-sandbox", *webgl, "--enable-logging=stderr", "--virtual-time-budget=15000"]
    done = subprocess.run(
        [browser, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=200, check=False
    )
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert "(ready)</title>" in done.stdout
    assert re.search(r'<button[^>]*data-layer="1"[^>]*aria-pressed="true"', done.stdout)
    assert re.search(r'<button[^>]*data-plane="multi"[^>]*aria-pressed="true"', done.stdout)
    if not real:
        (calls,) = re.findall(r'data-calls="([^"]*)"', done.stdout)
        assert "opacity:0:1;opacity:1:0;opacity:2:0.55;slices:3" in calls
