"""
A run of this repository as a model of lm-eval (EleutherAI's harness): what its tasks ask of one.

Continuations of one context are read together: the context once, into the decoder's cache, then all of them behind it. Requests whose
context nobody shares are read in batches. A text longer than block_size loses its beginning; a whole text (rolling likelihood) is cut in
windows in which every token is predicted once, as the harness cuts it. Where there is no context a text follows the token that texts
begin with: <|endoftext|> of GPT-2's tokens, else a new line, or what prompt_text() of sample.py takes.
"""
import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from torch.utils._pytree import tree_map
from tqdm import tqdm

from common.errors import UserError
from model_baseline import Cache


def copied(cache, rows):
    """A cache of one sequence as one of so many; what is written into it leaves the first as it is."""
    more = Cache(len(cache.blocks))
    more.length = cache.length
    expand = lambda t: t.expand(rows, *t.shape[1:]) if isinstance(t, torch.Tensor) and t.dim() else t
    more.embedding, more.blocks = tree_map(expand, cache.embedding), [tree_map(expand, block) for block in cache.blocks]
    return more


class RunLM(TemplateLM):

    def __init__(self, model, tokenizer, first_token, batch_size, device):
        super().__init__()
        self.model, self.own_tokenizer, self.first_token, self.batch_size = model, tokenizer, first_token, batch_size
        self._device = torch.device(device)
        self.block_size = model.config.block_size
        self.rolled = dict(nats=0.0, tokens=0, bytes=0)  # of whole texts since it was last reset

    @property
    def eot_token_id(self):
        return self.first_token

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self.own_tokenizer.encode(string)

    # ------------------------------------------------------------------------------------------------------------------
    # likelihoods

    def loglikelihood(self, requests, disable_tqdm=False):
        pairs = []
        for context, continuation in (request.args for request in requests):
            ids = self._encode_pair(context, continuation) if context else ([], self.tok_encode(continuation))
            pairs.append(((context, continuation), *ids))
        return self._loglikelihood_tokens(pairs, disable_tqdm)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        """(log p(continuation | context) in nats, is it what greedy decoding gives?) of each (texts, context, continuation)."""
        found, groups = [None] * len(requests), {}
        for i, (_, context, continuation) in enumerate(requests):
            if not continuation:
                found[i] = (0.0, True)
                continue
            if len(continuation) > self.block_size:
                raise UserError(f"a continuation of {len(continuation):,} tokens does not fit the run's block_size = {self.block_size:,}")
            context = context or [self.prefix_token_id]  # there is none, or it was spaces, which the harness moves to the continuation
            context = tuple(context[-(self.block_size + 1 - len(continuation)):])
            groups.setdefault(context, []).append((i, tuple(continuation)))
        shared = {context: group for context, group in groups.items() if len(group) > 1 and len(context) > 1}
        alone = [(context, *one) for context, group in groups.items() if context not in shared for one in group]
        alone.sort(key=lambda request: -len(request[0]) - len(request[2]))
        with tqdm(total=len(requests), disable=disable_tqdm or None, desc="likelihoods") as bar, torch.no_grad():
            for batch in _batched(alone, self.batch_size):
                self._score([(i, (*context, *continuation)[:-1], continuation) for context, i, continuation in batch], None, found)
                bar.update(len(batch))
            for context, group in shared.items():
                cache = Cache(self.model.config.n_layer)
                self.model(torch.tensor([context[:-1]], device=self._device), cache=cache)
                for batch in _batched(group, self.batch_size):
                    self._score([(i, (context[-1], *continuation)[:-1], continuation) for i, continuation in batch], cache, found)
                    bar.update(len(batch))
        return found

    def _score(self, rows, cache, found):
        """rows: (place in found, tokens that are read, those of them that are predicted last)."""
        idx = torch.zeros(len(rows), max(len(read) for _, read, _ in rows), dtype=torch.int64)
        for row, (_, read, _) in zip(idx, rows):
            row[:len(read)] = torch.tensor(read)  # what is behind it is seen by nothing before
        idx = idx.to(self._device)
        logits = self.model(idx, idx, cache=copied(cache, len(rows)) if cache else None)[0]
        for row, (i, read, predicted) in zip(logits, rows):
            row, wanted = row[len(read) - len(predicted):len(read)].float(), torch.tensor(predicted, device=self._device)
            nats = torch.log_softmax(row, -1).gather(1, wanted[:, None]).double().sum().item()
            likeliest = row[:, :self.own_tokenizer.vocab_size].argmax(-1)  # a padded vocabulary has more
            found[i] = (nats, bool((likeliest == wanted).all()))

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """log p of each whole text, in nats."""
        windows, owners, totals = [], [], [0.0] * len(requests)
        for owner, request in enumerate(requests):
            text, = request.args
            tokens = self.tok_encode(text)
            for window in utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.block_size, 1):
                windows.append((None, *utils.make_disjoint_window(window)))
                owners.append(owner)
            self.rolled["tokens"] += len(tokens)
            self.rolled["bytes"] += len(text.encode())
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm)):
            totals[owner] += nats
        self.rolled["nats"] -= sum(totals)
        return totals

    # ------------------------------------------------------------------------------------------------------------------
    # text

    def generate_until(self, requests, disable_tqdm=False):
        """What follows each context, up to (without) the first of its stop texts."""
        texts = []
        for request in tqdm(requests, disable=disable_tqdm or None, desc="texts"):
            context, wanted = request.args
            stops = wanted.get("until") or []
            stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
            unknown = set(wanted) - {"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed"}
            drawn = wanted.get("do_sample", wanted.get("temperature", 0) > 0)
            if unknown or drawn and wanted.get("top_p", 1.0) < 1 or wanted.get("temperature", 0) < 0:
                raise UserError(f"generation_kwargs {wanted}: known are until, max_gen_toks, do_sample, temperature (>= 0), top_k, seed")
            ids = self.tok_encode(context) or [self.prefix_token_id]
            generator = torch.Generator(self._device).manual_seed(wanted.get("seed", 0))
            most = wanted.get("max_gen_toks", wanted.get("max_new_tokens", 256))
            made, text = [], ""
            with torch.no_grad():
                for token in self.model.generate(torch.tensor([ids], device=self._device), most,
                                                 wanted.get("temperature", 1.0) if drawn else 0.0, wanted.get("top_k") or None, generator,
                                                 self.own_tokenizer.vocab_size):
                    made.append(token.item())
                    text = self.own_tokenizer.decode_bytes(made).decode("utf-8", errors="replace")
                    ends = [text.index(stop) for stop in stops if stop in text]
                    if ends:
                        text = text[:min(ends)]
                        break
            texts.append(text)
        return texts


def _batched(items, size):
    for first in range(0, len(items), size):
        yield items[first:first + size]
