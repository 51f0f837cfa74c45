"""Config files and --key=value: what is read, what is refused, and how."""
import dataclasses
import glob
import os
from typing import Literal

import bench_kernels
import pytest

import configurator
import models
from common.errors import UserError
from training.config import TrainConfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def resolve(*argv):
    return configurator.resolve(list(argv), TrainConfig, models.CONFIGS, "model", "doc")


def test_later_wins_and_numbers_become_floats(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("import math\nmodel = 'mixed'\nmax_iters = 2 * 50\nlearning_rate = 1\n_half = 8\nbatch_size = _half\n")
    config, model = resolve(str(file), "--max_iters=7", "--curvature=-0.5", "--curvature_mode=fixed")
    assert (config.max_iters, config.learning_rate, config.batch_size) == (7, 1.0, 8)
    assert isinstance(config.learning_rate, float)
    assert isinstance(model, models.CONFIGS["mixed"]) and model.curvature == -0.5


@pytest.mark.parametrize("argv, message", [
    (["--lerning_rate=1"], "command line: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
    ([os.path.join(ROOT, "config")], "config is a folder; a config file is needed; a folder is given as --out_dir="),
    (["out/a"], "out/a: no such config file; a folder is given as --out_dir=out/a"),
    (["--zzzz=1"], "unknown key 'zzzz'; --help lists every key"),
    (["--max_iters=1e3"], "max_iters takes a whole number"),
    (["--max_iters=ten"], "max_iters takes a whole number"),
    (["--max_iters=True"], "max_iters takes a whole number"),
    (["--warmup_iters=1" + 400 * "0"], "a whole number has to be between -2^63 and 2^63"),
    (["--learning_rate=fast"], "learning_rate takes a number"),
    (["--learning_rate=nan"], "learning_rate takes a number"),
    (["--learning_rate=1e999"], "learning_rate takes a number"),
    (["--decay_lr=1"], "decay_lr takes True | False"),
    (["--model=hyperbolic"], "model takes 'baseline' | 'mixed'"),
    (["--compile=yes"], "compile takes True | False | 'auto'"),
    (["--overwrite"], "options are written --key=value"),
    (["-x"], "options are written --key=value"),
    (["--curvature=0.5"],
     "curvature belongs to model = 'mixed' or model = 'mhc_mixed' or model = 'stereographic' or model = 'terms' and has no effect on "
     "model = 'baseline'"),
    (["--model=mixed", "--token_shift=smear"], "token_shift belongs to model = 'baseline'"),
    (["--vocab_size=10"], "unknown key 'vocab_size'"),
    (["--model=mixed", "--curvature_initialization=[1,'a']"], "curvature_initialization takes a list, each a number"),
    (["--n_embd=10", "--n_head=3"], "n_embd = 10 is not divisible by n_head = 3"),
    (["--batch_size=0"], "batch_size = 0: must be at least 1"),
    (["--beta1=1.0"], "beta1 = 1.0: must be in [0, 1)"),
    (["--min_lr=1.0"], "min_lr = 1.0"),
    (["--dropout=1.0"], "dropout = 1.0"),
    (["--muon_lr=0.1"], "command line: muon_lr has no effect with optimizer = 'adamw'"),
    (["--wandb_project=x"], "command line: wandb_project has no effect with wandb_log = False"),
    (["--model=mixed", "--reference=origin", "--residual=transport"], "residual has no effect with reference = 'origin'"),
    (["config/demo_flat.py", "--decay_lr=False", "--min_lr=1e-4"], "min_lr has no effect with decay_lr = False"),
    (["--model=mixed", "--n_layer=2", "--curvature_mode=parametric", "--curvature_initialization=[0.5,0.5]", "--curvature=2"],
     "curvature has no effect with curvature_initialization"),
    (["--curvature_lr_mult=0"], "curvature_lr_mult has no effect with a model that learns no curvature"),
    (["--model=mixed", "--curvature_mode=fixed", "--curvature_lr_mult=3"], "curvature_lr_mult has no effect"),
    (["config/train_shakespeare_mixd.py"], "did you mean config/train_shakespeare_mixed.py?"),
])
def test_what_is_refused_is_named(argv, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        resolve(*argv)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text, message", [
    ("max_iter = 5\n", "unknown key 'max_iter'; did you mean 'max_iters'?"),
    ("max_iters = '5'\n", "max_iters takes a whole number"),
    ("x = (\n", "line 1"),
    ("\nbatch_size = 1 / 0\n", "line 2: ZeroDivisionError"),
    ("learning_rate = 10 ** 400\n", "learning_rate takes a number"),
    ("raise ValueError('one\\ntwo')\n", "line 1: ValueError: one"),
    ("batch_size = 1\0\n", "line"),
])
def test_a_file_is_refused_like_the_command_line(text, message, tmp_path):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        resolve(str(file))
    assert message in str(error.value) and str(file) in str(error.value)


def test_a_file_may_set_what_another_key_switches_off():
    config, _ = resolve(os.path.join(ROOT, "config", "demo_mixed.py"), "--decay_lr=False", "--lr_decay_iters=None")
    assert config.decay_lr is False


def test_text_stays_text_where_the_key_takes_text():
    @dataclasses.dataclass
    class Options:
        start: str = "a"
        k: int | None = None
        mode: Literal["1", "two"] = "two"
        name: str | None = "x"
    options, _ = configurator.resolve(["--start=1", "--k=None", "--mode=1", "--name=None"], Options)
    assert (options.start, options.k, options.mode, options.name) == ("1", None, "1", None)
    for text in ("{{}}", "{[]: 1}"):
        assert configurator.resolve([f"--start={text}"], Options)[0].start == text
    with pytest.raises(UserError, match="k takes"):
        configurator.resolve(["--k=1" + "0" * 400 + ".5"], Options)
    options, _ = configurator.resolve(["--start=a=b", "--k=3"], Options)
    assert (options.start, options.k) == ("a=b", 3)


def test_a_key_that_takes_other_values_in_another_model():
    assert resolve("--model=tau", "--position=alibi")[1].position == "alibi"
    assert resolve("--position=alibi", "--model=tau")[1].position == "alibi"
    for argv in (["--model=mixed", "--position=alibi"], ["--model=tau", "--position=absolute"]):
        with pytest.raises(UserError, match="command line: position = '(alibi|absolute)': position takes 'learned' | 'rope'"):
            resolve(*argv)


def test_help_lists_every_key_with_default_and_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        resolve("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for schema in (TrainConfig, *models.CONFIGS.values()):
        comments = configurator._comments(schema)
        for key, field in configurator.keys_of(schema).items():
            default = "data" if key == "data_dir" else configurator._default(field)  # not the whole path on this machine
            assert f"--{key}={default!r}" in text
            assert comments.get(key), f"{key} has no comment"
            assert " ".join(comments[key].split()) in " ".join(text.split())
    for end in ("gyro-midpoints of tokens before t", "from U(0, curvature)", "and starts one if not", "* block_size",
                "one token at the embedding", "see model_controls.py"):  # of comments that go on on a second line
        assert end in " ".join(text.split()), end
    with pytest.raises(SystemExit):
        bench_kernels.main(["--help"])
    assert "--rows=[4096, 65536]" in capsys.readouterr().out


def test_every_shipped_config_is_valid(monkeypatch):
    files = sorted(glob.glob(os.path.join(ROOT, "config", "*.py")))
    assert len(files) >= 12
    seen = set()
    for file in files:
        config, model = resolve(file)
        assert config.out_dir not in seen, "two configs would write to one run directory"
        seen.add(config.out_dir)


def test_the_arms_differ_in_the_arm_alone():
    """Matched in everything else: same data, shape, schedule."""
    for kind in ("train_shakespeare", "demo", "train_fineweb"):
        arms = [configurator.as_dict(*resolve(os.path.join(ROOT, "config", f"{kind}_{arm}.py")))
                for arm in ("baseline", "smear", "bounded", "flat", "mixed")]
        shared = set.intersection(*map(set, arms)) - {"out_dir", "model", "token_shift", "bounded_rows"}
        for key in shared:
            assert len({repr(a[key]) for a in arms}) == 1, (kind, key)
