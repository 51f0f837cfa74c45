"""On a device that is not the CPU and refuses what a GPU refuses (second_device.py): scripts compute there what they compute on the CPU."""
import json

import pytest
from running import ended, records

AS_CUDA = dict(SECOND_DEVICE_IS_CUDA="1")
SHORT = ["--dtype=float32", "--matmul=torch", "--compile=False", "--max_iters=6", "--eval_interval=3", "--eval_iters=1", "--log_interval=1",
         "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=12", "--batch_size=3", "--warmup_iters=1", "--learning_rate=1e-2"]
LEARNED = ["--model=mixed", "--curvature_mode=random"]
ARMS = {
    "mixed": [*LEARNED, "--log_stability=True", "--n_layer=2"],
    "bounded": ["--bounded_rows=True", "--token_shift=likeness", "--dropout=0.2", "--position=rope", "--gradient_accumulation_steps=2"],
    "bounded, Muon": ["--bounded_rows=True", "--token_shift=likeness", "--optimizer=muon", "--qk_clip=0.01", "--dropout=0.2",
                      "--position=rope", "--gradient_accumulation_steps=2"],
    "warm-up": ["--model=mixed", "--curvature_mode=fixed", "--curvature_warmup=4", "--max_distance=1.5", "--per_head_curvature=False"],
    "streams": ["--model=mhc_mixed", "--hc_space=midpoint", "--value_residual=learned", "--n_layer=2"],
    "stereographic": ["--model=stereographic", "--attention=distance", "--head=stereographic", "--norm=stereographic"],
    "tau": ["--model=tau", "--tau=median"],
}
SECONDS = ("dt", "tok_per_s", "data_wait", "train_seconds")


@pytest.fixture
def run_on(data_dir, tmp_path):
    """-> the arguments of a short run on a device, with its folder"""
    def arguments(device, *more, name="run"):
        return [f"--data_dir={data_dir}", "--dataset=words", f"--out_dir={tmp_path / name}-{device}", f"--device={device}", *SHORT, *more]
    return arguments


def on_second(script, *args, **environment):
    """stdout of a script on the second device."""
    status, out, err = ended("second_device", [script, *map(str, args)], environment=environment)
    assert status == 0, err
    return out


def on_cpu(script, *args):
    status, out, err = ended(script, args)
    assert status == 0, err
    return out


def check(name, *args):
    on_second("second_device_checks", name, *map(str, args), **AS_CUDA)


def numbers(folder):
    return [{key: value for key, value in record.items() if key not in SECONDS} for record in records(folder)]


def agree(found, expected, within=1e-5):
    assert len(found) == len(expected) > 2
    for a, b in zip(found, expected):
        assert a == pytest.approx(b, rel=within, abs=within), a["step"]


def test_the_device_refuses_what_a_gpu_refuses():
    check("the_device_itself")


@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_models_are_those_of_the_cpu(which):
    check("models", which)


@pytest.mark.parametrize("number, of", [(3, 14), *(pytest.param(n, 7, marks=pytest.mark.exhaustive) for n in range(7))])
def test_steps_of_a_stack_as_graphs_are_its_steps(number, of):
    check("graphs", number, of)


def test_muon_and_qk_clip_in_a_graph():
    check("graphs_of_muon")


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_is_that_of_the_cpu(arm, run_on, tmp_path):
    on_cpu("train", *run_on("cpu", *ARMS[arm]))
    on_second("train", *run_on("gpu", *ARMS[arm]), **AS_CUDA)
    found, expected = numbers(tmp_path / "run-gpu"), numbers(tmp_path / "run-cpu")
    # Muon multiplies in bfloat16: the last digit of a float32, which the device's other operations may have otherwise, can turn a
    # rounding there, 0.4% of an element of the update
    agree(found, expected, within=1e-3 if "Muon" in arm else 1e-5)
    assert found[1]["step"] == 0 and found[:2] == [pytest.approx(line, rel=1e-5, abs=1e-5) for line in expected[:2]]


@pytest.mark.parametrize("more", [
    LEARNED, ["--bounded_rows=True", "--gradient_accumulation_steps=2"],
    ["--model=mhc", "--hc_res=permutations", "--hc_maps=dynamic", "--hc_num_streams=3"]], ids=["mixed", "bounded", "streams"])
