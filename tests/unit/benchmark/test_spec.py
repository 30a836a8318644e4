"""The benchmark's file, and the jobs that it asks for."""

import ast
import importlib.util
import json
import os
from pathlib import Path

import pytest

import nnunet_topomae
from nnunet_topomae.benchmark import content
from nnunet_topomae.benchmark.jobs import make_jobs
from nnunet_topomae.benchmark.primary import Primary
from nnunet_topomae.benchmark.recipes import RECIPES
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.benchmark.stages import Task, train
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.commands.benchmark import _with_added
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.training.record import add_facts, write_epoch


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A data set 5 in nnUNet_raw, with held-out cases."""
    folder = tmp_path / "raw" / "Dataset005_Five"
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True)
        (folder / part / "case.nii.gz").touch()
    (folder / "dataset.json").write_text("{}")
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    return folder


def jobs_of(folder, text):
    file = folder / "b.toml"
    file.write_text(text)
    return make_jobs(read_spec(file))


def test_label_fractions_share_the_pretraining(raw, tmp_path):
    jobs = jobs_of(
        tmp_path, 'datasets = [5]\nrecipes = ["full"]\nfolds = [0]\nseeds = [3]\nlabel_fractions = [1.0, 0.5]\n'
    )
    assert [job.kind for job in jobs] == ["plan", "pretrain", "train", "score", "train", "score"]
    half = jobs[4]
    assert half.parameters["settings"]["finetuning.label_fraction"] == 0.5
    assert half.parameters["settings"]["finetuning.label_seed"] == 3000
    assert "finetuning.seed" not in jobs[1].parameters["settings"]
    assert [(job.fraction, job.seed, job.find("pretrain")) for job in jobs[2:]] == [
        (1.0, 3, jobs[1]),
        (1.0, 3, jobs[1]),
        (0.5, 3, jobs[1]),
        (0.5, 3, jobs[1]),
    ]


def test_jobs_know_what_they_are(raw, tmp_path):
    text = 'datasets = [5]\nrecipes = ["mine-x", "nnunet"]\nfolds = [2, 4]\nseeds = [1]\n'
    jobs = jobs_of(tmp_path, text + '[recipe.mine-x]\nbase = "unetrpp"\n')
    assert [(job.kind, job.recipe, job.fold, job.seed) for job in jobs if job.kind == "score"] == [
        ("score", recipe, fold, 1) for fold in (2, 4) for recipe in ("mine-x", "nnunet")
    ]
    assert {(job.dataset, job.dataset_id) for job in jobs} == {("Dataset005_Five", "005")}
    assert jobs[-1].need("train").recipe == "nnunet" and jobs[-1].find("pretrain") is None
    with pytest.raises(ValueError, match="needs no job of the stage predict"):
        jobs[-1].need("predict")


def test_what_was_added_to_the_file_is_found_and_what_was_changed_is_refused(raw, tmp_path, capsys):
    text = 'datasets = [5]\nrecipes = ["unetrpp", "nnunet"]\nfolds = [0]\nseeds = [0]\n'
    jobs, file = jobs_of(tmp_path, text), tmp_path / "b.toml"
    assert _with_added(file, jobs) is None
    file.write_text(text.replace('"unetrpp", ', ""))  # what was left out does not have to be done
    assert _with_added(file, jobs) is None
    file.write_text(text.replace("seeds = [0]", "seeds = [0, 1]"))
    spec, now = _with_added(file, jobs)
    assert spec.seeds == (0, 1) and len(now) == len(jobs) + 4
    assert capsys.readouterr().out == f"{file} was edited during the run: 4 jobs are new. Going on with them.\n"
    file.write_text(f"{text}tolerance = 3.0\n")
    with pytest.raises(RuntimeError, match=r"b.toml, the data or the code were changed.*__score.*Run again"):
        _with_added(file, jobs)


def test_folds_do_not_share_random_numbers(raw, tmp_path):
    text = 'datasets = [5]\nrecipes = ["full"]\nfolds = [0, 1]\nseeds = [0, 1]\nlabel_fractions = [0.5]\n'
    jobs = jobs_of(tmp_path, text)
    for kind, keys in {"pretrain": ["pretraining.seed"], "train": ["finetuning.seed", "finetuning.label_seed"]}.items():
        settings = [job.parameters["settings"] for job in jobs if job.kind == kind]
        assert all(len({one[key] for one in settings}) == 4 for key in keys), kind


def test_held_out_cases_are_predicted_once_per_training(raw, tmp_path):
    text = 'held_out = true\ndatasets = [5]\nrecipes = ["unetrpp"]\nfolds = [0, 1]\n'
    jobs = jobs_of(tmp_path, text)
    assert [job.kind for job in jobs] == ["plan", *2 * ["train", "predict", "score"]]
    before = [job.fingerprint for job in jobs]
    # The models do not depend on the held-out cases, and the predictions not on their labels.
    (raw / "labelsTs/case.nii.gz").write_bytes(b"other labels")
    assert changed(before, jobs_of(tmp_path, text)) == {"score"}
    before = [job.fingerprint for job in jobs]
    (raw / "imagesTs/case.nii.gz").write_bytes(b"another image")
    assert changed(before, jobs_of(tmp_path, text)) == {"predict", "score"}
    (raw / "labelsTs/case.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"labelsTs holds no files, but held_out = true"):
        jobs_of(tmp_path, text)


def changed(before, jobs):
    return {job.kind for job, old in zip(jobs, before, strict=True) if job.fingerprint != old}


HEAD = "datasets = [5]\nfolds = [0]\nseeds = [0]\n"


def fingerprints(folder, text):
    return {job.name: job.fingerprint for job in jobs_of(folder, HEAD + text)}


def test_only_what_a_job_uses_makes_it_new(raw, tmp_path):
    one = fingerprints(tmp_path, "recipes = ['full', 'unetrpp']\n")
    more = fingerprints(tmp_path, "recipes = ['nnunet', 'full', 'unetrpp', 'nnunet-pretrained']\n")
    assert one.items() <= more.items()
    assert {name for name in more if name.endswith("__plan")} == {
        "Dataset005__TopoMAEPlans__plan",
        "Dataset005__nnUNetPlans__plan",
    }
    # Settings of pre-training are no part of trainings without one.
    longer = fingerprints(
        tmp_path,
        "recipes = ['full', 'unetrpp']\n[settings.pretraining]\nepochs = 7\n[settings.topology]\nweight = 3\n",
    )
    different = {name for name in one if one[name] != longer[name]}
    assert different == {f"Dataset005__full__fold0__seed0__{kind}" for kind in ("pretrain", "train", "score")}
    # But a control with the steps of pre-training has other epochs, and a table of patients makes other folds.
    control = "recipes = ['unetrpp-2x']\n"
    assert fingerprints(tmp_path, control) != fingerprints(tmp_path, f"{control}[settings.pretraining]\nepochs = 7\n")
    patients = "[settings.pretraining]\npatients = '^(c)'\n"
    assert fingerprints(tmp_path, "recipes = ['unetrpp']\n") != fingerprints(
        tmp_path, f"recipes = ['unetrpp']\n{patients}"
    )


ALL = ("nnunet", "unetrpp", "swinunetr", "fusion-scratch", "nnunet-pretrained-scratch", "full", "vectorpose")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("vectorpose.scale = [0.6, 1.4]", {"vectorpose"}),
        ("topology.weight = 3", {"full", "vectorpose"}),
        ("architecture.vit = 'small'", {"fusion-scratch", "nnunet-pretrained-scratch", "full"}),
        ("architecture.dropout = 1.0", {*ALL} - {"nnunet", "swinunetr"}),
        ("finetuning.sgd_learning_rate = 0.1", {"nnunet-pretrained-scratch"}),
        ("finetuning.learning_rate = 1e-4", {*ALL} - {"nnunet", "nnunet-pretrained-scratch"}),
        ("finetuning.pretrained_learning_rate = 1e-4", {"full", "vectorpose"}),
        ("finetuning.stage_epochs = 5", {"full", "vectorpose"}),
        ("finetuning.transfer_decoder = 'no'", {"full", "vectorpose"}),
        ("finetuning.mirror_axes = [0]", {*ALL}),
        ("batch_size = 3", {*ALL}),
    ],
)
def test_settings_that_a_training_does_not_read_do_not_repeat_it(raw, tmp_path, setting, expected):
    recipes = f"recipes = {list(ALL)}\n"
    before, after = (fingerprints(tmp_path, f"{recipes}{more}") for more in ("", f"[settings]\n{setting}\n"))
    assert {name.split("__")[1] for name in before if before[name] != after[name]} == expected


def test_a_trainer_of_somebody_else_may_read_all_settings_of_supervised_training(raw, tmp_path):
    text = "recipes = ['own']\nrecipe.own = { trainer = 'TheirTrainer' }\n"
    for setting in ("architecture.vit = 'small'", "finetuning.stage_epochs = 5", "finetuning.sgd_learning_rate = 0.1"):
        changed = fingerprints(tmp_path, f"{text}[settings]\n{setting}\n")
        same = changed.items() & fingerprints(tmp_path, text).items()
        assert {name.rpartition("__")[2] for name, _ in same} == {"plan"}


def test_content_counts_and_not_the_time_of_a_file(raw, tmp_path):
    text = "recipes = ['unetrpp']\n"
    before = fingerprints(tmp_path, text)
    image = raw / "imagesTr/case.nii.gz"
    os.utime(image, (1, 1))
    assert fingerprints(tmp_path, text) == before
    copy = raw.with_name("copy")
    raw.rename(copy)
    copy.rename(raw)
    assert fingerprints(tmp_path, text) == before
    image.write_bytes(b"other")
    assert not fingerprints(tmp_path, text).items() & before.items()


def test_tables_of_patients_count_by_content(raw, tmp_path):
    """That of the data set for everything, one that a setting names for the trainings, wherever it lies."""
    text = "recipes = ['unetrpp']\n"
    before = fingerprints(tmp_path, text)
    (raw / "patients.json").write_text('{"case": "first"}')
    with_table = fingerprints(tmp_path, text)
    assert not with_table.items() & before.items()
    (raw / "patients.json").write_text('{"case": "other"}')
    assert not fingerprints(tmp_path, text).items() & with_table.items()
    table = tmp_path / "own.json"
    table.write_text('{"case": "first"}')
    text = "recipes = ['full']\n[settings.pretraining]\npatients = '{}'\n"
    before = fingerprints(tmp_path, text.format(table))
    moved = table.rename(tmp_path / "moved.json")
    assert fingerprints(tmp_path, text.format(moved)) == before
    moved.write_text('{"case": "other"}')
    after = fingerprints(tmp_path, text.format(moved))
    assert {name.rpartition("__")[2] for name in before if before[name] != after[name]} == {
        "pretrain",
        "train",
        "score",
    }
    with pytest.raises(FileNotFoundError, match=r"pretraining.patients = '.*own.json' is not a file"):
        fingerprints(tmp_path, text.format(table))


def test_files_are_hashed_once(raw, tmp_path, monkeypatch):
    text = "recipes = ['unetrpp']\n"
    before, read = fingerprints(tmp_path, text), []
    monkeypatch.setattr(content, "hash_file", lambda path: read.append(path.parent.name) or "0" * 64)
    assert fingerprints(tmp_path, text) == before and read == []
    (raw / "labelsTr/case.nii.gz").write_bytes(b"longer")
    assert fingerprints(tmp_path, text) != before and read == ["labelsTr"]
    (tmp_path / "b" / content.CACHE).write_text("half a fi")
    fingerprints(tmp_path, text)
    assert sorted(read) == ["imagesTr", "labelsTr", "labelsTr"]


def test_weights_count_by_content(raw, tmp_path):
    weights = tmp_path / "a.pth"
    text = (
        "recipes = ['mine']\n[recipe.mine]\ntrainer = 'TopoMAEFusionTrainer'\nsettings.finetuning.pretrained = '{}'\n"
    )
    with pytest.raises(FileNotFoundError, match=r"finetuning.pretrained = '.*a.pth' is not a file"):
        fingerprints(tmp_path, text.format(weights))
    weights.write_bytes(b"weights")
    before = fingerprints(tmp_path, text.format(weights))
    moved = weights.rename(tmp_path / "b.pth")
    assert fingerprints(tmp_path, text.format(moved)) == before
    moved.write_bytes(b"better weights")
    after = fingerprints(tmp_path, text.format(moved))
    assert {name.rpartition("__")[2] for name in before if before[name] != after[name]} == {"train", "score"}


def test_code_and_versions_count(raw, tmp_path, monkeypatch):
    text = "recipes = ['unetrpp']\n"
    before = fingerprints(tmp_path, text)

    def changed_after(name, value):
        with monkeypatch.context() as patch:
            patch.setattr(f"nnunet_topomae.benchmark.jobs.{name}", value)
            after = fingerprints(tmp_path, text)
        return {name.rpartition("__")[2] for name in before if before[name] != after[name]}

    code, versions = content.code_state, content.library_versions
    assert changed_after("code_state", lambda stage, by: "new" if stage == "score" else code(stage, by)) == {"score"}
    assert changed_after("code_state", lambda stage, by: "new" if stage == "train" else code(stage, by)) == {
        "train",
        "score",
    }
    newer = {**versions("torch", "nnunetv2"), "torch": "99.0"}
    assert changed_after("library_versions", lambda *names: {name: newer[name] for name in names}) == {"train", "score"}
    assert content.code_state("train", "version") == nnunet_topomae.__version__
    assert fingerprints(tmp_path, f"code = 'version'\n{text}") != before


def source_of(name):
    """File of a module of the package, wherever it is installed; None for what is no module."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a name in a module, which is no package
        return None
    return Path(found.origin).resolve() if found is not None and found.origin else None


