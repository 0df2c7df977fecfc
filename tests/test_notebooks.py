"""The notebooks run as they stand, cell by cell."""

import json
import math
from pathlib import Path

import pytest
from cells import code_cells, execute

import surge

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = [
    'CONFIG = "surge:quadratic:quick"',
    'OPTIMIZER = "sign_sgd"',
    'FLAGS = ["--config.batch_sizes=(4,64)", "--config.seeds=4", "--config.max_examples=64",'
    ' "--config.measure.examples=64", "--config.measure.directions=8"]',
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["i_have_a_table", "surge_colab"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_a_table_is_fitted_and_asked(capsys):
    names = execute(FOLDER / "i_have_a_table.ipynb")
    printed = capsys.readouterr().out
    assert "optimal learning rate by batch size" in printed and "batch size 512" in printed
    assert names["page"].startswith("<!") and Path("runs/table/fit.json").exists()
    assert 0 < names["said"].low < names["said"].lr < names["said"].high


def test_a_model_of_ones_own_is_measured_in_the_last_cell():
    names = {"surge": surge}
    exec(code_cells(FOLDER / "surge_colab.ipynb")[-1], names)
    assert math.isfinite(names["found"].b_simple.value)
    assert (names["found"].oracle["adam"].lr > 0).all()


@pytest.mark.slow
def test_an_experiment_runs_from_install_to_answer():
    names = execute(FOLDER / "surge_colab.ipynb", QUICK)
    assert names["runs"].sizes["batch_size"] == 2
    assert names["said"].lr > 0 and names["found"].b_simple.n == 1024


def test_a_line_to_replace_that_is_not_there_is_a_mistake():
    with pytest.raises(ValueError, match="binds NOWHERE in 0 lines"):
        execute(FOLDER / "i_have_a_table.ipynb", ["NOWHERE = 1"])
