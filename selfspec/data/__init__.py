"""Corpora: text to tokens (`tokenizers`), one file a corpus, and blocks of tokens (`loader`)."""