def imported(files):
    """Modules of the package that files import, at any depth and also inside functions."""
    found, to_read = set(), list(files)
    while to_read:
        file = to_read.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            sources = [source_of(name) for name in names if name.startswith("nnunet_topomae.")]
            to_read += [source for source in sources if source is not None]
    return found


def trainers_of_recipes():
    """Modules of all trainers that recipes name."""
    text = source_of("nnunet_topomae.ext_trainer.topomae").read_text(encoding="utf-8")
    found = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    modules = {one.name: node.module.removeprefix("nnunet_topomae.") for node in found for one in node.names}
    return sorted({modules[recipe.trainer] for recipe in RECIPES.values()})


@pytest.mark.parametrize(
    ("stages", "starts"),
    [
        (["plan"], ["plans"]),
        (["preset"], ["plans", "commands.plan"]),
        (["pretrain"], ["plans", "trainers"]),
        (["train"], ["plans", *trainers_of_recipes()]),
        (["predict"], ["plans", *trainers_of_recipes()]),
        (["score", "betti"], ["nnunet.scoring"]),
    ],
    ids=lambda names: "+".join(names[:2]),
)
def test_the_code_of_a_stage_is_all_that_it_runs(stages, starts):
    first = [source_of(f"nnunet_topomae.{start}") for start in starts]
    run = imported(
        [file for path in first for file in (path.parent.glob("*.py") if path.stem == "__init__" else [path])]
    )
    hashed = {path.resolve() for stage in stages for _, path in content._modules(content.CODE[stage])}
    # Files are read and written, in the end, as they are; DICOM is read before a benchmark begins.
    unimportant = {source_of(f"nnunet_topomae.{name}") for name in ("files", "datasets.dicom")}
    assert len(run) > len(first)
    assert {file for file in run - hashed if ast.parse(file.read_text(encoding="utf-8")).body[1:]} <= unimportant
    # What statistics and pages are made with decides no score.
    assert source_of("nnunet_topomae.evaluation.statistics") not in hashed
    assert not any(path.is_relative_to(source_of("nnunet_topomae.reports").parent) for path in hashed)


