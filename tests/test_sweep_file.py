"""Sweep files and the command line: the runs that they give, and what is said of mistakes."""
import pathlib
import shlex

import pytest
from running import one_line, run

import configurator
import models
import sweep
import train
from common.errors import UserError
from experiments.runs import NOT_IN_HASH, SPEED, config_hash, description, make_runs
from experiments.sweep_file import load

ROOT = pathlib.Path(__file__).resolve().parent.parent


def runs_of(path, folder="/nowhere"):
    return make_runs(load(str(path)), str(path), str(folder))


@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "sweeps").glob("*.py")))
def test_every_shipped_sweep_resolves(file):
    runs = runs_of(ROOT / "sweeps" / file)
    described = description(load(str(ROOT / "sweeps" / file)), file, runs)
    roles = {arm["role"] for arm in described["arms"]}
    flat = file in ("residual_streams.py", "deep_streams.py", "attention.py", "attention_bpe.py", "attention_size.py",
                     "bounded_halves.py", "bounded_halves_muon.py")  # no curvature there
    unshifted = (file in ("verdict.py", "verdict_rates.py", "verdict_terms.py", "verdict_documentation.py", "conversion.py", "stability.py",
                          "high_rates.py", "remedies.py", "bounded_verdict.py", "verdict_code.py", "verdict_seconds.py", "verdict_signs.py",
                          "component_equal.py")
                 or file.startswith("corpus_"))
    wanted = {"baseline", "other"} if flat else {"mixed"} if unshifted else {"baseline", "flat", "mixed"}
    wanted = {"other"} if file in ("size.py", "verdict_size.py") else wanted
    wanted = {"baseline", "mixed"} if file in ("rates_bpe.py", "verdict_muon.py", "verdict_origin.py", "verdict_modern.py", "component.py",
                                               "verdict_bounded.py", "verdict_bpe.py", "verdict_bpe_code.py", "verdict_muon_rates.py",
                                               "muon_options.py") else wanted
    assert wanted <= roles and len(runs) >= 4
    counted = {"shakespeare_lr.py": 15 * 4 + 3 + 3 * 5 + 12 * 2, "ablation.py": 31 * 4 + 7 * 5 + 5 * 3, "muon_lr.py": 8 * 4 * 4,
               "speedrun.py": 7 * 4 * 4, "fineweb_lr.py": 7 * 3, "isotropy.py": 9 * 3, "isotropy_small.py": 9 * 3,
               "residual_streams.py": 31 + 10 * 5, "deep_streams.py": 4 * 5,
               "attention.py": 8 * 3 + 2 * 2 + 9 * 5, "attention_bpe.py": 8 * 3 + 9 * 5, "attention_size.py": 6 * 3 + 3 + 4 * 3,
               "terms.py": 21 * 2 + 6, "stereographic.py": 19 * 2, "conversion.py": 1 + 5 * 4 + 6 * 5, "muon.py": 6 * 2 + 6 * 4 + 4 + 4 * 4,
               "edge.py": 11 * 2 + 6 + 6 + 3, "bounded.py": 9 * 2 + 6, "stability.py": 13 * 4 * 5, "high_rates.py": 10,
               "remedies.py": 11 * 6 + 3,
               "verdict.py": 2 * 24, "verdict_rates.py": 2 * 2, "verdict_controls.py": 3 * 6 + 3 * 3 + 2, "verdict_terms.py": 15 * 3,
               "verdict_documentation.py": 2 * 3, "verdict_code.py": 2 * 3, "verdict_seconds.py": 2 * 3, "verdict_size.py": 3 * 2 * 3,
               "verdict_bpe.py": 9 * 3, "verdict_bpe_code.py": 3 * 3, "bounded_halves.py": 4 * 3, "bounded_halves_muon.py": 3 * 4 + 2,
               "rates_bpe.py": 3 * 7 * 2, "verdict_muon.py": 3 * 8, "verdict_muon_rates.py": 5, "verdict_origin.py": 5 * 3,
               "verdict_modern.py": 2 * 20 + 3, "component.py": 5 * 3, "component_equal.py": 2 * 9 + 4,
               "verdict_bounded.py": 2 * 20 + 2 * 5, "signs.py": 17 * 2 + 15 * 2,
               "muon_options.py": 2 * 4 * 2, "verdict_signs.py": 3 * 3,
               "learned_curvature.py": 8 * 2 * 4,
               "bounded_verdict.py": 2 * 24 + 8 + 10, "size.py": 2 * 8 * 3, **{f"corpus_{name}.py": 13 for name in (
                   "documentation", "code", "documentation_bpe", "code_bpe")},
               **dict.fromkeys(("tree.py", "tree_half.py", "tree_random.py"), 5 * 2 + 2 * 3)}  # as their comments count
    assert len(runs) == counted[file]
    if file != "fineweb_lr.py":
        steps = {200, 300, 600} if flat or "bpe" in file else {400, 800} if file == "conversion.py" else {600, 1000, 1500, 3000}
        steps = {"size.py": {150, 300, 600}, "verdict_seconds.py": {1500, 1710}, "rates_bpe.py": {1500},
                 **dict.fromkeys(("verdict_bpe.py", "verdict_bpe_code.py", "bounded_halves.py", "bounded_halves_muon.py"), {1500})
                 }.get(file, steps)
        steps = {2000} if file.startswith("tree") else steps
        assert {run.max_iters for run in runs} <= steps
    else:
        assert {run.max_iters for run in runs} == {int(2.5e9) // (40 * 12 * 1024)}


def test_the_hash_is_of_what_decides_the_result_alone():
    def hashed(*overrides, model="mixed"):
        argv = [f"--model={model}", *overrides]
        return config_hash(configurator.resolve(argv, train.TrainConfig, models.CONFIGS))
    assert len(hashed()) == 64 and hashed() == hashed()
    for same in ("--out_dir=x", "--data_dir=/x", "--threads=3", "--device=cpu", "--init_from=resume",
                 "--overwrite=True", "--log_interval=3", "--min_lr=1e-4", "--learning_rate=0.001"):
        assert hashed(same) == hashed(), same
    assert hashed("--wandb_log=True", "--wandb_project=x") == hashed()
    changed = [hashed(c) for c in ("--seed=2", "--max_iters=4", "--learning_rate=2e-3", "--curvature=0.5",
                                   "--eval_iters=3", "--n_layer=3", "--dataset=fineweb", "--dtype=bfloat16")]
    assert len({hashed(), hashed(model="baseline"), *changed}) == len(changed) + 2
    assert SPEED <= NOT_IN_HASH <= configurator.keys_of(train.TrainConfig).keys()
    # where seconds are the limit, what decides the speed decides the steps
    speeds = "--threads=3", "--device=cpu", "--parallel=fsdp", "--num_workers=0"
    timed = [hashed("--max_seconds=9", *speed) for speed in ([], *zip(speeds))]
    assert len(set(timed)) == 5 and hashed("--max_seconds=9", "--out_dir=x", "--log_interval=3") == timed[0]


def test_grid_seeds_and_stages(sweep_file, folder):
    path = sweep_file("""
grid = dict(learning_rate=[1e-3, 1e-2], weight_decay=[0.0, 0.5])
runs = [dict(arms=['flat'], grid=dict(learning_rate=[1e-2], weight_decay=[0.5]), seeds=[0, 7, 8])]
""", arms="""arms = [dict(name='a', config='config/demo_baseline.py'), dict(name='flat', config='config/demo_flat.py'),
        dict(name='few', config='config/demo_mixed.py', grid=dict(muon_lr=[0.5]), seeds=[3, 4], optimizer='muon')]""")
    runs = runs_of(path)
    points = {(r.arm, r.lr, r.overrides.get("weight_decay"), r.seed) for r in runs}
    assert len(points) == len(runs) == 4 + 4 + 2 + 2
    assert {p for p in points if p[0] == "few"} == {("few", 0.5, None, 3), ("few", 0.5, None, 4)}
    assert {p for p in points if p[3] > 6} == {("flat", 1e-2, 0.5, 7), ("flat", 1e-2, 0.5, 8)}
    assert runs[0].folder == f"/nowhere/runs/a-lr0.001-seed0-weight_decay=0.0-{runs[0].hash[:8]}"
    places = [(r.seed in (0, 3)) for r in runs if r.arm != "flat"]
    assert places == sorted(places, reverse=True)  # first seeds first
    about = description(load(str(path)), str(path), runs)
    assert about["grid"] == {"learning_rate": [1e-3, 1e-2], "weight_decay": [0.0, 0.5], "muon_lr": [0.5]}
    assert sorted(about["seeds"]) == [0, 3, 4, 7, 8] and about["name"] == "small"
    assert about["arms"][2] == {"name": "few", "config": "config/demo_mixed.py", "role": "other",
                                "overrides": {"optimizer": "muon"}}


def test_a_default_that_means_nothing_to_an_arm_is_left_out_of_its_runs(sweep_file):
    """So that train.py does not refuse it; what the arm itself sets is refused."""
    text = "defaults = dict(optimizer='muon', muon_lr=0.01, curvature_lr_mult=2.0)"
    path = sweep_file(text, arms="""arms = [dict(name='adam', config='config/demo_flat.py', optimizer='adamw'),
        dict(name='muon', config='config/demo_mixed.py', curvature_mode='random')]""")
    given = {r.arm: {"muon_lr", "curvature_lr_mult"} & r.overrides.keys() for r in runs_of(path)}
    assert given == {"adam": set(), "muon": {"muon_lr", "curvature_lr_mult"}}
    path = sweep_file(text, arms="arms = [dict(name='adam', config='config/demo_flat.py', optimizer='adamw', muon_momentum=0.9)]")
    with pytest.raises(UserError, match="arm 'adam'.*muon_momentum has no effect"):
        runs_of(path)


def test_what_an_arm_sets_is_left_out_where_a_point_of_the_grid_switches_it_off(sweep_file):
    arms = "arms = [dict(name='mixed', config='config/demo_mixed.py', max_distance=2.0)]"
    path = sweep_file("grid = dict(curvature=[0.0, 1.0])", arms=arms)
    assert {r.overrides["curvature"]: r.overrides.get("max_distance") for r in runs_of(path)} == {0.0: None, 1.0: 2.0}
    path = sweep_file("", arms=arms.replace("max_distance", "curvature=0.0, max_distance"))
    with pytest.raises(UserError, match="max_distance has no effect with c = 0"):
        runs_of(path)


def test_a_target_is_the_sweeps_to_set_where_its_summary_sees_it(sweep_file, tmp_path):
    """A margin in nats, and a table of final losses, would be of runs that stop where they reach it."""
    config = tmp_path / "stops.py"
    config.write_text(f"exec(open({str(ROOT / 'config/demo_baseline.py')!r}).read())\ntarget_val_loss = 1.7\n")
    arms = f"arms = [dict(name='stops', config={str(config)!r})]"
    with pytest.raises(UserError, match="arm 'stops': target_val_loss = 1.7 is from .*stops.py.*set it in the sweep's defaults"):
        runs_of(sweep_file(arms=arms))
    for value in (None, 1.6):
        only, = runs_of(sweep_file(f"defaults['target_val_loss'] = {value}", arms=arms))
        assert only.overrides["target_val_loss"] == value


@pytest.mark.parametrize("budget, key, value", [
    ("dict(steps=9)", "max_iters", 9), ("dict(tokens=1000)", "max_iters", 1000 // 64),
    ("dict(seconds=30)", "max_seconds", 30.0)])
def test_budgets(budget, key, value, sweep_file):
    only, = runs_of(sweep_file(f"budget = {budget}"))
    assert only.overrides[key] == value
    assert (only.max_seconds if key == "max_seconds" else only.max_iters) == value


@pytest.mark.parametrize("budget, to_do", [("steps=9", 0), ("seconds=30", 1)])
def test_other_threads_are_other_runs_where_seconds_are_the_budget(budget, to_do, sweep_file, folder, stub, capsys):
    args = [sweep_file(f"budget = dict({budget})"), f"--out={folder}"]
    assert run(stub, [*args, "--threads=1"], capsys)[0] == 0
    assert " 0 to do" in run(stub, [*args, "--threads=1", "--dry-run"], capsys)[1]
    assert f" {to_do} to do" in run(stub, [*args, "--threads=2", "--dry-run"], capsys)[1]


ONE = "arms = {'a': dict(config='config/demo_baseline.py', %s)}"


@pytest.mark.parametrize("text, parts", [
    ("grids = dict(learning_rate=[1e-3])", ["unknown name 'grids'", "'grid'"]),
    ("arms = {}", ["no arms"]),
    ("arms = {'a': dict(role='flat')}", ["arm 'a'", "config is missing"]),
    ("arms = {'a/b': dict(config='config/demo_flat.py')}", ["a/b", "letters, digits"]),
    ("arms = {'a': dict(config='config/demo_flut.py')}", ["arm 'a'", "config/demo_flat.py"]),
    (ONE % "role='best'", ["arm 'a'", "role = 'best'"]),
    (ONE % "learning_rat=1e-3", ["arm 'a'", "unknown key 'learning_rat'", "'learning_rate'"]),
    (ONE % "curvature=0.1", ["arm 'a'", "curvature belongs to"]),
    (ONE % "n_head=3", ["arm 'a'", "not divisible"]),
    (ONE % "max_iters=3", ["arm 'a'", "max_iters", "budget"]),
    (ONE % "seed=3", ["arm 'a'", "use seeds"]),
    (ONE % "batch_size=2.5", ["arm 'a'", "batch_size takes a whole number"]),
    (ONE % "learning_rate=1e-3" + "; grid = dict(learning_rate=[1e-3])", ["arm 'a'", "by the arm and by the grid"]),
    ("grid = dict(learning_rate=[])", ["is empty"]),
    ("grid = dict(learning_rate=1e-3)", ["must be a list"]),
    ("grid = dict(seed=[1])", ["use seeds"]),
    ("grid = dict(num_workers=[0, 4])", ["num_workers cannot be in a grid"]),
    ("seeds = []", ["seeds is empty"]),
    ("after = ['']", ["not a command line"]),
    ("seeds = [1.5]", ["must be a whole number"]),
    ("budget = dict(stps=3)", ["unknown name 'stps'", "'steps'"]),
    ("budget = dict(steps=3, tokens=4)", ["steps and tokens"]),
    ("budget = dict(tokens=float('inf'))", ["budget of tokens", "finite"]),
    ("budget = dict(seconds=float('nan'))", ["budget of seconds", "finite"]),
    ("budget = dict(tokens=3)", ["less than one step, 64"]),
    ("slurm = dict(time=3)", ["unknown name 'time'", "'time_min'"]),
    ("slurm = dict(gpus='2')", ["gpus", "a whole number"]),
    ("after = ['echo {run}']", ["after", "{runs}"]),
    ("after = ['echo {out.x}']", ["not a command line"]),
    ("after = ['echo {out[a]}']", ["not a command line"]),
    ("runs = [dict(arms=['basline'])]", ["unknown name 'basline'", "'baseline'"]),
    ("arms = {'a': dict(config='config/demo_baseline.py'), 'b': dict(config='config/demo_baseline.py')}",
     ["'a' and 'b' are one configuration"]),
    ("import pathlib as _p; defaults = dict(dataset=_p.Path('x'))", ["defaults = {", "values must be"]),
    ("seeds = range(3)", ["seeds = range(0, 3): values must be", "write list(range(0, 3))"]),
    ("1 / 0", ["ZeroDivisionError"]),
    ("raise SystemExit(3)", ["SystemExit: 3"]),
])
def test_a_mistake_in_a_sweep_file_is_one_line_and_starts_nothing(text, parts, sweep_file, folder, stub, capsys):
    status, _, err = run(stub, [sweep_file(text), f"--out={folder}"], capsys)
    assert status == 2
    one_line(err, *parts)
    assert not folder.exists()


@pytest.mark.parametrize("options, parts", [
    ([], ["sweep"]), (["nothing.py"], ["nothing.py"]), (["FILE", "--jobs", "0"], ["--jobs=0"]),
    (["FILE", "--jobs", "two"], ["two"]), (["FILE", "--launchr", "slurm"], ["--launchr"]),
    (["FILE", "--launcher", "slurm"], ["sbatch"])])
def test_a_mistaken_command_line_is_one_line(options, parts, sweep_file, folder, stub, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    args = [sweep_file() if o == "FILE" else o for o in options]
    status, _, err = run(stub, [*args, f"--out={folder}"] if args else [], capsys)
    assert status == 2
    one_line(err, *parts)
    assert not folder.exists()


def test_data_that_are_not_prepared_are_one_line(sweep_file, folder, stub, capsys):
    status, _, err = run(stub, [sweep_file(ONE % "dataset='others'"), f"--out={folder}"], capsys)
    assert status == 2
    one_line(err, "no prepared data")


def test_a_dry_run_prints_commands_that_run_and_creates_nothing(sweep_file, folder, stub, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    path = sweep_file("grid = dict(learning_rate=[1e-3, 1e-2])", seeds=(0, 1))
    before = sorted([*before, path])
    status, out, _ = run(sweep.main, [path, f"--out={folder}", "--dry-run", "--jobs=2", "--threads=6"], capsys)
    commands = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    assert status == 0 and len(commands) == 4 and sorted(tmp_path.rglob("*")) == before
    for command in commands:
        assert command[:3] == ["python", "train.py", "config/demo_baseline.py"] and "--threads=3" in command
        config, model = configurator.resolve([str(ROOT / command[2]), *command[3:]], train.TrainConfig, models.CONFIGS)
        assert config.out_dir.endswith(config_hash((config, model))[:8]) and config.max_iters == 40
        assert config.min_lr == config.learning_rate / 10
