"""Tokenizers of the old families out of their original vocabulary files, without their code.

`sentencepiece_file` reads the files, `sentencepiece_model` makes fast tokenizers of them, `tiktoken_model`
does so for Qwen's, `pangu` cuts words first, and `find` knows which folder wants which.
"""
