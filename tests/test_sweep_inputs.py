"""sweep.py: which folder a run has, and what the runs of a sweep read. (Another text under the same name: test_sweep.py.)"""
import dataclasses

from running import one_line, run
from test_sweep_file import runs_of

from experiments.folder import located


def test_a_renamed_arm_keeps_the_folders_of_its_runs(sweep_file, folder, stub, capsys):
    path = sweep_file()
    runs = runs_of(path, folder)
    assert run(stub, [path, f"--out={folder}"], capsys)[0] == 0
    renamed = [dataclasses.replace(one, arm="new", folder=one.folder.replace(one.arm, "new")) for one in runs]
    found = located([*renamed, dataclasses.replace(renamed[0], hash="0" * 64, start=renamed[0])], str(folder))
    assert [one.folder for one in found[:-1]] == [one.folder for one in runs]
    assert found[-1].folder == renamed[0].folder and found[-1].start.folder == runs[0].folder


def test_what_a_config_file_says_that_the_sweep_sets_is_refused(sweep_file, folder, stub, tmp_path, capsys):
    """It would not be done: a sweep starts and goes on with its runs itself."""
    for key, value, said in (("init_from", "'out/x'", "use start = 'ARM'"), ("overwrite", "True", "set by the sweep itself")):
        config = tmp_path / "own.py"
        config.write_text(f"{key} = {value}\n")
        path = sweep_file(arms=f"arms = dict(a=dict(config={str(config)!r}))")
        status, _, err = run(stub, [path, f"--out={folder}"], capsys)
        assert status == 2
        one_line(err, key, said)


def test_another_teacher_under_the_same_name_is_refused(sweep_file, folder, stub, tmp_path, capsys):
    teacher = tmp_path / "teacher" / "ckpt" / "best"
    teacher.mkdir(parents=True)
    (teacher / "model.safetensors").write_bytes(b"one")
    path = sweep_file(f"defaults['distill_from'] = {str(tmp_path / 'teacher')!r}")
    assert run(stub, [path, f"--out={folder}"], capsys)[0] == 0
    (teacher / "model.safetensors").write_bytes(b"two")
    assert run(stub, [path, f"--out={folder}"], capsys)[0] == 0  # nothing is left to do: it is not looked for
    more = sweep_file(f"defaults['distill_from'] = {str(tmp_path / 'teacher')!r}\nseeds = seeds + [77]")
    status, _, err = run(stub, [more, f"--out={folder}"], capsys)
    assert status == 2
    one_line(err, "had another file there", "teacher")
