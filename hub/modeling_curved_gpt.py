"""
A GPT of the repository mixed-curvature-gpt as transformers loads it. The model's own code is in the other files of this folder, as the
repository has it; this one is what from_pretrained(), generate(), pipeline() and Trainer ask of a model, around it.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    print(tokenizer.decode(model.generate(**tokenizer("ROMEO:", return_tensors="pt"), max_new_tokens=100)[0]))

- Generation reads each token once (a cache), beam search included. Positions are absolute: text longer than block_size is made by
  reading its last block_size tokens anew for each further token, as the repository does.
- Padding on the left is refused: these models look at the token before. Prompts of one batch have one length. Padding on the right, with
  labels of -100 there, is fine in training and wherever nothing is generated.
- Assisted generation is refused by transformers: what was read cannot be taken back.

(In the repository this is hub/modeling_curved_gpt.py. export.py copies it, and writes the imports of the model in the place of one line.)
"""
import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .model import GPT, Cache, Keys  # what export.py replaces


class CurvedGPTConfig(PretrainedConfig):
    """keys: those of the repository's config.json that say what the model is, but for vocab_size."""

    model_type = "mixed_curvature_gpt"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, keys=None, vocab_size=None, use_cache=True, tie_word_embeddings=True, **kwargs):
        self.keys, self.vocab_size, self.use_cache = keys or {}, vocab_size, use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    # transformers' names
    hidden_size = property(lambda self: self.keys["n_embd"])
    num_hidden_layers = property(lambda self: self.keys["n_layer"])
    num_attention_heads = property(lambda self: self.keys["n_head"])
    max_position_embeddings = property(lambda self: self.keys["block_size"])


class TokenCache(Cache):
    """What generation keeps of the tokens read so far, with what generate() asks of it. Every tensor has the batch first."""

    is_compileable = False

    def get_seq_length(self, layer_idx=0):
        return self.length

    def reorder_cache(self, beam_idx):
        for state in (self.embedding, *self.blocks):
            state.update({name: rows.index_select(0, beam_idx.to(rows.device)) for name, rows in state.items()})


class CurvedGPTForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = CurvedGPTConfig
    _is_stateful = True  # a cache cannot be cut
    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        self.gpt = GPT(Keys(vocab_size=config.vocab_size, **config.keys))
        first = {}  # parameter -> its first name; the others, of the output head and of a curvature that blocks share, are tied to it
        names = [(name, first.setdefault(p, name)) for name, p in self.named_parameters(remove_duplicate=False)]
        self._tied_weights_keys = {name: source for name, source in names if name != source}
        for module in self.gpt.modules():
            # Numbers that follow from the keys are part of the file of weights here: from_pretrained() makes a model without numbers and
            # fills in those of the file, and no others.
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer)
            if hasattr(module, "forget_precomputed"):  # what follows from these is computed again, in the dtype that they are in now
                module.forget_precomputed()
        if self.device.type != "meta":
            for tensor in (*self.parameters(), *self.buffers()):
                tensor._is_hf_initialized = True  # by GPT
        self.post_init()

    def _init_weights(self, module):
        """For what GPT has not initialised: an embedding of another size, or weights that are not in a file."""
        if isinstance(module, nn.Embedding):
            super()._init_weights(module)
        elif any(not getattr(p, "_is_hf_initialized", False) for p in (*module.parameters(False), *module.buffers(False))):
            raise ValueError(f"weights are missing: those of a {type(module).__name__}")

    def get_input_embeddings(self):
        return self.gpt.transformer.wte

    def set_input_embeddings(self, embedding):
        self.gpt.transformer.wte = embedding

    def get_output_embeddings(self):
        return self.gpt.lm_head

    def set_output_embeddings(self, head):
        self.gpt.lm_head = head

    def _set_gradient_checkpointing(self, enable=True, **how):
        self.gpt.activation_checkpointing = enable

    def forward(self, input_ids, attention_mask=None, past_key_values=None, labels=None, use_cache=None, output_hidden_states=None,
                logits_to_keep=0, return_dict=None, **more):
        """input_ids: (B, T) -> logits (B, T, V), of the last logits_to_keep tokens if that is not 0. labels: (B, T), which are shifted
        here, -100 is left out. hidden_states: the residual stream before the first block and after each; of several streams what the
        output head reads."""
        for name in ("inputs_embeds", "position_ids", "token_type_ids", "output_attentions"):
            given = more.pop(name, None)
            if given is not None and given is not False:
                raise ValueError(f"{name}: these models have none; give input_ids alone")
        B, T = input_ids.shape
        cache, window = past_key_values, self.config.max_position_embeddings
        read = cache.get_seq_length() if cache is not None else 0
        if window < read + T:
            raise ValueError(f"a sequence of {read + T} tokens does not fit block_size = {window}")
        check_mask(attention_mask, read)
        recompute = self.gpt.activation_checkpointing and self.training and torch.is_grad_enabled()
        if recompute and read:
            raise ValueError("gradient checkpointing does not go with past_key_values")
        if cache is None and not recompute and (self.config.use_cache and not self.training if use_cache is None else use_cache):
            cache = TokenCache(self.config.num_hidden_layers)
        streams = [self.gpt.start(input_ids, cache)]
        all_of_them = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        for after in self.gpt.after_blocks(streams[0], cache):
            streams = [*streams, after] if all_of_them else [after]
        if cache is not None:
            cache.length += T
        rows = [self.gpt.one_row(x) for x in streams]  # (B, T, C)
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.gpt.lm_head(self.gpt.transformer.ln_f(rows[-1][:, kept]))
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **more)
        found = CausalLMOutputWithPast(loss, logits, cache, tuple(rows) if all_of_them else None)
        return found if (self.config.return_dict if return_dict is None else return_dict) else found.to_tuple()

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, past_key_values=None, attention_mask=None,
                                      cache_position=None, **more):
        """What forward() gets of all tokens so far: those that it has not read or, beyond block_size, the last window."""
        check_mask(attention_mask, input_ids.size(1))
        if cache_position is not None:  # releases of transformers before there was next_sequence_length
            next_sequence_length = len(cache_position)
        new = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        window = self.config.max_position_embeddings
        read = past_key_values.get_seq_length() if past_key_values is not None else 0
        if window < read + new.size(1) <= input_ids.size(1):
            new, past_key_values = input_ids[:, -window:], None
        known = {name: value for name, value in more.items() if name not in ("is_first_iteration", "labels")}
        return {"input_ids": new.to(self.device), "past_key_values": past_key_values, **known}

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # forward() makes the cache


def check_mask(mask, read):
    """ValueError where a mask (B, T) hides anything but the ends of rows, or these behind tokens that were read before."""
    if mask is None or bool((mask == 1).all()):
        return
    if mask.dim() != 2 or read or bool((mask.long().diff(dim=1) > 0).any()):
        raise ValueError("attention_mask has zeros: these models look at the token before, so padding cannot be hidden from them. Give "
                         "prompts of one length (padding on the right is fine where nothing is generated)")
