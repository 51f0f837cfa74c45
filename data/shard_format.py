"""The header of a shard, llm.c's: 256 little-endian int32 words, the first three of which are magic, version, number of tokens."""

HEADER_WORDS, MAGIC, VERSION = 256, 20240520, 1
