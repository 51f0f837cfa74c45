"""A text, in any of the tokenizers -> train.bin, val.bin, meta.json: what the scripts for single texts share."""
from common.errors import UserError
from data import tokenizer
from data.sources import sha256_of, write_dataset

LEAST_TOKENS = 1000
MOST_TOKENS = 65535  # of uint16


def check_vocab_size(size):
    if not tokenizer.BYTES < size <= MOST_TOKENS:
        raise UserError(f"vocab_size = {size}: must be from {tokenizer.BYTES + 1} to {MOST_TOKENS:,}")


def write_text(kind, folder, train, val, corpus, source, vocab_size=None, said=()):
    """Two texts, as tokens of this kind ('char' | 'bpe', of at most vocab_size tokens | 'gpt2'), and some lines on the screen. said:
    sentences for them. Raises UserError."""
    text = train + val
    raw = text.encode("utf-8")
    meta = {"corpus": corpus, "source": source, "sha256": sha256_of(raw), "bytes": len(raw), "tokenizer": kind}
    if kind == "char":
        characters = "".join(sorted(set(text)))
        if len(characters) > MOST_TOKENS:
            raise UserError(f"{corpus}: {len(characters):,} distinct characters, and uint16 tokens allow "
                            f"{MOST_TOKENS:,}; use data/shakespeare/prepare.py (GPT-2's tokens) for this text")
        meta |= {"vocab_size": len(characters), "characters": characters}
    elif kind == "bpe":
        tokens = tokenizer.learn_bpe(train, vocab_size)
        meta |= {"vocab_size": len(tokens), "tokens": tokenizer.as_text(tokens)}
    else:
        meta |= {"vocab_size": tokenizer.GPT2_VOCAB_SIZE}
    encode = tokenizer.load_tokenizer(meta).encode

    tokens_train, tokens_val = encode(train), encode(val)
    if len(tokens_train) + len(tokens_val) < LEAST_TOKENS:
        raise UserError(f"{corpus}: only {len(tokens_train) + len(tokens_val):,} tokens; at least {LEAST_TOKENS:,} are needed")
    meta = write_dataset(folder, tokens_train, tokens_val, {**meta, "val_bytes": len(val.encode("utf-8"))})

    print(f"corpus      {corpus}, {len(raw):,} bytes, from {source}")
    kinds = {"char": "character" if meta["vocab_size"] == 1 else "characters", "gpt2": "tokens (GPT-2's)",
             "bpe": "tokens (BPE, learned from the train part)"}
    print(f"vocabulary  {meta['vocab_size']:,} {kinds[kind]}")
    print(f"tokens      {meta['train_tokens']:,} train, {meta['val_tokens']:,} val")
    print(f"files       train.bin, val.bin, meta.json in {folder}")
    for sentence in said:
        print(f"note        {sentence}")
