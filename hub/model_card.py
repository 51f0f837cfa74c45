"""README.md of an exported model, filled from the run's config.json and summary.json and, of a run of a sweep, from the sweep's table."""
import json
import os
import time

from common.errors import UserError
from training.config import OWN_STARTS

CURVED = """```python
from transformers import pipeline

write = pipeline("text-generation", "FOLDER OR USER/NAME", trust_remote_code=True)
print(write("{prompt}", max_new_tokens=100)[0]["generated_text"])
```

The model's code is in this folder, copied from the repository by its `export.py`: `{model}` is the model, `modeling_curved_gpt.py` what
transformers needs around it. Look at it before you trust it. Prompts of a batch have to be of one length: padding on the left is refused.
Text longer than {block_size} tokens is made by reading the last {block_size} anew for each one."""


def read_summary(run, parameters):
    """summary.json of a run, with the number of parameters. A run that has not ended has none."""
    summary, path = {"parameters": parameters}, os.path.join(run, "summary.json")
    if os.path.isfile(path):
        try:
            with open(path, encoding="utf-8") as f:
                summary.update(json.load(f))
        except ValueError:
            raise UserError(f"{path} is damaged: not JSON") from None
    return summary


def model_card(run, config, summary, vocab_size, what, use, sweep, checkpoint):
    """vocab_size: of the tokenizer. checkpoint: 'best' or 'last', whose weights these are. what: 'A GPT-2'. use: how to load it.
    sweep: of sweep_section(). All are Markdown."""
    config = {key: os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value for key, value in config.items()}
    began = config.get("began_from", None if config.get("init_from") in ("resume", "auto") else config.get("init_from", "scratch"))
    start = " from a random start" if began in OWN_STARTS else f" from {began}" if began else ""  # '': not known
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", "",
             f"# {os.path.basename(os.path.abspath(run))}", "",
             f"{what} of {summary['parameters']:,} parameters (without positions), trained{start} with the repository "
             f"mixed-curvature-gpt, `model = '{config['model']}'`.", "", *([use, ""] if use else []), "| | |", "|---|---|",
             f"| text | {config['corpus']} |", f"| tokens | {config['tokenizer']['tokenizer']}, {vocab_size:,} |",
             f"| blocks, width, heads, context | {', '.join(str(config[k]) for k in ('n_layer', 'n_embd', 'n_head', 'block_size'))} |"]
    step, loss = (summary.get(key) for key in (("best_step", "best_val_loss") if checkpoint == "best" else ("step", "val_loss")))
    at = f" (step {step:,}, validation loss {loss:,.4f})" if step is not None and loss is not None else ""
    lines.append(f"| weights | checkpoint '{checkpoint}' of the run{at} |")
    for key, text in (("val_loss", "validation loss at the end, nats a token"), ("best_val_loss", "lowest validation loss"),
                      ("step", "steps"), ("tokens", "tokens of training"), ("train_seconds", "seconds of training")):
        if summary.get(key) is not None:
            value = summary[key]
            lines.append(f"| {text} | {f'{value:,.4f}' if isinstance(value, float) else f'{value:,}'} |")
    lines += ["", *([sweep, ""] if sweep else []), "Every key of the run:", "", "```json", json.dumps(config, indent=1), "```", ""]
    return "\n".join(lines)


def sweep_section(run):
    """(Markdown of what the sweep says of this run's arm, why there is none): one of them is ''. Both are of a run in no sweep."""
    place = os.path.realpath(run)
    folder = os.path.dirname(os.path.dirname(place))
    if os.path.basename(os.path.dirname(place)) != "runs" or not os.path.isfile(os.path.join(folder, "sweep.json")):
        return "", ""
    try:
        from experiments import comparison, report  # here: they need packages of requirements-eval.txt
    except ModuleNotFoundError as error:
        return "", f"{error.name} is not installed (pip install -r requirements-eval.txt)"
    try:
        summary = comparison.summarize(folder, batches=0, planned=False)  # a folder from somebody else runs no code here
    except UserError as error:
        return "", str(error)
    found = [(arm, lr, seed) for arm in summary.arms for (lr, seed), other in arm.runs.items() if os.path.realpath(other.folder) == place]
    if not found:
        return "", f"{folder} has no row of this run yet"
    arm, lr, seed = found[0]
    baseline, table = summary.reference("baseline"), report.results_table(summary)
    rows = [row for row in table[1:] if row[0] in (arm.name, baseline and baseline.name)]
    told = (f"This run is of the arm {arm.name}: learning rate {lr:g}, seed {seed}. What the sweep says of its arm"
            f"{', and of the baseline' if baseline not in (None, arm) else ''}, from the {sum(len(a.runs) for a in summary.arms)} runs "
            f"that had ended on {time.strftime('%Y-%m-%d')}:")
    parts = [("text", told), ("table", [table[0], *rows]), ("text", summary.headline)]
    return f"## In the sweep {summary.name}\n\n{report.as_markdown(parts).strip()}", ""
