"""Living with others: what LangChain, Haystack and LlamaIndex have becomes ours in one line, and ours theirs. None is imported unasked."""
