import json

import pytest

import plot_runs

SUMMARY = {"model": "mixed", "parameters": 10, "tokens": 20, "train_seconds": 1.0, "val_loss": 2.0, "best_val_loss": 1.9,
           "status": "finished"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes the files of a run that are read, the text of any of them replaced."""
    monkeypatch.setattr(plot_runs.checkpoint, "load_config", lambda out_dir: {})

    def make(name, **texts):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = [{"tokens": t, "train_seconds": t / 10, "val_loss": 3 - t} for t in (0, 1)] + [{"tokens": 1, "loss": 2.0}]
        files = {"summary": json.dumps(SUMMARY), "metrics": "\n".join(map(json.dumps, lines)), **texts}
        (folder / "summary.json").write_text(files["summary"])
        (folder / "metrics.jsonl").write_text(files["metrics"])
        return str(folder)
    return make


def plot(*argv):
    with pytest.raises(SystemExit) as stopped:
        plot_runs.main(list(argv))
    return stopped.value.code


def test_runs_whose_folders_share_a_name_are_all_there(run, tmp_path, capsys):
    folders = [run("a/run"), run("b/run")]
    assert plot(*folders, f"--out={tmp_path / 'p.png'}") == 0
    printed = capsys.readouterr().out
    assert all(folder in printed for folder in folders) and (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize("texts", [dict(summary="{}"), dict(summary="3"), dict(metrics="3\n"), dict(metrics='{"val_loss": 2}\n'),
                                   dict(metrics="{"), dict(summary='{"model"')])
def test_damaged_runs_are_one_line(run, tmp_path, capsys, texts):
    assert plot(run("a", **texts), f"--out={tmp_path / 'p.png'}") == 2
    assert "damaged" in capsys.readouterr().err and not (tmp_path / "p.png").exists()
