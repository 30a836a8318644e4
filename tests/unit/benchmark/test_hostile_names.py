"""Names and values of a benchmark's file that try to leave their folder, or to run as a command."""

import ast
import subprocess
from pathlib import Path

import pytest

from nnunet_topomae.benchmark.jobs import Job, find_dataset
from nnunet_topomae.benchmark.slurm import batch_script, command_list, sbatch_arguments
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.nnunet.plans_file import write_plans
from nnunet_topomae.plans.variants import make_variant

START = 'datasets = [5]\nrecipes = ["nnunet"]\n'
INJECTED = "$(touch executed);`touch executed`\ntouch executed\n' \" & touch executed #"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('datasets = [5]\nrecipes = ["../x"]\n[recipe."../x"]\nbase = "nnunet"', "recipe name = '../x'"),
        ('datasets = [5]\nrecipes = ["a\\nb"]\n[recipe."a\\nb"]\nbase = "nnunet"', "recipe name = "),
        ('datasets = [5]\nrecipes = ["a/b"]\n[recipe."a/b"]\nbase = "nnunet"', "recipe name = "),
        ('datasets = [5]\nrecipes = [""]\n[recipe.""]\nbase = "nnunet"', "recipe name = ''"),
        ('datasets = [5]\nrecipes = ["-x"]\n[recipe."-x"]\nbase = "nnunet"', "recipe name = '-x'"),
        ('datasets = [5]\nrecipes = ["a__b"]\n[recipe."a__b"]\nbase = "nnunet"', "may not contain '__'"),
        ('datasets = [5]\nrecipes = ["x"]\n[recipe.x]\ntrainer = "../../T"', r"recipe.x.trainer = "),
        (START + 'configuration = "3d_fullres; rm -rf ."', "configuration = "),
        (START + 'configuration = "../3d"', "configuration = "),
        (START + 'out = "a\\nb"', "out = .*line break"),
        (START + 'raw = "a\\u0007b"', "raw = .*control character"),
        (START + '[slurm]\n"partition x" = "low"', "entry of slurm = 'partition x'"),
        (START + '[slurm]\npartition = "low\\nhigh"', "slurm.partition = .*one line of text"),
        (START + "[slurm]\npartition = [1]", "slurm.partition = "),
        (START + '[environment]\n"A=B" = "1"', "entry of environment = 'A=B'"),
        (START + '[environment]\nA = "1\\u0000"', "environment.A = "),
    ],
)
def test_names_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "b.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        read_spec(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_the_name_of_the_file_is_a_name_too(tmp_path: Path) -> None:
    file = tmp_path / "a b;.toml"
    file.write_text(START)
    with pytest.raises(ValueError, match="name without its ending = 'a b;'"):
        read_spec(file)


def test_a_data_set_of_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Dataset005_a\ntouch executed").mkdir()
    with pytest.raises(ValueError, match="cannot be a name"):
        find_dataset(tmp_path, 5)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "a\nb", "", ".hidden", "a b"])
def test_plans_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a name"):
        write_plans({"plans_name": name}, tmp_path)
    with pytest.raises(ValueError, match="cannot be a name"):
        make_variant({"plans_name": "Plans"}, name, [], {})


def test_scripts_run_nothing_but_the_job_even_with_names_that_the_file_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second line of defence: everything that reaches a shell is quoted, and comments have one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.toml").write_text(START)
    spec = read_spec(tmp_path / "b.toml")
    first = Job("plan", INJECTED, "Dataset005_x", {})
    second = Job("score", f"{INJECTED}2", "Dataset005_x", {}, (first,))
    file = tmp_path / f"{INJECTED.replace('/', '')}.toml"
    monkeypatch.setattr("sys.executable", "true")
    for script in (command_list(spec, file, [first, second]), batch_script(file, second)):
        done = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "executed").exists()
    arguments = sbatch_arguments(spec, second, ["1"])
    assert all(argument.startswith("--") for argument in arguments)
    assert any(argument.startswith("--output=") and "%j" not in argument for argument in arguments)


def test_the_package_never_starts_a_shell(repository: Path) -> None:
    for file in (
        path for name in ("nnunet_topomae", "trainers", "plans") for path in (repository / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert not any(keyword.arg == "shell" for keyword in node.keywords), file
                assert ast.unparse(node.func) not in ("os.system", "os.popen", "eval", "exec"), file


def test_one_place_loads_checkpoints_and_none_unpickles(repository: Path) -> None:
    places = set()
    for file in (
        path for name in ("nnunet_topomae", "trainers", "plans") for path in (repository / name).rglob("*.py")
    ):
        called = {ast.unparse(n.func) for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Call)}
        assert not called & {"pickle.load", "pickle.loads", "load_pickle"}, file
        if "torch.load" in called:
            places.add(file.name)
    assert places == {"loading.py"}


NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp"}
NETWORK |= {"huggingface_hub", "wandb"}


def test_only_what_a_user_asks_for_reaches_the_network(repository: Path) -> None:
    """`push` and `pull`, and nnU-Net's logger for Weights & Biases where it is on."""
    found = set()
    for file in (
        path for name in ("nnunet_topomae", "trainers", "plans") for path in (repository / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found |= {(file.name, name.partition(".")[0]) for name in names if name.partition(".")[0] in NETWORK}
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "socket":
                assert node.attr == "gethostname", file
    assert found == {("hub.py", "huggingface_hub"), ("monitors.py", "wandb"), ("work.py", "socket")}