@pytest.mark.parametrize("stage", ["plan", "preset", "train", "predict", "score"])
def test_losses_of_pre_training_are_the_code_of_pre_training_alone(stage):
    losses = {source_of(f"nnunet_topomae.{name}") for name in ("topology.matching", "losses.copretraining")}
    assert losses <= {path.resolve() for _, path in content._modules(content.CODE["pretrain"])}
    assert not losses & {path.resolve() for _, path in content._modules(content.CODE[stage])}


def test_betti_numbers_count_where_they_are_measured(raw, tmp_path, monkeypatch):
    code = content.code_state
    for betti, expected in ((True, {"score"}), (False, set())):
        text = f"recipes = ['unetrpp']\nbetti = {str(betti).lower()}\n"
        before = fingerprints(tmp_path, text)
        with monkeypatch.context() as patch:
            new = lambda stage, by: "new" if stage == "betti" else code(stage, by)  # noqa: E731
            patch.setattr("nnunet_topomae.benchmark.jobs.code_state", new)
            after = fingerprints(tmp_path, text)
        assert {name.rpartition("__")[2] for name in before if before[name] != after[name]} == expected


def test_identical_pretrainings_run_once(raw, tmp_path):
    own = "[recipe.slow]\nbase = 'full'\nsettings.finetuning.learning_rate = 1e-5\n"
    jobs = jobs_of(tmp_path, f"{HEAD}recipes = ['full', 'slow', '+vit']\n{own}")
    pretrainings = [job for job in jobs if job.kind == "pretrain"]
    assert [job.recipe for job in pretrainings] == ["full", "+vit"]
    training = next(job for job in jobs if job.kind == "train" and job.recipe == "slow")
    assert training.find("pretrain") is pretrainings[0]
    # Another recipe first: another name, the same folder.
    (other,) = (job for job in jobs_of(tmp_path, f"{HEAD}recipes = ['slow']\n{own}") if job.kind == "pretrain")
    assert other.name != pretrainings[0].name
    assert (other.place, other.fingerprint) == (pretrainings[0].place, pretrainings[0].fingerprint)


