"""Text in and out of a model: tokenizers, incremental detokenisation, stop strings, chat templates, the splitter. Needs no torch."""
