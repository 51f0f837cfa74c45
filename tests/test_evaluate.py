"""evaluate.py: lm-eval's harness on runs, with task files of the test's own; likelihoods against a loop without cache and batches."""
import json
import math

import pytest
import torch
from running import one_line, run

import evaluate
import train
from common.errors import UserError
from data.tokenizer import load_tokenizer
from training import checkpoint

CHOICES = [dict(question="the king shall", choices=[" go;", " my", " rome", " a"], answer=0),
           dict(question="my", choices=[" lord,", " go;"], answer=0), dict(question="to", choices=[" the", " rome."], answer=1)]
TEXTS = [dict(text="the king shall go; my lord, to rome.\n" * 3), dict(text="my lord, the king")]
TASKS = {
    "choices": ("""
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""", CHOICES),
    "lasts": ("""
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1] | join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
target_delimiter: ""
metric_list: [{metric: perplexity}, {metric: acc}]
""", TEXTS),
    "texts": ("""
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""", TEXTS),
    "words": ("""
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: [" ", "\\n"], max_gen_toks: 12}
metric_list: [{metric: chrf}]
""", CHOICES)}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a YAML and a JSON file for each of TASKS."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, (text, rows) in TASKS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(f"""task: my_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}
test_split: test
{text}""")
    return folder


@pytest.fixture
def trained(small_run, tmp_path, capsys):
    assert run(train.main, [*small_run, "--max_iters=30", "--learning_rate=1e-2"], capsys)[0] == 0
    return tmp_path / "run"


def asked(kind, *arguments):
    """Requests of the harness. (It takes a second to import: where it is used.)"""
    from lm_eval.api.instance import Instance
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def language_model(folder, batch_size=3):
    from analysis.harness import RunLM
    model, config = checkpoint.load_model(folder)
    tokenizer = load_tokenizer(config["tokenizer"])
    return RunLM(model, tokenizer, tokenizer.encode("\n")[0], batch_size, "cpu")


def by_hand(lm, context, continuation):
    """log p and whether it is greedy, one pass over the last block_size tokens for each token."""
    nats, greedy = 0.0, True
    for i, token in enumerate(continuation):
        read = [*context, *continuation[:i]]
        with torch.no_grad():
            row = lm.model(torch.tensor([read]))[0][0, -1]
        nats += torch.log_softmax(row, -1)[token].item()
        greedy &= int(row[:lm.own_tokenizer.vocab_size].argmax()) == token
    return nats, greedy


@pytest.mark.parametrize("options", [[], ["--model=mixed", "--reference=mean"], ["--model=tau", "--kv_bins=8"],
                                     ["--token_shift=smear", "--position=rope"]])
def test_likelihoods_are_those_of_a_loop(options, small_run, tmp_path, capsys):
    assert run(train.main, [*small_run, "--max_iters=6", *options], capsys)[0] == 0
    lm = language_model(tmp_path / "run")
    lm.model.config.kv_bins = 0
    pairs = [("the king", " shall"), ("the king", " go;"), ("the king", " my lord"), ("the king", " a"), ("to", " rome"),
             ("my lord, the king shall go", " to"), ("my lord, the king shall go", " rome"), ("", "my"), ("", "to"), ("t", "o"),
             ("t", "he"), (" ", "my"), (" ", "to"), ("", ""), ("", "\n")]
    found = lm.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (nats, greedy) in zip(pairs, found, strict=True):
        moved = context[len(context.rstrip()):]  # the harness scores spaces with what follows
        ids = [lm.tok_encode(text) for text in (context.rstrip() or "\n", moved + continuation)]
        ids[0] = ids[0][-(lm.block_size + 1 - len(ids[1])):]
        expected = by_hand(lm, *ids)
        assert nats == pytest.approx(expected[0], abs=1e-4) and greedy == expected[1], (context, continuation)


def test_every_token_of_a_long_text_is_predicted_once(trained):
    lm = language_model(trained)
    text = TEXTS[0]["text"]
    ids, T = lm.tok_encode(text), lm.block_size
    assert len(ids) > 6 * T
    expected = 0.0
    for first in range(0, len(ids), T):
        window = ids[first:first + T]
        before = [lm.first_token] if first == 0 else ids[:first]
        expected += by_hand(lm, before[-(T + 1 - len(window)):], window)[0]
    found, = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-3)
    assert lm.rolled == {"nats": -found, "tokens": len(ids), "bytes": len(text)}


def test_tasks_from_the_command_line(trained, tasks, tmp_path, capsys):
    out = tmp_path / "found.json"
    status, said, _ = run(evaluate.main, [trained, "--tasks=my_*", f"--task_path={tasks}", f"--out={out}"], capsys)
    assert status == 0
    content = json.loads(out.read_text())
    assert set(content["results"]) == {f"my_{name}" for name in TASKS}
    lm = language_model(trained)
    right = 0
    for row in CHOICES:
        nats = [by_hand(lm, lm.tok_encode(row["question"])[-10:], lm.tok_encode(choice))[0] for choice in row["choices"]]
        right += nats.index(max(nats)) == row["answer"]
    assert content["results"]["my_choices"]["acc,none"] == pytest.approx(right / 3)
    texts = content["texts"]["my_texts"]
    assert texts["tokens"] == sum(len(row["text"]) for row in TEXTS)
    assert texts["bits_per_byte"] == pytest.approx(texts["nats_per_token"] / math.log(2))  # a character is a byte and a token here
    assert content["results"]["my_texts"]["bits_per_byte,none"] == pytest.approx(texts["bits_per_byte"])
    for line in ("my_choices  acc", "my_lasts    perplexity", "my_texts    nats_per_token (texts)", "my_words    chrf"):
        assert line in said, said


def test_what_was_measured_before_a_task_failed_is_kept(trained, tasks, tmp_path, capsys, monkeypatch):
    measure, out = evaluate.measure, tmp_path / "new" / "found.json"

    def fails(lm, manager, task, options):
        if task == "my_texts":
            raise UserError("task 'my_texts': no network")
        return measure(lm, manager, task, options)
    monkeypatch.setattr(evaluate, "measure", fails)
    status, said, err = run(evaluate.main, [trained, "--tasks=my_choices,my_texts", f"--task_path={tasks}", f"--out={out}"], capsys)
    assert status == 2 and "my_choices  acc" in said and set(json.loads(out.read_text())["results"]) == {"my_choices"}
    one_line(err.splitlines()[-1], "task 'my_texts': no network (the tasks before it: my_choices)")


def test_generated_text_ends_before_a_stop(trained):
    lm = language_model(trained)

    def made(*requests):
        return lm.generate_until(asked("generate_until", *requests), disable_tqdm=True)
    free, = made(("the", dict(until=[], max_gen_toks=40)))
    assert len(free) == 40
    stop = free[10:12]
    cut, none = made(("the", dict(until=[stop, "zzz"], max_gen_toks=40)), ("", dict(until="zzz", max_gen_toks=5)))
    assert cut == free[:free.index(stop)] and len(none) == 5
    drawn = made(*[("the", dict(max_new_tokens=30, do_sample=True, temperature=5.0, top_k=0, seed=seed)) for seed in (0, 0, 1)])
    for unknown in (dict(top_p=0.5, do_sample=True), dict(temperature=-1.0), dict(num_beams=2)):
        with pytest.raises(UserError, match="generation_kwargs"):
            made(("the", unknown))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("options, parts", [
    (["--tasks=my_nothing"], ["the harness has no 'my_nothing'", "lm-eval ls tasks"]),
    (["--tasks=,"], ["--tasks names no task"]),
    (["--tasks=my_texts", "--limit=0"], ["--limit", "at least 1"]),
    (["--tasks=my_broken"], ["task 'my_broken' cannot be run", "nowhere.jsonl"]),
    (["--tasks=my_foreign"], ["task 'my_foreign'", "is not among the 36 characters"]),
    (["--tasks=my_texts", "--task_path=nowhere"], ["--task_path", "no such folder"])])
def test_bad_input_is_one_line(options, parts, trained, tasks, capsys, monkeypatch):
    import lm_eval.tasks
    every = lm_eval.tasks.TaskManager  # to look through the harness's own tasks takes 5 seconds
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: every(**{**options, "include_defaults": False}))
    yaml = (tasks / "texts.yaml").read_text()
    (tasks / "broken.yaml").write_text(yaml.replace("texts.jsonl", "nowhere.jsonl").replace("my_texts", "my_broken"))
    (tasks / "foreign.jsonl").write_text(json.dumps(dict(text="Zürich")) + "\n")
    (tasks / "foreign.yaml").write_text(yaml.replace("texts", "foreign"))
    given = [] if any(o.startswith("--task_path") for o in options) else [f"--task_path={tasks}"]
    status, _, err = run(evaluate.main, [trained, *given, *options], capsys)
    assert status == 2
    one_line(err.splitlines()[-1], *parts)  # after bars, which a process without a terminal does not have