def test_a_changed_recipe_keeps_its_title_with_its_name(raw, tmp_path):
    own = "[recipe.full]\nbase = 'full'\n[recipe.slow]\nbase = 'full'\n[recipe.nnunet]\nbase = 'nnunet'\ntitle = 'U'\n"
    path = tmp_path / "b.toml"
    path.write_text(f"{HEAD}recipes = ['full', 'slow', 'nnunet']\n{own}")
    assert [recipe.title for recipe in read_spec(path).recipes] == [RECIPES["full"].title, "slow", "U"]


def test_the_file_may_name_the_raw_data(raw, tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    text = 'datasets = [5]\nrecipes = ["unetrpp"]\n'
    with pytest.raises(ValueError, match="nnUNet_raw is not set"):
        jobs_of(tmp_path, text)
    assert len(jobs_of(tmp_path, 'raw = "raw"\n' + text)) == 1 + 5 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recipes = ['nnformer']", "nnformer is not available"),
        ("recipes = ['nothing']", "no recipe 'nothing'; there are nnunet"),
        ("seed = [1]", "unknown key seed; allowed are"),
        ("folds = []", "must be a list of at least one value"),
        ("folds = [0, 0]", "names a value twice"),
        ("label_fractions = [0.0]", "above 0 and at most 1"),
        ("device = 'tpu'", "must be cpu or cuda"),
        ("baseline = 'nnunet'", "is none of the recipes"),
        ("settings = {finetuning = {seed = 3}}", "finetuning.seed is set by seeds"),
        ("settings = {finetuning = {epoch = 3}}", r"b\.toml: .*finetuning\.epoch"),
        ("settings = {finetuning = {epochs = 0}}", r"b\.toml: .*finetuning\.epochs"),
        ("settings = {patch_sizes = [16, 16, 16]}", r"b\.toml: .*patch_sizes"),
        ("settings = {patch_size = 'twelve'}", r"b\.toml: patch_size = 'twelve' must be three whole numbers"),
        ("settings = {patch_size = [16, 16]}", r"b\.toml: patch_size = \[16, 16\] must be"),
        ("settings = {batch_size = 0}", r"b\.toml: batch_size = 0 must be a whole number above 0"),
        ("recipes = ['mine']\n[recipe.mine]\nbase = 'full'\nsettings.batch_size = 1.5", r"b\.toml: batch_size = 1.5"),
        ("recipes = ['mine']\n[recipe.mine]\nbase = 'full'\nsettings.topology.weigth = 1", r"topology\.weigth"),
        ("environment = {nnUNet_n_proc_DA = 2}", r"environment\.nnUNet_n_proc_DA = 2 must be of type str"),
        ("baseline = ['unetrpp', 'nnunet']", "baseline = 'nnunet' is none of the recipes"),
        ("baseline = []", "must be a list of at least one value"),
        ("primary = 'unetrpp'", "primary = 'unetrpp' must be"),
        ("primary = ['unetrpp', 'unetrpp', 'dice']", "with itself"),
        ("primary = ['unetrpp', 'nnunet', 'dice']", "names 'nnunet', which is none"),
        ("recipes = ['unetrpp', 'nnunet']\nprimary = ['unetrpp', 'nnunet', 'dise']", "metric 'dise'; there are dice"),
        (
            "recipes = ['unetrpp', 'nnunet']\nprimary = ['unetrpp', 'nnunet', 'dice', 0.1]",
            "names the label fraction 0.1; label_fractions has 1",
        ),
        ("recipes = ['unetrpp', 'nnunet']\nprimary = ['unetrpp', 'nnunet', 'dice', true]", "must be"),
        ("recipes = ['unetrpp', 'nnunet']\nprimary = ['unetrpp', 'nnunet', 'betti_error']", "betti = true only"),
        ("recipes = ['unetrpp', 'nnunet']\nprimary = ['unetrpp', 'nnunet', 'dice']\nmargin = 1.5", "below 1"),
        ("recipes = ['unetrpp', 'nnunet']\nprimary = ['unetrpp', 'nnunet', 'hd95']\nmargin = 0", "above 0"),
        ("ct_window = [400, -1000]", "must be the lowest and the highest HU"),
        ("ct_window = [-160, 240, 1]", "must be the lowest and the highest HU"),
        ("margin = 0.02", "belongs to a primary comparison"),
        ("tolerance = 'x'", "must be of type float"),
        ("recipes = ['mine']\n[recipe.mine]\nbase = 'full'\ntypo = 1", "unknown key recipe.mine.typo"),
        ("recipes = ['mine']\n[recipe.mine]\ntitle = 'x'", "needs a trainer, or a base"),
        ("recipes = ['mine']\n[recipe.mine]\nbase = 'full'\nadds_pretraining = 'yes'", "must be of type bool"),
        ("recipes = ['full', 'mine']\n[recipe.mine]\nbase = 'full'\ntitle = 'fusion, all losses'", "the same title"),
        ("not toml", "is not TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, change, message):
    key = change.split(" ")[0]
    lines = {"datasets": "datasets = [1]", "recipes": "recipes = ['unetrpp']"}
    lines.pop(key, None)
    file = tmp_path / "b.toml"
    file.write_text("\n".join([*lines.values(), change]))
    with pytest.raises(ValueError, match=message):
        read_spec(file)


def test_folds_that_a_data_set_lacks_are_named(raw, tmp_path):
    text = "datasets = [5]\nrecipes = ['unetrpp']\nfolds = [0, 5]\n"
    with pytest.raises(
        ValueError, match=r"folds names 5, but Dataset005_Five has 5 folds, 0 to 4. .*splits_final\.json"
    ):
        jobs_of(tmp_path, text)
    # Folds of its own; and a preset adds the published one.
    splits = raw / "splits_final.json"
    splits.write_text(json.dumps(6 * [{"train": [], "val": []}]))
    assert {job.fold for job in jobs_of(tmp_path, text) if job.kind == "train"} == {0, 5}
    splits.write_text(json.dumps(2 * [{"train": [], "val": []}]))
    with pytest.raises(ValueError, match=r"has 2 folds, 0 to 1"):
        jobs_of(tmp_path, text)
    splits.write_text("{}")
    with pytest.raises(ValueError, match=r"splits_final\.json is not a list of folds"):
        jobs_of(tmp_path, text)


def test_the_primary_comparison_is_read_and_names_the_default_baseline(tmp_path):
    file = tmp_path / "b.toml"
    head = "datasets = [1]\nrecipes = ['full', 'unetrpp', 'fusion-scratch']\nlabel_fractions = [1.0, 0.1]\n"
    file.write_text(head + "primary = ['full', 'fusion-scratch', 'dice', 0.1]\nmargin = 0.015\n")
    spec = read_spec(file)
    assert (spec.primary, spec.margin) == (Primary("full", "fusion-scratch", "dice", 0.1), 0.015)
    assert spec.baselines == ("fusion-scratch",)
    file.write_text(head + "primary = ['full', 'fusion-scratch', 'hd95']\nbaseline = ['unetrpp', 'full']\nmargin = 2\n")
    spec = read_spec(file)
    assert spec.primary == Primary("full", "fusion-scratch", "hd95", 1.0)
    assert (spec.baselines, spec.baseline, spec.margin) == (("unetrpp", "full"), "unetrpp", 2.0)
    file.write_text(head)
    assert (read_spec(file).baselines, read_spec(file).primary) == (("full",), None)


def test_own_recipes(tmp_path):
    file = tmp_path / "b.toml"
    file.write_text(
        "datasets = [1]\nrecipes = ['full', 'light']\n[recipe.light]\nbase = 'full'\n"
        "title = 'light'\n[recipe.light.settings.topology]\nweight = 10\n"
    )
    light = read_spec(file).recipe("light")
    assert light.settings == {"topology.weight": 10}
    assert (light.trainer, light.pretrainer) == ("TopoMAEFusionTrainer", "TopoMAEPretrainer")


def test_an_own_control_trains_for_the_steps_of_pre_training_too(raw, tmp_path):
    """The example of docs/benchmark.md, which needs no pre-training of its own."""
    text = (
        "recipes = ['fusion-nnunet', 'scratch']\n[recipe.scratch]\ntrainer = 'TopoMAEFusionTrainer'\n"
        "plans = 'nnUNetPlans'\nadds_pretraining = true\n"
        "settings = { architecture = { partner = 'plan' }, finetuning = { pretrained = 'scratch' } }\n"
        "[settings.pretraining]\nepochs = 7\niterations_per_epoch = 20\n"
        "[settings.finetuning]\nepochs = 3\niterations_per_epoch = 10\n"
    )
    trained = {job.recipe: job for job in jobs_of(tmp_path, HEAD + text) if job.kind == "train"}
    assert {name: job.epochs for name, job in trained.items()} == {"fusion-nnunet": 3, "scratch": 3 + 14}
    assert trained["scratch"].find("pretrain") is None


def test_a_preset_plans_and_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    folder = tmp_path / "raw" / "Dataset018_Synapse"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")
    file = tmp_path / "b.toml"
    file.write_text(
        "datasets = [18]\nrecipes = ['nnunet', 'full']\nfolds = [5]\npreset = 'synapse'\n"
        "[settings.finetuning]\nepochs = 7\n"
    )
    spec = read_spec(file)
    assert spec.paper == {"18": "synapse"}
    plan, *others = make_jobs(spec)
    planned = {job.parameters["plans"]: job.parameters["planner"] for job in (plan, others[0])}
    assert planned == {"TopoMAEPlans_synapse": "preset synapse", "nnUNetPlans": "ExperimentPlanner"}
    by_kind = {job.kind: job for job in others if "full" in job.name}
    assert by_kind["pretrain"].parameters["plans"] == "TopoMAEPlans_synapse"
    assert by_kind["pretrain"].epochs == 120
    assert by_kind["train"].parameters["settings"]["finetuning.epochs"] == 7
    assert "spacing" not in by_kind["train"].parameters["settings"]
    code = content.code_state
    with monkeypatch.context() as patch:
        new = lambda stage, by: "new" if stage == "preset" else code(stage, by)  # noqa: E731
        patch.setattr("nnunet_topomae.benchmark.jobs.code_state", new)
        after = {job.name: job.fingerprint for job in make_jobs(spec)}
    same = {job.recipe or job.name for job in (plan, *others) if after[job.name] == job.fingerprint}
    assert same == {"nnunet", "Dataset018__nnUNetPlans__plan"}
    file.write_text(file.read_text().replace("synapse", "brats"))
    with pytest.raises(ValueError, match="is none of acdc, btcv"):
        read_spec(file)


def test_lengths_that_the_file_does_not_name_are_the_plans_defaults(raw, tmp_path):
    """What `status` counts on must be what the trainers do."""
    jobs = jobs_of(tmp_path, 'datasets = [5]\nrecipes = ["full"]\nfolds = [0]\n')
    epochs = {job.kind: job.epochs for job in jobs}
    defaults = TopoMAEConfig()
    assert (epochs["pretrain"], epochs["train"]) == (defaults.pretraining.epochs, defaults.finetuning.epochs)
    assert epochs["pretrain"] != epochs["train"]


def test_a_control_waits_for_the_times_that_it_is_to_take(raw, tmp_path):
    recipes = '["full-scratch-time", "full"]\nlabel_fractions = [1.0, 0.5]\n'
    jobs = {job.name: job for job in jobs_of(tmp_path, f"{HEAD}recipes = {recipes}")}
    for suffix in ("", "__labels0.5"):
        control = jobs[f"Dataset005__full-scratch-time__fold0__seed0{suffix}__train"]
        tuned = jobs[f"Dataset005__full__fold0__seed0{suffix}__train"]
        pretraining = jobs["Dataset005__full__fold0__seed0__pretrain"]
        assert control.measured == (pretraining, tuned) and control.epochs == 0
        assert [need.name for need in control.needs[1:]] == [pretraining.name, tuned.name]
        order = list(jobs)
        assert order.index(control.name) > order.index(tuned.name)
        # Nothing but their time is taken from them.
        assert control.find("pretrain") is None
        score = jobs[control.name.replace("__train", "__score")]
        assert score.need("train") is control and score.find("pretrain") is None


PLANS = {
    "3d_fullres": {
        "batch_size": 2,
        "patch_size": [32, 32, 32],
        "architecture": {"arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]}},
    }
}
# Epochs, seconds of each, and multiply-adds of a crop, of which an epoch has 250 x 2.
MEASURED = {"full__pretrain": (6, 10.0, 3e9), "full__train": (5, 4.0, 2e9), "nnunet__train": (5, 8.0, 7e9)}


def control_epochs(folder, text, name):
    """Epochs for which a control trains after jobs that have taken what MEASURED says; and its job."""
    jobs = jobs_of(folder, f"{HEAD}{text}[settings.finetuning]\nepochs = 5\n")
    spec = read_spec(folder / "b.toml")
    for job in jobs:
        if job.kind == "plan":
            dataset = JobFolder.of(job, spec).dataset
            dataset.mkdir(parents=True)
            name_of_plans = job.parameters["plans"]
            plans = {"plans_name": name_of_plans, "configurations": PLANS}
            (dataset / f"{name_of_plans}.json").write_text(json.dumps(plans))
        elif (measured := MEASURED.get(f"{job.recipe}__{job.kind}")) is not None:
            epochs, seconds, macs = measured
            fold = JobFolder.of(job, spec).fold
            record = {"seconds": seconds, "train": {}, "validation": {}}
            fold.mkdir(parents=True)
            for epoch in range(epochs):
                write_epoch(fold, {"epoch": epoch, **record})
            add_facts(fold, {"steps": 250 * epochs, "crops_per_step": 2, "macs": macs})
    control = next(job for job in jobs if (job.recipe, job.kind) == (name, "train"))
    commands = []
    train(Task(control, spec, lambda *command: commands.append(command)))
    folder = JobFolder.of(control, spec)
    assert not folder.results.exists()  # no pre-training was linked
    (written,) = (path for path in folder.dataset.glob("*_benchmark.json"))
    section = json.loads(written.read_text())["configurations"]["3d_fullres"]["topomae"]["finetuning"]
    assert commands[0][:6] == ("nnUNetv2_train", "005", "3d_fullres", "0", "-tr", control.parameters["trainer"])
    return section["epochs"], control


@pytest.mark.parametrize(
    ("name", "also", "epochs"),
    [
        ("full-scratch-time", "", 20),  # (60 s + 20 s) / 4 s
        ("full-scratch-macs", "", 14),  # (6 x 3 + 5 x 2) / 2
        ("full-nnunet-time", "'nnunet', ", 10),  # 80 s / 8 s
    ],
)
def test_a_control_takes_as_much_as_pre_training_and_fine_tuning(raw, tmp_path, name, also, epochs):
    found, control = control_epochs(tmp_path, f"recipes = [{also}'{name}', 'full']\n", name)
    assert found == epochs
    assert [job.recipe for job in control.measured] == ["full", "full", *(["nnunet"] if also else [])]


@pytest.mark.parametrize(("key", "epochs"), [("same_time_as", 10), ("same_macs_as", 4)])
def test_an_own_control_is_measured_by_a_training_of_its_own_network(raw, tmp_path, key, epochs):
    """Not by that of the recipe that it takes as long as, whose epochs take half of the time."""
    text = f"recipes = ['full', 'own', 'nnunet']\nrecipe.own = {{ base = 'nnunet', {key} = 'full' }}\n"
    assert control_epochs(tmp_path, text, "own")[0] == epochs


def test_controls_at_equal_time_and_at_equal_operations_are_different_jobs(raw, tmp_path):
    own = "recipes = ['full', 'own']\nrecipe.own = {{ base = 'full-scratch', {} = 'full' }}\n"
    time, macs = (fingerprints(tmp_path, own.format(key)) for key in ("same_time_as", "same_macs_as"))
    assert {name for name in time if time[name] != macs[name]} == {
        f"Dataset005__own__fold0__seed0__{kind}" for kind in ("train", "score")
    }


def test_operations_that_nobody_recorded_are_named(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("nnunet_topomae.benchmark.stages.read_facts", lambda fold: {"steps": 3})
    with pytest.raises(ValueError, match=r"steps and multiply-adds are not in all of .*training\.json"):
        control_epochs(tmp_path, "recipes = ['full', 'full-scratch-macs']\n", "full-scratch-macs")


def test_times_that_nobody_recorded_are_named(raw, tmp_path, monkeypatch):
    monkeypatch.delitem(MEASURED, "nnunet__train")
    with pytest.raises(ValueError, match=r"__nnunet__.* does not say how long its epochs took"):
        control_epochs(tmp_path, "recipes = ['full', 'nnunet', 'full-nnunet-time']\n", "full-nnunet-time")


@pytest.mark.parametrize(
    "recipes",
    [
        "['full', 'full-nnunet-time']",
        "['full', 'own']\nrecipe.own = { base = 'nnunet', same_time_as = 'full' }",
        "['full', 'own', 'nnunet']\nrecipe.own = { base = 'nnunet', same_time_as = 'full', settings.batch_size = 4 }",
        # Frozen weights make epochs cheaper than those from scratch.
        "['own', 'control']\nrecipe.own = { base = 'full', settings.finetuning.schedule = 'head_only' }\n"
        "recipe.control = { base = 'full-scratch', same_time_as = 'own', settings.finetuning.schedule = 'head_only' }",
    ],
)
def test_epochs_that_nothing_measures_are_refused(raw, tmp_path, recipes):
    with pytest.raises(ValueError, match=r"but its epochs are others, and no recipe measures them. Add one with"):
        jobs_of(tmp_path, f"{HEAD}recipes = {recipes}\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipes = ['full-scratch-time']\n", "takes as long as full, which is not among the recipes. Add it, or"),
        ("recipes = ['full-scratch-macs']\n", "takes as many multiply-adds as full, which is not among the recipes"),
        (
            "recipes = ['full', 'mine']\n[recipe.mine]\nbase = 'full-scratch-macs'\nsame_time_as = 'full'\n",
            "recipe mine has same_time_as and same_macs_as; choose one",
        ),
        (
            "recipes = ['full', 'mine']\n[recipe.mine]\nbase = 'full'\nsame_time_as = 'full'\n",
            "recipe mine has same_time_as, so no pretrainer",
        ),
        (
            "recipes = ['nnunet', 'mine']\n[recipe.mine]\nbase = 'nnunet'\nsame_time_as = 'nnunet'\n",
            "takes as long as nnunet, which has no pre-training",
        ),
        ("recipes = ['full', 'mine']\n[recipe.mine]\nbase = 'full'\nsame_time_as = 3\n", "must be of type str"),
    ],
)
def test_a_recipe_that_takes_as_long_as_another_needs_that_one(raw, tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        jobs_of(tmp_path, HEAD + text)
