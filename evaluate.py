"""
A trained model on the tasks of lm-eval, EleutherAI's harness: hellaswag, lambada_openai, wikitext and some thousand others, or your own.

    python evaluate.py out/gpt --tasks hellaswag,lambada_openai
    python evaluate.py out/gpt --tasks mine --task_path my_tasks --limit 100 --out mine.json

Any model of this repository, of any tokenizer that has the characters of the task's texts. A task's numbers are the harness's own. Of
whole texts (wikitext and the like) the nats a token and the bits a byte are given, too: bits a byte compare between tokenizers, nats a
token do not. A task of your own is a YAML file in --task_path (lm-eval's documentation, "New Task Guide"). Tasks are downloaded once, by
`datasets`. Needs: pip install -r requirements-eval.txt
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import os
import sys

if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of the harness and of datasets; read when tqdm is imported

os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval's bootstrap forks a process that has threads, and hangs now and then

# isort: split

import contextlib
import json
import logging
import math

from common import paths
from common.columns import in_columns
from common.errors import UserError, exit_cleanly
from common.whole_files import write_file
from configurator import Parser, whole_number
from data.tokenizer import load_tokenizer
from sample import prompt_text
from training import checkpoint
from training.machine import pick_device


def find_tasks(names, task_path):
    """(harness's TaskManager, names of tasks and groups; * stands for anything)"""
    from lm_eval.tasks import TaskManager
    if task_path is not None:
        if not os.path.isdir(task_path):
            raise UserError(f"--task_path {task_path}: there is no such folder")
        own = TaskManager(include_path=task_path, include_defaults=False)  # to look through the harness's own takes 5 seconds
        if not own.all_groups and all(own.match_tasks([name]) for name in names):
            return own, own.match_tasks(names)
    manager = TaskManager(include_path=task_path)
    found = []
    for name in names:
        these = manager.match_tasks([name])
        if not these:
            raise UserError(f"--tasks: the harness has no {name!r}; list all: lm-eval ls tasks" + (
                "" if task_path else "; one of your own needs --task_path"))
        found += [each for each in these if each not in found]
    return manager, found


def first_line(error):
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), "it does not say why")


def measure(lm, manager, task, options):
    """(results of the harness by task and subtask, what whole texts gave)"""
    import lm_eval
    lm.rolled.update(nats=0.0, tokens=0, bytes=0)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where progress belongs
            found = lm_eval.simple_evaluate(lm, tasks=[task], num_fewshot=options.num_fewshot, limit=options.limit,
                                            task_manager=manager, log_samples=False, bootstrap_iters=1000)
    except UserError as error:
        raise UserError(f"task {task!r}: {error}") from None
    except Exception as error:  # of many libraries: no network, no such data set, a damaged YAML file
        raise UserError(f"task {task!r} cannot be run: {type(error).__name__}: {first_line(error)}") from None
    texts = {}
    if lm.rolled["tokens"]:
        nats = lm.rolled["nats"]
        texts = {"nats_per_token": nats / lm.rolled["tokens"], "bits_per_byte": nats / math.log(2) / lm.rolled["bytes"],
                 "tokens": lm.rolled["tokens"]}
    return found["results"], texts


def table(found):
    """Lines: task, metric, value, standard error."""
    rows = [("task", "metric", "value", "+-")]
    for task, (results, texts) in found.items():
        for name, numbers in results.items():
            for key, value in numbers.items():
                metric, _, kind = key.partition(",")
                if not isinstance(value, float) or metric.endswith("_stderr"):
                    continue
                error = numbers.get(f"{metric}_stderr,{kind}")
                rows.append((name, metric if kind in ("none", "") else f"{metric} ({kind})", f"{value:.4f}",
                             f"{error:.4f}" if isinstance(error, float) and math.isfinite(error) else ""))
        rows += [(task, f"{key} (texts)", f"{value:.4f}" if isinstance(value, float) else f"{value:,}", "") for key, value in texts.items()]
    return in_columns(rows)


@exit_cleanly
def main(argv):
    parser = Parser("evaluate.py", __doc__)
    parser.add_argument("run", type=paths.expand, help="folder of a run")
    parser.add_argument("--tasks", required=True, help="names, with commas between; * stands for anything")
    parser.add_argument("--task_path", type=paths.expand, help="folder of YAML files of your own tasks")
    parser.add_argument("--num_fewshot", type=whole_number(0), help="examples before each question (default: the task's)")
    parser.add_argument("--limit", type=whole_number(1), help="so many questions of each task, to try it")
    parser.add_argument("--batch_size", type=whole_number(1), default=16, help="texts that are read together (16)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which of the run's (best)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", type=paths.expand, help="a JSON file for everything that the harness says")
    options = parser.parse_args(argv)
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks names no task")
    if options.out:
        paths.file_to_write(options.out, f"--out {options.out}")
    device = pick_device(options.device)
    model, config = checkpoint.load_model(options.run, options.checkpoint, device)
    if "tokenizer" not in config:
        raise UserError(f"{options.run}/config.json does not say how its tokens are made")
    try:
        from analysis.harness import RunLM
    except ImportError as error:
        raise UserError(f"lm-eval is not installed ({error}): pip install -r requirements-eval.txt") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if getattr(model.config, "kv_bins", 0):
        model.config.kv_bins = 0  # every key, exactly
    tokenizer = load_tokenizer(config["tokenizer"])
    first = getattr(tokenizer, "end_of_text", None)
    manager, tasks = find_tasks(names, options.task_path)
    lm = RunLM(model, tokenizer, tokenizer.encode(prompt_text(None, tokenizer))[0] if first is None else first, options.batch_size, device)
    found, failed = {}, None
    for task in tasks:
        try:
            found[task] = measure(lm, manager, task, options)
        except UserError as error:
            failed = UserError(f"{error}" + (f" (the tasks before it: {', '.join(found)})" if found else ""))
            break
    if found:
        print(*table(found), sep="\n")
    if found and options.out:
        content = {"run": options.run, "checkpoint": options.checkpoint, "limit": options.limit, "num_fewshot": options.num_fewshot,
                   "results": {name: numbers for results, _ in found.values() for name, numbers in results.items()},
                   "texts": {task: texts for task, (_, texts) in found.items() if texts}}
        paths.make_folder_of(options.out)
        write_file(options.out, (json.dumps(content, indent=1, default=str) + "\n").encode())
    if failed:
        raise failed
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