def test_a_step_that_is_not_logged_does_not_wait_for_the_device(more, run_on, tmp_path):
    """As often in 6 steps as in 4, of which the first and the last are evaluated. Sent are micro-batches alone."""
    waits = []
    for steps in (4, 6):
        on_second("train", *run_on("gpu", *more, name=str(steps)), f"--max_iters={steps}", "--eval_interval=100", "--log_interval=100",
                  **AS_CUDA, SECOND_DEVICE_WAITS=str(tmp_path / "waits.json"))
        waits.append(json.loads((tmp_path / "waits.json").read_text()))
    sent = [each.pop("sent") for each in waits]
    assert waits[0] == waits[1] and sum(waits[0].values()) > 5 and sent[1] - sent[0] == 2 * (2 if "bounded" in more[0] else 1)


def test_runs_as_one_program_are_those_of_the_cpu(run_on, tmp_path):
    """A stack whose steps are graphs from the fourth on, and train.py."""
    more = [*LEARNED, "--max_iters=9"]
    stack = [run_on("gpu", *more, f"--seed={seed}", name=str(seed)) for seed in (1, 2)]
    (tmp_path / "runs.json").write_text(json.dumps(stack))
    on_second("training.stacked", f"--runs={tmp_path / 'runs.json'}", **AS_CUDA)
    for seed in (1, 2):
        on_cpu("train", *run_on("cpu", *more, f"--seed={seed}", name=str(seed)))
        found, expected = ([{key: r[key] for key in ("step", "loss", "grad_norm", "val_loss") if key in r} for r in
                            numbers(tmp_path / f"{seed}-{device}")] for device in ("gpu", "cpu"))
        agree(found, expected, within=1e-4)


def test_a_run_goes_on_on_another_device(run_on, tmp_path):
    """And what was written there is read here."""
    on_second("train", *run_on("gpu", *LEARNED, name="whole"))
    on_second("train", *run_on("gpu", *LEARNED, name="part"), "--max_iters=3", "--lr_decay_iters=6")
    (tmp_path / "part-gpu").rename(tmp_path / "part-cpu")
    on_cpu("train", *run_on("cpu", *LEARNED, name="part"), "--init_from=resume")
    agree(*([r for r in numbers(tmp_path / folder) if r["step"] > 3] for folder in ("part-cpu", "whole-gpu")))

    sample = [f"--out_dir={tmp_path / 'whole-gpu'}", "--max_new_tokens=30", "--num_samples=1", "--seed=3"]
    assert on_second("sample", *sample, "--device=gpu") == on_cpu("sample", *sample, "--device=cpu")


def test_what_curvature_is_worth_is_that_of_the_cpu(run_on, tmp_path):
    folder = tmp_path / "run-cpu"
    on_cpu("train", *run_on("cpu", *LEARNED))
    assert on_second("ablate_curvature", folder) == on_cpu("ablate_curvature", folder)


@pytest.mark.exhaustive
def test_isotropy_is_that_of_the_cpu(run_on, tmp_path):
    on_cpu("train", *run_on("cpu", *LEARNED))
    short = [tmp_path / "run-cpu", "--tokens=960", "--delta_samples=2", "--pairs=500", "--bootstrap=20"]
    on_second("analyze_representations", *short, f"--out={tmp_path / 'gpu'}", "--device=gpu")
    on_cpu("analyze_representations", *short, f"--out={tmp_path / 'cpu'}", "--device=cpu")
    found, expected = (dict(leaves(json.loads((tmp_path / device / "metrics.json").read_text())["models"])) for device in ("gpu", "cpu"))
    assert found.keys() == expected.keys() and len(found) > 500
    for key, value in found.items():
        assert value == (pytest.approx(expected[key], rel=1e-5, abs=1e-6) if isinstance(value, float) else expected[key]), key


def leaves(tree, path=()):
    """(path, value) of each leaf of nested dicts and lists."""
    if not isinstance(tree, (dict, list)):
        yield path, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(value, (*path, key))


def test_the_first_bad_step_is_noted_by_the_device(run_on, tmp_path):
    """The host looks at every fourth step only, and says what it says on the CPU, where it looks at each: the step, the layer."""
    more = [*LEARNED, "--learning_rate=1e12", "--grad_clip=0.0", "--warmup_iters=0", "--log_interval=4", "--eval_interval=100"]
    status, _, expected = ended("train", run_on("cpu", *more))
    assert status == 3
    status, _, found = ended("second_device", ["train", *run_on("gpu", *more)], environment=AS_CUDA)
    of_step, _, _ = expected.partition(", attn: ")  # (then the operation: attention is another on each device)
    assert status == 3 and "diverged at step" in of_step and found.replace("run-gpu", "run-cpu").startswith(of_step)
