"""The validation text of a run, for what is measured after training."""
import os

from common.errors import UserError
from training.dataloader import Loader, load_meta, tokenizer_of


def loader_of(out_dir, config, device, batch_size=None):
    """A Loader of the text that the run of config (its config.json) was evaluated on. Raises UserError where another text is there now."""
    folder = os.path.join(config["data_dir"], config["dataset"])
    meta = load_meta(folder)
    if meta.get("sha256") != config.get("corpus_sha256"):
        raise UserError(f"{folder} holds another text than the one {out_dir} was trained on; prepare that one again")
    if config.get("tokenizer", tokenizer_of(meta)) != tokenizer_of(meta):
        raise UserError(f"{folder} has other tokens than those {out_dir} was trained on; prepare it again as it was")
    return Loader(folder, "val", meta, batch_size or config["batch_size"], config["block_size"], config["seed"], device)
